"""The web seed as plain HTTP; that libtorrent fetches from it is in test_swarm.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from channels.errors import RemoteProtocolError
from tests.torrent.nodes import node
from tests.torrent.samples import content, fill
from torrent import manifest, merkle, proofs, webseed
from torrent.swarm import Swarm


@asynccontextmanager
async def served(routes: Iterable[web.AbstractRouteDef]) -> AsyncIterator[str]:
    """The URL of a server on loopback."""
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_ranges_and_nothing_but_the_manifest(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"w": 100_000, "sub/c d": 50})
    async with node(tmp_path / "a") as a:
        magnet = await a.publish(source)
        (tmp_path / "a" / magnet.infohash.hex() / "oda" / "stray").write_text("not of it")
        app = web.Application()
        app.add_routes(webseed.routes(a.library))
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/torrents/{magnet.infohash.hex()}"
        data = content("w", 100_000)
        async with aiohttp.ClientSession() as session:

            async def get(path: str, wanted: str | None = None) -> tuple[int, bytes]:
                headers = {"Range": wanted} if wanted else {}
                async with session.get(url + path, headers=headers) as response:
                    return response.status, await response.read()

            try:
                assert await get("/oda/w") == (200, data)
                assert await get("/oda/w", "bytes=5-9") == (206, data[5:10])
                assert await get("/oda/w", "bytes=99990-") == (206, data[99990:])
                assert await get("/oda/w", "bytes=-7") == (206, data[-7:])
                assert (await get("/oda/w", "bytes=100000-"))[0] == 416
                assert (await get("/oda/w", "bytes=9-5"))[0] == 416
                assert (await get("/oda/sub/c%20d"))[0] == 200
                for path in ("/oda/stray", "/oda/../record.json", "/oda/%2e%2e/info", "/oda/"):
                    assert (await get(path))[0] == 404
                status, metainfo = await get(".torrent")
                found, layers = manifest.parse_metainfo(metainfo)
                assert (status, found.infohash) == (200, magnet.infohash)
                seed = webseed.seed_url(url.partition("/torrents")[0] + "/", found)
                assert seed == f"{url}/"
                assert await webseed.fetch_metainfo([seed], found.infohash) == (found, layers)
                # Another's metadata under our name is not believed, nor waited for.
                for wrong in (f"{url}/oda/", "http://127.0.0.1:1/x/", "http://127.0.0.1:1/"):
                    assert await webseed.fetch_metainfo([wrong], bytes(32)) is None
                unknown = url.replace(magnet.infohash.hex(), "00" * 32)
                async with session.get(f"{unknown}/oda/w") as response:
                    assert response.status == 404
            finally:
                await runner.cleanup()


@pytest.mark.parametrize(
    ("paths", "ends"), [(["a"], "/oda/"), (["a", "b"], "/")], ids=["one file", "two files"]
)
def test_seed_url(paths: list[str], ends: str) -> None:
    found = manifest.Manifest.of(manifest.File(path, 1, bytes(32)) for path in paths)
    wanted = f"https://x/torrents/{found.infohash.hex()}{ends}"
    assert webseed.seed_url("https://x", found) == wanted
    hexed = found.infohash.hex()
    assert webseed.metainfo_url(wanted, found.infohash) == f"https://x/torrents/{hexed}.torrent"


# --- challenges ----------------------------------------------------------------------------------

FILES = {"w": 500_000, "sub/c d": 50, "empty": 0}


async def seeded(swarm: Swarm, tmp_path: Path, base: str) -> tuple[str, manifest.Manifest]:
    magnet = await swarm.publish(fill(tmp_path / "source", FILES))
    found = swarm.library.entry(magnet.infohash).manifest()
    assert found is not None
    return webseed.seed_url(base, found), found


async def test_a_holder_proves_random_blocks(tmp_path: Path) -> None:
    async with node(tmp_path / "a") as a, served(webseed.routes(a.library)) as base:
        seed, found = await seeded(a, tmp_path, base)
        # All there are, when that is no more than was asked for.
        everything = await webseed.challenge(seed, found.infohash, samples=40)
        blocks = {file.root: merkle.block_count(file.length) for file in found.files if file.length}
        assert {each.root: len(each.blocks) for each in everything} == blocks
        some = await webseed.challenge(seed, found.infohash, samples=3)
        assert sum(len(each.blocks) for each in some) == 3


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("proof/w?block=0&block=30", 200),
        ("proof/w?block=31", 400),
        ("proof/w?block=-1", 400),
        ("proof/w?block=1e9", 400),
        ("proof/w", 400),
        ("proof/w?" + "&".join(f"block={i}" for i in range(65)), 400),
        ("proof/empty?block=0", 404),
        ("proof/stray?block=0", 404),
        ("proof/../record.json?block=0", 404),
    ],
)
async def test_what_can_be_asked(tmp_path: Path, path: str, status: int) -> None:
    async with node(tmp_path / "a") as a, served(webseed.routes(a.library)) as base:
        _, found = await seeded(a, tmp_path, base)
        url = f"{base}/torrents/{found.infohash.hex()}/{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.status == status


class Liar:
    """It has the metadata, and something else than the files."""

    def __init__(self, swarm: Swarm, answer: bytes | None) -> None:
        self._swarm = swarm
        self._answer = answer

    async def metadata(self, request: web.Request) -> web.StreamResponse:
        infohash = bytes.fromhex(request.match_info["infohash"])
        return web.FileResponse(self._swarm.library.entry(infohash).metainfo_file)

    async def proof(self, request: web.Request) -> web.StreamResponse:
        if self._answer is None:
            raise web.HTTPNotFound
        return web.Response(body=self._answer)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/torrents/{infohash}.torrent", self.metadata),
            web.get("/torrents/{infohash}/proof/{path:.+}", self.proof),
        ]


MADE_UP = proofs.Sample(bytes(merkle.BLOCK), (bytes(32),) * 5)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "not-retrievable"),
        (b"x" * (proofs.MAX_ANSWER + 1), "not-retrievable"),
        (b"garbage", "bad-bencoding"),
        (proofs.encode([]), "wrong-sample-count"),
        (proofs.encode([MADE_UP]), "bad-branch"),
    ],
    ids=["silent", "endless", "garbage", "fewer", "made up"],
)
async def test_a_liar_fails(tmp_path: Path, answer: bytes | None, reason: str) -> None:
    async with node(tmp_path / "a") as a, served(Liar(a, answer).routes()) as base:
        magnet = await a.publish(fill(tmp_path / "source", {"w": 20 * merkle.BLOCK}))
        found = a.library.entry(magnet.infohash).manifest()
        assert found is not None
        with pytest.raises(RemoteProtocolError) as caught:
            await webseed.challenge(webseed.seed_url(base, found), found.infohash, samples=1)
        assert caught.value.reason == reason


async def test_who_has_lost_a_file_can_not_prove_it(tmp_path: Path) -> None:
    async with node(tmp_path / "a") as a, served(webseed.routes(a.library)) as base:
        seed, found = await seeded(a, tmp_path, base)
        file = tmp_path / "a" / found.infohash.hex() / "oda" / "w"
        file.write_bytes(bytes(500_000))
        with pytest.raises(RemoteProtocolError) as caught:
            await webseed.challenge(seed, found.infohash)
        assert caught.value.reason == "bad-branch"
        file.write_bytes(b"")
        with pytest.raises(RemoteProtocolError) as caught:
            await webseed.challenge(seed, found.infohash)
        assert caught.value.reason == "not-retrievable"
        with pytest.raises(RemoteProtocolError) as caught:
            await webseed.challenge("http://127.0.0.1:1/torrents/", found.infohash)
        assert caught.value.reason == "not-retrievable"
