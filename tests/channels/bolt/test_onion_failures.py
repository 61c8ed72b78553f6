from __future__ import annotations

import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.bolt import onion
from channels.bolt.onion import Failure, FailureCode
from channels.bolt.onion_keys import derive_key
from channels.errors import LocalProtocolError
from tests.vectors import bolt04

SECRETS = [bytes.fromhex(secret) for secret in bolt04.SHARED_SECRETS]
DETAILS = FailureCode.INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS

# BOLT 4 "Failure Messages": the numbers as the flags spell them.
CODES = {
    "temporary_node_failure": 0x2002,
    "permanent_node_failure": 0x6002,
    "required_node_feature_missing": 0x6003,
    "invalid_onion_version": 0xC004,
    "invalid_onion_hmac": 0xC005,
    "invalid_onion_key": 0xC006,
    "temporary_channel_failure": 0x1007,
    "permanent_channel_failure": 0x4008,
    "required_channel_feature_missing": 0x4009,
    "unknown_next_peer": 0x400A,
    "amount_below_minimum": 0x100B,
    "fee_insufficient": 0x100C,
    "incorrect_cltv_expiry": 0x100D,
    "expiry_too_soon": 0x100E,
    "incorrect_or_unknown_payment_details": 0x400F,
    "final_incorrect_cltv_expiry": 18,
    "final_incorrect_htlc_amount": 19,
    "channel_disabled": 0x1014,
    "expiry_too_far": 21,
    "invalid_onion_payload": 0x4016,
    "mpp_timeout": 23,
    "invalid_onion_blinding": 0xC018,
}


def test_every_code_of_the_bolt() -> None:
    assert {code.name.lower(): int(code) for code in FailureCode} == CODES
    for name, number in CODES.items():
        assert Failure(number).name == name
        assert Failure(number).is_permanent == (number & 0x4000 != 0)
    assert Failure(0x4010).name == "unknown_failure"


def test_keys_of_onion_error_test() -> None:
    assert [derive_key(b"ammag", secret).hex() for secret in SECRETS] == list(bolt04.AMMAG_KEYS)
    assert derive_key(b"um", SECRETS[4]).hex() == bolt04.UM_KEY


def test_the_packet_of_onion_error_test() -> None:
    failure = Failure.of(FailureCode.TEMPORARY_NODE_FAILURE)
    assert failure.encode().hex() == "2002"
    packet = onion.create_error(SECRETS[4], failure)
    assert len(packet) == 292
    for secret in reversed(SECRETS[:4]):
        packet = onion.wrap_error(secret, packet)
    assert packet.hex() == bolt04.ERROR_PACKET
    assert onion.read_error(SECRETS, packet) == (4, failure)


def test_the_packets_of_returning_errors() -> None:
    message = bytes.fromhex(bolt04.FAILURE_MESSAGE)
    failure = Failure(DETAILS, message[2:])
    assert failure.encode() == message
    # The TLV that follows is to be ignored.
    assert failure.fields == {"htlc_msat": 100, "height": 800_000}
    # The example pads to 1024 bytes, which the BOLT elsewhere advises against.
    packets = [onion.create_error(SECRETS[4], failure, pad_to=1024)]
    for secret in reversed(SECRETS[:4]):
        packets.append(onion.wrap_error(secret, packets[-1]))
    assert [packet.hex() for packet in packets] == list(bolt04.RETURN_PACKETS)
    assert onion.read_error(SECRETS, packets[-1]) == (4, failure)


