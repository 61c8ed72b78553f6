"""BOLT 4 "Returning Errors": failure messages, and the packets that carry them back.

`attribution_data` (option_attribution_data) is not part of this: the feature is not offered.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from channels.bolt import wire
from channels.bolt.onion_keys import derive_key, stream, xor
from channels.errors import LocalProtocolError, RemoteProtocolError

BADONION, PERM, NODE, UPDATE = 0x8000, 0x4000, 0x2000, 0x1000

MAX_HOPS = 27
"""BOLT 4 "Origin node": the longest route, and how often a returned packet is unwrapped."""

_MIN_MESSAGE_AND_PAD = 256
_HMAC = 32
# So that the packet fits the u16 length of `reason` in update_fail_htlc.
_MAX_MESSAGE = 65535 - _HMAC - 4


class FailureCode(IntEnum):
    """BOLT 4 "Failure Messages"; names are the BOLT's."""

    TEMPORARY_NODE_FAILURE = NODE | 2
    PERMANENT_NODE_FAILURE = PERM | NODE | 2
    REQUIRED_NODE_FEATURE_MISSING = PERM | NODE | 3
    INVALID_ONION_VERSION = BADONION | PERM | 4
    INVALID_ONION_HMAC = BADONION | PERM | 5
    INVALID_ONION_KEY = BADONION | PERM | 6
    TEMPORARY_CHANNEL_FAILURE = UPDATE | 7
    PERMANENT_CHANNEL_FAILURE = PERM | 8
    REQUIRED_CHANNEL_FEATURE_MISSING = PERM | 9
    UNKNOWN_NEXT_PEER = PERM | 10
    AMOUNT_BELOW_MINIMUM = UPDATE | 11
    FEE_INSUFFICIENT = UPDATE | 12
    INCORRECT_CLTV_EXPIRY = UPDATE | 13
    EXPIRY_TOO_SOON = UPDATE | 14
    INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS = PERM | 15
    FINAL_INCORRECT_CLTV_EXPIRY = 18
    FINAL_INCORRECT_HTLC_AMOUNT = 19
    CHANNEL_DISABLED = UPDATE | 20
    EXPIRY_TOO_FAR = 21
    INVALID_ONION_PAYLOAD = PERM | 22
    MPP_TIMEOUT = 23
    INVALID_ONION_BLINDING = BADONION | PERM | 24


