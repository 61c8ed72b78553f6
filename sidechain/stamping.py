"""Searching for a transaction's stamp where it takes a while: in a thread, with progress."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from channels.terminal import Progress
from sidechain.primitives import T, sha256d

CHUNK: Final = 1 << 14


async def stamp(transaction: T, hashes: int, show: Progress) -> T:
    """As primitives.stamped: with the first nonce from the transaction's own on that is worth
    `hashes` hashes. `show` gets hashes done and expected."""
    begun = transaction.stamp_nonce
    head, tail = _around_nonce(transaction)
    nonce: int | None = None
    first = begun
    while nonce is None:
        nonce = await asyncio.to_thread(_search, head, tail, first, hashes)
        first += CHUNK
        show(first - begun, max(hashes, first - begun), "Searching for a stamp")
    found: dict[str, Any] = {"stamp_nonce": nonce}
    return msgspec.structs.replace(transaction, **found)


def _around_nonce(transaction: T) -> tuple[bytes, bytes]:
    """transaction.unsigned() before and after its third element, the nonce."""
    data = transaction.unsigned()
    nonce = msgspec.msgpack.encode(transaction.stamp_nonce)
    fields: list[Any] = msgspec.msgpack.decode(data)
    # The array's length takes one byte below 16 fields.
    head = data[:1] + b"".join(msgspec.msgpack.encode(field) for field in fields[:2])
    assert data.startswith(head + nonce), "the nonce is the third field"
    return head, data[len(head) + len(nonce) :]


def _search(head: bytes, tail: bytes, first: int, hashes: int) -> int | None:
    encode = msgspec.msgpack.Encoder().encode
    most = (1 << 256) // hashes
    for nonce in range(first, first + CHUNK):
        found = int.from_bytes(sha256d(head + encode(nonce) + tail), "little")
        # primitives.stamp_work: 2^256 over the hash, rounded down
        if found < most and (1 << 256) // (found + 1) >= hashes:
            return nonce
    return None
