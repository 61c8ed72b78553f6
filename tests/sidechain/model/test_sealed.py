import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from channels.errors import UserError
from sidechain.model import parts, sealed
from sidechain.model.parts import MAGIC, Text
from sidechain.model.sealed import Dataset, key_hash, seal

KEYS = [bytes([i]) * 32 for i in range(70)]
PUBLIC = Text(b"public text")
HIDDEN = [Text(b"first secret"), Text(b"second secret")]


@pytest.fixture
def dataset() -> Dataset:
    return seal(PUBLIC, HIDDEN, KEYS[:2])


def reason_of(dataset: Dataset, i: int, key: bytes) -> str:
    with pytest.raises(UserError) as caught:
        dataset.open_shard(i, key)
    return caught.value.reason


def test_shards_open_with_their_keys(dataset: Dataset) -> None:
    assert dataset.public_part == PUBLIC
    assert [dataset.open_shard(i, KEYS[i]) for i in (0, 1)] == HIDDEN
    assert not any(b"secret" in shard for shard in dataset.shards)
    assert len({key_hash(key) for key in KEYS}) == len(KEYS)


def test_shards_do_not_open_otherwise(dataset: Dataset) -> None:
    for i, key in (
        (0, KEYS[1]),
        (1, KEYS[0]),
        (2, KEYS[0]),
        (-1, KEYS[1]),
        (0, b""),
        (0, b"x" * 31),
    ):
        assert reason_of(dataset, i, key) == "bad-shard"
    swapped = Dataset(dataset.public, dataset.shards[::-1])
    assert reason_of(swapped, 0, KEYS[1]) == "bad-shard"  # sealed for another place
    changed = bytearray(dataset.shards[0])
    changed[3] ^= 1
    assert reason_of(Dataset(dataset.public, (bytes(changed),)), 0, KEYS[0]) == "bad-shard"


def test_a_shard_may_turn_out_to_hold_nothing(dataset: Dataset) -> None:
    for junk in (b"", b"junk", MAGIC, MAGIC + b"\x01" + bytes(8)):
        aad = sealed._bound_to(0)
        shard = ChaCha20Poly1305(KEYS[0]).encrypt(bytes(12), junk + b"", aad)
        if len(shard) > sealed.TAG_SIZE:
            assert reason_of(Dataset(dataset.public, (shard,)), 0, KEYS[0]) == "bad-shard"


def test_keys_seal_once() -> None:
    for keys in (KEYS[:1], KEYS[:3], [KEYS[0], KEYS[0]]):
        with pytest.raises(ValueError, match="key of its own"):
            seal(PUBLIC, HIDDEN, keys)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    public = parts.encode(PUBLIC)
    Dataset(public, (bytes(17),) * 64)
    monkeypatch.setattr(sealed, "MAX_DATASET", len(public) + 100)
    Dataset(public, (bytes(100),))
    for shards in ((bytes(17),) * 65, (bytes(16),), (bytes(101),), (bytes(60), bytes(41))):
        with pytest.raises(UserError) as caught:
            Dataset(public, shards)
        assert caught.value.reason == "bad-dataset"
    with pytest.raises(UserError):
        Dataset(b"junk")


def test_the_root_names_all_of_it(dataset: Dataset) -> None:
    public, (a, b) = dataset.public, dataset.shards
    other = parts.encode(Text(b"public texT"))
    roots = {d.root for d in (dataset, Dataset(public), Dataset(public, (a,)),
                              Dataset(public, (b, a)), Dataset(other, (a, b)))}  # fmt: skip
    assert len(roots) == 5
    assert seal(PUBLIC, HIDDEN, KEYS[:2]).root == dataset.root


def test_a_directory_is_read_back(dataset: Dataset, tmp_path: Path) -> None:
    sealed.write(tmp_path / "d", dataset)
    assert sealed.read(tmp_path / "d") == dataset
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [
        "public.oda", "shard-00.oda", "shard-01.oda",
    ]  # fmt: skip


@pytest.mark.parametrize("file", ["public.oda", "shard-01.oda"])
def test_directories_from_strangers(dataset: Dataset, tmp_path: Path, file: str,
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def refused() -> None:
        with pytest.raises(UserError) as caught:
            sealed.read(tmp_path)
        assert caught.value.reason == "bad-file"

    sealed.write(tmp_path, dataset)
    with (tmp_path / file).open("r+b") as sparse:
        sparse.truncate(1 << 40)
    refused()
    (tmp_path / file).unlink()
    os.mkfifo(tmp_path / file)
    refused()
    (tmp_path / file).unlink()
    (tmp_path / file).symlink_to("/dev/zero")
    refused()
    (tmp_path / "public.oda").unlink()
    refused()
