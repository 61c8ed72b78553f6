"""BIP 340's tagged hashes: what is hashed for one purpose is nothing for another. PURE."""

from __future__ import annotations

import hashlib
from collections.abc import Callable


def tagged(tag: str) -> Callable[[bytes], bytes]:
    """BIP 340's hash for a tag: SHA256(SHA256(tag) || SHA256(tag) || data)."""
    start = hashlib.sha256(hashlib.sha256(tag.encode()).digest() * 2)

    def digest(data: bytes) -> bytes:
        state = start.copy()
        state.update(data)
        return state.digest()

    return digest