UPDATE = b"\x01\x02" + bytes(130)
EXAMPLES: list[tuple[FailureCode, dict[str, int | bytes], str]] = [
    (FailureCode.TEMPORARY_NODE_FAILURE, {}, ""),
    (FailureCode.PERMANENT_NODE_FAILURE, {}, ""),
    (FailureCode.REQUIRED_NODE_FEATURE_MISSING, {}, ""),
    (FailureCode.INVALID_ONION_VERSION, {"sha256_of_onion": b"\1" * 32}, "01" * 32),
    (FailureCode.INVALID_ONION_HMAC, {"sha256_of_onion": b"\1" * 32}, "01" * 32),
    (FailureCode.INVALID_ONION_KEY, {"sha256_of_onion": b"\1" * 32}, "01" * 32),
    (FailureCode.TEMPORARY_CHANNEL_FAILURE, {"channel_update": b""}, "0000"),
    (FailureCode.PERMANENT_CHANNEL_FAILURE, {}, ""),
    (FailureCode.REQUIRED_CHANNEL_FEATURE_MISSING, {}, ""),
    (FailureCode.UNKNOWN_NEXT_PEER, {}, ""),
    (
        FailureCode.AMOUNT_BELOW_MINIMUM,
        {"htlc_msat": 5, "channel_update": UPDATE},
        "00000000000000050084" + UPDATE.hex(),
    ),
    (
        FailureCode.FEE_INSUFFICIENT,
        {"htlc_msat": 5, "channel_update": b""},
        "00000000000000050000",
    ),
    (FailureCode.INCORRECT_CLTV_EXPIRY, {"cltv_expiry": 5, "channel_update": b""}, "000000050000"),
    (FailureCode.EXPIRY_TOO_SOON, {"channel_update": b"ab"}, "00026162"),
    (DETAILS, {"htlc_msat": 100, "height": 800_000}, "0000000000000064000c3500"),
    (FailureCode.FINAL_INCORRECT_CLTV_EXPIRY, {"cltv_expiry": 1}, "00000001"),
    (FailureCode.FINAL_INCORRECT_HTLC_AMOUNT, {"incoming_htlc_amt": 1}, "0000000000000001"),
    (FailureCode.CHANNEL_DISABLED, {"disabled_flags": 0, "channel_update": b""}, "00000000"),
    (FailureCode.EXPIRY_TOO_FAR, {}, ""),
    (FailureCode.INVALID_ONION_PAYLOAD, {"type": 300, "offset": 7}, "fd012c0007"),
    (FailureCode.MPP_TIMEOUT, {}, ""),
    (FailureCode.INVALID_ONION_BLINDING, {"sha256_of_onion": b"\1" * 32}, "01" * 32),
]


def test_examples_cover_every_code() -> None:
    assert [code for code, _, _ in EXAMPLES] == list(FailureCode)


@pytest.mark.parametrize(
    ("code", "fields", "data"), EXAMPLES, ids=[code.name for code, _, _ in EXAMPLES]
)
def test_fields_of_every_code(code: FailureCode, fields: dict[str, int | bytes], data: str) -> None:
    failure = Failure.of(code, **fields)
    assert failure.data.hex() == data
    assert failure.fields == fields
    packet = onion.create_error(SECRETS[0], failure)
    assert onion.read_error(SECRETS, packet) == (0, failure)


def test_fields_that_are_cut_short_are_absent() -> None:
    assert Failure(DETAILS, bytes(8)).fields == {"htlc_msat": 0}
    assert Failure(DETAILS, bytes(7)).fields == {}
    assert Failure(FailureCode.TEMPORARY_CHANNEL_FAILURE, b"\0\5abcd").fields == {}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "failure-fields"),
        ({"htlc_msat": 1}, "failure-fields"),
        ({"htlc_msat": 1, "height": 1, "extra": 1}, "failure-fields"),
        ({"htlc_msat": 1, "height": 1 << 32}, "integer-out-of-range"),
    ],
)
def test_failures_that_are_not_written(fields: dict[str, int], reason: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        Failure.of(DETAILS, **fields)
    assert caught.value.reason == reason


def test_a_failure_must_fit_its_message() -> None:
    largest = onion.create_error(SECRETS[0], Failure(1, bytes(65497)))
    assert len(largest) == 65535
    with pytest.raises(LocalProtocolError) as caught:
        onion.create_error(SECRETS[0], Failure(1, bytes(65498)))
    assert caught.value.reason == "failure-too-long"


def test_an_authentic_hop_without_a_readable_message() -> None:
    for body in (b"", b"\0", b"\0\1a", b"\xff\xffabc"):
        mac = hmac.digest(derive_key(b"um", SECRETS[2]), body, "sha256")
        packet = onion.wrap_error(SECRETS[2], mac + body)
        for secret in reversed(SECRETS[:2]):
            packet = onion.wrap_error(secret, packet)
        assert onion.read_error(SECRETS, packet) == (2, Failure(0, body))


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(max_size=600),
    code=st.integers(0, 0xFFFF),
    length=st.integers(1, 20),
    source=st.integers(0, 19),
    at=st.integers(0, 1 << 16),
)
def test_round_trip_from_any_hop(data: bytes, code: int, length: int, source: int, at: int) -> None:
    source %= length
    secrets = [bytes([index + 1]) * 32 for index in range(length)]
    failure = Failure(code, data)
    packet = onion.create_error(secrets[source], failure)
    for secret in reversed(secrets[:source]):
        packet = onion.wrap_error(secret, packet)
    assert onion.read_error(secrets, packet) == (source, failure)
    flipped = bytearray(packet)
    flipped[at // 8 % len(packet)] ^= 1 << at % 8
    assert onion.read_error(secrets, bytes(flipped)) is None


@given(packet=st.binary(max_size=400))
def test_garbage_has_no_source(packet: bytes) -> None:
    assert onion.read_error(SECRETS, packet) is None
