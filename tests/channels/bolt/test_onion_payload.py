from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt import keys, onion, wire
from channels.bolt.onion import FailureCode, FinalPayload, ForwardPayload, HopPayload, HtlcRefused
from channels.errors import LocalProtocolError
from channels.units import BlockHeight, Msat, ShortChannelId
from tests.channels.bolt.test_onion import without_length
from tests.vectors import bolt04

POINT = keys.public_key(b"\1" * 32)
SECRET = b"\x11" * 32
HEIGHT = BlockHeight(800_000)


def test_payloads_of_onion_test() -> None:
    payloads = [onion.parse_payload(without_length(payload)) for _, payload in bolt04.HOPS[:4]]
    assert payloads[0] == HopPayload(
        amt_to_forward=Msat(15000),
        outgoing_cltv_value=1500,
        short_channel_id=ShortChannelId(1),
    )
    assert [payload.amt_to_forward for payload in payloads] == [15000, 14000, 12500, 10000]
    final = onion.parse_payload(without_length(bolt04.HOPS[4][1]))
    assert (final.amt_to_forward, final.outgoing_cltv_value) == (10000, 1000)
    assert final.total_msat == 10000
    assert final.payment_secret is not None
    assert final.payment_secret.hex().startswith("24a33562c54507a9334e79f0dc4f17d4")


def test_payloads_of_blinded_payment_onion_test() -> None:
    bob, eve = (
        onion.parse_payload(without_length(bolt04.BLINDED_HOPS[index][1])) for index in (1, 4)
    )
    assert bob.current_path_key is not None
    assert bob.current_path_key.hex().startswith("024d4b6cd1361032ca9bd2aeb9d900aa")
    assert (eve.amt_to_forward, eve.outgoing_cltv_value) == (100_000, 749_000)
    assert eve.total_amount_msat == 150_000


amounts = st.integers(0, (1 << 64) - 1).map(Msat)
expiries = st.integers(0, (1 << 32) - 1)


@given(
    amount=amounts,
    expiry=expiries,
    total=amounts,
    metadata=st.none() | st.binary(max_size=300),
    custom=st.dictionaries(
        st.integers(32768, 1 << 62).map(lambda number: 2 * number + 1), st.binary(max_size=20)
    ),
)
def test_final_payloads_round_trip(
    amount: Msat, expiry: int, total: Msat, metadata: bytes | None, custom: dict[int, bytes]
) -> None:
    data = onion.final_payload(amount, expiry, SECRET, total, metadata, custom)
    parsed = onion.parse_payload(data)
    assert parsed == HopPayload(
        amt_to_forward=amount,
        outgoing_cltv_value=expiry,
        payment_secret=SECRET,
        total_msat=total,
        payment_metadata=metadata,
    )
    assert onion.check_final(parsed, amount, expiry, HEIGHT) == FinalPayload(
        amount, expiry, SECRET, total, metadata
    )


@given(amount=amounts, expiry=expiries, channel=st.integers(0, (1 << 64) - 1))
def test_forward_payloads_round_trip(amount: Msat, expiry: int, channel: int) -> None:
    short_channel_id = ShortChannelId(channel)
    parsed = onion.parse_payload(onion.forward_payload(amount, expiry, short_channel_id))
    assert onion.check_forward(parsed, b"") == ForwardPayload(amount, expiry, short_channel_id)


@pytest.mark.parametrize(
    ("records", "tlv_type"),
    [
        ("0201", 0),  # truncated
        ("04010102020101", 0),  # out of order
        ("1e00", 0),  # unknown and even
        ("fe0053ae6200", 0),
        ("02020001", 2),  # not minimal
        ("0405ffffffffff", 4),
        ("060100", 6),
        ("060900" + "00" * 8, 6),
        ("081f" + "00" * 31, 8),
        ("0821" + "00" * 33, 8),
        ("0c21" + "00" * 33, 12),
    ],
)
def test_malformed_payloads(records: str, tlv_type: int) -> None:
    with pytest.raises(HtlcRefused) as caught:
        onion.parse_payload(bytes.fromhex(records))
    assert caught.value.reason == "invalid-onion-payload"
    assert caught.value.failure.code == FailureCode.INVALID_ONION_PAYLOAD
    assert caught.value.failure.fields == {"type": tlv_type, "offset": 0}


