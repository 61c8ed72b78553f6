"""The encrypted and authenticated transport (BOLT 8): Noise_XK over secp256k1.

Bytes in, bytes out: `Handshake` runs the three acts, the `Transport` at its end seals and opens
messages. Ephemeral keys are arguments, and each must be used for one handshake alone.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum, auto

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from channels.bolt import wire
from channels.bolt.keys import ecdh, public_key
from channels.errors import LocalProtocolError, RemoteProtocolError

ACT_ONE_LENGTH = 50
ACT_TWO_LENGTH = 50
ACT_THREE_LENGTH = 66

PROTOCOL_NAME = b"Noise_XK_secp256k1_ChaChaPoly_SHA256"
PROLOGUE = b"lightning"
ROTATION = 1000
"""A key seals this many texts, two per message, and is then replaced (BOLT 8)."""

_VERSION = b"\0"
_MAC = 16
_SEALED_LENGTH = 2 + _MAC


def _hkdf(salt: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Two keys of 32 bytes by HKDF-SHA256 with an empty info (RFC 5869)."""
    pseudorandom = hmac.digest(salt, secret, "sha256")
    first = hmac.digest(pseudorandom, b"\x01", "sha256")
    return first, hmac.digest(pseudorandom, first + b"\x02", "sha256")


def _nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "little")


class _State(Enum):
    """Which act is due."""

    WRITE_ACT_ONE = auto()
    READ_ACT_ONE = auto()
    WRITE_ACT_TWO = auto()
    READ_ACT_TWO = auto()
    WRITE_ACT_THREE = auto()
    READ_ACT_THREE = auto()
    DONE = auto()
    FAILED = auto()


class Handshake:
    """One handshake, seen from one side.

    The initiator calls write_act_one, read_act_two, write_act_three; the responder read_act_one,
    write_act_two, read_act_three. Then `transport` is there and, on both sides, `remote_node_id`.
    A read raises RemoteProtocolError ("act-<one|two|three>-<length|version|key|mac>",
    "act-three-ciphertext") and ends the handshake: BOLT 8 wants the connection closed without a
    reply. A call out of order raises LocalProtocolError.
    """

    def __init__(self, local_key: bytes, ephemeral: bytes, responder_id: bytes) -> None:
        """Use `initiator` or `responder`."""
        self._local_key = local_key
        self._ephemeral = ephemeral
        self._chaining_key = hashlib.sha256(PROTOCOL_NAME).digest()
        self._hash = self._chaining_key
        self._mix_hash(PROLOGUE)
        self._mix_hash(responder_id)
        self._temporary_key = b""
        self._remote_ephemeral = b""
        self._remote_node_id: bytes | None = None
        self._transport: Transport | None = None
        self._state = _State.FAILED

    @classmethod
    def initiator(cls, local_key: bytes, ephemeral: bytes, remote_node_id: bytes) -> Handshake:
        handshake = cls(local_key, ephemeral, wire.check_point(remote_node_id))
        handshake._remote_node_id = remote_node_id
        handshake._state = _State.WRITE_ACT_ONE
        return handshake

    @classmethod
    def responder(cls, local_key: bytes, ephemeral: bytes) -> Handshake:
        handshake = cls(local_key, ephemeral, public_key(local_key))
        handshake._state = _State.READ_ACT_ONE
        return handshake

    @property
    def remote_node_id(self) -> bytes:
        """Whose key the other side proved to have (33 bytes)."""
        if self._remote_node_id is None or self._state is not _State.DONE:
            raise _out_of_order()
        return self._remote_node_id

    @property
    def transport(self) -> Transport:
        if self._transport is None:
            raise _out_of_order()
        return self._transport

    def write_act_one(self) -> bytes:
        self._turn(_State.WRITE_ACT_ONE, _State.READ_ACT_TWO)
        assert self._remote_node_id is not None
        return self._write_ephemeral(self._remote_node_id)

    def read_act_one(self, data: bytes) -> None:
        self._turn(_State.READ_ACT_ONE, _State.WRITE_ACT_TWO)
        self._read_ephemeral(data, "one", self._local_key)

    def write_act_two(self) -> bytes:
        self._turn(_State.WRITE_ACT_TWO, _State.READ_ACT_THREE)
        return self._write_ephemeral(self._remote_ephemeral)

    def read_act_two(self, data: bytes) -> None:
        self._turn(_State.READ_ACT_TWO, _State.WRITE_ACT_THREE)
        self._read_ephemeral(data, "two", self._ephemeral)

    def write_act_three(self) -> bytes:
        self._turn(_State.WRITE_ACT_THREE, _State.DONE)
        sealed = self._seal(public_key(self._local_key), counter=1)
        self._mix_key(ecdh(self._local_key, self._remote_ephemeral))
        mac = self._seal(b"", counter=0)
        sending, receiving = _hkdf(self._chaining_key, b"")
        self._transport = Transport(self._chaining_key, sending, receiving)
        return _VERSION + sealed + mac

    def read_act_three(self, data: bytes) -> None:
        self._turn(_State.READ_ACT_THREE, _State.DONE)
        self._check_frame(data, ACT_THREE_LENGTH, "three")
        sealed, mac = data[1:50], data[50:]
        node_id = self._open(sealed, counter=1, reason="act-three-ciphertext")
        self._check_key(node_id, "three")
        self._mix_key(ecdh(self._ephemeral, node_id))
        self._open(mac, counter=0, reason="act-three-mac")
        receiving, sending = _hkdf(self._chaining_key, b"")
        self._remote_node_id = node_id
        self._transport = Transport(self._chaining_key, sending, receiving)

    def _turn(self, due: _State, following: _State) -> None:
        if self._state is not due:
            raise _out_of_order()
        self._state = following

    def _write_ephemeral(self, remote: bytes) -> bytes:
        """Acts one and two, which have the same form."""
        ours = public_key(self._ephemeral)
        self._mix_hash(ours)
        self._mix_key(ecdh(self._ephemeral, remote))
        return _VERSION + ours + self._seal(b"", counter=0)

    def _read_ephemeral(self, data: bytes, act: str, local: bytes) -> None:
        self._check_frame(data, ACT_ONE_LENGTH, act)
        theirs, mac = data[1:34], data[34:]
        self._check_key(theirs, act)
        self._mix_hash(theirs)
        self._mix_key(ecdh(local, theirs))
        self._open(mac, counter=0, reason=f"act-{act}-mac")
        self._remote_ephemeral = theirs

    def _check_frame(self, data: bytes, length: int, act: str) -> None:
        if len(data) != length:
            raise self._failed(
                f"act-{act}-length", f"Act {act} has {length} bytes; {len(data)} came."
            )
        if data[:1] != _VERSION:
            raise self._failed(
                f"act-{act}-version", f"The peer speaks version {data[0]} of the handshake, not 0."
            )

    def _check_key(self, key: bytes, act: str) -> None:
        try:
            wire.check_point(key)
        except RemoteProtocolError as error:
            raise self._failed(
                f"act-{act}-key", f"The key in act {act} is not a compressed point on the curve."
            ) from error

    def _failed(self, reason: str, sentence: str) -> RemoteProtocolError:
        self._state = _State.FAILED
        return RemoteProtocolError(reason, sentence)

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def _mix_key(self, secret: bytes) -> None:
        self._chaining_key, self._temporary_key = _hkdf(self._chaining_key, secret)

    def _seal(self, text: bytes, counter: int) -> bytes:
        cipher = ChaCha20Poly1305(self._temporary_key)
        sealed = cipher.encrypt(_nonce(counter), text, self._hash)
        self._mix_hash(sealed)
        return sealed

    def _open(self, sealed: bytes, counter: int, reason: str) -> bytes:
        cipher = ChaCha20Poly1305(self._temporary_key)
        try:
            text = cipher.decrypt(_nonce(counter), sealed, self._hash)
        except InvalidTag as error:
            raise self._failed(
                reason, "The handshake failed: the peer has another key or the bytes were changed."
            ) from error
        self._mix_hash(sealed)
        return text


