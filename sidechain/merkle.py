"""Merkle trees over lists, whose leaves and nodes can't be taken for each other.

Leaves and nodes are hashed under different tags (BIP 340's tagged hashes), and an odd node is
promoted as it is. So a root stands for exactly one list: Bitcoin's tree, which pairs an odd node
with itself, gives the same root to different lists (CVE-2012-2459).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from channels.tagged_hash import tagged

EMPTY: Final = bytes(32)
"""The root of an empty tree; no leaf or node has this hash."""

MAX_LEAVES: Final = 1 << 32


leaf_hash: Final = tagged("ODA/merkle-leaf")
node_hash: Final = tagged("ODA/merkle-node")


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """All levels from the hashed leaves to the root."""
    levels = [[leaf_hash(leaf) for leaf in leaves]]
    while len(levels[-1]) > 1:
        below = levels[-1]
        pairs = range(0, len(below) - 1, 2)
        level = [node_hash(below[i] + below[i + 1]) for i in pairs]
        if len(below) % 2:
            level.append(below[-1])
        levels.append(level)
    return levels


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over the leaves' data, 32 bytes."""
    return _levels(leaves)[-1][0] if leaves else EMPTY


@dataclass(frozen=True, slots=True)
class MerkleProof:
    """That some data is leaf number `index` of `count`; `path` goes from the leaf upwards."""

    index: int
    count: int
    path: tuple[bytes, ...]


def prove(leaves: Sequence[bytes], index: int) -> MerkleProof:
    """Raises IndexError if there is no such leaf."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"there is no leaf {index}")
    path = []
    position = index
    for level in _levels(leaves)[:-1]:
        sibling = position ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        position >>= 1
    return MerkleProof(index, len(leaves), tuple(path))


def verify(expected: bytes, leaf: bytes, proof: MerkleProof) -> bool:
    """Whether the data is that leaf of a tree with the expected root. Garbage is False."""
    position, width = proof.index, proof.count
    if not 0 <= position < width <= MAX_LEAVES or any(len(each) != 32 for each in proof.path):
        return False
    path = list(reversed(proof.path))
    current = leaf_hash(leaf)
    while width > 1:
        if position ^ 1 < width:
            if not path:
                return False
            sibling = path.pop()
            pair = sibling + current if position & 1 else current + sibling
            current = node_hash(pair)
        position >>= 1
        width = (width + 1) >> 1
    return not path and current == expected
