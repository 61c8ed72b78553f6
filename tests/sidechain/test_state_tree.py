from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from sidechain import state_tree
from sidechain.state import ChainState
from sidechain.state_tree import Node

keys = st.binary(max_size=3)
maps = st.dictionaries(keys, st.binary(max_size=5), max_size=30)
changes = st.dictionaries(keys, st.none() | st.binary(max_size=5), max_size=30)


def tree_of(entries: dict[bytes, bytes]) -> Node | None:
    tree: Node | None = None
    for key, value in entries.items():
        tree = state_tree.put(tree, key, value)
    return tree


@given(maps, keys)
def test_it_holds_what_a_dict_holds(entries: dict[bytes, bytes], key: bytes) -> None:
    tree = tree_of(entries)
    assert dict(state_tree.items(tree)) == entries
    assert state_tree.get(tree, key) == entries.get(key)


@given(maps, st.randoms(use_true_random=False))
def test_the_root_does_not_hang_on_the_order(entries: dict[bytes, bytes], random: Random) -> None:
    shuffled = list(entries.items())
    random.shuffle(shuffled)
    assert state_tree.root(tree_of(dict(shuffled))) == state_tree.root(tree_of(entries))


@given(maps, keys)
def test_removing_is_as_if_it_had_never_been(entries: dict[bytes, bytes], key: bytes) -> None:
    tree = state_tree.remove(tree_of(entries), key)
    entries.pop(key, None)
    assert state_tree.root(tree) == state_tree.root(tree_of(entries))


@given(maps, maps)
def test_different_contents_have_different_roots(
    one: dict[bytes, bytes], other: dict[bytes, bytes]
) -> None:
    roots = state_tree.root(tree_of(one)), state_tree.root(tree_of(other))
    assert (roots[0] == roots[1]) == (one == other)


@given(maps.filter(bool), keys)
def test_presence_and_absence_are_proven(entries: dict[bytes, bytes], key: bytes) -> None:
    tree = tree_of(entries)
    proof = state_tree.prove(tree, key)
    assert proof is not None
    assert state_tree.verify(state_tree.root(tree), key, proof)
    assert (proof.key == key) == (key in entries)
    if key in entries:
        assert proof.value_hash == state_tree.value_hash(entries[key])


@given(maps.filter(bool), keys)
def test_a_changed_proof_proves_nothing(entries: dict[bytes, bytes], key: bytes) -> None:
    tree = tree_of(entries)
    proof, root = state_tree.prove(tree, key), state_tree.root(tree)
    assert proof is not None
    bad = [
        replace(proof, value_hash=bytes(32)),
        replace(proof, value_hash=b""),
        replace(proof, key=proof.key + b"x"),
        replace(proof, path=((0, bytes(32)), *proof.path)),
        replace(proof, path=(*proof.path, (255, bytes(32)))),
        replace(proof, path=(*proof.path, (256, bytes(32)))),
        replace(proof, path=(*proof.path, (255, b""))),
    ]
    if proof.path:
        bad.append(replace(proof, path=proof.path[1:]))
    if len(proof.path) > 1:
        bad.append(replace(proof, path=proof.path[::-1]))
    for each in bad:
        assert not state_tree.verify(root, key, each)


def test_nothing_is_proven_of_an_empty_tree() -> None:
    assert state_tree.prove(None, b"a") is None
    assert state_tree.root(None) == bytes(32)


@given(maps, changes)
def test_undo_of_apply_is_where_it_began(
    entries: dict[bytes, bytes], change: dict[bytes, bytes | None]
) -> None:
    before = ChainState.load(entries.items())
    after, undo = before.applied(change)
    expected = {k: v for k, v in {**entries, **change}.items() if v is not None}
    assert dict(after.entries()) == expected
    back = after.undone(undo)
    assert dict(back.entries()) == entries
    assert back == before and hash(back) == hash(before)
    assert all(entries.get(key) == value for key, value in undo)