_ONION_HASH = (("sha256_of_onion", wire.HASH),)
_CHANNEL_UPDATE = (("channel_update", wire.VARIABLE),)
# Codecs of bytes and of integers stand side by side, so their type says no more than "Any".
_FIELDS: dict[int, tuple[tuple[str, wire.Codec[Any]], ...]] = {
    FailureCode.INVALID_ONION_VERSION: _ONION_HASH,
    FailureCode.INVALID_ONION_HMAC: _ONION_HASH,
    FailureCode.INVALID_ONION_KEY: _ONION_HASH,
    FailureCode.TEMPORARY_CHANNEL_FAILURE: _CHANNEL_UPDATE,
    FailureCode.AMOUNT_BELOW_MINIMUM: (("htlc_msat", wire.U64), *_CHANNEL_UPDATE),
    FailureCode.FEE_INSUFFICIENT: (("htlc_msat", wire.U64), *_CHANNEL_UPDATE),
    FailureCode.INCORRECT_CLTV_EXPIRY: (("cltv_expiry", wire.U32), *_CHANNEL_UPDATE),
    FailureCode.EXPIRY_TOO_SOON: _CHANNEL_UPDATE,
    FailureCode.INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS: (
        ("htlc_msat", wire.U64),
        ("height", wire.U32),
    ),
    FailureCode.FINAL_INCORRECT_CLTV_EXPIRY: (("cltv_expiry", wire.U32),),
    FailureCode.FINAL_INCORRECT_HTLC_AMOUNT: (("incoming_htlc_amt", wire.U64),),
    FailureCode.CHANNEL_DISABLED: (("disabled_flags", wire.U16), *_CHANNEL_UPDATE),
    FailureCode.INVALID_ONION_PAYLOAD: (("type", wire.BIGSIZE), ("offset", wire.U16)),
    FailureCode.INVALID_ONION_BLINDING: _ONION_HASH,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure message: `code` is a FailureCode, or any number that a stranger sent.

    Code 0, which BOLT 4 does not use, stands for a message too short or too long to be read.
    """

    code: int
    data: bytes = b""

    @classmethod
    def of(cls, code: FailureCode, **fields: int | bytes) -> Failure:
        """A failure with the BOLT's fields for its code, all of them.

        `channel_update` is bytes and may be empty (BOLT 4 advises against sending one).
        """
        layout = _FIELDS.get(code, ())
        if fields.keys() != {name for name, _ in layout}:
            raise LocalProtocolError(
                "failure-fields", f"{code.name} takes the fields {[name for name, _ in layout]}."
            )
        return cls(code, b"".join(codec.write(fields[name]) for name, codec in layout))

    @property
    def name(self) -> str:
        """The BOLT's name of the code, or "unknown_failure"."""
        try:
            return FailureCode(self.code).name.lower()
        except ValueError:
            return "unknown_failure"

    @property
    def is_permanent(self) -> bool:
        return bool(self.code & PERM)

    @property
    def fields(self) -> dict[str, int | bytes]:
        """The BOLT's fields of this code by name; bytes that follow are ignored (BOLT 4).

        Old nodes leave out fields and a stranger may send any bytes: a field that is cut short
        and those after it are absent.
        """
        reader = wire.Reader(self.data)
        found: dict[str, int | bytes] = {}
        for name, codec in _FIELDS.get(self.code, ()):
            try:
                found[name] = codec.read(reader)
            except RemoteProtocolError:
                break
        return found

    def encode(self) -> bytes:
        """`failuremsg`: the u16 code and the data."""
        return wire.u16(self.code) + self.data


def create_error(
    shared_secret: bytes, failure: Failure, pad_to: int = _MIN_MESSAGE_AND_PAD
) -> bytes:
    """The packet of the erring node, already wrapped: `reason` of its update_fail_htlc.

    `pad_to` is the least sum of message and padding; BOLT 4 allows more than 256 bytes but says
    that old nodes may not read it.
    """
    message = failure.encode()
    if len(message) > _MAX_MESSAGE:
        raise LocalProtocolError("failure-too-long", "A failure message must fit in 65499 bytes.")
    pad = max(0, pad_to - len(message))
    body = wire.u16(len(message)) + message + wire.u16(pad) + bytes(pad)
    mac = hmac.digest(derive_key(b"um", shared_secret), body, "sha256")
    return wrap_error(shared_secret, mac + body)


def wrap_error(shared_secret: bytes, packet: bytes) -> bytes:
    """Obfuscate a packet as every node on its way back does; doing it again undoes it."""
    return xor(packet, stream(derive_key(b"ammag", shared_secret), len(packet)))


def read_error(shared_secrets: Sequence[bytes], packet: bytes) -> tuple[int, Failure] | None:
    """Which hop (0 is the first) failed our HTLC, and how.

    None when no hop of the route made the packet: the HTLC has failed all the same, but whom to
    avoid is not known. Works as long for every position, so that nobody learns it by the clock.
    """
    found: tuple[int, Failure] | None = None
    for hop in range(max(MAX_HOPS, len(shared_secrets))):
        is_real = hop < len(shared_secrets)
        secret = shared_secrets[hop] if is_real else bytes(32)
        packet = wrap_error(secret, packet)
        mac = hmac.digest(derive_key(b"um", secret), packet[_HMAC:], "sha256")
        if hmac.compare_digest(mac, packet[:_HMAC]) and is_real and found is None:
            found = hop, _read_message(packet[_HMAC:])
    return found


def _read_message(body: bytes) -> Failure:
    reader = wire.Reader(body)
    try:
        message = wire.Reader(reader.take(reader.u16()))
        return Failure(message.u16(), message.rest())
    except RemoteProtocolError:
        return Failure(0, body)
