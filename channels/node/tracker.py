"""Following the chain: the wallet's coins, the depth of funding outputs, and rebroadcasting."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from channels.bolt.channel import Channel, State
from channels.bolt.opening import funding_output_script
from channels.bolt.transactions import Transaction, TxOut
from channels.errors import OdaError, RemoteProtocolError
from channels.node.chain import (
    BitcoindError,
    BitcoindUnreachable,
    Block,
    Connected,
    Disconnected,
)
from channels.node.store import BlockRow
from channels.node.tasks import Tasks
from channels.units import BlockHeight, FeeratePerKw, ShortChannelId

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)

REBROADCAST_SECONDS = 30.0

RETRY_SECONDS = 5.0
"""Between looks at a bitcoind that is on another chain than ours."""

ALREADY_IN_CHAIN = -27
"""Bitcoin Core, src/rpc/protocol.h: RPC_VERIFY_ALREADY_IN_UTXO_SET."""


class Tracker:
    """One task follows bitcoind from the last block that the store has seen."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.outage: str | None = None
        self.synced = asyncio.Event()
        self._resend = asyncio.Event()
        self._tasks = Tasks()

    def start(self) -> None:
        self._tasks.spawn(self._follow())
        self._tasks.spawn(self._rebroadcast())

    async def stop(self) -> None:
        await self._tasks.cancel()

    async def _follow(self) -> None:
        height, tip = await self._starting_point()
        await self._note_if_synced(height)
        while True:
            try:
                await self._follow_from(height, tip)
            except OdaError as error:
                if error.reason == "unknown-block":
                    height, tip = await self._step_back(height, tip, error)
                    continue
                # Whatever bitcoind said: a node that is blind must know it, and look again.
                log.error("following the chain failed: %s", error)
                self.outage = str(error)
                await asyncio.sleep(RETRY_SECONDS)
                height, tip = self._node.wallet.tip() or (height, tip)

    async def _follow_from(self, height: BlockHeight, tip: bytes) -> None:
        node = self._node
        async for change in node.chain.follow(height, tip, self._on_outage):
            if isinstance(change, Connected):
                await node.onchain.refresh()
                self._connect(change.block)
                await self._note_if_synced(change.block.height)
            elif isinstance(change, Disconnected):
                self._disconnect(change.height, change.hash)
            await node.turn.committed()

    async def _step_back(
        self, height: BlockHeight, tip: bytes, error: OdaError
    ) -> tuple[BlockHeight, bytes]:
        """A bitcoind that crashed may have lost the newest block that we have seen."""
        node = self._node
        height, tip = node.wallet.tip() or (height, tip)
        below = node.store.block_hash(BlockHeight(height - 1))
        if below is None:
            if self.outage is None:
                log.error("the chain can't be followed: %s", error)
            self.outage = str(error)
            await asyncio.sleep(RETRY_SECONDS)
            return height, tip
        self._disconnect(height, tip)
        await node.turn.committed()
        return BlockHeight(height - 1), below

    async def _starting_point(self) -> tuple[BlockHeight, bytes]:
        """The newest block we have seen; a new wallet starts at the tip, a restored one at 0."""
        node = self._node
        known = node.wallet.tip()
        if known is not None:
            return known
        height = 0
        if not node.wallet.restored:
            height = await self._ask_until_answered("getblockcount")
        block = bytes.fromhex(await self._ask_until_answered("getblockhash", height))[::-1]
        node.store.add_block(BlockRow(BlockHeight(height), block))
        await node.turn.committed()
        return BlockHeight(height), block

    async def _ask_until_answered(self, method: str, *params: object) -> Any:
        while True:
            try:
                return await self._node.chain.call(method, *params)
            except BitcoindUnreachable as error:
                self._on_outage(error)
                await asyncio.sleep(0.5)

    async def _note_if_synced(self, height: BlockHeight) -> None:
        if self.synced.is_set():
            return
        try:
            if await self._node.chain.call("getblockcount") <= height:
                self.synced.set()
        except BitcoindUnreachable as error:
            self._on_outage(error)

    def _on_outage(self, error: BitcoindUnreachable | None) -> None:
        if error is not None and self.outage is None:
            log.warning("bitcoind is away: %s", error)
        elif error is None and self.outage is not None:
            log.info("bitcoind is back")
            self._resend.set()  # it may have lost its mempool
        self.outage = None if error is None else str(error)

    def _connect(self, block: Block) -> None:
        node = self._node
        transactions = [Transaction.parse(raw) for raw in block.transactions]
        node.wallet.connect_block(block.height, block.hash, transactions)
        watched = [
            c
            for c in node.channels.values()
            if c.state.funding_txid is not None and c.state.state is not State.CLOSED
        ]
        # Several channels may name one outpoint: a peer can copy it from another's opening.
        by_txid: dict[bytes, list[Channel]] = {}
        for channel in watched:
            by_txid.setdefault(channel.state.funding.txid, []).append(channel)
        for position, transaction in enumerate(transactions):
            for channel in by_txid.get(transaction.txid, []):
                self._funded(channel, transaction, block.height, position)
        node.onchain.connect(block.height, transactions)
        node.gossip.block_connected(block.height, transactions)
        node.store.forget_onions(block.height)
        node.invoices.new_height(block.height)
        for channel in list(node.channels.values()):
            self.check_depth(channel)
            node.carry_out(channel, channel.new_height(block.height))

    def _disconnect(self, height: BlockHeight, block_hash: bytes) -> None:
        self._node.wallet.disconnect_block(height, block_hash)
        for channel in self._node.channels.values():
            self._node.carry_out(channel, channel.block_undone(height))
        self._node.onchain.disconnect(height)
        self._node.gossip.block_disconnected(height)

    def _funded(
        self, channel: Channel, transaction: Transaction, height: BlockHeight, position: int
    ) -> None:
        """BOLT 2: the output must pay exactly funding_satoshis to the script of BOLT 3."""
        state = channel.state
        index = state.funding_output_index
        promised = TxOut(state.funding_satoshis, funding_output_script(channel.core))
        if transaction.outputs[index : index + 1] != (promised,):
            error = RemoteProtocolError(
                "bad-funding-output", "The funding transaction does not fund this channel."
            )
            self._node.carry_out(channel, channel.fail(error))
            return
        scid = ShortChannelId.of(height, position, index)
        self._node.carry_out(channel, channel.funding_confirmed(1, height, scid))

    def check_depth(self, channel: Channel) -> None:
        """Tell a channel how deep its funding is by now."""
        node, state = self._node, channel.state
        if state.funding_height is not None and state.short_channel_id is not None:
            depth = node.height - state.funding_height + 1
            if not state.ready_sent and state.state is not State.OPENING:
                node.carry_out(
                    channel,
                    channel.funding_confirmed(depth, state.funding_height, state.short_channel_id),
                )

    # --- fees and broadcasting -----------------------------------------------------------------

    async def feerate(self, blocks: int = 6) -> FeeratePerKw:
        """bitcoind's estimate, bounded by our policy; the network's default when it has none."""
        params = self._node.params
        try:
            estimate = await self._node.chain.call("estimatesmartfee", blocks)
        except (BitcoindUnreachable, BitcoindError):
            return params.default_feerate
        rate = estimate.get("feerate")
        if rate is None:
            return params.default_feerate
        # BTC per 1000 virtual bytes -> sat per 1000 weight units; a feerate, not an amount.
        per_kw = round(float(rate) * 100_000_000 / 4)
        return FeeratePerKw(max(params.policy.min_feerate, min(per_kw, params.policy.max_feerate)))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it beside the tracker, which ends it when it stops."""
        self._tasks.spawn(work)

    def broadcast_package(self, *transactions: Transaction) -> None:
        """A parent and the child that pays for it: neither gets in alone."""
        self._tasks.spawn(self._broadcast_package(transactions))

    async def _broadcast_package(self, transactions: Sequence[Transaction]) -> None:
        package = [transaction.serialize().hex() for transaction in transactions]
        try:
            answer = await self._node.chain.call("submitpackage", package)
        except BitcoindError as error:
            log.warning("bitcoind refuses a package: %s", error)
        except BitcoindUnreachable as error:
            log.warning("a broadcast waits for bitcoind: %s", error)
        else:
            if answer.get("package_msg") != "success":
                results = answer.get("tx-results", {}).values()
                errors = [result["error"] for result in results if "error" in result]
                log.warning("bitcoind refuses a package: %s", "; ".join(errors))

    def broadcast_soon(self, transaction: Transaction) -> None:
        self._tasks.spawn(self._broadcast(transaction.serialize()))

    async def _broadcast(self, raw: bytes) -> None:
        try:
            await self._node.chain.call("sendrawtransaction", raw.hex())
        except BitcoindError as error:
            if error.code != ALREADY_IN_CHAIN:
                log.warning("bitcoind refuses a transaction: %s", error)
        except BitcoindUnreachable as error:
            log.warning("a broadcast waits for bitcoind: %s", error)

    async def _rebroadcast(self) -> None:
        """What was to be broadcast before a crash, an outage or a reorg is broadcast again."""
        while True:
            for package in self._node.onchain.packages():
                await self._broadcast_package(package)
            for raw in self._node.store.transactions_to_broadcast():
                await self._broadcast(raw)
            self._resend.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REBROADCAST_SECONDS):
                    await self._resend.wait()
