"""A provider put together from its settings: node, ledger, models, swarm and sidechain."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import aiohttp

from channels.errors import RemoteProtocolError, UserError
from channels.lightning import Lightning
from channels.lightning_answers import NodeInfo
from channels.settings import Settings
from channels.terminal import Progress, no_progress, progress
from channels.units import Msat, Sat, UnixTime, msat
from provider import models as model_files
from provider.announcing import announcing
from provider.app import Provider
from provider.engine import TorchEngine
from provider.ledger import Ledger
from provider.lineage import FollowedLineage
from provider.pricing import Price
from provider.serving import Models, Served
from provider.settings import Keys, ProviderSettings
from provider.settlement import Rules, asking
from provider.share_desk import ShareDesk
from provider.sharing import PIN, Shared, Sharing, obtain
from provider.upstreams import Upstreams, servers
from sidechain import params
from sidechain.fees import Terms
from sidechain.follower import Follower, follow
from sidechain.state import Version
from torrent import settings as torrent_settings
from torrent.magnet import Peer
from torrent.swarm import Swarm

KEPT: Final = 2
"""Versions that stay on disk: what is served, and what a reorg may bring back in its place."""


@dataclass(frozen=True, slots=True)
class Assembled:
    """served: the model that is offered first; None while no upstream answers. announce: to be
    called when it is served; tells the sidechain where."""

    provider: Provider
    served: Served | None
    info: NodeInfo
    swarm: Swarm
    announce: Callable[[str], None]


@asynccontextmanager
async def assembled(
    shared: Settings, settings: ProviderSettings, rpc_file: Path
) -> AsyncIterator[Assembled]:
    """Raises OdaError for whatever can't be had."""
    async with AsyncExitStack() as stack:
        lightning = await stack.enter_async_context(Lightning(rpc_file))
        info = await lightning.getinfo()
        network = _network(info, shared)
        directory = shared.provider_dir
        ledger = stack.enter_context(closing(Ledger(directory / "provider.sqlite")))
        models = stack.enter_context(closing(Models(())))
        keys = Keys.load(directory / "key")
        options = torrent_settings.load(shared)
        swarm = await stack.enter_async_context(Swarm.of(shared, options))
        follower = await _followed(shared, settings, stack)
        supplier = Supplier(shared, settings, swarm, follower)
        if settings.model or settings.follow or not settings.upstream:
            served = await supplier.first()
            models.swap(served)
            await supplier.keep(served)
        # How many connections there are is up to the places of an upstream.
        connector = aiohttp.TCPConnector(limit=0)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, trust_env=False)
        )
        shares = None if follower is None else _shares(settings)
        upstreams = Upstreams(servers(settings, http), models, settings, shares, time.time)
        await stack.enter_async_context(upstreams.running())
        desk = None
        if follower is not None:
            lineage = _lineage(follower, models, supplier)
            rules = _rules(settings, network, info, keys)
            desk = ShareDesk(
                ledger, models, lineage, lineage, lightning, asking(http), rules, time.time
            )
            await stack.enter_async_context(lineage.running())
        sharing = Sharing(swarm.library, swarm.address, settings.url)
        provider = Provider(
            ledger,
            lightning,
            keys,
            settings,
            network,
            models,
            _about(info),
            sharing=sharing,
            desk=desk,
            upstreams=upstreams,
        )
        telling: list[asyncio.Task[None]] = []
        stack.push_async_callback(_cancel, telling)

        def announce(url: str) -> None:
            if follower is not None:
                there = settings.url or url
                told = announcing(follower, keys.announcements, there, info.id, models)
                telling.append(asyncio.create_task(told))

        first = next(iter(models.current.values()), None)
        yield Assembled(provider, first, info, swarm, announce)


def _network(info: NodeInfo, shared: Settings) -> str:
    # lightningd says "bitcoin" where the drafts and our settings say "mainnet".
    network = "mainnet" if info.network == "bitcoin" else info.network
    if network != shared.network:
        raise UserError(
            "wrong-network",
            f"The Lightning node is on {network} and the settings say {shared.network}.",
        )
    return network


