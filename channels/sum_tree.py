"""Merkle-sum trees: a root that stands for a list of amounts and for their total.

Every node carries the sum of what is below it and is hashed together with it, so nobody who is
shown one leaf can be shown a total that the tree doesn't have. Leaves and nodes are hashed under
different tags (BIP 340), and an odd node is promoted as it is (CVE-2012-2459). PURE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from channels.tagged_hash import tagged
from channels.units import Msat

MAX_DEPTH: Final = 32
MAX_SUM: Final = 21_000_000 * 100_000_000 * 1000
"""All bitcoin there will be, in msat: sums can't overflow."""


_leaf_hash: Final = tagged("ODA/receipt-leaf")
_node_hash: Final = tagged("ODA/receipt-node")


@dataclass(frozen=True, slots=True)
class Sum:
    """A node: its hash, and the total of the leaves below it."""

    hash: bytes
    amount: Msat


@dataclass(frozen=True, slots=True)
class Leaf:
    """What one session owes, salted, so that its neighbours in the tree can't guess it."""

    session: bytes
    amount: Msat
    salt: bytes

    @property
    def node(self) -> Sum:
        data = self.salt + self.session + self.amount.to_bytes(8, "big")
        return Sum(_leaf_hash(data), self.amount)


@dataclass(frozen=True, slots=True)
class Sibling:
    """What a path joins with on its way up. left: whether it stands on the left."""

    left: bool
    node: Sum


def _join(left: Sum, right: Sum) -> Sum:
    data = b"".join(side.hash + side.amount.to_bytes(8, "big") for side in (left, right))
    return Sum(_node_hash(data), Msat(left.amount + right.amount))


class SumTree:
    """A tree over at least one leaf, in their order."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self._levels = [[leaf.node for leaf in leaves]]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            level = [_join(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
            if len(below) % 2:
                level.append(below[-1])
            self._levels.append(level)

    @property
    def root(self) -> Sum:
        return self._levels[-1][0]

    def path(self, index: int) -> tuple[Sibling, ...]:
        """From leaf number `index` upwards."""
        path = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                path.append(Sibling(bool(index & 1), level[index ^ 1]))
            index >>= 1
        return tuple(path)


def root_of(leaf: Leaf, path: Sequence[Sibling]) -> Sum | None:
    """The root that a path leads to; None where it is no path of a tree of amounts."""
    if len(path) > MAX_DEPTH:
        return None
    node = leaf.node
    for step in path:
        # A negative amount would let a tree owe more than its total.
        if len(step.node.hash) != 32 or not 0 <= step.node.amount <= MAX_SUM:
            return None
        node = _join(step.node, node) if step.left else _join(node, step.node)
        if node.amount > MAX_SUM:
            return None
    return node
