"""The web seed as plain HTTP; that libtorrent fetches from it is in test_swarm.py."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.torrent.nodes import node
from tests.torrent.samples import content, fill
from torrent import manifest, webseed


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
