"""A provider's models as BEP 19 web seeds: plain HTTP with range requests, over aiohttp.

    app.add_routes(webseed.routes(library))

serves `/torrents/<infohash>/oda/<path>`, and the metadata as `/torrents/<infohash>.torrent`. What a
magnet link names is `seed_url(base, manifest)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import aiohttp
from aiohttp import web

from channels.errors import OdaError, RemoteProtocolError
from torrent.library import Entry, Library
from torrent.magnet import parse_infohash
from torrent.manifest import NAME, Manifest, parse_metainfo

PREFIX: Final = "/torrents"
MAX_METAINFO: Final = 64 << 20
TIMEOUT: Final = aiohttp.ClientTimeout(total=60, sock_connect=10, sock_read=10)

HEADERS: Final = {
    # The bytes behind an infohash never change.
    "Cache-Control": "public, max-age=31536000, immutable",
    "Content-Type": "application/octet-stream",
}


def seed_url(base: str, manifest: Manifest) -> str:
    """What goes into a magnet link as `ws`; base: where the provider is, as "https://host:port".

    BEP 19: to a URL that ends in "/" the client adds name and path; libtorrent adds the path
    alone for a torrent of one file.
    """
    url = f"{base.rstrip('/')}{PREFIX}/{manifest.infohash.hex()}/"
    return f"{url}{NAME}/" if len(manifest.files) == 1 else url


def routes(library: Library, prefix: str = PREFIX) -> web.RouteTableDef:
    """GET and HEAD; aiohttp answers ranges (206, 416), conditions and sends without copying."""
    table = web.RouteTableDef()

    async def entry_of(request: web.Request) -> tuple[Entry, Manifest]:
        try:
            infohash = parse_infohash(request.match_info["infohash"])
            entry = await asyncio.to_thread(library.entry, infohash)
            manifest = await asyncio.to_thread(entry.manifest) if entry.record.complete else None
        except OdaError:
            raise web.HTTPNotFound from None
        if manifest is None:
            raise web.HTTPNotFound
        return entry, manifest

    @table.get(f"{prefix}/{{infohash}}.torrent")
    async def metadata(request: web.Request) -> web.StreamResponse:
        entry, _ = await entry_of(request)
        return web.FileResponse(entry.metainfo_file, headers=HEADERS)

    @table.get(f"{prefix}/{{infohash}}/{NAME}/{{path:.+}}")
    async def content(request: web.Request) -> web.StreamResponse:
        entry, manifest = await entry_of(request)
        path = request.match_info["path"]
        # Only what the manifest names is there; so no path can lead out of the folder.
        if manifest.file(path) is None:
            raise web.HTTPNotFound
        return web.FileResponse(entry.data / path, headers=HEADERS, chunk_size=1 << 18)

    return table


def metainfo_url(seed: str, infohash: bytes) -> str | None:
    """Where a web seed of ours has the metadata; None for one that is not made by `seed_url`."""
    before, found, _ = seed.partition(f"/{infohash.hex()}/")
    return f"{before}/{infohash.hex()}.torrent" if found else None


async def fetch_metainfo(
    seeds: Sequence[str], infohash: bytes
) -> tuple[Manifest, dict[bytes, bytes]] | None:
    """Metadata and piece layers from the first web seed that has them, checked.

    With them a model comes over HTTP alone: BEP 19 itself knows files and nothing about them.
    """
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        for seed in seeds:
            url = metainfo_url(seed, infohash)
            data = await _get(session, url) if url else None
            with suppress(RemoteProtocolError):  # then peers are asked, or the next web seed
                if data is not None:
                    manifest, layers = parse_metainfo(data)
                    if manifest.infohash == infohash:
                        return manifest, layers
    return None


async def _get(session: aiohttp.ClientSession, url: str) -> bytes | None:
    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return None
            data = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                data += chunk
                if len(data) > MAX_METAINFO:
                    return None
            return bytes(data)
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
