"""Three who want a trainer's share without a better model, and what the rules say to each.

They do what any program could: commit, wait, reveal, with bytes that the swarm gives to everybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from sidechain import api
from sidechain.node_client import NodeClient
from sidechain.params import REGTEST
from sidechain.primitives import (
    NO_SIGNATURE,
    AnyTransaction,
    Commit,
    Reveal,
    commitment,
    signed,
    stamped,
    x_only,
)

if TYPE_CHECKING:
    from channels.lightning import Lightning
    from sidechain.follower import Follower
    from sidechain.model.directory import Model
    from torrent.swarm import Swarm

SALT: Final = b"\x5a" * 32
OVERFIT_SECONDS: Final = 8.0


@dataclass
class Cheat:
    """Somebody with a key, a swarm of his own, and the URL of a node."""

    secret: bytes
    swarm: Swarm
    url: str
    folder: Path
    model: bytes

    @property
    def key(self) -> str:
        return x_only(self.secret).hex()

    async def publish(self, name: str, model: Model) -> bytes:
        from sidechain.model import directory

        await asyncio.to_thread(directory.write, self.folder / name, model)
        return (await self.swarm.publish(self.folder / name)).infohash

    async def send(self, tx: AnyTransaction) -> None:
        """Raises RemoteProtocolError with the node's reason."""
        async with NodeClient(self.url) as client:
            await client.send(tx, (str(self.swarm.address),))

    async def commit(self, root: bytes) -> int:
        """Commit blindly to weights; -> the height at which they may be revealed."""
        blind = commitment(root, self.model, x_only(self.secret), SALT)
        tx = stamped(Commit(REGTEST.network_id, 0, blind), REGTEST.stamp)
        await self.send(tx)
        async with NodeClient(self.url) as client:
            found = await client.confirmed(tx)
        assert found.height is not None, "it is in a block"
        return found.height + REGTEST.reveal_delay

    def reveal(self, root: bytes, infohash: bytes, score: int) -> Reveal:
        plain = Reveal(
            REGTEST.network_id,
            0,
            self.model,
            infohash,
            root,
            score,
            x_only(self.secret),
            SALT,
            NO_SIGNATURE,
        )
        return signed(stamped(plain, REGTEST.stamp), self.secret)

    async def height(self) -> int:
        async with NodeClient(self.url) as client:
            return (await client.get("/status", api.Status)).height

    async def refusal(self, tx: Reveal) -> str | None:
        """Why the node dropped a transaction, once it has."""
        async with NodeClient(self.url) as client:
            refused = await client.get("/rejections", api.Refusals)
        txid = tx.txid.hex()
        return next((each.reason for each in refused.rejections if each.hash == txid), None)


@asynccontextmanager
async def cheat(secret: bytes, url: str, folder: Path, model: bytes) -> AsyncIterator[Cheat]:
    from torrent.library import Library
    from torrent.session import Options
    from torrent.swarm import Swarm

    library = Library(folder / "torrents", 1 << 30)
    async with Swarm(library, Options(listen="127.0.0.1:0", local=True)) as swarm:
        yield Cheat(secret, swarm, url, folder, model)


def nudged(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The same weights but for one step of one number: another root, the same score."""
    name = min(weights)
    changed = weights[name].clone()
    changed.view(-1)[0] += 1
    return {**weights, name: changed}


def memorised(model: Model) -> Model:
    """Trained on nothing but the samples that are scored."""
    from sidechain.model.generate import one_thread
    from sidechain.model.improve import improve
    from sidechain.model.trainer import Budget

    one_thread()
    part = model.dataset.public_part
    learnt = improve(
        model.architecture,
        model.objective,
        part,
        Budget(seconds=OVERFIT_SECONDS),
        start=model.weights,
    )
    return replace(model, weights=learnt)


@asynccontextmanager
async def false_provider(
    node: Lightning, follower: Follower, model: bytes, promised: Path, served: Path, folder: Path
) -> AsyncIterator[str]:
    """A provider that names the newest weights and serves older ones; -> its URL.

    Its program is the honest one. Only what it loads is not what it says.
    """
    import time

    from aiohttp.test_utils import TestServer

    from channels.units import Msat, UnixTime
    from provider.app import Provider
    from provider.engine import TorchEngine
    from provider.ledger import Ledger
    from provider.lineage import FollowedLineage
    from provider.models import load
    from provider.pricing import Price
    from provider.serving import Models, Served
    from provider.settings import Keys, ProviderSettings
    from provider.settlement import Rules, asking
    from provider.share_desk import ShareDesk
    from sidechain.fees import Terms

    info = await node.getinfo()
    engine = TorchEngine(load(served, name="oda-learnt"))
    says = Served(
        engine,
        Price(Msat(10), Msat(50)),
        32,
        UnixTime(int(time.time())),
        model=model,
        weights_root=load(promised).weights_root,
        shares=Terms.default(REGTEST),
    )
    models = Models([says])
    async with AsyncExitStack() as stack:
        stack.callback(models.close)
        await asyncio.to_thread(folder.mkdir, parents=True)
        ledger = stack.enter_context(closing(Ledger(folder / "provider.sqlite")))
        keys = Keys.load(folder / "key")
        http = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
        lineage = FollowedLineage(follower, models)
        await stack.enter_async_context(lineage.running())
        rules = Rules("regtest", bytes.fromhex(info.id), keys.leaves)
        desk = ShareDesk(ledger, models, lineage, lineage, node, asking(http), rules)
        about = {"node_id": info.id}
        made = Provider(ledger, node, keys, ProviderSettings(), "regtest", models, about, desk=desk)
        server = TestServer(made.app())
        await server.start_server()
        stack.push_async_callback(server.close)
        yield str(server.make_url("")).rstrip("/")
