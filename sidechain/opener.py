"""Opens the next sealed shard of a model whenever a version waits for it.

For models of one's own: whoever decides by hand when a shard opens uses `oda model open`.
"""

from __future__ import annotations

import asyncio
from typing import Final

from channels.errors import UserError
from channels.terminal import no_progress
from sidechain import training
from sidechain.attempts import Told
from sidechain.events import Event, TipChanged
from sidechain.node import ChainNode
from sidechain.primitives import OpenShard, shard_key_hash, signed
from sidechain.reasons import REASONS, Rejection
from sidechain.shard_keys import ShardKeys
from sidechain.stamping import stamp

HARMLESS: Final = frozenset({"txn-already-in-mempool", "txn-mempool-conflict"})


class Opener:
    def __init__(self, node: ChainNode, model: bytes, keys: ShardKeys, told: Told) -> None:
        """Raises UserError("not-an-opener") where the opener's secret is not among the keys."""
        if keys.opener is None:
            raise UserError("not-an-opener", "The file of the keys must have the opener's too.")
        self._secret = keys.opener
        self._node = node
        self._model = model
        self._keys = keys
        self._told = told
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled. Raises UserError("bad-shard-key") or ("not-an-opener") for keys of
        another model."""
        unlisten = self._node.listen(self._hear)
        try:
            while True:
                self._changed.clear()
                await self._open()
                await self._changed.wait()
        finally:
            unlisten()

    def _hear(self, event: Event) -> None:
        if isinstance(event, TipChanged):
            self._changed.set()

    async def _open(self) -> None:
        params, state = self._node.params, self._node.chain.state
        definition = state.definition(self._model)
        index = training.next_sealed(state, self._model)
        if definition is None:
            return
        self._check(definition.shards, definition.openers)
        if index is None or self._waits(index):
            return
        bare = training.opening_of(params, self._model, index, self._keys.shards[index])
        tx = signed(await stamp(bare, params.stamp, no_progress), self._secret)
        try:
            self._node.accept_transaction(tx)
        except Rejection as rejection:
            if rejection.reason not in HARMLESS:
                fields = {"reason": rejection.reason, "sentence": REASONS[rejection.reason]}
                self._told("not-opened", {"shard": index} | fields)
            return
        self._told("opening", {"shard": index, "txid": tx.txid.hex()})

    def _waits(self, index: int) -> bool:
        """Whether its opening is in the mempool."""
        return any(
            isinstance(tx, OpenShard) and (tx.model, tx.index) == (self._model, index)
            for tx in self._node.mempool
        )

    def _check(self, shards: tuple[bytes, ...], openers: tuple[bytes, ...]) -> None:
        if tuple(shard_key_hash(key) for key in self._keys.shards) != shards:
            raise UserError("bad-shard-key", "The keys are not those of this model's shards.")
        if not set(self._keys.openers) & set(openers):
            raise UserError("not-an-opener", REASONS["not-an-opener"])
