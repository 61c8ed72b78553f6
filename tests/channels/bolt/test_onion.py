from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.bolt import keys, onion, wire
from channels.bolt.onion import BadOnion, FailureCode, Hop
from channels.bolt.onion_keys import derive_key, stream, xor
from channels.errors import LocalProtocolError
from tests.vectors import bolt04

SESSION_KEY = bytes.fromhex(bolt04.SESSION_KEY)
ASSOCIATED_DATA = bytes.fromhex(bolt04.ASSOCIATED_DATA)
NODE_SECRETS = [bytes.fromhex(secret) for secret in bolt04.NODE_SECRETS]
ONION = bytes.fromhex(bolt04.ONION)


def without_length(payload: str) -> bytes:
    reader = wire.Reader(bytes.fromhex(payload))
    length = reader.bigsize()
    rest = reader.rest()
    assert len(rest) == length
    return rest


def hops_of(vector: tuple[tuple[str, str], ...]) -> list[Hop]:
    return [Hop(bytes.fromhex(node), without_length(payload)) for node, payload in vector]


def test_the_packet_of_onion_test() -> None:
    assert onion.build_packet(SESSION_KEY, hops_of(bolt04.HOPS), ASSOCIATED_DATA) == ONION


def test_every_hop_of_onion_test() -> None:
    packet: bytes | None = ONION
    for hop, secret, shared in zip(
        hops_of(bolt04.HOPS), NODE_SECRETS, bolt04.SHARED_SECRETS, strict=True
    ):
        assert packet is not None
        peeled = onion.peel(packet, secret, ASSOCIATED_DATA)
        assert (peeled.payload, peeled.shared_secret.hex()) == (hop.payload, shared)
        packet = peeled.next_packet
    assert packet is None


def test_shared_secrets_of_onion_error_test() -> None:
    nodes = [hop.node_id for hop in hops_of(bolt04.HOPS)]
    secrets = onion.shared_secrets(SESSION_KEY, nodes)
    assert [secret.hex() for secret in secrets] == list(bolt04.SHARED_SECRETS)


def test_the_packet_of_blinded_payment_onion_test() -> None:
    session_key = bytes.fromhex(bolt04.BLINDED_SESSION_KEY)
    packet = onion.build_packet(session_key, hops_of(bolt04.BLINDED_HOPS), ASSOCIATED_DATA)
    assert packet.hex() == bolt04.BLINDED_ONION
    # Alice and Bob are reached by their node ids; those behind them by blinded ones.
    alice = onion.peel(packet, NODE_SECRETS[0], ASSOCIATED_DATA)
    assert alice.next_packet is not None
    assert alice.next_packet.hex() == bolt04.BLINDED_ONION_BOB
    bob = onion.peel(alice.next_packet, NODE_SECRETS[1], ASSOCIATED_DATA)
    assert bob.next_packet is not None
    assert bob.next_packet.hex() == bolt04.BLINDED_ONION_CAROL
    assert onion.parse_payload(bob.payload).current_path_key is not None


def refused(packet: bytes, associated_data: bytes = ASSOCIATED_DATA) -> BadOnion:
    with pytest.raises(BadOnion) as caught:
        onion.peel(packet, NODE_SECRETS[0], associated_data)
    assert caught.value.sha256_of_onion == hashlib.sha256(packet).digest()
    return caught.value


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (b"", FailureCode.INVALID_ONION_VERSION),
        (ONION[:-1], FailureCode.INVALID_ONION_VERSION),
        (ONION + b"\0", FailureCode.INVALID_ONION_VERSION),
        (b"\1" + ONION[1:], FailureCode.INVALID_ONION_VERSION),
        (b"\0\4" + ONION[2:], FailureCode.INVALID_ONION_KEY),
        (b"\0\2" + b"\xff" * 32 + ONION[34:], FailureCode.INVALID_ONION_KEY),
        (ONION[:-1] + bytes([ONION[-1] ^ 1]), FailureCode.INVALID_ONION_HMAC),
        (ONION[:34] + bytes(1332), FailureCode.INVALID_ONION_HMAC),
    ],
)
def test_packets_that_cannot_be_peeled(packet: bytes, code: FailureCode) -> None:
    error = refused(packet)
    assert error.failure_code == code
    assert error.failure_code & 0x8000
    assert error.reason == code.name.lower().replace("_", "-")


