"""What bad input gets: liars, traps in the metadata, full disks and kill -9."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from channels.errors import RemoteProtocolError, UserError
from tests.torrent import nodes
from tests.torrent.nodes import node, stranger
from tests.torrent.samples import fill, info, leaf
from tests.torrent.test_swarm import same
from torrent import bencode, files, manifest
from torrent.library import Entry, Library
from torrent.magnet import Magnet
from torrent.merkle import FileHasher


async def test_a_liar_is_banned_and_an_honest_peer_completes(tmp_path: Path) -> None:
    source = fill(tmp_path / "good" / "oda", {"w": 3_000_000, "c": 50})
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    described = files.describe(source)
    metainfo = manifest.metainfo(described.manifest, described.layers)
    infohash = described.manifest.infohash
    with stranger(tmp_path / "bad", metainfo) as liar:
        with (tmp_path / "bad" / "oda" / "w").open("r+b") as file:
            for at in range(0, 3_000_000, 1 << 16):
                file.seek(at)
                file.write(b"a lie")
        async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
            fetching = asyncio.create_task(b.fetch(Magnet(infohash, (liar,))))
            async with asyncio.timeout(20):
                while infohash not in b._torrents or not b._torrents[infohash].is_active:
                    await asyncio.wait({fetching}, timeout=0.05)
                while not b.banned(infohash):
                    await b._torrents[infohash].transfer.change()
            assert b.banned(infohash) == [str(liar)]
            assert not fetching.done()
            assert b.status(infohash).state == "fetching"
            await a.publish(source)
            b._torrents[infohash].transfer.connect([a.address])
            assert same(source, await fetching)


async def test_a_file_cut_off_under_its_seeder(tmp_path: Path) -> None:
    source = fill(tmp_path / "good" / "oda", {"w": 2_000_000, "c": 50})
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    described = files.describe(source)
    metainfo = manifest.metainfo(described.manifest, described.layers)
    with stranger(tmp_path / "bad", metainfo) as peer:
        os.truncate(tmp_path / "bad" / "oda" / "w", 100_000)
        async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
            magnet = await a.publish(source)
            assert same(source, await b.fetch(Magnet(magnet.infohash, (peer, a.address))))


class Trap(NamedTuple):
    info: bytes
    reason: str


def trap(tree: dict[bytes, object], reason: str, **changes: object) -> Trap:
    return Trap(info(tree, **changes), reason)


HASHER = FileHasher(65536)
HASHER.update(b"12345")
GOOD = HASHER.finish().root

TRAPS = {
    "dot dot": trap({b"..": {b"..": {b"evil": leaf(pieces_root=GOOD)}}}, "unsafe-path"),
    "absolute": trap({b"/tmp/evil": leaf(pieces_root=GOOD)}, "unsafe-path"),
    "symlink": trap(
        {
            b"a": leaf(pieces_root=GOOD),
            b"link": leaf(0, attr=b"l", symlink_path=[b"..", b"..", b"evil"]),
        },
        "symlink",
    ),
    "case": trap({b"A": leaf(pieces_root=GOOD), b"a": leaf(pieces_root=GOOD)}, "colliding-names"),
    "absurd size": trap({b"a": leaf(1 << 41, pieces_root=GOOD)}, "too-large", piece_length=1 << 24),
    "other rules": trap({b"a": leaf(pieces_root=GOOD)}, "not-canonical", piece_length=1 << 17),
    "other name": trap({b"a": leaf(pieces_root=GOOD)}, "not-canonical", name=b"../../evil"),
}


@pytest.mark.parametrize("name", TRAPS)
async def test_traps_in_the_metadata(tmp_path: Path, name: str) -> None:
    import hashlib

    data, reason = TRAPS[name]
    # By hand, because the traps must reach the peer as they are.
    layers = {GOOD: bytes(32 << 17)} if name == "absurd size" else {}
    metainfo = b"d4:info" + data + b"12:piece layers" + bencode.encode(layers) + b"e"
    infohash = hashlib.sha256(data).digest()
    (tmp_path / "b").mkdir()
    if name == "absurd size":
        metainfo = b"d4:info" + data + b"12:piece layersdee"
    with stranger(tmp_path / "stranger", metainfo, checks=False) as peer:
        before = nodes.tree(tmp_path)
        async with node(tmp_path / "b") as b:
            with pytest.raises(RemoteProtocolError) as caught:
                await b.fetch(Magnet(infohash, (peer,)))
        assert caught.value.reason == reason
        ours = {path for path in nodes.tree(tmp_path) if not path.startswith("stranger/")}
        assert ours - {"stranger"} <= before | {"b/lock"}


async def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 3_000_000, "c": 50})
    async with node(tmp_path / "a") as a:
        magnet = await a.publish(source)
        # No process may write a longer file than this: what a full disk looks like from inside.
        with nodes.process(tmp_path / "b", "fetch", str(magnet), "0", "1000000") as fetcher:
            while "error" not in (said := nodes.told(fetcher)):
                assert "address" not in said
            assert said["error"] == "disk-full"
        # With room again it goes on.
        async with node(tmp_path / "b") as b:
            assert same(source, await b.fetch(magnet))


async def test_no_room_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path / "source", {"w": 300_000, "c": 50})
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        magnet = await a.publish(source)
        full = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(UserError) as caught:
            await b.fetch(magnet)
        assert caught.value.reason == "disk-full"
        assert not (tmp_path / "b" / magnet.infohash.hex() / "oda").exists()


async def test_held_only_once_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(tmp_path / "source", {"w": 300_000, "c": 50})
    synced = files.sync

    def broken(root: Path, found: manifest.Manifest) -> None:
        raise OSError(5, "Input/output error")

    async with node(tmp_path / "a") as a:
        magnet = await a.publish(source)
        monkeypatch.setattr(files, "sync", broken)
        async with node(tmp_path / "b") as b:
            with pytest.raises(UserError) as caught:
                await b.fetch(magnet)
            assert caught.value.reason == "disk-error"
        entry = Library(tmp_path / "b", nodes.QUOTA).entry(magnet.infohash)
        assert not entry.record.complete
        assert entry.status().done == 0
        monkeypatch.setattr(files, "sync", synced)
        async with node(tmp_path / "b") as b:
            assert same(source, await b.fetch(magnet))
            assert b.status(magnet.infohash).downloaded < 100_000


async def test_kill_in_the_middle_of_a_fetch(tmp_path: Path) -> None:
    total = 10 << 20
    source = fill(tmp_path / "source", {"w": total, "c": 50})
    async with node(tmp_path / "a") as a:
        magnet = await a.publish(source)
        notes = tmp_path / "b" / magnet.infohash.hex() / "resume"
        for share in (0.3, 0.6):
            limit = str(3 << 20)
            with nodes.process(tmp_path / "b", "fetch", str(magnet), limit, "0") as fetcher:
                # Killed after the first notes that were made when so much was there.
                before: int | None = None
                while before is None or notes.stat().st_mtime_ns == before:
                    said = await asyncio.to_thread(nodes.told, fetcher)
                    if before is None and said["done"] > share * total:
                        before = notes.stat().st_mtime_ns if notes.exists() else 0
                    assert "address" not in said
                    if before == 0 and not notes.exists():
                        before = None
                fetcher.send_signal(signal.SIGKILL)
                fetcher.wait()
        async with node(tmp_path / "b") as b:
            # Nobody tells it to: what was begun goes on.
            assert await b.restore() == [magnet.infohash]
            assert same(source, await b.fetch(magnet))
            assert b.status(magnet.infohash).downloaded < 0.45 * total


async def test_kill_in_the_middle_of_publishing(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 300_000, "c": 50})
    library = Library(tmp_path / "a", nodes.QUOTA)
    with nodes.process(tmp_path / "a", "publish-half", str(source)) as publisher:
        assert nodes.told(publisher) == {"copied": True}
        publisher.kill()
        publisher.wait()
    assert list((tmp_path / "a").glob(".incoming-*"))
    assert library.entries() == []
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        assert not list((tmp_path / "a").glob(".incoming-*"))
        assert same(source, await b.fetch(await a.publish(source)))


async def test_what_somebody_has_written_to_is_not_served(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 1_000_000, "c": 50})
    async with node(tmp_path / "a") as a:
        magnet = await a.publish(source)
    with (tmp_path / "a" / magnet.infohash.hex() / "oda" / "w").open("r+b") as file:
        file.write(b"tampered")
    async with node(tmp_path / "a", stall=1) as a, node(tmp_path / "b") as b:
        with pytest.raises(UserError) as caught:
            await a.seed(magnet.infohash)
        assert caught.value.reason == "not-complete"
        await b.publish(source)
        # Only the piece that is wrong is fetched again.
        assert same(source, await a.fetch(Magnet(magnet.infohash, (b.address,))))
        assert a.status(magnet.infohash).downloaded < 200_000


def test_records_gone_bad(tmp_path: Path) -> None:
    library = Library(tmp_path, nodes.QUOTA)
    entry = library.claim(bytes([1] * 32))
    for garbage in (b"", b"{", b"\xff" * 100, b"[]", b'{"complete": 5}'):
        (entry.folder / "record.json").write_bytes(garbage)
        assert not Entry(entry.folder).record.complete
    entry.release()