COMPLETE: dict[str, Any] = {
    "amt_to_forward": Msat(1000),
    "outgoing_cltv_value": 800_100,
    "payment_secret": SECRET,
    "total_msat": Msat(1000),
}


@pytest.mark.parametrize(
    ("changes", "amount", "expiry", "code", "fields"),
    [
        (
            {"amt_to_forward": None},
            1000,
            800_100,
            "INVALID_ONION_PAYLOAD",
            {"type": 2, "offset": 0},
        ),
        (
            {"outgoing_cltv_value": None},
            1000,
            800_100,
            "INVALID_ONION_PAYLOAD",
            {"type": 4, "offset": 0},
        ),
        (
            {"encrypted_recipient_data": b""},
            1000,
            800_100,
            "INVALID_ONION_PAYLOAD",
            {"type": 10, "offset": 0},
        ),
        (
            {"current_path_key": POINT},
            1000,
            800_100,
            "INVALID_ONION_PAYLOAD",
            {"type": 12, "offset": 0},
        ),
        (
            {"payment_secret": None, "total_msat": None},
            999,
            1,
            "INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS",
            {"htlc_msat": 999, "height": HEIGHT},
        ),
        ({}, 1000, 800_099, "FINAL_INCORRECT_CLTV_EXPIRY", {"cltv_expiry": 800_099}),
        ({}, 999, 800_100, "FINAL_INCORRECT_HTLC_AMOUNT", {"incoming_htlc_amt": 999}),
    ],
)
def test_what_the_final_node_refuses(
    changes: dict[str, Any], amount: int, expiry: int, code: str, fields: dict[str, int]
) -> None:
    with pytest.raises(HtlcRefused) as caught:
        onion.check_final(HopPayload(**COMPLETE | changes), Msat(amount), expiry, HEIGHT)
    assert caught.value.failure.code == FailureCode[code]
    assert caught.value.failure.fields == fields


def test_the_final_node_takes_more_and_longer_than_promised() -> None:
    payload = onion.check_final(HopPayload(**COMPLETE), Msat(1001), 800_101, HEIGHT)
    assert payload.amt_to_forward == 1000


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, {"type": 6, "offset": 0}),
        ({"amt_to_forward": None}, {"type": 2, "offset": 0}),
        ({"encrypted_recipient_data": b""}, {"type": 10, "offset": 0}),
        ({"current_path_key": POINT}, {"sha256_of_onion": hashlib.sha256(b"onion").digest()}),
    ],
)
def test_what_a_forwarding_node_refuses(changes: dict[str, Any], fields: dict[str, Any]) -> None:
    with pytest.raises(HtlcRefused) as caught:
        onion.check_forward(HopPayload(**COMPLETE | changes), b"onion")
    assert caught.value.failure.fields == fields


@pytest.mark.parametrize(("secret", "custom"), [(SECRET[:31], {}), (SECRET, {65535: b""})])
def test_payloads_that_are_not_written(secret: bytes, custom: dict[int, bytes]) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        onion.final_payload(Msat(1), 1, secret, Msat(1), None, custom)
    assert caught.value.reason == "onion-payload"


@given(
    data=st.binary(max_size=100)
    | st.dictionaries(st.integers(0, 20), st.binary(max_size=40)).map(wire.encode_tlvs)
)
def test_garbage_is_parsed_or_refused(data: bytes) -> None:
    try:
        parsed = onion.parse_payload(data)
    except HtlcRefused as error:
        assert error.failure.code == FailureCode.INVALID_ONION_PAYLOAD
    else:
        assert isinstance(parsed, HopPayload)
