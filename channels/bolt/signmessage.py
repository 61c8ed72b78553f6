"""lightningd's and lnd's `signmessage`: what a node signs with its own key.

The node signs SHA256d("Lightning Signed Message:" || text), recoverably, and writes the recovery
byte (31 plus the id, as Bitcoin's signed messages of a compressed key have it) and the 64 bytes in
z-base-32. Source: Core Lightning's doc/schemas/signmessage.json.
"""

from __future__ import annotations

from typing import Final

from channels.bolt import keys
from channels.bolt.transactions import sha256d

_PREFIX: Final = b"Lightning Signed Message:"
ALPHABET: Final = "ybndrfg8ejkmcpqxot1uwisza345h769"
"""z-base-32 (philzimmermann.com/docs/human-oriented-base-32-encoding.txt)."""

_VALUES: Final = {character: value for value, character in enumerate(ALPHABET)}
_CHARACTERS: Final = 104
"""65 bytes are 520 bits: 104 characters without a bit left over, so there is one spelling."""


def sign(secret: bytes, text: str) -> tuple[bytes, str]:
    """-> 65 bytes (signature, recovery id), and the z-base-32 that others check."""
    signature = keys.sign_recoverable(secret, _digest(text))
    return signature, zbase32(bytes([31 + signature[64]]) + signature[:64])


def signer(text: str, zbase: str) -> bytes | None:
    """The node id whose signature over the text this is; None if it is nobody's."""
    if len(zbase) != _CHARACTERS:
        return None
    number = 0
    for character in zbase:
        value = _VALUES.get(character)
        if value is None:
            return None
        number = number << 5 | value
    signature = number.to_bytes(65, "big")
    if not 31 <= signature[0] <= 34:
        return None
    return keys.recover(_digest(text), signature[1:] + bytes([signature[0] - 31]))


def zbase32(signature: bytes) -> str:
    """65 bytes, the recovery byte first, in z-base-32."""
    number = int.from_bytes(signature, "big")
    return "".join(ALPHABET[number >> 5 * i & 31] for i in reversed(range(_CHARACTERS)))


def _digest(text: str) -> bytes:
    return sha256d(_PREFIX + text.encode())
