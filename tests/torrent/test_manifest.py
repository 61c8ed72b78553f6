"""Our infohashes are libtorrent's, the same files always have the same, and strangers' metadata."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import libtorrent as lt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.errors import RemoteProtocolError, UserError
from tests.torrent.samples import content, fill, info, leaf
from torrent import bencode, files, manifest
from torrent.manifest import File, Limits, Manifest
from torrent.merkle import FileHasher

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "bep52.json").read_text())["cases"]
ONE_BLOCK = bytes.fromhex("3a" * 32)


def hashed(contents: dict[str, bytes]) -> files.Described:
    piece = manifest.piece_length(sum(map(len, contents.values())))
    found, layers = [], {}
    for path, data in contents.items():
        hasher = FileHasher(piece)
        hasher.update(data)
        hashes = hasher.finish()
        found.append(File(path, hashes.length, hashes.root))
        if hashes.layer:
            layers[hashes.root] = hashes.layer
    return files.Described(Manifest.of(found), layers)


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: "+".join(case["files"]))
def test_vectors(case: Any, tmp_path: Path) -> None:
    described = files.describe(fill(tmp_path, case["files"]))
    found = described.manifest
    assert found.piece_length == case["piece_length"]
    assert {file.path: file.root.hex() for file in found.files} == case["roots"]
    assert hashlib.sha256(found.info).hexdigest() == case["info_sha256"] == case["infohash"]
    assert found.infohash.hex() == case["infohash"]
    layers = {k.hex(): hashlib.sha256(v).hexdigest() for k, v in described.layers.items()}
    assert layers == case["layers"]


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.sampled_from("abcde"), st.integers(0, 400_000), min_size=2, max_size=4))
def test_libtorrent_makes_the_same(
    tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, int]
) -> None:
    if not sum(sizes.values()):
        sizes["a"] = 1
    parent = tmp_path_factory.mktemp("live")
    described = files.describe(fill(parent / manifest.NAME, sizes))
    theirs = lt.create_torrent(
        lt.list_files(str(parent / manifest.NAME)),
        described.manifest.piece_length,
        lt.create_torrent.v2_only,
    )
    lt.set_piece_hashes(theirs, str(parent))
    generated = theirs.generate()
    assert bencode.encode(generated[b"info"]) == described.manifest.info
    assert generated[b"piece layers"] == dict(described.layers)
    ours = lt.load_torrent_buffer(manifest.metainfo(described.manifest, described.layers))
    assert ours.info_hashes.v2.to_bytes() == described.manifest.infohash


CONTENTS = st.dictionaries(
    st.text("abcß/", min_size=1, max_size=6), st.binary(max_size=300), min_size=1, max_size=6
)


@given(CONTENTS, st.randoms(use_true_random=False))
def test_the_same_files_have_the_same_infohash(
    contents: dict[str, bytes], order: random.Random
) -> None:
    try:
        first = hashed(contents).manifest
    except UserError:
        return
    shuffled = list(contents.items())
    order.shuffle(shuffled)
    again = hashed(dict(shuffled)).manifest
    assert again == first
    assert again.infohash == first.infohash
    assert manifest.parse_info(first.info) == first
    longer = {**contents, "z": b"more"}
    assert hashed(longer).manifest.infohash != first.infohash


@given(st.integers(0, 300_000), st.integers(1, 50_000))
@settings(max_examples=30, deadline=None)
def test_chunks_do_not_matter(length: int, chunk: int) -> None:
    data = content("chunks", length)
    whole, pieces = FileHasher(65536), FileHasher(65536)
    whole.update(data)
    for at in range(0, length, chunk):
        pieces.update(data[at : at + chunk])
    assert whole.finish() == pieces.finish()


def test_where_the_directory_is_and_what_hides_in_it_do_not_matter(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", {"a": 5, "b/c": 70_000})
    two = fill(tmp_path / "two", {"b/c": 70_000, "a": 5, ".git/x": 9, "b/.hidden": 3})
    (two / "empty").mkdir()
    assert files.describe(one).manifest == files.describe(two).manifest


@pytest.mark.parametrize(
    ("total", "piece"),
    [
        (1, 1 << 16),
        (1 << 26, 1 << 16),
        ((1 << 26) + 1, 1 << 17),
        (1 << 29, 1 << 19),
        (1 << 40, 1 << 24),
    ],
)
def test_piece_length(total: int, piece: int) -> None:
    assert manifest.piece_length(total) == piece


def test_a_torrent_file_round_trip(tmp_path: Path) -> None:
    described = files.describe(fill(tmp_path, {"w": 200_000, "c": 10}))
    data = manifest.metainfo(described.manifest, described.layers)
    assert manifest.parse_metainfo(data) == (described.manifest, described.layers)


HOSTILE = {
    "not bencoded": (b"hello", "bad-bencoding"),
    "not a dictionary": (b"le", "bad-metadata"),
    "no file tree": (info({}, file_tree=None), "bad-metadata"),
    "v1": (info({b"a": leaf()}, meta_version=None), "unsupported-version"),
    "v3": (info({b"a": leaf()}, meta_version=3), "unsupported-version"),
    "dot dot": (info({b"..": {b"evil": leaf()}}), "unsafe-path"),
    "dot": (info({b".": {b"evil": leaf()}}), "unsafe-path"),
    "slash": (info({b"../../evil": leaf()}), "unsafe-path"),
    "absolute": (info({b"/etc/passwd": leaf()}), "unsafe-path"),
    "backslash": (info({b"..\\evil": leaf()}), "unsafe-path"),
    "a file as root": (info(leaf()), "bad-metadata"),
    "deep": (
        info({b"d": {b"d": {b"d": {b"d": {b"d": {b"d": {b"d": {b"d": {b"d": {}}}}}}}}}}),
        "unsafe-path",
    ),
    "nul": (info({b"a\x00b": leaf()}), "bad-name"),
    "drive": (info({b"c:evil": leaf()}), "bad-name"),
    "right to left": (info({"a\u202eb".encode(): leaf()}), "bad-name"),
    "hidden": (info({b".bashrc": leaf()}), "bad-name"),
    "trailing dot": (info({b"a.": leaf()}), "bad-name"),
    "not UTF-8": (info({b"\xff\xfe": leaf()}), "bad-name"),
    "long name": (info({b"x" * 241: leaf()}), "bad-name"),
    "symlink": (info({b"a": leaf(0, attr=b"l", symlink_path=[b"..", b"x"])}), "symlink"),
    "symlink without attr": (info({b"a": leaf(0, symlink_path=[b"x"])}), "symlink"),
    "padding": (info({b"a": leaf(attr=b"p")}), "padding-file"),
    "case": (info({b"Weights": leaf(), b"weights": leaf()}), "colliding-names"),
    "case of a folder": (info({b"A": {b"x": leaf()}, b"a": {b"y": leaf()}}), "colliding-names"),
    "normal forms": (
        info({"e\u0301".encode(): leaf(), "\u00e9".encode(): leaf()}),
        "colliding-names",
    ),
    "file and folder": (info({b"A": leaf(), b"a": {b"y": leaf()}}), "colliding-names"),
    "both at once": (info({b"a": {**leaf(), b"b": leaf()}}), "bad-metadata"),
    "negative length": (info({b"a": leaf(-1)}), "bad-metadata"),
    "no root": (info({b"a": {b"": {b"length": 5}}}), "bad-metadata"),
    "short root": (info({b"a": leaf(pieces_root=b"x")}), "bad-metadata"),
    "text as length": (info({b"a": {b"": {b"length": b"5"}}}), "bad-metadata"),
    "list as attr": (info({b"a": leaf(attr=[])}), "not-canonical"),
    "huge": (info({b"a": leaf(1 << 60)}), "too-large"),
    "huge together": (info({b"a": leaf(1 << 40), b"b": leaf(1)}), "too-large"),
    "nothing": (info({}), "empty-torrent"),
    "no bytes": (info({b"a": leaf(0)}), "empty-torrent"),
    "empty folder": (info({b"a": leaf(), b"b": {}}), "not-canonical"),
    "other name": (info({b"a": leaf()}, name=b"../../evil"), "not-canonical"),
    "other piece length": (info({b"a": leaf()}, piece_length=16384), "not-canonical"),
    "piece length zero": (info({b"a": leaf()}, piece_length=0), "not-canonical"),
    "hybrid": (info({b"a": leaf()}, pieces=bytes(20)), "not-canonical"),
    "further key": (info({b"a": leaf()}, private=1), "not-canonical"),
    "executable": (info({b"a": leaf(attr=b"x")}), "not-canonical"),
    "long": (info({b"a": leaf()}, x=bytes(2 << 20)), "metadata-too-long"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata(name: str) -> None:
    data, reason = HOSTILE[name]
    with pytest.raises(RemoteProtocolError) as caught:
        manifest.parse_info(data)
    assert caught.value.reason == reason


def test_too_many_files() -> None:
    tree: dict[bytes, object] = {b"%d" % i: leaf() for i in range(4)}
    with pytest.raises(RemoteProtocolError) as caught:
        manifest.parse_info(info(tree), Limits(files=3))
    assert caught.value.reason == "too-many-files"


def test_piece_layers_that_do_not_fit(tmp_path: Path) -> None:
    described = files.describe(fill(tmp_path, {"w": 200_000, "c": 10}))
    root, layer = next(iter(described.layers.items()))
    for wrong in (layer[:-32], layer[32:] + layer[:32], layer + bytes(32), b""):
        data = manifest.metainfo(described.manifest, {root: wrong})
        with pytest.raises(RemoteProtocolError) as caught:
            manifest.parse_metainfo(data)
        assert caught.value.reason == "bad-piece-layers"
    with pytest.raises(RemoteProtocolError) as caught:
        manifest.parse_metainfo(manifest.metainfo(described.manifest, {}))
    assert caught.value.reason == "bad-piece-layers"


@given(st.binary(max_size=200))
def test_garbage_is_refused_cleanly(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        manifest.parse_info(data)
    with pytest.raises(RemoteProtocolError):
        manifest.parse_metainfo(data)


def test_directories_that_can_not_be_shared(tmp_path: Path) -> None:
    def refused(directory: Path) -> str:
        with pytest.raises(UserError) as caught:
            files.describe(directory)
        return caught.value.reason

    assert refused(tmp_path / "none") == "not-found"
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == "empty-torrent"
    fill(tmp_path / "link", {"a": 1})
    (tmp_path / "link" / "b").symlink_to("/etc/passwd")
    assert refused(tmp_path / "link") == "symlink"
    fill(tmp_path / "folder", {"a": 1})
    (tmp_path / "folder" / "b").symlink_to("/etc")
    assert refused(tmp_path / "folder") == "symlink"
    assert refused(fill(tmp_path / "case", {"a": 1, "A": 1})) == "colliding-names"
    assert refused(fill(tmp_path / "colon", {"a:b": 1})) == "bad-name"


def test_another_than_was_announced() -> None:
    wanted = Manifest.of([File("a", 1, ONE_BLOCK), File("b", 2, ONE_BLOCK)])
    manifest.require_same(wanted, wanted)
    with pytest.raises(RemoteProtocolError, match="'b'") as caught:
        manifest.require_same(wanted, Manifest.of([File("a", 1, ONE_BLOCK)]))
    assert caught.value.reason == "manifest-mismatch"
