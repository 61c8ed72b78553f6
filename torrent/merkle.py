"""The SHA-256 Merkle tree of one file (BEP 52, "pieces root"): hashing, layers, branches. Pure.

Leaves are the hashes of 16 KiB blocks; what is missing to a power of two is 32 zero bytes. The
*piece layer* is the row of nodes that cover one piece each, without those beyond the file's end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

BLOCK: Final = 16384
HASH: Final = 32
ZERO: Final = bytes(HASH)

Row: TypeAlias = Sequence[bytes]
"""The nodes of one height, from the left."""


@dataclass(frozen=True, slots=True)
class FileHashes:
    """Of one file. root: 32 bytes, none for an empty file. layer: the piece layer, concatenated;
    none for a file of one piece or less (BEP 52 "piece layers")."""

    length: int
    root: bytes
    layer: bytes


class FileHasher:
    """Feed a file in any chunks; memory grows by 32 bytes per piece.

    `piece_length` is a power of two of at least 16 KiB.
    """

    def __init__(self, piece_length: int) -> None:
        self._blocks_per_piece = piece_length // BLOCK
        self._piece_length = piece_length
        self._rest = b""
        self._leaves: list[bytes] = []
        self._pieces: list[bytes] = []
        self._length = 0

    def update(self, data: bytes | memoryview) -> None:
        self._length += len(data)
        view = memoryview(data)
        if self._rest:
            missing = BLOCK - len(self._rest)
            self._rest += view[:missing]
            view = view[missing:]
            if len(self._rest) < BLOCK:
                return
            self._leaf(self._rest)
            self._rest = b""
        whole = len(view) - len(view) % BLOCK
        for at in range(0, whole, BLOCK):
            self._leaf(view[at : at + BLOCK])
        self._rest = bytes(view[whole:])

    def finish(self) -> FileHashes:
        if self._rest:
            self._leaf(self._rest)
            self._rest = b""
        if self._length <= self._piece_length:
            # Shorter than a piece: the tree is only as high as its blocks ask for.
            hashes = self._pieces or self._leaves
            return FileHashes(self._length, root(hashes) if hashes else b"", b"")
        if self._leaves:
            self._pieces.append(root(self._leaves, width=self._blocks_per_piece))
        layer = b"".join(self._pieces)
        return FileHashes(self._length, layer_root(layer, self._piece_length), layer)

    def _leaf(self, block: bytes | memoryview) -> None:
        self._leaves.append(hashlib.sha256(block).digest())
        if len(self._leaves) == self._blocks_per_piece:
            self._pieces.append(root(self._leaves))
            self._leaves.clear()


def root(hashes: Sequence[bytes], *, width: int = 1, padding: bytes = ZERO) -> bytes:
    """The root over one row of nodes, padded to a power of two that is at least `width`."""
    return rows(hashes, width=width, padding=padding)[-1][0]


def rows(hashes: Sequence[bytes], *, width: int = 1, padding: bytes = ZERO) -> list[Row]:
    """All rows from `hashes` (padded) up to the root."""
    width = max(width, power_of_two(len(hashes)))
    row: Row = [*hashes, *(padding for _ in range(width - len(hashes)))]
    found = [row]
    while len(row) > 1:
        row = [node(row[i], row[i + 1]) for i in range(0, len(row), 2)]
        found.append(row)
    return found


def layer_of(leaves: Sequence[bytes], piece_length: int) -> bytes:
    """The piece layer over all leaves of a file that is longer than a piece."""
    per_piece = piece_length // BLOCK
    pieces = (leaves[at : at + per_piece] for at in range(0, len(leaves), per_piece))
    return b"".join(root(piece, width=per_piece) for piece in pieces)


def layer_root(layer: bytes, piece_length: int) -> bytes:
    """The file's root from its piece layer (at least one hash)."""
    return root(split(layer), padding=zero_piece(piece_length))


def split(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + HASH] for at in range(0, len(hashes), HASH)]


def zero_piece(piece_length: int) -> bytes:
    """The node that covers one piece beyond the file's end."""
    found = ZERO
    for _ in range((piece_length // BLOCK).bit_length() - 1):
        found = node(found, found)
    return found


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(left + right).digest()


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count` (and 1)."""
    return 1 << (count - 1).bit_length() if count > 1 else 1


def block_count(length: int) -> int:
    return -(-length // BLOCK)
