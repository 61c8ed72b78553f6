"""Quota, eviction and who may touch what."""

from __future__ import annotations

from pathlib import Path

import pytest

from channels.errors import UserError
from tests.torrent.nodes import node
from tests.torrent.samples import fill
from torrent.library import Library
from torrent.magnet import Magnet

SIZE = 100_000


async def filled(tmp_path: Path, count: int) -> list[Magnet]:
    """A library "b" with `count` fetched torrents, the first the longest unused."""
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        magnets = []
        for index in range(count):
            magnet = await a.publish(fill(tmp_path / f"source{index}", {f"w{index}": SIZE}))
            await b.fetch(magnet)
            magnets.append(magnet)
        return magnets


def present(library: Library) -> list[bytes]:
    return [entry.infohash for entry in library.entries()]


async def test_what_nobody_needs_goes(tmp_path: Path) -> None:
    magnets = await filled(tmp_path, 3)
    library = Library(tmp_path / "b", 3 * SIZE)
    for index, magnet in enumerate(magnets):
        entry = library.claim(magnet.infohash)
        entry.record.used = 100 - index  # so the last is the longest unused
        entry.record.pins = ["owner"] if index == 2 else []
        entry.save()
        entry.release()
    async with node(tmp_path / "a") as a, node(tmp_path / "b", quota=3 * SIZE) as b:
        await b.restore()  # what we seed ourselves is not needed for that
        magnet = await a.publish(fill(tmp_path / "next", {"next": SIZE}))
        await b.fetch(magnet)
        kept = [magnets[0].infohash, magnets[2].infohash, magnet.infohash]
        assert present(library) == kept
        assert not (tmp_path / "b" / magnets[1].infohash.hex()).exists()
        assert library.used() == 3 * SIZE
        # More than all that may go: nothing is fetched. What went is gone all the same.
        big = await a.publish(fill(tmp_path / "big", {"big": 3 * SIZE}))
        with pytest.raises(UserError) as caught:
            await b.fetch(big)
        assert caught.value.reason == "disk-quota"
        assert magnets[2].infohash in present(library)
        assert not (tmp_path / "b" / big.infohash.hex() / "oda").exists()


async def test_each_pins_what_it_needs(tmp_path: Path) -> None:
    """Who keeps other things now lets go of what it kept, and of nothing that others pin."""
    async with node(tmp_path / "a") as a:
        old, new, both = [
            (await a.publish(fill(tmp_path / name, {name: SIZE}), pin="x")).infohash
            for name in ("old", "new", "both")
        ]
        await a.seed(both, pin="y")
        await a.keep("x", {new})
        assert pins(a.library) == {old: [], new: ["x"], both: ["y"]}
        await a.keep("x", {new, old})
    async with node(tmp_path / "a", quota=3 * SIZE) as a:
        other = Library(tmp_path / "a", SIZE).claim(old)
        await a.keep("x", {new})  # that nobody seeds them makes no difference
        assert pins(a.library)[old] == ["x"], "it is in other hands"
        other.release()
        await a.keep("x", {new, b"\x01" * 32})
        assert pins(a.library) == {old: [], new: ["x"], both: ["y"]}
        await a.publish(fill(tmp_path / "next", {"next": SIZE}))
        assert old not in pins(a.library)
        assert new in pins(a.library) and both in pins(a.library)


def pins(library: Library) -> dict[bytes, list[str]]:
    return {entry.infohash: entry.record.pins for entry in library.entries()}


async def test_what_another_process_works_on_stays(tmp_path: Path) -> None:
    magnets = await filled(tmp_path, 1)
    mine, other = Library(tmp_path / "b", SIZE), Library(tmp_path / "b", SIZE)
    held = other.claim(magnets[0].infohash)
    with pytest.raises(UserError) as caught:
        mine.reserve(None, SIZE)
    assert caught.value.reason == "disk-quota"
    with pytest.raises(UserError) as caught:
        mine.claim(magnets[0].infohash)
    assert caught.value.reason == "already-running"
    held.release()
    mine.reserve(None, SIZE)
    assert present(mine) == []


async def test_forget(tmp_path: Path) -> None:
    (magnet,) = await filled(tmp_path, 1)
    async with node(tmp_path / "b") as b:
        await b.restore()
        await b.forget(magnet.infohash)
        assert b.library.entries() == []
        with pytest.raises(UserError) as caught:
            await b.forget(magnet.infohash)
        assert caught.value.reason == "not-found"
        with pytest.raises(UserError) as caught:
            b.status(magnet.infohash)
        assert caught.value.reason == "not-found"
