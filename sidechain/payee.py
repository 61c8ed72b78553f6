"""The proof that a payee's Lightning node agrees: lightningd's `signmessage`.

The node signs SHA256d("Lightning Signed Message:" || text) with its own key, recoverably, and
writes the 65 bytes in z-base-32. `lightningd` and the embedded node answer with the same bytes.
Of channels.bolt only the key functions are used here, none of its machines.
"""

from __future__ import annotations

import re
from typing import Final

from channels.bolt import keys
from sidechain.primitives import sha256d

_PREFIX: Final = b"Lightning Signed Message:"
ALPHABET: Final = "ybndrfg8ejkmcpqxot1uwisza345h769"
"""z-base-32 (philzimmermann.com/docs/human-oriented-base-32-encoding.txt)."""

_VALUES: Final = {character: value for value, character in enumerate(ALPHABET)}
_CHARACTERS: Final = 104
"""65 bytes are 520 bits: 104 characters without a bit left over, so there is one spelling."""

_ENDPOINT: Final = re.compile(r"[!-~]{1,256}", re.ASCII)


def payee_text(network_id: int, key: bytes, seq: int, node_id: bytes, endpoint: str) -> str:
    """What the payee's node signs. It names the network and seq, so it can't be replayed."""
    return f"ODA payee {network_id} {key.hex()} {seq} {node_id.hex()} {endpoint}"


def is_endpoint(endpoint: str) -> bool:
    """Printable ASCII without spaces: nothing that could confuse a log, a page or payee_text."""
    return _ENDPOINT.fullmatch(endpoint) is not None


def signer(text: str, zbase: str) -> bytes | None:
    """The node id whose `signmessage` over the text this is; None if it is nobody's."""
    if len(zbase) != _CHARACTERS:
        return None
    number = 0
    for character in zbase:
        value = _VALUES.get(character)
        if value is None:
            return None
        number = number << 5 | value
    signature = number.to_bytes(65, "big")
    # The first byte is Bitcoin's: 31 plus the recovery id of a compressed key.
    if not 31 <= signature[0] <= 34:
        return None
    digest = sha256d(_PREFIX + text.encode())
    return keys.recover(digest, signature[1:] + bytes([signature[0] - 31]))
