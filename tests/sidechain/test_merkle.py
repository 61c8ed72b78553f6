from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.tagged_hash import tagged
from sidechain import merkle
from sidechain.merkle import MerkleProof, leaf_hash, node_hash

leaves = st.lists(st.binary(max_size=40), min_size=1, max_size=40)


def test_the_tag_is_bip340s() -> None:
    # BIP 340 names the tag "BIP0340/challenge"; the value is SHA256(t || t || "") computed apart.
    t = hashlib.sha256(b"BIP0340/challenge").digest()
    assert tagged("BIP0340/challenge")(b"") == hashlib.sha256(t + t).digest()


def test_small_trees_by_hand() -> None:
    a, b, c = (leaf_hash(x) for x in (b"a", b"b", b"c"))
    assert merkle.root([]) == bytes(32)
    assert merkle.root([b"a"]) == a
    assert merkle.root([b"a", b"b"]) == node_hash(a + b)
    assert merkle.root([b"a", b"b", b"c"]) == node_hash(node_hash(a + b) + c)


def test_a_repeated_end_is_another_root() -> None:
    """CVE-2012-2459: in Bitcoin's tree these two lists have the same root."""
    assert merkle.root([b"a", b"b", b"c"]) != merkle.root([b"a", b"b", b"c", b"c"])


def test_a_node_can_not_be_shown_as_a_leaf() -> None:
    a, b = leaf_hash(b"a"), leaf_hash(b"b")
    assert merkle.root([a + b]) != merkle.root([b"a", b"b"])


@given(leaves)
def test_every_leaf_can_be_proven(data: list[bytes]) -> None:
    root = merkle.root(data)
    for index, leaf in enumerate(data):
        assert merkle.verify(root, leaf, merkle.prove(data, index))


@given(leaves, st.data())
def test_a_changed_proof_proves_nothing(data: list[bytes], draw: st.DataObject) -> None:
    root = merkle.root(data)
    index = draw.draw(st.integers(0, len(data) - 1))
    proof = merkle.prove(data, index)
    leaf = data[index]
    assert not merkle.verify(root, leaf + b"x", proof)
    assert not merkle.verify(root, leaf, replace(proof, path=(*proof.path, bytes(32))))
    assert not merkle.verify(bytes(32), leaf, proof)
    if proof.path:
        assert not merkle.verify(root, leaf, replace(proof, path=proof.path[:-1]))
        other = (bytes(32), *proof.path[1:])
        assert not merkle.verify(root, leaf, replace(proof, path=other))
        short = (b"", *proof.path[1:])
        assert not merkle.verify(root, leaf, replace(proof, path=short))


@pytest.mark.parametrize(
    "proof", [MerkleProof(0, 0, ()), MerkleProof(-1, 1, ()), MerkleProof(0, 1 << 33, ())]
)
def test_impossible_places_are_refused(proof: MerkleProof) -> None:
    assert not merkle.verify(leaf_hash(b"a"), b"a", proof)


def test_there_is_no_proof_for_what_is_not_there() -> None:
    with pytest.raises(IndexError, match="no leaf 1"):
        merkle.prove([b"a"], 1)
