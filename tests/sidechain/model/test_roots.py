import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidechain.model.roots import (
    TensorRoot,
    bep52_root,
    dataset_root,
    tagged_hash,
    weights_root,
)
from tests.vectors.bep52 import PIECES_ROOTS

ROOT = bytes(range(32))
TENSORS = [TensorRoot(name, "I16", (2, 3), ROOT) for name in ("a", "b", "c", "d", "e")]


@pytest.mark.parametrize("size", PIECES_ROOTS)
def test_bep52_roots_are_libtorrents(size: int) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    assert bep52_root(data).hex() == PIECES_ROOTS[size]
    assert bep52_root(memoryview(data)) == bep52_root(data)


def test_no_bytes_have_no_root() -> None:
    with pytest.raises(ValueError, match="empty"):
        bep52_root(b"")


def test_tags_are_those_of_bip_340() -> None:
    tag = hashlib.sha256(b"oda/weights leaf").digest()
    assert tagged_hash("oda/weights leaf", b"x") == hashlib.sha256(tag + tag + b"x").digest()


def test_a_root_by_hand() -> None:
    def leaf(name: bytes) -> bytes:
        shape = bytes([2]) + (2).to_bytes(8, "big") + (3).to_bytes(8, "big")
        return tagged_hash("oda/weights leaf", name + b"\0I16\0" + shape + ROOT)

    pair = tagged_hash("oda/weights node", leaf(b"a") + leaf(b"b"))
    assert weights_root(TENSORS[:2]) == pair
    assert weights_root(TENSORS[:1]) == leaf(b"a")
    # The odd one is promoted, so it is not the same as having it twice (CVE-2012-2459).
    assert weights_root(TENSORS[:3]) == tagged_hash("oda/weights node", pair + leaf(b"c"))


@given(st.permutations(TENSORS))
def test_the_order_does_not_matter(tensors: list[TensorRoot]) -> None:
    assert weights_root(tensors) == weights_root(TENSORS)


def test_everything_else_does() -> None:
    a = TENSORS[0]
    changed = [
        a._replace(name="aa"),
        a._replace(dtype="F32"),
        a._replace(shape=(3, 2)),
        a._replace(shape=(6,)),
        a._replace(shape=(1, 2, 3)),
        a._replace(root=bytes(32)),
    ]
    roots = {weights_root([tensor, *TENSORS[1:]]) for tensor in [a, *changed]}
    roots |= {weights_root(TENSORS[:n]) for n in range(1, 5)}
    assert len(roots) == len(changed) + 5


@pytest.mark.parametrize(
    "tensors",
    [
        [],
        [TENSORS[0], TENSORS[0]],
        [TENSORS[0]._replace(name="a\0I16")],
        [TENSORS[0]._replace(root=b"short")],
        [TENSORS[0]._replace(shape=(-1,))],
        [TENSORS[0]._replace(shape=(1 << 64,))],
    ],
)
def test_what_can_have_no_root(tensors: list[TensorRoot]) -> None:
    with pytest.raises((ValueError, OverflowError)):
        weights_root(tensors)


def test_dataset_roots_depend_on_every_file_and_its_place() -> None:
    roots = [
        dataset_root(b"p", []),
        dataset_root(b"p", [b"a"]),
        dataset_root(b"p", [b"a", b"b"]),
        dataset_root(b"p", [b"b", b"a"]),
        dataset_root(b"p", [b"a", b"b", b"b"]),
        dataset_root(b"a", [b"p"]),
        dataset_root(b"p\0", []),
    ]
    assert len(set(roots)) == len(roots)
