"""Datasets: a public part that every update is scored on, and sealed shards that judge it later.

A shard is a part, encrypted with ChaCha20-Poly1305 under a key that its maker keeps and whose hash
is in AddModel. Each key seals one shard, so the nonce is always zero. The cipher alone does not
commit to its key (one ciphertext can be made to open under two); the key's hash does.

A dataset is a directory: public.oda, and shard-00.oda … shard-63.oda, as many as there are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from channels.errors import UserError
from sidechain.model import parts, roots
from sidechain.model.files import MAX_SHARDS, dataset_names, read_plain
from sidechain.model.parts import Part

MAX_DATASET: Final = 64 << 20
"""Bytes, of all files together."""

TAG_SIZE: Final = 16
KEY_SIZE: Final = 32
NONCE: Final = bytes(12)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Bytes as they are shared: `public` is an encoded part, `shards` are ciphertexts."""

    public: bytes
    shards: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        """Raises UserError("bad-dataset"); what a sealed shard holds is not known before."""
        sizes = [len(shard) for shard in self.shards]
        if len(sizes) > MAX_SHARDS or any(size <= TAG_SIZE for size in sizes):
            raise _bad(f"it has more than {MAX_SHARDS} shards, or an empty one")
        if len(self.public) + sum(sizes) > MAX_DATASET:
            raise _bad(f"it is longer than {MAX_DATASET} bytes")
        parts.decode(self.public)

    @property
    def root(self) -> bytes:
        """32 bytes that name all of it, in AddModel."""
        return roots.dataset_root(self.public, self.shards)

    @property
    def public_part(self) -> Part:
        return parts.decode(self.public)

    def open_shard(self, i: int, key: bytes) -> Part:
        """The part sealed in shard `i`. The caller has checked key_hash(key).

        Raises UserError("bad-shard") when the key doesn't open it or what it holds is no part:
        its maker's fault, on which all nodes agree.
        """
        if not 0 <= i < len(self.shards) or len(key) != KEY_SIZE:
            raise UserError("bad-shard", f"There is no shard {i}, or that is no key.")
        try:
            data = ChaCha20Poly1305(key).decrypt(NONCE, self.shards[i], _bound_to(i))
            return parts.decode(data)
        except InvalidTag:
            raise UserError("bad-shard", f"The key does not open shard {i}.") from None
        except UserError as error:
            raise UserError("bad-shard", f"Shard {i} holds no samples: {error}") from None


def seal(public: Part, hidden: Sequence[Part], keys: Sequence[bytes]) -> Dataset:
    """A dataset with one shard for each of `hidden`, sealed with the key in the same place.

    Keys are 32 random bytes each, and all different: ValueError.
    """
    if len(set(keys)) < len(hidden) or len(keys) != len(hidden):
        raise ValueError("each shard needs a key of its own")
    shards = [
        ChaCha20Poly1305(key).encrypt(NONCE, parts.encode(part), _bound_to(i))
        for i, (part, key) in enumerate(zip(hidden, keys, strict=True))
    ]
    return Dataset(parts.encode(public), tuple(shards))


def key_hash(key: bytes) -> bytes:
    """What AddModel says of a shard's key."""
    return roots.tagged_hash("oda/shard key", key)


def write(directory: Path, dataset: Dataset) -> None:
    """Into a directory that is made, or has no other files of these names."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in zip(
        dataset_names(len(dataset.shards)), [dataset.public, *dataset.shards], strict=True
    ):
        (directory / name).write_bytes(data)


def read(directory: Path) -> Dataset:
    """Raises UserError("bad-dataset") or ("bad-file"); reads no more than MAX_DATASET bytes."""
    public, *shards = read_files(directory)
    return Dataset(public, tuple(shards))


def read_files(directory: Path) -> list[bytes]:
    """The public part and the shards, whatever they hold; raises UserError("bad-file")."""
    left = MAX_DATASET
    files: list[bytes] = []
    for name in dataset_names():
        path = directory / name
        if files and not os.path.lexists(path):
            break
        data = read_plain(path, left)
        left -= len(data)
        files.append(data)
    return files


def _bound_to(i: int) -> bytes:
    """A shard opens in its own place only."""
    return hashlib.sha256(b"oda shard" + bytes([i])).digest()


def _bad(what: str) -> UserError:
    return UserError("bad-dataset", f"The dataset can't be used: {what}.")
