"""Honest nodes on loopback, each with a libtorrent of its own."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from channels.errors import RemoteProtocolError, UserError
from tests.torrent import nodes
from tests.torrent.nodes import node
from tests.torrent.samples import content, fill, model, safetensors
from torrent import bencode, delta, files, webseed
from torrent.library import Library, Status
from torrent.magnet import Magnet
from torrent.manifest import File, Manifest
from torrent.session import Options
from torrent.swarm import Swarm


def same(one: Path, other: Path) -> bool:
    names = nodes.tree(one)
    return names == nodes.tree(other) and all(
        (one / name).read_bytes() == (other / name).read_bytes()
        for name in names
        if (one / name).is_file()
    )


@pytest.mark.parametrize(
    "sizes",
    [
        {"w": 1_500_000, "x": 200_000, "c": 10, "e": 0, "sub/dir/f": 70_000},
        {"only": 200_000},
        {"tiny": 1},
    ],
    ids=["folders", "one file", "one byte"],
)
async def test_published_fetched_and_served_on(tmp_path: Path, sizes: dict[str, int]) -> None:
    source = fill(tmp_path / "source", sizes)
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        magnet = await a.publish(source)
        assert magnet.infohash == files.describe(source).manifest.infohash
        seen: list[Status] = []
        path = await b.fetch(magnet, report=seen.append)
        assert same(source, path)
        total = sum(sizes.values())
        assert [status.state for status in (seen[0], seen[-1])] == ["fetching", "seeding"]
        assert (seen[-1].done, seen[-1].total) == (total, total)
        assert [status.done for status in seen] == sorted(status.done for status in seen)
        # Who has it asks nobody, and publishing again what was published is nothing new.
        assert await b.fetch(Magnet(magnet.infohash)) == path
        assert await a.publish(source) == magnet
    # After a restart it is served on, by the one who fetched it.
    async with node(tmp_path / "b") as b, node(tmp_path / "c") as c:
        assert await b.restore() == [magnet.infohash]
        assert same(source, await c.fetch(Magnet(magnet.infohash, (b.address,))))


async def test_served_by_another_after_the_publisher_was_killed(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"weights": 2_000_000, "config": 50})
    with nodes.process(tmp_path / "b", "publish", str(source)) as publisher:
        magnet = nodes.told(publisher)["magnet"]
        with nodes.process(tmp_path / "c", "fetch", magnet) as second:
            while "address" not in (said := nodes.told(second)):
                assert "error" not in said
            publisher.kill()
            publisher.wait()
            # The dead publisher is still named; only the second node has it.
            third = Magnet.parse(f"{magnet}&x.pe={said['address']}")
            async with node(tmp_path / "d") as d:
                assert same(source, await d.fetch(third))
                assert d.status(third.infohash).downloaded >= 2_000_050


async def test_the_publisher_may_come_later(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 300_000, "c": 5})
    infohash = files.describe(source).manifest.infohash
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        waiting = asyncio.create_task(b.fetch(Magnet(infohash, (a.address,))))
        done, _ = await asyncio.wait({waiting}, timeout=0.2)
        assert not done
        await a.publish(source)
        assert same(source, await waiting)


async def test_nobody_has_it(tmp_path: Path) -> None:
    async with node(tmp_path / "b", stall=0.5) as b:
        with pytest.raises(UserError) as caught:
            await b.fetch(Magnet(bytes([7] * 32)))
        assert caught.value.reason == "fetch-stalled"


async def test_two_who_want_the_same_fetch_it_once(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 500_000, "c": 5})
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        magnet = await a.publish(source)
        one, two = await asyncio.gather(b.fetch(magnet), b.fetch(magnet))
        assert one == two
        assert b.status(magnet.infohash).downloaded < 600_000
    async with node(tmp_path / "b") as one_node, node(tmp_path / "b") as other:
        await one_node.restore()
        with pytest.raises(UserError) as caught:
            await other.seed(magnet.infohash)
        assert caught.value.reason == "already-running"


async def test_limits_pause_and_resume(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 3 << 20, "c": 5})
    async with node(tmp_path / "a") as a, node(tmp_path / "b", download_limit=1 << 20) as b:
        magnet = await a.publish(source)
        started = time.monotonic()
        half = asyncio.Event()

        def report(status: Status) -> None:
            if status.done > 1 << 20:
                half.set()

        fetching = asyncio.create_task(b.fetch(magnet, report=report))
        await half.wait()
        await b.pause(magnet.infohash)
        assert b.status(magnet.infohash).state == "paused"
        done = b.status(magnet.infohash).done
        assert not fetching.done()
        b.resume(magnet.infohash)
        assert same(source, await fetching)
        # It can't be faster than the limit (with a second's worth of it given at once).
        assert time.monotonic() - started > 1.5
        assert done < 3 << 20
        await a.pause(magnet.infohash)
    async with node(tmp_path / "a") as a:
        await a.restore()
        assert a.status(magnet.infohash).state == "paused"


async def test_slow_peers_do_not_keep_others_waiting(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 6_000_000, "c": 5})
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(node(tmp_path / "a"))
        magnet = await a.publish(source)
        # More than are served at a time, and each would take five minutes.
        slow = [
            await stack.enter_async_context(
                node(tmp_path / f"slow{i}", download_limit=20_000, stall=600)
            )
            for i in range(6)
        ]
        waiting = {asyncio.create_task(each.fetch(magnet)) for each in slow}
        # Whoever comes first is served first, and four are at a time.
        while sum(has_begun(each, magnet) for each in slow) < 4:
            await asyncio.wait(waiting, timeout=0.05)
        b = await stack.enter_async_context(node(tmp_path / "b", stall=600))
        assert same(source, await b.fetch(magnet))
        assert max(each.status(magnet.infohash).done for each in slow) < 3_000_000
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def has_begun(swarm: Swarm, magnet: Magnet) -> bool:
    try:
        return swarm.status(magnet.infohash).downloaded > 0
    except UserError:
        return False  # it looks for its folder yet


async def test_a_web_seed_alone_is_enough(tmp_path: Path) -> None:
    async with node(tmp_path / "a") as a:
        app = web.Application()
        app.add_routes(webseed.routes(a.library))
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        base = "http://127.0.0.1:{}".format(*runner.addresses[0][1:2])
        try:
            for sizes in ({"w": 900_000, "with space/ü": 100_000, "c": 5}, {"only": 150_000}):
                source = fill(tmp_path / f"source{len(sizes)}", sizes)
                found = files.describe(source)
                magnet = await a.publish(source)
                await a.pause(magnet.infohash)
                url = webseed.seed_url(base, found.manifest)
                link = Magnet.parse(str(Magnet(magnet.infohash, web_seeds=(url,))))
                async with node(tmp_path / f"b{len(sizes)}") as b:
                    assert same(source, await b.fetch(link))
        finally:
            await runner.cleanup()


# --- updates -------------------------------------------------------------------------------------


async def test_what_is_known_is_copied(tmp_path: Path) -> None:
    first = fill(tmp_path / "first", {"big": 2_000_000, "also": 100_000, "c": 5})
    second = fill(tmp_path / "second", {"moved/big": 1, "also": 100_000, "new": 300_000})
    (second / "moved" / "big").write_bytes(content("big", 2_000_000))
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        old = await b.fetch(await a.publish(first))
        magnet = await a.publish(second)
        path = await b.fetch(magnet)
        assert same(second, path)
        assert b.status(magnet.infohash).downloaded < 400_000
        # A copy, not another name for the same bytes.
        assert (path / "moved" / "big").stat().st_ino != (old / "big").stat().st_ino
        # Known bytes that somebody has changed meanwhile are not taken for known.
        (old / "big").write_bytes(bytes(2_000_000))
        third = fill(tmp_path / "third", {"big": 2_000_000, "d": 9})
        assert same(third, await b.fetch(await a.publish(third)))


def weights(seed: int) -> bytes:
    generator = np.random.default_rng(1)
    numbers = generator.normal(0, 1500, 400_000)
    for _ in range(seed):
        numbers = numbers + generator.normal(0, 16, 400_000)
    return safetensors(np.clip(np.rint(numbers), -32767, 32767).astype(np.int16), note=str(seed))


async def test_an_update_moves_a_third_of_the_floats(tmp_path: Path) -> None:
    old, new = weights(0), weights(1)
    first = model(tmp_path / "first", old)
    second = model(tmp_path / "second", new, weights_delta=delta.make(old, new))
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b, node(tmp_path / "c") as c:
        await b.fetch(await a.publish(first))
        magnet = await a.publish(second)
        assert same(second, await b.fetch(magnet))
        assert b.status(magnet.infohash).downloaded < 0.35 * len(new)
        # The earlier weights may also be in a directory of the user's.
        again = await c.fetch(Magnet(magnet.infohash, (b.address,)), base=first)
        assert same(second, again)
        assert c.status(magnet.infohash).downloaded < 0.35 * len(new)
    # Who has no earlier weights gets them whole, from one who has rebuilt them.
    async with node(tmp_path / "b") as b, node(tmp_path / "d") as d:
        await b.restore()
        assert same(second, await d.fetch(Magnet(magnet.infohash, (b.address,))))
        assert d.status(magnet.infohash).downloaded > len(new)


@pytest.mark.parametrize("wrong", ["garbage", "other base", "lying"])
async def test_a_delta_that_leads_nowhere(tmp_path: Path, wrong: str) -> None:
    old, new = weights(0), weights(1)
    made = delta.make(weights(2), new) if wrong == "other base" else delta.make(old, weights(2))
    start = delta.PREFIX - 32
    made = made[:start] + delta.file_root(new) + made[delta.PREFIX :]
    packed = b"garbage" if wrong == "garbage" else made
    first = model(tmp_path / "first", old)
    second = model(tmp_path / "second", new, weights_delta=packed)
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        await b.fetch(await a.publish(first))
        assert same(second, await b.fetch(await a.publish(second)))


async def test_another_than_was_announced(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 100_000, "c": 5})
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        magnet = await a.publish(source)
        with pytest.raises(RemoteProtocolError) as caught:
            await b.fetch(magnet, wanted=Manifest.of([File("w", 1, bytes(32))]))
        assert caught.value.reason == "manifest-mismatch"
        assert not (tmp_path / "b" / magnet.infohash.hex()).exists()


async def test_a_model_whose_weights_are_not_those_of_its_manifest(tmp_path: Path) -> None:
    source = model(tmp_path / "source", weights(0))
    (source / "weights.safetensors").write_bytes(weights(1))
    async with node(tmp_path / "a") as a, node(tmp_path / "b") as b:
        magnet = await a.publish(source)
        with pytest.raises(RemoteProtocolError) as caught:
            await b.fetch(magnet)
        assert caught.value.reason == "manifest-mismatch"
        assert not (tmp_path / "b" / magnet.infohash.hex()).exists()


async def test_found_through_a_tracker(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 100_000, "c": 5})
    known: set[int] = set()

    async def announce(request: web.Request) -> web.Response:
        known.add(int(request.query["port"]))
        # BEP 23: four bytes of address and two of port for each peer.
        peers = b"".join(bytes([127, 0, 0, 1]) + port.to_bytes(2, "big") for port in known)
        return web.Response(body=bencode.encode({b"interval": 1800, b"peers": peers}))

    app = web.Application()
    app.router.add_get("/announce", announce)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    trackers = (f"http://127.0.0.1:{runner.addresses[0][1]}/announce",)
    try:
        async with (
            Swarm(Library(tmp_path / "a", nodes.QUOTA), Options(), trackers=trackers) as a,
            Swarm(Library(tmp_path / "b", nodes.QUOTA), Options(), stall=20) as b,
        ):
            magnet = await a.publish(source)
            link = Magnet(magnet.infohash, trackers=trackers)
            assert same(source, await b.fetch(link))
    finally:
        await runner.cleanup()


# In libtorrent's eyes a DHT on one machine is an attack: all its nodes have one address.
ONE_MACHINE: dict[str, Any] = {
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_ignore_dark_internet": False,
    "dht_bootstrap_nodes": "",
}


async def test_found_through_the_dht(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 100_000, "c": 5})
    async with node(tmp_path / "first", dht=True, extra=ONE_MACHINE) as first:
        known = ONE_MACHINE | {"dht_bootstrap_nodes": str(first.address)}
        async with (
            node(tmp_path / "a", dht=True, extra=known) as a,
            node(tmp_path / "b", dht=True, extra=known) as b,
            node(tmp_path / "c", dht=True, extra=ONE_MACHINE, stall=1) as c,
        ):
            infohash = (await a.publish(source)).infohash
            # The infohash and one node of the DHT, which has nothing of it, are all they know.
            assert same(source, await b.fetch(Magnet(infohash)))
            # Who knows no node of the DHT finds nobody.
            with pytest.raises(UserError) as caught:
                await c.fetch(Magnet(infohash))
            assert caught.value.reason == "fetch-stalled"
