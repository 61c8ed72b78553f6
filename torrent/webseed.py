"""A provider's models as BEP 19 web seeds: plain HTTP with range requests, over aiohttp.

    app.add_routes(webseed.routes(library))

serves `/torrents/<infohash>/oda/<path>`, and the metadata as `/torrents/<infohash>.torrent`. What a
magnet link names is `seed_url(base, manifest)`.

`/torrents/<infohash>/proof/<path>?block=3&block=17` answers a challenge: those 16 KiB blocks of the
file with their Merkle branches, as `proofs.encode` writes them. `challenge` is who asks.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import quote

import aiohttp
from aiohttp import web

from channels.errors import LocalProtocolError, OdaError, RemoteProtocolError
from torrent import proofs
from torrent.library import Entry, Library
from torrent.magnet import parse_infohash
from torrent.manifest import NAME, Manifest, parse_metainfo

PREFIX: Final = "/torrents"
MAX_METAINFO: Final = 64 << 20
SAMPLES: Final = 16
MAX_READ: Final = 64 << 20
"""Bytes read and hashed for one challenge: a whole piece for each block."""
MOST_PROOFS: Final = 2
"""Answered at a time."""
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

    proving = asyncio.Semaphore(MOST_PROOFS)

    @table.get(f"{prefix}/{{infohash}}/proof/{{path:.+}}", allow_head=False)
    async def proof(request: web.Request) -> web.StreamResponse:
        entry, manifest = await entry_of(request)
        file = manifest.file(request.match_info["path"])
        if file is None or not file.length:
            raise web.HTTPNotFound
        blocks = _blocks(request, manifest.piece_length)
        if proving.locked():
            # Nobody pays for it, and a piece is read and hashed for each block.
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "1"})
        async with proving:
            try:
                answered = await asyncio.to_thread(
                    _prove, entry, manifest, proofs.Challenge(file, blocks)
                )
            except LocalProtocolError:
                raise web.HTTPBadRequest from None
        return web.Response(body=answered, content_type="application/octet-stream")

    return table


def _blocks(request: web.Request, piece_length: int) -> tuple[int, ...]:
    asked = request.query.getall("block", [])
    most = min(proofs.MAX_SAMPLES, MAX_READ // piece_length)
    if not 0 < len(asked) <= most or any(not re.fullmatch("[0-9]{1,9}", each) for each in asked):
        raise web.HTTPBadRequest
    return tuple(sorted({int(each) for each in asked}))


def _prove(entry: Entry, manifest: Manifest, asked: proofs.Challenge) -> bytes:
    file = asked.file
    layer = b"" if file.length <= manifest.piece_length else entry.known_layers()[file.root]
    with (entry.data / file.path).open("rb") as source:
        if os.fstat(source.fileno()).st_size != file.length:
            raise LocalProtocolError("file-changed", f"{file.path} is not as it was written.")

        def read(offset: int, length: int) -> bytes:
            return os.pread(source.fileno(), length, offset)

        samples = proofs.answer(asked, read, manifest.piece_length, layer)
    return proofs.encode(samples)


async def challenge(
    seed: str, infohash: bytes, *, samples: int = SAMPLES
) -> tuple[proofs.Retrievable, ...]:
    """Ask a web seed of ours for random blocks of a torrent; what it returns is verified, and says
    that these blocks could be had from there just now, no more (torrent/proofs.py).

    Raises RemoteProtocolError: "not-retrievable" where it does not give what it was asked for, and
    the reasons of `proofs.verify` where it gives something else.
    """
    found = await fetch_metainfo([seed], infohash)
    if found is None:
        raise _not_retrievable(seed)
    manifest, _ = found
    most = min(samples, MAX_READ // manifest.piece_length)
    retrieved = []
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        for asked in proofs.draw(manifest.files, os.urandom(32), most):
            base = seed.partition(f"/{infohash.hex()}/")[0]
            blocks = "&".join(f"block={block}" for block in asked.blocks)
            url = f"{base}/{infohash.hex()}/proof/{quote(asked.file.path)}?{blocks}"
            data = await _get(session, url, proofs.MAX_ANSWER)
            if data is None:
                raise _not_retrievable(seed)
            retrieved.append(proofs.verify(asked, proofs.decode(data)))
    return tuple(retrieved)


def _not_retrievable(seed: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        "not-retrievable", f"{seed[:200]} does not give what it was asked for; try another."
    )


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
            data = await _get(session, url, MAX_METAINFO) if url else None
            with suppress(RemoteProtocolError):  # then peers are asked, or the next web seed
                if data is not None:
                    manifest, layers = parse_metainfo(data)
                    if manifest.infohash == infohash:
                        return manifest, layers
    return None


async def _get(session: aiohttp.ClientSession, url: str, most: int) -> bytes | None:
    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return None
            data = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                data += chunk
                if len(data) > most:
                    return None
            return bytes(data)
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
