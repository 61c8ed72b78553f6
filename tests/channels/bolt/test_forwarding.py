"""Every reason not to forward, by the table of BOLT 4 "Failure Messages"."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt.forwarding import (
    MAX_HTLC_CLTV,
    SOONEST,
    Condition,
    Outgoing,
    check,
    full,
    returned,
)
from channels.bolt.onion import FailureCode, ForwardPayload, HtlcRefused
from channels.bolt.policy import Policy
from channels.units import BlockHeight, Msat, ShortChannelId

HEIGHT = BlockHeight(1_000)
UPDATE = b"\1\2what the channel asks for"
TERMS = Policy(
    fee_base_msat=Msat(1_000),
    fee_proportional_millionths=10,
    cltv_expiry_delta=34,
    htlc_minimum_msat=Msat(1_000),
    htlc_maximum_msat=Msat(900_000_000),
)
FREE = replace(TERMS, fee_base_msat=Msat(0), fee_proportional_millionths=0)
OUTGOING = Outgoing(Condition.USABLE, (TERMS,), UPDATE)
AMOUNT = Msat(10_000_000)
FEE = 1_000 + 100
EXPIRY = HEIGHT + 40


def refusal(
    incoming_msat: int = AMOUNT + FEE,
    incoming_cltv: int = EXPIRY + 34,
    amount: int = AMOUNT,
    expiry: int = EXPIRY,
    outgoing: Outgoing | None = OUTGOING,
) -> HtlcRefused | None:
    payload = ForwardPayload(Msat(amount), expiry, ShortChannelId(1))
    try:
        check(Msat(incoming_msat), incoming_cltv, payload, outgoing, HEIGHT)
    except HtlcRefused as refused:
        return refused
    return None


def test_what_pays_exactly_what_is_asked_goes_through() -> None:
    assert refusal() is None
    assert refusal(expiry=HEIGHT + SOONEST) is None
    assert refusal(incoming_cltv=HEIGHT + MAX_HTLC_CLTV) is None
    assert refusal(amount=TERMS.htlc_minimum_msat) is None
    most = TERMS.htlc_maximum_msat
    assert refusal(incoming_msat=most + 1_000 + 9_000, amount=most) is None


@pytest.mark.parametrize(
    ("changed", "code", "fields"),
    [
        ({"outgoing": None}, FailureCode.UNKNOWN_NEXT_PEER, {}),
        (
            {"outgoing": replace(OUTGOING, condition=Condition.GONE)},
            FailureCode.PERMANENT_CHANNEL_FAILURE,
            {},
        ),
        (
            {"outgoing": replace(OUTGOING, condition=Condition.AWAY)},
            FailureCode.TEMPORARY_CHANNEL_FAILURE,
            {"channel_update": UPDATE},
        ),
        (
            {"incoming_msat": 1_000_000_000, "amount": TERMS.htlc_maximum_msat + 1},
            FailureCode.TEMPORARY_CHANNEL_FAILURE,
            {"channel_update": UPDATE},
        ),
        (
            {"amount": TERMS.htlc_minimum_msat - 1},
            FailureCode.AMOUNT_BELOW_MINIMUM,
            {"htlc_msat": 999, "channel_update": UPDATE},
        ),
        (
            {"incoming_msat": AMOUNT + FEE - 1},
            FailureCode.FEE_INSUFFICIENT,
            {"htlc_msat": AMOUNT + FEE - 1, "channel_update": UPDATE},
        ),
        (
            # Less comes in than shall go out.
            {"incoming_msat": AMOUNT - 1, "outgoing": replace(OUTGOING, terms=(FREE,))},
            FailureCode.FEE_INSUFFICIENT,
            {"htlc_msat": AMOUNT - 1, "channel_update": UPDATE},
        ),
        (
            {"incoming_cltv": EXPIRY + 33},
            FailureCode.INCORRECT_CLTV_EXPIRY,
            {"cltv_expiry": EXPIRY, "channel_update": UPDATE},
        ),
        (
            {"expiry": HEIGHT + SOONEST - 1},
            FailureCode.EXPIRY_TOO_SOON,
            {"channel_update": UPDATE},
        ),
        (
            {"outgoing": replace(OUTGOING, condition=Condition.DISABLED)},
            FailureCode.CHANNEL_DISABLED,
            {"disabled_flags": 0, "channel_update": UPDATE},
        ),
        ({"incoming_cltv": HEIGHT + MAX_HTLC_CLTV + 1}, FailureCode.EXPIRY_TOO_FAR, {}),
    ],
)
def test_what_does_not_is_refused(
    changed: dict[str, object], code: FailureCode, fields: dict[str, object]
) -> None:
    refused = refusal(**changed)  # type: ignore[arg-type]  # one argument of any of three types
    assert refused is not None
    assert (refused.failure.code, refused.failure.fields) == (code, fields)


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ({"amount": 1, "incoming_msat": 0}, FailureCode.AMOUNT_BELOW_MINIMUM),
        ({"incoming_msat": 1, "incoming_cltv": 1}, FailureCode.FEE_INSUFFICIENT),
        ({"incoming_cltv": 1, "expiry": 1}, FailureCode.INCORRECT_CLTV_EXPIRY),
    ],
)
def test_of_several_reasons_the_first_in_the_table_is_told(
    changed: dict[str, int], first: FailureCode
) -> None:
    refused = refusal(**changed)  # type: ignore[arg-type]  # the integers among the arguments
    assert refused is not None and refused.failure.code == first


def test_older_terms_hold_as_long_as_they_are_given() -> None:
    both = replace(OUTGOING, terms=(TERMS, FREE))
    assert refusal(incoming_msat=AMOUNT) is not None
    assert refusal(incoming_msat=AMOUNT, outgoing=both) is None
    # What neither accepts is refused by the new ones.
    dear = replace(OUTGOING, terms=(replace(TERMS, fee_base_msat=Msat(10**6)), TERMS))
    refused = refusal(incoming_msat=AMOUNT, outgoing=dear)
    assert refused is not None and refused.failure.code == FailureCode.FEE_INSUFFICIENT
    # Each alone, not the cheapest of each: FREE with a longer delay does not lend its fee.
    slow = replace(FREE, cltv_expiry_delta=100)
    assert refusal(incoming_msat=AMOUNT, outgoing=replace(OUTGOING, terms=(TERMS, slow)))


def test_a_full_channel_is_a_temporary_failure() -> None:
    failure = full(OUTGOING, "Full.").failure
    assert failure.code == FailureCode.TEMPORARY_CHANNEL_FAILURE
    assert failure.fields == {"channel_update": UPDATE}


def test_what_the_next_node_could_not_read_is_told_with_its_hash() -> None:
    code = FailureCode.INVALID_ONION_HMAC
    failure = returned((code, b"\7" * 32))
    assert (failure.code, failure.fields) == (code, {"sha256_of_onion": b"\7" * 32})


edge = st.integers(-2, 2)


@given(
    over=edge,
    later=edge,
    amount=st.integers(2, 10**12),
    ahead=st.integers(0, 2_016),
    base=st.integers(0, 10**7),
    ppm=st.integers(0, 10**6),
    delta=st.integers(0, 100),
    condition=st.sampled_from(Condition),
)
def test_nothing_is_forwarded_that_can_lose_money(
    over: int,
    later: int,
    amount: int,
    ahead: int,
    base: int,
    ppm: int,
    delta: int,
    condition: Condition,
) -> None:
    terms = replace(
        TERMS,
        fee_base_msat=Msat(base),
        fee_proportional_millionths=ppm,
        cltv_expiry_delta=delta,
        htlc_minimum_msat=Msat(0),
        htlc_maximum_msat=Msat(10**12),
    )
    outgoing = Outgoing(condition, (terms,), UPDATE)
    expiry = HEIGHT + ahead
    # BOLT 7, "HTLC Fees": fee_base_msat + amount * millionths / 1000000.
    incoming_msat = amount + base + amount * ppm // 10**6 + over
    incoming_cltv = expiry + delta + later
    refused = refusal(incoming_msat, incoming_cltv, amount, expiry, outgoing)
    bounded = ahead >= SOONEST and incoming_cltv <= HEIGHT + MAX_HTLC_CLTV
    may = over >= 0 and later >= 0 and bounded and condition is Condition.USABLE
    assert (refused is None) == may
