from __future__ import annotations

import hashlib
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from channels.sum_tree import MAX_DEPTH, MAX_SUM, Leaf, Sibling, Sum, SumTree, root_of
from channels.units import Msat

leaves = st.lists(
    st.builds(
        Leaf,
        session=st.binary(min_size=32, max_size=32),
        amount=st.integers(0, 1 << 40).map(Msat),
        salt=st.binary(min_size=32, max_size=32),
    ),
    min_size=1,
    max_size=40,
)


def test_two_leaves_by_hand() -> None:
    one, two = (Leaf(bytes([i]) * 32, Msat(i), bytes([16 * i]) * 32) for i in (1, 2))
    tag = hashlib.sha256(b"ODA/receipt-leaf").digest() * 2
    node_tag = hashlib.sha256(b"ODA/receipt-node").digest() * 2
    hashes = [
        hashlib.sha256(tag + each.salt + each.session + each.amount.to_bytes(8, "big")).digest()
        for each in (one, two)
    ]
    expected = hashlib.sha256(
        node_tag + hashes[0] + bytes(7) + b"\x01" + hashes[1] + bytes(7) + b"\x02"
    ).digest()
    assert SumTree([one, two]).root == Sum(expected, Msat(3))


@given(leaves)
def test_every_leaf_leads_to_the_root_and_its_total(items: list[Leaf]) -> None:
    tree = SumTree(items)
    assert tree.root.amount == sum(leaf.amount for leaf in items)
    for index, leaf in enumerate(items):
        assert root_of(leaf, tree.path(index)) == tree.root


@given(leaves, st.data())
def test_another_leaf_does_not(items: list[Leaf], data: st.DataObject) -> None:
    tree = SumTree(items)
    index = data.draw(st.integers(0, len(items) - 1))
    leaf = items[index]
    for other in (
        replace(leaf, amount=Msat(leaf.amount + 1)),
        replace(leaf, session=bytes(b ^ 1 for b in leaf.session)),
        replace(leaf, salt=bytes(b ^ 1 for b in leaf.salt)),
    ):
        assert root_of(other, tree.path(index)) != tree.root


def test_sums_that_no_tree_has() -> None:
    leaf = Leaf(bytes(32), Msat(10), bytes(32))
    for node in (
        Sum(bytes(32), Msat(-5)),
        Sum(bytes(31), Msat(5)),
        Sum(bytes(32), Msat(MAX_SUM + 1)),
        Sum(bytes(32), Msat(MAX_SUM)),
    ):
        assert root_of(leaf, [Sibling(False, node)]) is None
    assert root_of(leaf, [Sibling(True, Sum(bytes(32), Msat(0)))] * (MAX_DEPTH + 1)) is None


def test_an_odd_leaf_is_not_counted_twice() -> None:
    items = [Leaf(bytes([i]) * 32, Msat(1), bytes(32)) for i in range(3)]
    assert SumTree(items).root != SumTree([*items, items[-1]]).root
