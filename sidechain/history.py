"""What the state does not keep and people want to see: a model's versions over the heights, and in
which block a transaction is. An index over the blocks of the chain, made anew at each start."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from sidechain.events import Event, TipChanged
from sidechain.node import ChainNode
from sidechain.primitives import AddModel, Block, Producer, Reveal
from sidechain.state import Version

STRIDE: Final = 64
"""Blocks that are read before the event loop goes on."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A version when a block took it, and the transaction that brought it."""

    version: Version
    txid: bytes


class History:
    """Follows the node as long as `run()` does."""

    def __init__(self, node: ChainNode) -> None:
        self._chain = node.chain
        self._node = node
        self._next = 1
        self._places: dict[bytes, int] = {}
        self._versions: defaultdict[bytes, list[Taken]] = defaultdict(list)
        self._behind = asyncio.Event()
        self._whole = asyncio.Event()

    async def run(self) -> None:
        unlisten = self._node.listen(self._hear)
        try:
            while True:
                self._behind.clear()
                while self._next <= self._chain.tip.height:
                    for _ in range(min(STRIDE, self._chain.tip.height + 1 - self._next)):
                        self._take()
                    await asyncio.sleep(0)
                self._whole.set()
                await self._behind.wait()
        finally:
            unlisten()

    async def whole(self) -> None:
        """Return when all blocks up to the tip have been read."""
        await self._whole.wait()

    def height_of(self, txid: bytes) -> int | None:
        """The height of a transaction of the chain; Producers are not in here."""
        return self._places.get(txid)

    def versions(self, model: bytes) -> list[Taken]:
        """The oldest first."""
        return self._versions.get(model, [])

    def _hear(self, event: Event) -> None:
        if not isinstance(event, TipChanged):
            return
        for block in event.advance.disconnected:
            producer = block.transactions[0]
            assert isinstance(producer, Producer)  # it was connected
            if producer.height < self._next:
                self._forget(block)
                self._next = producer.height
        # A few blocks at once, so that whoever hears of them after us finds them.
        for _ in range(min(STRIDE, self._chain.tip.height + 1 - self._next)):
            self._take()
        if self._next <= self._chain.tip.height:
            self._whole.clear()
            self._behind.set()

    def _take(self) -> None:
        record = self._chain.active(self._next)
        assert record is not None  # it is not above the tip
        block = self._chain.block(record.hash)
        assert block is not None  # it is connected
        producer = block.transactions[0]
        assert isinstance(producer, Producer)
        for tx in block.transactions[1:]:
            self._places[tx.txid] = record.height
            if isinstance(tx, AddModel | Reveal):
                model = tx.txid if isinstance(tx, AddModel) else tx.model
                version = Version(
                    tx.weights_root,
                    tx.infohash,
                    tx.score,
                    tx.trainer,
                    record.height,
                    producer.payee,
                )
                self._versions[model].append(Taken(version, tx.txid))
        self._next += 1

    def _forget(self, block: Block) -> None:
        for tx in reversed(block.transactions[1:]):
            del self._places[tx.txid]
            if isinstance(tx, Reveal):
                self._versions[tx.model].pop()
            elif isinstance(tx, AddModel):
                del self._versions[tx.txid]