def _out_of_order() -> LocalProtocolError:
    return LocalProtocolError(
        "handshake-out-of-order", "The acts of a handshake have one order; this is not its turn."
    )


class _CipherState:
    """One direction's key, which is replaced after every 1000 uses."""

    def __init__(self, chaining_key: bytes, key: bytes) -> None:
        self._chaining_key = chaining_key
        self._set(key)

    def _set(self, key: bytes) -> None:
        self._key = key
        self._cipher = ChaCha20Poly1305(key)
        self._counter = 0

    def encrypt(self, text: bytes) -> bytes:
        sealed = self._cipher.encrypt(_nonce(self._counter), text, None)
        self._used()
        return sealed

    def decrypt(self, sealed: bytes) -> bytes:
        text = self._cipher.decrypt(_nonce(self._counter), sealed, None)
        self._used()
        return text

    def _used(self) -> None:
        self._counter += 1
        # BOLT 8, "Lightning Message Key Rotation"
        if self._counter == ROTATION:
            self._chaining_key, key = _hkdf(self._chaining_key, self._key)
            self._set(key)


class Transport:
    """Seals and opens messages once the handshake is done."""

    def __init__(self, chaining_key: bytes, sending_key: bytes, receiving_key: bytes) -> None:
        self._sending = _CipherState(chaining_key, sending_key)
        self._receiving = _CipherState(chaining_key, receiving_key)
        self._buffer = bytearray()
        self._due: int | None = None  # bytes of the sealed message whose length is known
        self._broken = False

    def encrypt(self, message: bytes) -> bytes:
        """The message sealed, its length before it; LocalProtocolError above 65535 bytes."""
        if len(message) > wire.MAX_MESSAGE:
            raise LocalProtocolError(
                "message-too-long",
                f"A message has at most {wire.MAX_MESSAGE} bytes; this one has {len(message)}.",
            )
        length = self._sending.encrypt(wire.u16(len(message)))
        return length + self._sending.encrypt(message)

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes as they arrive; the messages that are whole now.

        Raises RemoteProtocolError("bad-mac") for bytes that the peer did not seal; from then on
        nothing more can be read. Less than one message (64 KiB) is kept between calls.
        """
        if self._broken:
            raise _bad_mac()
        self._buffer += data
        messages = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages

    def _next(self) -> bytes | None:
        if self._due is None:
            length = self._open(_SEALED_LENGTH)
            if length is None:
                return None
            self._due = int.from_bytes(length, "big") + _MAC
        message = self._open(self._due)
        if message is not None:
            self._due = None
        return message

    def _open(self, length: int) -> bytes | None:
        if len(self._buffer) < length:
            return None
        try:
            text = self._receiving.decrypt(bytes(self._buffer[:length]))
        except InvalidTag as error:
            self._broken = True
            self._buffer.clear()
            raise _bad_mac() from error
        del self._buffer[:length]
        return text


def _bad_mac() -> RemoteProtocolError:
    return RemoteProtocolError(
        "bad-mac", "Bytes arrived that the peer did not seal; the connection must be closed."
    )