def test_the_hmac_covers_the_associated_data() -> None:
    assert refused(ONION, bytes(32)).failure_code == FailureCode.INVALID_ONION_HMAC


@pytest.mark.parametrize(
    "start",
    [
        "00",  # reserved lengths
        "01",
        "fd0001",  # not minimal
        "fd0501",  # the room that is there, exceeded
        "fd04f2",  # payload fits, its hmac does not
        "ffffffffffffffffff",
    ],
)
def test_frames_only_a_broken_sender_makes(start: str) -> None:
    """A packet with a right HMAC around a frame that cannot be."""
    node = keys.public_key(NODE_SECRETS[0])
    (secret,) = onion.shared_secrets(SESSION_KEY, [node])
    frame = bytes.fromhex(start).ljust(1300, b"\1")
    payloads = xor(frame, stream(derive_key(b"rho", secret), 1300))
    mac = hmac.digest(derive_key(b"mu", secret), payloads + ASSOCIATED_DATA, "sha256")
    packet = b"\0" + keys.public_key(SESSION_KEY) + payloads + mac
    assert refused(packet).failure_code == FailureCode.INVALID_ONION_HMAC


def test_routes_that_cannot_be_built() -> None:
    node = keys.public_key(NODE_SECRETS[0])
    fits = Hop(node, bytes(1300 - 3 - 32))
    packet = onion.build_packet(SESSION_KEY, [fits], b"")
    assert onion.peel(packet, NODE_SECRETS[0], b"").payload == fits.payload
    for hops, reason in (
        ([], "onion-route"),
        ([Hop(bytes(33), b"\0\0")], "onion-route"),
        ([Hop(node[:32], b"\0\0")], "onion-route"),
        ([Hop(node, b"\0")], "onion-payload"),
        ([Hop(node, fits.payload + b"\0")], "onion-too-big"),
        ([Hop(node, bytes(16))] * 27, "onion-too-big"),
    ):
        with pytest.raises(LocalProtocolError) as caught:
            onion.build_packet(SESSION_KEY, hops, b"")
        assert caught.value.reason == reason


@settings(max_examples=60, deadline=None)
@given(
    session_key=st.integers(1, 1 << 255).map(lambda number: number.to_bytes(32, "big")),
    payloads=st.lists(st.binary(min_size=2, max_size=32), min_size=1, max_size=20),
    associated_data=st.binary(max_size=40),
    at=st.integers(0, onion.PACKET_SIZE * 8 - 1),
)
def test_round_trip_over_any_route(
    session_key: bytes, payloads: list[bytes], associated_data: bytes, at: int
) -> None:
    secrets = [bytes([index + 1]) * 32 for index in range(len(payloads))]
    nodes = [keys.public_key(secret) for secret in secrets]
    hops = [Hop(node, payload) for node, payload in zip(nodes, payloads, strict=True)]
    shared = onion.shared_secrets(session_key, nodes)
    packet: bytes | None = onion.build_packet(session_key, hops, associated_data)
    for index, secret in enumerate(secrets):
        assert packet is not None
        assert len(packet) == onion.PACKET_SIZE
        flipped = bytearray(packet)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(BadOnion):
            onion.peel(bytes(flipped), secret, associated_data)
        peeled = onion.peel(packet, secret, associated_data)
        assert (peeled.payload, peeled.shared_secret) == (payloads[index], shared[index])
        packet = peeled.next_packet
    assert packet is None


@given(packet=st.binary(min_size=1366, max_size=1366) | st.binary(max_size=1400))
def test_garbage_is_a_bad_onion(packet: bytes) -> None:
    refused(packet)
