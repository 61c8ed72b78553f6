"""The tree whose root is in every block: a Patricia trie over hashed keys, never changed in place.

A change makes new nodes along one path and shares all others, so an old state costs nothing to
keep, and its shape depends on what is in it alone, not on how it got there: undoing a block gives
the same root again. A proof is the path from a leaf to the root.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from channels.tagged_hash import tagged
from sidechain.merkle import EMPTY

_BITS: Final = 256
value_hash: Final = tagged("ODA/state-value")
"""Leaves have the values' hashes, so that a proof of absence need not show another's value."""

_path_hash = tagged("ODA/state-path")
_leaf_hash = tagged("ODA/state-leaf")
_branch_hash = tagged("ODA/state-branch")


def _path(key: bytes) -> int:
    """Where a key is: hashed, so that nobody can choose a deep place at no cost."""
    return int.from_bytes(_path_hash(key), "big")


def _hash_leaf(key: bytes, hashed: bytes) -> bytes:
    return _leaf_hash(len(key).to_bytes(2, "big") + key + hashed)


def _hash_branch(bit: int, left: bytes, right: bytes) -> bytes:
    # The bit is hashed too, so that a proof shows where the two sides part.
    return _branch_hash(bytes([bit]) + left + right)


class Leaf:
    __slots__ = ("bit", "hash", "key", "prefix", "value")

    def __init__(self, key: bytes, value: bytes) -> None:
        self.bit = _BITS
        self.prefix = _path(key)
        self.key = key
        self.value = value
        self.hash = _hash_leaf(key, value_hash(value))


class Branch:
    """All below share the first `bit` bits, `prefix`; the next bit says left or right."""

    __slots__ = ("bit", "hash", "left", "prefix", "right")

    hash: bytes
    prefix: int

    def __init__(self, bit: int, left: Node, right: Node) -> None:
        self.bit = bit
        self.prefix = left.prefix >> (left.bit - bit)
        self.left = left
        self.right = right
        self.hash = _hash_branch(bit, left.hash, right.hash)


Node = Leaf | Branch


@dataclass(frozen=True, slots=True)
class StateProof:
    """A leaf and its way to the root. `path` goes from the root down: where the sides part, and
    the hash of the side that the leaf is not on."""

    key: bytes
    value_hash: bytes
    path: tuple[tuple[int, bytes], ...]


def root(node: Node | None) -> bytes:
    return EMPTY if node is None else node.hash


def get(node: Node | None, key: bytes) -> bytes | None:
    path = _path(key)
    while isinstance(node, Branch):
        node = node.right if path >> (_BITS - 1 - node.bit) & 1 else node.left
    return node.value if node is not None and node.key == key else None


def put(node: Node | None, key: bytes, value: bytes) -> Node:
    return _put(node, Leaf(key, value))


def _put(node: Node | None, leaf: Leaf) -> Node:
    if node is None:
        return leaf
    parted = node.prefix ^ (leaf.prefix >> (_BITS - node.bit))
    if parted:
        bit = node.bit - parted.bit_length()
        right = leaf.prefix >> (_BITS - 1 - bit) & 1
        return Branch(bit, node, leaf) if right else Branch(bit, leaf, node)
    if isinstance(node, Leaf):
        return leaf
    if leaf.prefix >> (_BITS - 1 - node.bit) & 1:
        return Branch(node.bit, node.left, _put(node.right, leaf))
    return Branch(node.bit, _put(node.left, leaf), node.right)


def remove(node: Node | None, key: bytes) -> Node | None:
    """The tree without the key, which may be missing."""
    return _remove(node, key, _path(key))


def _remove(node: Node | None, key: bytes, path: int) -> Node | None:
    if not isinstance(node, Branch):
        return None if node is None or node.key == key else node
    right = path >> (_BITS - 1 - node.bit) & 1
    side = node.right if right else node.left
    rest = _remove(side, key, path)
    if rest is side:
        return node
    if rest is None:
        return node.left if right else node.right
    return Branch(node.bit, node.left, rest) if right else Branch(node.bit, rest, node.right)


def items(node: Node | None) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values, in the order of the hashed keys."""
    waiting = [node] if node is not None else []
    while waiting:
        each = waiting.pop()
        if isinstance(each, Leaf):
            yield each.key, each.value
        else:
            waiting += (each.right, each.left)


def prove(node: Node | None, key: bytes) -> StateProof | None:
    """The leaf at which a search for the key ends: the key's, or another if it has no value.
    None for an empty tree."""
    path, steps = _path(key), []
    while isinstance(node, Branch):
        right = path >> (_BITS - 1 - node.bit) & 1
        steps.append((node.bit, node.left.hash if right else node.right.hash))
        node = node.right if right else node.left
    return None if node is None else StateProof(node.key, value_hash(node.value), tuple(steps))


def verify(expected: bytes, key: bytes, proof: StateProof) -> bool:
    """Whether a search for the key in the tree with the expected root ends at the proof's leaf.

    If so, the key's value has the proof's hash where the keys are equal, and the key has no value
    where they are not.
    Garbage is False.
    """
    bits = [bit for bit, _ in proof.path]
    if any(not 0 <= bit < _BITS for bit in bits) or bits != sorted(set(bits)):
        return False
    if len(proof.key) > 0xFFFF or len(proof.value_hash) != 32:
        return False
    if any(len(sibling) != 32 for _, sibling in proof.path):
        return False
    path = _path(key)
    current = _hash_leaf(proof.key, proof.value_hash)
    for bit, sibling in reversed(proof.path):
        right = path >> (_BITS - 1 - bit) & 1
        left, right_side = (sibling, current) if right else (current, sibling)
        current = _hash_branch(bit, left, right_side)
    return current == expected
