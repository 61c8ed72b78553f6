"""BOLT 4: the packet that hides a route, and what each hop finds in it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from channels.bolt import keys, wire
from channels.bolt.onion_failures import (
    MAX_HOPS,
    Failure,
    FailureCode,
    create_error,
    read_error,
    wrap_error,
)
from channels.bolt.onion_keys import derive_key, stream, xor
from channels.bolt.onion_payload import (
    FinalPayload,
    ForwardPayload,
    HopPayload,
    HtlcRefused,
    check_final,
    check_forward,
    final_payload,
    forward_payload,
    parse_payload,
)
from channels.errors import LocalProtocolError, OdaError, RemoteProtocolError

__all__ = [
    "MAX_HOPS",
    "PACKET_SIZE",
    "BadOnion",
    "Failure",
    "FailureCode",
    "FinalPayload",
    "ForwardPayload",
    "Hop",
    "HopPayload",
    "HtlcRefused",
    "Peeled",
    "build_packet",
    "check_final",
    "check_forward",
    "create_error",
    "final_payload",
    "forward_payload",
    "parse_payload",
    "peel",
    "read_error",
    "shared_secrets",
    "wrap_error",
]

_HOP_PAYLOADS = 1300
_HMAC = 32
_KEY_END = 1 + 33
PACKET_SIZE = _KEY_END + _HOP_PAYLOADS + _HMAC


@dataclass(frozen=True, slots=True)
class Hop:
    """A node on the route and its `payload`: the TLV stream without its length."""

    node_id: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Peeled:
    """What one hop finds. `next_packet` is None at the final node."""

    payload: bytes
    next_packet: bytes | None
    shared_secret: bytes = field(repr=False)


class BadOnion(OdaError):
    """A packet that cannot be peeled: answer its HTLC with update_fail_malformed_htlc.

    The peer that forwarded it need not have made it, so this is no RemoteProtocolError.
    """

    def __init__(self, failure_code: FailureCode, packet: bytes) -> None:
        super().__init__(
            failure_code.name.lower().replace("_", "-"),
            f"The onion of an HTLC cannot be peeled ({failure_code.name.lower()}); fail the HTLC.",
        )
        self.failure_code = failure_code
        self.sha256_of_onion = hashlib.sha256(packet).digest()


def _route_secrets(session_key: bytes, node_ids: Sequence[bytes]) -> tuple[bytes, ...]:
    secrets = []
    ephemeral = session_key
    for node_id in node_ids:
        secret = keys.ecdh(ephemeral, node_id)
        secrets.append(secret)
        ephemeral = keys.multiply_secret(ephemeral, _blinding(keys.public_key(ephemeral), secret))
    return tuple(secrets)


def _blinding(ephemeral_key: bytes, shared_secret: bytes) -> bytes:
    """BOLT 4 "Blinding Ephemeral Onion Keys"."""
    return hashlib.sha256(ephemeral_key + shared_secret).digest()


def shared_secrets(session_key: bytes, node_ids: Sequence[bytes]) -> tuple[bytes, ...]:
    """The secret shared with each hop, as needed to read a returned error.

    Raises LocalProtocolError("onion-route") for a key that is not one.
    """
    try:
        return _route_secrets(session_key, node_ids)
    except RemoteProtocolError as error:
        # The keys are arguments of ours here, whoever they came from.
        raise LocalProtocolError("onion-route", f"No onion for this route: {error}") from error


def build_packet(session_key: bytes, hops: Sequence[Hop], associated_data: bytes) -> bytes:
    """The 1366-byte packet for the first hop (BOLT 4 "Packet Construction").

    `associated_data` is the payment hash. Raises LocalProtocolError: "onion-route",
    "onion-payload", "onion-too-big".
    """
    if not hops:
        raise LocalProtocolError("onion-route", "An onion needs at least one hop.")
    if any(len(hop.payload) < 2 for hop in hops):
        # BOLT 4 "Packet Structure": lengths 0 and 1 are reserved.
        raise LocalProtocolError("onion-payload", "A payload of an onion has at least 2 bytes.")
    if sum(_slot(hop) for hop in hops) > _HOP_PAYLOADS:
        raise LocalProtocolError(
            "onion-too-big", "The payloads do not fit in an onion; take a shorter route."
        )
    secrets = shared_secrets(session_key, [hop.node_id for hop in hops])
    filler = _filler(secrets, hops)
    payloads = stream(derive_key(b"pad", session_key), _HOP_PAYLOADS)
    mac = bytes(_HMAC)
    for index in range(len(hops) - 1, -1, -1):
        payload = hops[index].payload
        payloads = (wire.bigsize(len(payload)) + payload + mac + payloads)[:_HOP_PAYLOADS]
        payloads = xor(payloads, stream(derive_key(b"rho", secrets[index]), _HOP_PAYLOADS))
        if index == len(hops) - 1:
            payloads = payloads[: _HOP_PAYLOADS - len(filler)] + filler
        mac = _mac(secrets[index], payloads, associated_data)
    return b"\0" + keys.public_key(session_key) + payloads + mac


def _slot(hop: Hop) -> int:
    return len(wire.bigsize(len(hop.payload))) + len(hop.payload) + _HMAC


def _filler(secrets: Sequence[bytes], hops: Sequence[Hop]) -> bytes:
    """BOLT 4 "Filler Generation": what the hops before the last will have shifted in."""
    filler = b""
    for secret, hop in zip(secrets[:-1], hops[:-1], strict=True):
        size = _slot(hop)
        noise = stream(derive_key(b"rho", secret), 2 * _HOP_PAYLOADS)
        filler = xor(
            filler + bytes(size), noise[_HOP_PAYLOADS - len(filler) :][: len(filler) + size]
        )
    return filler


def _mac(secret: bytes, payloads: bytes, associated_data: bytes) -> bytes:
    return hmac.digest(derive_key(b"mu", secret), payloads + associated_data, "sha256")


def peel(packet: bytes, node_secret: bytes, associated_data: bytes) -> Peeled:
    """Take one layer off (BOLT 4 "Onion Decryption").

    Raises BadOnion. Whether the same packet came before is for the caller to know.
    """
    if len(packet) != PACKET_SIZE or packet[0] != 0:
        raise BadOnion(FailureCode.INVALID_ONION_VERSION, packet)
    ephemeral_key, payloads = packet[1:_KEY_END], packet[_KEY_END:-_HMAC]
    if not keys.is_public_key(ephemeral_key):
        raise BadOnion(FailureCode.INVALID_ONION_KEY, packet)
    secret = keys.ecdh(node_secret, ephemeral_key)
    if not hmac.compare_digest(_mac(secret, payloads, associated_data), packet[-_HMAC:]):
        raise BadOnion(FailureCode.INVALID_ONION_HMAC, packet)
    noise = stream(derive_key(b"rho", secret), 2 * _HOP_PAYLOADS)
    unwrapped = xor(payloads + bytes(_HOP_PAYLOADS), noise)
    try:
        reader = wire.Reader(unwrapped)
        payload = reader.take(_payload_length(reader))
        next_mac = reader.take(_HMAC)
        rest = reader.rest()
    except RemoteProtocolError:
        rest = b""
    # BOLT 4: less left than there was means that the sender claimed room it did not have. Only
    # the sender can have made this, and no failure code is for it; Core Lightning answers so too.
    if len(rest) < _HOP_PAYLOADS:
        raise BadOnion(FailureCode.INVALID_ONION_HMAC, packet)
    if next_mac == bytes(_HMAC):
        return Peeled(payload, None, secret)
    next_key = keys.multiply_public_key(ephemeral_key, _blinding(ephemeral_key, secret))
    return Peeled(payload, b"\0" + next_key + rest[:_HOP_PAYLOADS] + next_mac, secret)


def _payload_length(reader: wire.Reader) -> int:
    length = reader.bigsize()
    if length < 2:
        raise RemoteProtocolError("onion-payload", "Payload lengths 0 and 1 are reserved.")
    return length
