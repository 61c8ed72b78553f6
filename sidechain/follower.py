"""The sidechain as somebody who pays or is paid needs it: which tips are recent, and who is owed.

A light node and its peers, without a server: it dials others and nobody dials it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from channels.errors import RemoteProtocolError, UserError
from sidechain.fees import Beneficiaries
from sidechain.headers import HeaderRecord
from sidechain.light_node import LightNode
from sidechain.params import Params
from sidechain.peers import Peers
from sidechain.state import Model, Payee
from sidechain.store import SqliteStore

SYNC_SECONDS: Final = 20.0
AGENT: Final = "oda follower"


class Follower:
    def __init__(self, light: LightNode, peers: Peers) -> None:
        self.light = light
        self.peers = peers

    @property
    def pinned(self) -> HeaderRecord:
        """The block whose state counts for shares now."""
        return self.light.client.pinned()

    def check_tip(self, height: int, block: bytes) -> None:
        """Whether a tip that somebody names is a recent one of our own chain.

        Raises RemoteProtocolError("stale-tip").
        """
        if not self.light.client.is_recent(height, block):
            raise RemoteProtocolError(
                "stale-tip",
                f"The provider names block {height} of the sidechain, which is not a recent one "
                "of the chain with the most work: it is on another chain, or behind.",
            )

    async def beneficiaries(
        self, block: bytes, model: bytes | None, weights_root: bytes | None
    ) -> Beneficiaries:
        """Who was owed for serving these weights, by the state after a block.

        Raises UserError("unknown-block") and ("no-proof").
        """
        record = self.light.headers.get(block)
        if record is None:
            raise UserError("unknown-block", f"No peer knows of a block {block[::-1].hex()}.")
        return await self.light.beneficiaries(model, weights_root, at=record)

    async def model(self, model: bytes) -> Model | None:
        return await self.light.model(model)

    async def payee(self, key: bytes) -> Payee | None:
        return await self.light.payee(key)

    async def synced(self) -> None:
        """Return when the headers that the peers show are here, or after SYNC_SECONDS."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SYNC_SECONDS):
                while self._is_behind():  # noqa: ASYNC110  # a handshake is no event to wait for
                    await asyncio.sleep(0.05)

    def _is_behind(self) -> bool:
        heights = [info.height for info in self.peers.infos()]
        return not heights or self.light.headers.best.height < max(heights)


@asynccontextmanager
async def follow(
    params: Params,
    connect: Sequence[tuple[str, int]],
    headers: Path | None = None,
    now: Callable[[], int] = lambda: int(time.time()),
) -> AsyncIterator[Follower]:
    """Follow the chain while the block runs. headers: the file where they are kept; without one,
    or while another process has it, they are fetched anew.

    Raises UserError("no-chain-peer") where none of the nodes answers.
    """
    async with AsyncExitStack() as stack:
        store = stack.enter_context(_store(headers, stack))
        light = LightNode(params, store, now=now)
        peers = await stack.enter_async_context(Peers(light, agent=AGENT))
        failures = []
        for host, port in connect:
            try:
                await peers.connect(host, port)
            except UserError as error:
                failures.append(str(error))
        if len(failures) == len(connect):
            raise UserError(
                "no-chain-peer",
                "No node of the sidechain answers: " + " ".join(failures or ["none is named."]),
            )
        follower = Follower(light, peers)
        await follower.synced()
        yield follower


def _store(path: Path | None, stack: AsyncExitStack) -> SqliteStore:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return SqliteStore(path)
        except UserError as error:
            if error.reason != "store-in-use":
                raise
    directory = stack.enter_context(TemporaryDirectory(prefix="oda-headers-"))
    return SqliteStore(Path(directory) / "headers.sqlite")
