"""The provider's models for others: in the swarm, and over HTTP as BEP 19 web seeds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from aiohttp import web
from yarl import URL

from channels.errors import UserError
from channels.terminal import Progress
from torrent import files, webseed
from torrent.library import Library
from torrent.magnet import Magnet, Peer
from torrent.progress import fetching
from torrent.swarm import Swarm


class Shared(NamedTuple):
    """A directory whose files are complete, right and shared from now on."""

    path: Path
    infohash: bytes


class Sharing:
    """address: where the swarm reaches us. base: our URL, None for the one that a request was
    sent to."""

    def __init__(self, library: Library, address: Peer, base: str | None = None) -> None:
        self._library = library
        self._address = address
        self._base = base

    def routes(self) -> web.RouteTableDef:
        return webseed.routes(self._library)

    async def magnet(self, infohash: bytes, asked: URL) -> Magnet:
        """asked: the origin that the request was sent to, which therefore reaches us."""
        manifest = await asyncio.to_thread(self._library.entry(infohash).manifest)
        if manifest is None:
            return Magnet(infohash)
        address = self._address
        if address.host in ("0.0.0.0", "::"):  # noqa: S104 # compared with, not listened on
            address = Peer(asked.host or "127.0.0.1", address.port)
        seed = webseed.seed_url(self._base or str(asked), manifest)
        return Magnet(infohash, (address,), web_seeds=(seed,))


async def obtain(
    swarm: Swarm, what: str, peers: Sequence[str], check: Callable[[Path], object], show: Progress
) -> Shared:
    """A model by the name of its directory, by its infohash or by a magnet link.

    check: raises for a directory that is not to be shared; called in a thread. What was begun
    before a crash goes on. Raises as Swarm.publish, Swarm.fetch and Magnet.parse do.
    """
    is_link = what.lower().startswith("magnet:")
    if not is_link and not re.fullmatch("[0-9A-Fa-f]{64}", what):
        return await _publish(swarm, Path(what), check, show)
    magnet = Magnet.parse(what)
    named = (*magnet.peers, *(Peer.parse(text) for text in peers))
    magnet = Magnet(magnet.infohash, named, magnet.trackers, magnet.web_seeds)
    show(0, None, "Looking for peers")
    try:
        path = await swarm.fetch(magnet, pin=True, report=fetching(show))
    except UserError as error:
        # `oda seed` shares it from the same library already.
        if error.reason != "already-running" or not swarm.library.is_complete(magnet.infohash):
            raise
        path = swarm.library.entry(magnet.infohash).data
    return Shared(path, magnet.infohash)


async def _publish(
    swarm: Swarm, directory: Path, check: Callable[[Path], object], show: Progress
) -> Shared:
    await asyncio.to_thread(check, directory)
    show(0, None, f"Hashing {directory}")
    try:
        infohash = (await swarm.publish(directory)).infohash
    except UserError as error:
        if error.reason != "already-running":
            raise
        described = await asyncio.to_thread(files.describe, directory)
        infohash = described.manifest.infohash
        if not swarm.library.is_complete(infohash):
            raise
    return Shared(swarm.library.entry(infohash).data, infohash)