def _lineage(follower: Follower, models: Models, supplier: Supplier) -> FollowedLineage:
    async def newer(model: bytes, version: Version) -> None:
        newest = await supplier.version(model, version)
        await lineage.adopt(newest)
        await supplier.keep(newest)

    lineage = FollowedLineage(follower, models, newer)
    return lineage


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _followed(
    shared: Settings, settings: ProviderSettings, stack: AsyncExitStack
) -> Follower | None:
    if not settings.chain:
        return None
    places = [(peer.host, peer.port) for peer in map(Peer.parse, settings.chain)]
    headers = shared.provider_dir / "headers.sqlite"
    return await stack.enter_async_context(follow(params.network(shared.network), places, headers))


def _rules(settings: ProviderSettings, network: str, info: NodeInfo, keys: Keys) -> Rules:
    return Rules(
        network,
        bytes.fromhex(info.id),
        keys.leaves,
        settings.settle_seconds,
        msat(Sat(settings.settle_sat)),
        Msat(settings.smallest_share_msat),
    )


class Supplier:
    """Gets models: what the settings name, or the newest confirmed version on the sidechain."""

    def __init__(
        self,
        shared: Settings,
        settings: ProviderSettings,
        swarm: Swarm,
        follower: Follower | None,
    ) -> None:
        self._shared = shared
        self._settings = settings
        self._swarm = swarm
        self._follower = follower
        self._kept: deque[bytes] = deque(maxlen=KEPT)

    async def keep(self, served: Served) -> None:
        """It is what is served now, and so not evicted; what was served before may be."""
        if served.infohash is not None:
            self._kept.append(served.infohash)
        await self._swarm.keep(PIN, self._kept)

    async def first(self) -> Served:
        """What is served when the provider starts."""
        with progress("Loading the model") as show:
            if self._settings.follow is None:
                return await self._named(show)
            if self._follower is None:
                raise UserError(
                    "no-chain", "provider.follow needs a node of the sidechain: provider.chain."
                )
            model = bytes.fromhex(self._settings.follow)
            found = await self._follower.model(model)
            if found is None:
                raise UserError(
                    "unknown-model", f"There is no model {model.hex()} on this sidechain."
                )
            return await self.version(model, found.confirmed, show)

    async def version(self, model: bytes, version: Version, show: Progress = no_progress) -> Served:
        """A registered model's version out of the swarm. Raises RemoteProtocolError
        "wrong-weights" where its torrent holds other weights than the chain says."""
        assert self._follower is not None  # who told of the version
        known = [str(Peer(host, port)) for host, port in self._follower.peers.swarm_peers()]
        name = self._settings.name or f"oda-{model.hex()[:16]}"
        load = functools.partial(model_files.load, name=name)
        found = await obtain(
            self._swarm, version.infohash.hex(), [*self._settings.peers, *known], load, show
        )
        served = await self._served(found, name)
        if served.weights_root != version.weights_root:
            raise RemoteProtocolError(
                "wrong-weights", "The torrent of this version holds other weights."
            )
        return replace(served, model=model)

    async def _named(self, show: Progress) -> Served:
        def trained(step: int, nats_per_byte: float, seconds: float) -> None:
            label = f"Training the model: {nats_per_byte:.2f} nats/byte"
            show(step, model_files.FIRST_TRAINING.steps, label)

        what = self._settings.model
        if what is None:
            cache = self._shared.cache / "models"
            what = str(await asyncio.to_thread(model_files.first_model, cache, trained))
        load = functools.partial(model_files.load, name=self._settings.name)
        found = await obtain(self._swarm, what, self._settings.peers, load, show)
        # Weights that nobody registered are nobody's: their producers' share alone is owed.
        return replace(await self._served(found, self._settings.name), weights_root=None)

    async def _served(self, found: Shared, name: str | None) -> Served:
        load = functools.partial(model_files.load, name=name)
        model = await asyncio.to_thread(load, found.path, infohash=found.infohash)
        settings = self._settings
        return Served(
            TorchEngine(model),
            Price(settings.input_msat, settings.output_msat),
            settings.tokens_per_second,
            UnixTime(int(time.time())),
            found.infohash,
            weights_root=model.weights_root,
            shares=None if self._follower is None else _shares(settings),
        )


def _shares(settings: ProviderSettings) -> Terms:
    return Terms(settings.trainer_ppm, settings.producers_ppm)


def _about(info: NodeInfo) -> dict[str, str]:
    """Who is paid, and where a user connects to open a channel."""
    about = {"node_id": info.id}
    reachable = [
        f"[{a.address}]:{a.port}" if ":" in a.address else f"{a.address}:{a.port}"
        for a in (*info.address, *info.binding)
        if a.address and a.port
    ]
    return about | ({"address": reachable[0]} if reachable else {})
