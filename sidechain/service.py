"""A whole node: chain, swarm, scorer, miner, peers and HTTP server, put together and apart."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from channels.background import background
from channels.errors import OdaError, UserError
from channels.settings import Settings
from sidechain import params as networks
from sidechain import settings as sidechain_settings
from sidechain.app import application
from sidechain.feed import Feed
from sidechain.full_handlers import FullHandlers
from sidechain.handlers import Around, Handlers
from sidechain.history import History
from sidechain.light_handlers import LightHandlers
from sidechain.light_node import LightNode
from sidechain.metrics import Metrics
from sidechain.miner import Miner
from sidechain.node import ChainNode
from sidechain.params import Params
from sidechain.peers import Peers
from sidechain.scoring import SwarmScorer
from sidechain.settings import Key, SidechainSettings
from sidechain.store import SqliteStore
from torrent import settings as torrent_settings
from torrent.magnet import Peer
from torrent.swarm import Swarm

log = logging.getLogger(__name__)

SHUTDOWN: Final = 2.0
AGENT: Final = f"oda/{metadata.version('oda')}"


@dataclass(slots=True)
class Running:
    """A node that is up. wait() returns never, or raises what it can't go on after."""

    url: str
    node: ChainNode | LightNode
    around: Around
    swarm: Swarm | None = None
    """None of a light node."""
    parts: list[Awaitable[None]] = field(default_factory=list)

    async def wait(self) -> None:
        waiting = [asyncio.ensure_future(part) for part in self.parts]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


def now() -> int:
    return int(time.time())


@asynccontextmanager
async def full_node(
    shared: Settings,
    found: SidechainSettings,
    *,
    mine: bool = False,
    routes: Iterable[web.AbstractRouteDef] = (),
) -> AsyncIterator[Running]:
    """Raises UserError "store-in-use", "port-in-use", "disk-full"."""
    params = _params(shared, found)
    key = Key.load(shared)
    async with AsyncExitStack() as stack:
        store = stack.enter_context(_store(sidechain_settings.chain_file(shared)))
        listening = stack.enter_context(_listen(found))
        # Who answers nothing in the time that a block may wait is asked again later.
        seeding = msgspec.structs.replace(
            torrent_settings.load(shared), stall_s=float(params.fetch_wait)
        )
        swarm = await stack.enter_async_context(Swarm.of(shared, seeding))
        scorer = SwarmScorer(params, swarm, lambda: peers.swarm_peers())
        node = ChainNode(params, store, now=now, scorer=scorer)
        scorer.answered = node.scored
        port = listening.getsockname()[1]
        peers = Peers(node, agent=AGENT, port=port, swarm_port=swarm.address.port)
        around = Around(AGENT, now, peers, key.public, str(swarm.address), scorer)
        if mine:
            around.miner = Miner(
                node,
                key.public,
                found.processes or None,
                empty_after=None if (found.empty_after or 0) < 0 else found.empty_after,
                pause=found.pause,
            )
        history = History(node)
        handlers = FullHandlers(node, history, around)
        url = await stack.enter_async_context(_served(listening, handlers, node, around, routes))
        await stack.enter_async_context(scorer)
        await stack.enter_async_context(peers)
        running = Running(url, node, around, swarm, [peers.wait_failed(), scorer.failure])
        for work in (_connect(peers, found.connect), _seed(swarm)):
            await stack.enter_async_context(background(work))
        following = await stack.enter_async_context(background(history.run()))
        running.parts.append(following)
        if around.miner is not None:
            mining = await stack.enter_async_context(background(around.miner.run()))
            running.parts.append(mining)
        yield running


@asynccontextmanager
async def light_node(
    shared: Settings,
    found: SidechainSettings,
    *,
    routes: Iterable[web.AbstractRouteDef] = (),
) -> AsyncIterator[Running]:
    """Headers and proofs alone; raises as full_node()."""
    params = _params(shared, found)
    async with AsyncExitStack() as stack:
        store = stack.enter_context(_store(sidechain_settings.headers_file(shared)))
        listening = stack.enter_context(_listen(found))
        node = LightNode(params, store, now=now)
        peers = Peers(node, agent=AGENT, port=listening.getsockname()[1])
        around = Around(AGENT, now, peers)
        handlers = LightHandlers(node, around)
        url = await stack.enter_async_context(_served(listening, handlers, node, around, routes))
        await stack.enter_async_context(peers)
        await stack.enter_async_context(background(_connect(peers, found.connect)))
        yield Running(url, node, around, None, [peers.wait_failed()])


def _params(shared: Settings, found: SidechainSettings) -> Params:
    params = networks.network(shared.network)
    return replace(params, assume_scored_depth=None) if found.verify_all else params


def _store(path: Path) -> SqliteStore:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return SqliteStore(path)


def _listen(found: SidechainSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in found.host else socket.AF_INET
    try:
        return socket.create_server((found.host, found.port), family=family, backlog=128)
    except OSError as error:
        raise UserError(
            "port-in-use",
            f"Port {found.port} on {found.host} can't be used: {error.strerror}; "
            "name another one with --port.",
        ) from None


@asynccontextmanager
async def _served(
    listening: socket.socket,
    handlers: Handlers,
    node: ChainNode | LightNode,
    around: Around,
    routes: Iterable[web.AbstractRouteDef],
) -> AsyncIterator[str]:
    metrics, feed = Metrics(node, around), Feed(node)
    unlisten = [node.listen(metrics.hear), node.listen(feed.hear)]
    app = application(handlers, metrics, feed, [*around.peers.routes(), *routes])
    runner = web.AppRunner(
        app, handler_cancellation=True, shutdown_timeout=SHUTDOWN, access_log=None
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        host, port = listening.getsockname()[:2]
        yield f"http://{Peer(host, port)}"
    finally:
        for each in unlisten:
            each()
        feed.close()
        await runner.cleanup()


async def _connect(peers: Peers, addresses: Iterable[str]) -> None:
    """Peers go on trying what can't be reached now."""

    async def one(address: str) -> None:
        try:
            await peers.connect(*Peer.parse(address))
        except UserError as error:
            log.warning("%s", error)

    await asyncio.gather(*(one(address) for address in addresses))


async def _seed(swarm: Swarm) -> None:
    """Serve all that is complete here: what was connected once is kept for others."""
    for entry in await asyncio.to_thread(swarm.library.entries):
        if entry.record.complete and not entry.record.paused:
            with suppress(OdaError):  # another program of ours serves it, or it is being fetched
                await swarm.seed(entry.infohash)
