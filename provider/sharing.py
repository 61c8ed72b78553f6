"""The provider's models for others: in the swarm, and over HTTP as BEP 19 web seeds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from aiohttp import web
from yarl import URL

from channels.errors import RemoteProtocolError, UserError
from channels.terminal import Progress
from sidechain.model.files import ARCHITECTURE, WEIGHTS
from torrent import files, webseed
from torrent.library import Library
from torrent.magnet import Magnet, Peer
from torrent.manifest import Manifest
from torrent.progress import fetching
from torrent.swarm import Swarm

PIN: Final = "provider"
"""Who needs what a provider serves (torrent.library.Record.pins)."""


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
    before a crash goes on. It is pinned for the provider. Raises as Swarm.publish, Swarm.fetch and
    Magnet.parse do.
    """
    is_link = what.lower().startswith("magnet:")
    if not is_link and not re.fullmatch("[0-9A-Fa-f]{64}", what):
        return await _publish(swarm, Path(what), check, show)
    magnet = Magnet.parse(what)
    named = (*magnet.peers, *(Peer.parse(text) for text in peers))
    magnet = replace(magnet, peers=named)
    show(0, None, "Looking for peers")
    try:
        path = await swarm.fetch(magnet, accept=_looks_like_a_model, pin=PIN, report=fetching(show))
    except UserError as error:
        if error.reason != "already-running" or not swarm.library.is_complete(magnet.infohash):
            raise
        # Another program, `oda seed`, shares it from the same library.
        path = swarm.library.entry(magnet.infohash).data
    return Shared(path, magnet.infohash)


def _looks_like_a_model(manifest: Manifest) -> None:
    """Before it is fetched; what is in the files is seen when it is loaded."""
    if manifest.file(ARCHITECTURE) is None or manifest.file(WEIGHTS) is None:
        raise RemoteProtocolError(
            "not-a-model",
            f"What has this infohash is no model, it has no {ARCHITECTURE} or no {WEIGHTS}; "
            "name another.",
        )


async def _publish(
    swarm: Swarm, directory: Path, check: Callable[[Path], object], show: Progress
) -> Shared:
    await asyncio.to_thread(check, directory)
    show(0, None, f"Hashing {directory}")
    infohash = (await asyncio.to_thread(files.describe, directory)).manifest.infohash
    try:
        # What the library has already is not copied there at every start.
        path = await swarm.seed(infohash, pin=PIN)
    except UserError as error:
        if error.reason == "already-running" and swarm.library.is_complete(infohash):
            return Shared(swarm.library.entry(infohash).data, infohash)
        if error.reason not in ("not-found", "not-complete"):
            raise
        infohash = (await swarm.publish(directory, pin=PIN)).infohash
        path = swarm.library.entry(infohash).data
    return Shared(path, infohash)
