"""What BOLT 4 asks of a node that forwards, rule by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt.forwarding import EXPIRY_MARGIN, MAX_HTLC_CLTV, Outgoing, check, fee
from channels.bolt.onion_payload import ForwardPayload, HtlcRefused
from channels.bolt.policy import Policy
from channels.units import BlockHeight, Msat, ShortChannelId

HEIGHT = BlockHeight(1000)
POLICY = Policy(
    fee_base_msat=Msat(100),
    fee_proportional_millionths=1_000,
    cltv_expiry_delta=34,
    htlc_minimum_msat=Msat(1_000),
    htlc_maximum_msat=Msat(5_000_000),
)
UPDATE = b"\x01\x02 a channel_update"
OUTGOING = Outgoing(policies=[POLICY], usable=True, closing=False, channel_update=UPDATE)
# BOLT 7 "HTLC Fees": 100 + 1000000 * 1000 / 1000000
PAYLOAD = ForwardPayload(Msat(1_000_000), HEIGHT + 50, ShortChannelId(1))
AMOUNT, EXPIRY = Msat(1_001_100), HEIGHT + 84


def refused(
    payload: ForwardPayload = PAYLOAD,
    amount: int = AMOUNT,
    expiry: int = EXPIRY,
    outgoing: Outgoing | None = OUTGOING,
) -> tuple[str, dict[str, int | bytes]]:
    with pytest.raises(HtlcRefused) as raised:
        check(payload, Msat(amount), expiry, outgoing, HEIGHT)
    failure = raised.value.failure
    return failure.name, failure.fields


def test_exactly_what_is_asked_is_enough() -> None:
    check(PAYLOAD, AMOUNT, EXPIRY, OUTGOING, HEIGHT)


def test_each_failure_has_the_fields_of_the_bolt() -> None:
    update = {"channel_update": UPDATE}
    assert refused(outgoing=None) == ("unknown_next_peer", {})
    closing = replace(OUTGOING, closing=True)
    assert refused(outgoing=closing) == ("permanent_channel_failure", {})
    away = replace(OUTGOING, usable=False)
    assert refused(outgoing=away) == ("temporary_channel_failure", update)
    small = replace(PAYLOAD, amt_to_forward=Msat(999))
    assert refused(small) == ("amount_below_minimum", {"htlc_msat": 999, **update})
    large = replace(PAYLOAD, amt_to_forward=Msat(5_000_001))
    assert refused(large, amount=6_000_000) == ("temporary_channel_failure", update)
    # The amount of the incoming HTLC, and the expiry of the outgoing one.
    assert refused(amount=AMOUNT - 1) == (
        "fee_insufficient",
        {"htlc_msat": AMOUNT - 1, **update},
    )
    assert refused(expiry=EXPIRY - 1) == (
        "incorrect_cltv_expiry",
        {"cltv_expiry": HEIGHT + 50, **update},
    )
    near = replace(PAYLOAD, outgoing_cltv_value=HEIGHT + EXPIRY_MARGIN)
    assert refused(near) == ("expiry_too_soon", update)
    assert refused(expiry=HEIGHT + MAX_HTLC_CLTV + 1) == ("expiry_too_far", {})


def test_amounts_that_grow_on_their_way_are_refused() -> None:
    """A sender that asks us to pay more than it gives, or later than it waits."""
    more = replace(PAYLOAD, amt_to_forward=Msat(AMOUNT + 1))
    assert refused(more)[0] == "fee_insufficient"
    later = replace(PAYLOAD, outgoing_cltv_value=EXPIRY + 1)
    assert refused(later)[0] == "incorrect_cltv_expiry"


def test_the_policy_before_is_honoured_too_and_the_new_one_is_what_is_told() -> None:
    dearer = replace(POLICY, fee_base_msat=Msat(200))
    both = replace(OUTGOING, policies=[dearer, POLICY])
    check(PAYLOAD, AMOUNT, EXPIRY, both, HEIGHT)
    assert refused(amount=AMOUNT - 1, outgoing=both)[0] == "fee_insufficient"
    assert refused(outgoing=replace(OUTGOING, policies=[dearer]))[0] == "fee_insufficient"


amounts = st.integers(0, 10_000_000)
blocks = st.integers(0, 5_000)


@given(amount=amounts, out=amounts, expiry=blocks, out_expiry=blocks)
def test_whatever_is_forwarded_pays_us_and_leaves_us_time(
    amount: int, out: int, expiry: int, out_expiry: int
) -> None:
    payload = ForwardPayload(Msat(out), out_expiry, ShortChannelId(1))
    try:
        check(payload, Msat(amount), expiry, OUTGOING, HEIGHT)
    except HtlcRefused as error:
        assert error.failure.name != "unknown_failure"
        return
    assert amount - out >= fee(POLICY, Msat(out)) >= POLICY.fee_base_msat
    assert expiry - out_expiry >= POLICY.cltv_expiry_delta
    assert POLICY.htlc_minimum_msat <= out <= POLICY.htlc_maximum_msat
    assert HEIGHT + EXPIRY_MARGIN < out_expiry < expiry <= HEIGHT + MAX_HTLC_CLTV
