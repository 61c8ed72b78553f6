"""Names for weights and datasets that follow from their contents alone. PURE: hashes of bytes.

Everything is SHA-256. A leaf and an inner node of a tree are hashed with different tags, and an
odd node is promoted, never repeated, so that no two lists have the same root (CVE-2012-2459).
A tag is BIP 340's: SHA-256(SHA-256(tag) ‖ SHA-256(tag) ‖ message).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from channels.tagged_hash import tagged

BLOCK: Final = 16384


class TensorRoot(NamedTuple):
    """A tensor by its name, element type as safetensors writes it ("I16"), shape and contents."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    root: bytes
    """bep52_root of its little-endian bytes, row by row."""


def bep52_root(data: bytes | memoryview) -> bytes:
    """The `pieces root` of a file (BEP 52): blocks of 16 KiB, zeros up to a power of two.

    ValueError for no bytes, which have no root there.
    """
    if len(data) == 0:
        raise ValueError("an empty file has no root")
    view = memoryview(data).cast("B")
    layer = [hashlib.sha256(view[i : i + BLOCK]).digest() for i in range(0, len(view), BLOCK)]
    padding = bytes(32)
    while len(layer) > 1:
        if len(layer) % 2:
            layer.append(padding)
        layer = [
            hashlib.sha256(a + b).digest() for a, b in zip(layer[::2], layer[1::2], strict=True)
        ]
        padding = hashlib.sha256(padding + padding).digest()
    return layer[0]


def weights_root(tensors: Iterable[TensorRoot]) -> bytes:
    """Of weights, sorted by name: independent of file, header, piece length and infohash.

    The leaf of a tensor is name ‖ 0 ‖ dtype ‖ 0 ‖ dimensions as one byte ‖ each as eight
    big-endian bytes ‖ root. ValueError for no tensors, or two of one name.
    """
    ordered = sorted(tensors, key=lambda tensor: tensor.name.encode())
    if not ordered or len({tensor.name for tensor in ordered}) < len(ordered):
        raise ValueError("weights need at least one tensor, and one of each name")
    return _tree("oda/weights", [_leaf(tensor) for tensor in ordered])


def dataset_root(public: bytes, shards: Sequence[bytes]) -> bytes:
    """Of the bep52_root and length of the public part and of each sealed shard, in order.

    The leaf of file i (0 is the public part) is i ‖ length, both as eight big-endian bytes ‖ root.
    """
    return dataset_root_of([(len(file), bep52_root(file)) for file in (public, *shards)])


def dataset_root_of(files: Sequence[tuple[int, bytes]]) -> bytes:
    """dataset_root from length and bep52_root alone, which a torrent's metadata says.

    ValueError for an empty file or none at all.
    """
    if not files or any(length <= 0 or len(root) != 32 for length, root in files):
        raise ValueError("a dataset has a public part, and no empty file")
    leaves = [
        i.to_bytes(8, "big") + length.to_bytes(8, "big") + root
        for i, (length, root) in enumerate(files)
    ]
    return _tree("oda/dataset", leaves)


def tagged_hash(tag: str, message: bytes) -> bytes:
    """BIP 340"""
    return tagged(tag)(message)


def _leaf(tensor: TensorRoot) -> bytes:
    name, dtype = tensor.name.encode(), tensor.dtype.encode()
    if b"\0" in name + dtype or len(tensor.shape) > 255 or len(tensor.root) != 32:
        raise ValueError("a tensor has a name, type, shape or root that can't be")
    shape = b"".join(size.to_bytes(8, "big") for size in tensor.shape)
    return name + b"\0" + dtype + b"\0" + bytes([len(tensor.shape)]) + shape + tensor.root


def _tree(tag: str, leaves: Sequence[bytes]) -> bytes:
    layer = [tagged_hash(f"{tag} leaf", leaf) for leaf in leaves]
    while len(layer) > 1:
        odd = layer[len(layer) & ~1 :]
        layer = [
            tagged_hash(f"{tag} node", layer[i] + layer[i + 1]) for i in range(0, len(layer) - 1, 2)
        ] + odd
    return layer[0]
