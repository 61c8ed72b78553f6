"""Two nodes inside the test, on a real bitcoind: what they do on chain is judged by pycoin.

They are nodes as in a process of their own, with sockets and SQLite, but a test can reach into
them: hold back what resolves an HTLC, keep an old commitment aside, die at a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from itertools import cycle
from pathlib import Path
from typing import Any

from channels.bolt import invoice as bolt11
from channels.bolt.channel import Channel
from channels.bolt.commitment import ChannelType
from channels.bolt.effects import Effect, HtlcReceived
from channels.bolt.onchain import own_commitment
from channels.bolt.onion import Peeled
from channels.bolt.transactions import OutPoint, Transaction, TxOut
from channels.node import seed
from channels.node.chain import Bitcoind
from channels.node.networks import REGTEST
from channels.node.node import Node
from channels.node.store import Store
from channels.node.wallet import Wallet
from channels.units import FeeratePerKw, Msat, Sat, UnixTime
from regtest.bitcoind import Miner
from tests.conftest import Chain
from tests.script_vm import refusal

COINS = Sat(2_000_000)
CHANNEL = Sat(500_000)
PUSH = Msat(200_000_000)
PATIENCE = 20


class Died(Exception):  # what happened, not what is wrong
    """The node's process would be gone here."""


class MortalStore(Store):
    """Dies just before or after a commit, as by kill -9: nothing that follows it happens."""

    def __init__(self, path: Path) -> None:
        self.left: int | None = None
        self.when = ""
        super().__init__(path)

    def commit(self) -> None:
        if self._db.in_transaction and self.left is not None:
            self.left -= 1
            if self.left == 0 and self.when == "before":
                raise Died
            super().commit()
            if self.left == 0:
                raise Died
            return
        super().commit()


async def until(condition: Callable[[], Any], what: str) -> None:
    """Nodes have no event for everything; they share this loop."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110  # as said above
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"waited {PATIENCE} s in vain: {what}") from None


class Party:
    """One node. `start` after `kill` finds what was committed."""

    def __init__(self, name: str, directory: Path, chain: Chain) -> None:
        self.name, self._chain = name, chain
        self.path = directory / name / "node.sqlite"
        self._words = seed.generate_mnemonic()
        self.held: list[HtlcReceived] = []
        self.holding = self.alone = False
        self.feerate: FeeratePerKw | None = None
        self.dead = asyncio.Event()

    async def start(self) -> None:
        self.dead.clear()
        self.store = MortalStore(self.path)
        self._rpc = Bitcoind(self._chain.url, self._chain.cookie)
        wallet = Wallet(self._words, self.store, "regtest")
        self.node = Node(
            *(REGTEST, self.store, wallet, self._rpc, self.path.parent, self.name),
            lambda _: self.dead.set(),
        )
        receive = self.node.invoices.receive

        def hold(channel: Channel, htlc: HtlcReceived, peeled: Peeled) -> list[Effect]:
            if not self.holding:
                return receive(channel, htlc, peeled)
            self.held.append(htlc)
            return []

        self.node.invoices.receive = hold  # type: ignore[method-assign]  # to keep HTLCs in flight
        if self.feerate is not None:
            self.set_feerate(self.feerate)
        if self.alone:
            self.leave_alone()
        await self.node.start("127.0.0.1", 0)

    def leave_alone(self) -> None:
        """It looks for no peer any more."""
        self.alone = True
        self.node.peers_to_reach = set  # type: ignore[method-assign]  # nobody

    def set_feerate(self, feerate: FeeratePerKw) -> None:
        """Let this node's bitcoind estimate so much, which on regtest it never does."""
        self.feerate = feerate

        async def estimate(blocks: int = 6) -> FeeratePerKw:
            return feerate

        self.node.tracker.feerate = estimate  # type: ignore[method-assign]  # as said above

    def settled(self, height: int) -> bool:
        """It lives, has seen the block at this height, and has nothing to commit."""
        idle = not self.node.turn._scheduled and not self.dead.is_set()
        return idle and self.node.height >= height

    async def stop(self) -> None:
        await self.node.connections.stop()
        await self.node.tracker.stop()
        self.node.payments.stop()
        await self._rpc.close()
        self.store.close()

    kill = stop
    """What was not committed is lost with the store's connection, and nothing is sent any more."""

    def die_at(self, count: int, when: str) -> None:
        self.store.left, self.store.when = count, when

    @property
    def channel(self) -> Channel:
        (channel,) = self.node.channels.values()
        return channel

    def coins(self) -> int:
        """Confirmed, and not spent by a transaction that confirmed."""
        return sum(
            c.value
            for c in self.store.list_utxos(spent=True)
            if c.height is not None and c.spent_height is None
        )

    def commitment(self) -> Transaction:
        found = own_commitment(self.channel.core)
        assert found is not None
        return found

    def release(self, *, settle: bool) -> None:
        """Resolve what was held back: with the preimage of its invoice, or not at all."""
        self.holding = False
        held, self.held = self.held, []
        for htlc in held:
            if settle:
                row = self.store.invoice_by_hash(htlc.payment_hash)
                assert row is not None
                self.node.carry_out(self.channel, self.channel.fulfill_htlc(htlc.id, row.preimage))

    def status_of(self, payment_hash: bytes) -> str:
        row = self.store.payment(payment_hash)
        assert row is not None
        return row.status


class Close:
    """alice, who opened a channel with bob, and the chain on which it will end."""

    def __init__(self, chain: Chain, rpc: Bitcoind, miner: Miner, directory: Path) -> None:
        self.rpc, self.miner = rpc, miner
        self.alice = Party("alice", directory, chain)
        self.bob = Party("bob", directory, chain)
        self.payments: list[asyncio.Task[Any]] = []
        self.first = 0
        self.deaths = 0
        # At the very next commit, twice over, and then a little later: whatever happens between
        # two commits is cut off in one run or another.
        self.moments = cycle(((1, "after"), (1, "before"), (4, "after"), (3, "before")))
        self._labels = 0

    @property
    def parties(self) -> tuple[Party, Party]:
        return self.alice, self.bob

    async def open(
        self,
        channel_type: ChannelType = ChannelType.ANCHORS,
        feerate: FeeratePerKw = FeeratePerKw(500),
        push: Msat = PUSH,
    ) -> None:
        for party in self.parties:
            await party.start()
            await self.miner.send(party.node.wallet.new_address(), COINS)
        await self.mine(1)
        self.first = await self.height()
        alice = self.alice.node
        await self.connect()
        await alice.funding.open(
            self.bob.node.node_id,
            amount=CHANNEL,
            push_msat=push,
            feerate=feerate,
            reserve=None,
            announce=False,
            channel_type=channel_type,
        )
        await self.until_in_mempool(self.alice.channel.state.funding.txid)
        await self.mine(1)
        await self.until_usable()

    async def until_usable(self) -> None:
        await until(lambda: all(p.channel.usable for p in self.parties), "both can pay")

    async def connect(self) -> None:
        host, port = self.bob.node.connections.address
        await self.alice.node.connections.connect(self.bob.node.node_id, host, port)

    async def cut(self) -> None:
        """From now on they do not hear of each other, except through the chain."""
        for party in self.parties:
            party.leave_alone()
        await self.alice.node.connections.disconnect(self.bob.node.node_id)
        gone = lambda: not any(p.node.connections.peers for p in self.parties)  # noqa: E731
        await until(gone, "the connection is gone")

    async def pay(self, payer: Party, payee: Party, amount: int) -> bytes:
        """A payment that stays in flight; its payment hash."""
        payee.holding = True
        self._labels += 1
        node = payee.node
        row, _ = node.invoices.create(
            amount_msat=Msat(amount),
            label=f"{payee.name} {self._labels}",
            description="",
            expiry=3600,
            now=UnixTime(node.now()),
        )
        before = len(payee.held)
        self.begin(payer, row.bolt11)
        await until(lambda: len(payee.held) > before, "the HTLC arrives")
        await self.until_quiet()
        return row.payment_hash

    def begin(self, payer: Party, text: str) -> None:
        """Pay an invoice that has an amount; nobody waits for the outcome."""
        invoice = bolt11.decode(text)
        assert invoice.amount_msat is not None
        task = payer.node.payments.pay(text, invoice, invoice.amount_msat)
        self.payments.append(asyncio.ensure_future(task))

    async def until_quiet(self) -> None:
        """Both commitments have all that was proposed."""

        def quiet() -> bool:
            states = [party.channel.state for party in self.parties]
            return not any(s.awaiting_revocation or s.log.owes_commitment() for s in states)

        await until(quiet, "both commitments are the same")

    # --- the chain ------------------------------------------------------------------------------

    async def height(self) -> int:
        height: int = await self.rpc.call("getblockcount")
        return height

    async def mine(self, blocks: int) -> list[str]:
        hashes = await self.miner.mine(blocks)
        await self.until_seen(*self.parties)
        return hashes

    async def until_seen(self, *parties: Party) -> None:
        """These nodes have dealt with the newest block, however often they died of it."""
        height = await self.height()
        async with asyncio.timeout(PATIENCE):
            while not all(p.settled(height) for p in parties):
                await self._revive_dead()
                await asyncio.sleep(0.005)

    async def _revive_dead(self) -> None:
        for party in self.parties:
            if party.dead.is_set():
                self.deaths += 1
                await party.kill()
                await party.start()
                party.die_at(*next(self.moments))

    async def mempool(self) -> set[bytes]:
        return {bytes.fromhex(txid)[::-1] for txid in await self.rpc.call("getrawmempool")}

    async def until_in_mempool(self, *txids: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            while not set(txids) <= await self.mempool():  # noqa: ASYNC110  # bitcoind's
                await asyncio.sleep(0.005)

    async def until_sent(self) -> None:
        """Everything that the nodes mean to broadcast is in the mempool, or has no place there."""
        async with asyncio.timeout(PATIENCE):
            while not await self._all_sent():  # bitcoind's
                await self._revive_dead()
                await asyncio.sleep(0.005)

    async def _all_sent(self) -> bool:
        known = await self.mempool()
        for party in self.parties:
            for raw in party.store.transactions_to_broadcast():
                transaction = Transaction.parse(raw)
                if transaction.txid not in known and not await self._rivalled(transaction):
                    return False
        return True

    async def _rivalled(self, transaction: Transaction) -> bool:
        """Another transaction in the mempool spends the same coin."""
        coins = [
            {"txid": txin.outpoint.txid[::-1].hex(), "vout": txin.outpoint.vout}
            for txin in transaction.inputs
        ]
        found = await self.rpc.call("gettxspendingprevout", coins)
        return any("spendingtxid" in coin for coin in found)

    async def broadcast(self, transaction: Transaction) -> None:
        await self.rpc.call("sendrawtransaction", transaction.serialize().hex())

    async def mine_block(self, *transactions: Transaction) -> None:
        """A block with these transactions and nothing of the mempool, whatever they pay."""
        raw = [transaction.serialize().hex() for transaction in transactions]
        await self.rpc.call("generateblock", "raw(51)", raw)
        await self.until_seen(*self.parties)

    async def undo(self, blocks: int) -> None:
        """The chain loses its newest blocks; what was in them is in the mempool again."""
        height = await self.height()
        block = await self.rpc.call("getblockhash", height - blocks + 1)
        await self.rpc.call("invalidateblock", block)

    async def mine_until(self, condition: Callable[[], Any], what: str, limit: int = 60) -> None:
        """Block after block, each with all that the nodes had to say before it."""
        for _ in range(limit):
            if condition():
                return
            await self.until_sent()
            await self.mine(1)
        raise AssertionError(f"mined {limit} blocks in vain: {what}")

    async def until_closed(self) -> None:
        def closed() -> bool:
            # A node that was started again does not load what is closed.
            channels = [c for p in self.parties for c in p.node.channels.values()]
            return all(channel.state.state.value == "CLOSED" for channel in channels)

        await self.mine_until(closed, "everything is irrevocably resolved")

    async def force(self, party: Party) -> Transaction:
        """It closes alone, and one block has confirmed that."""
        commitment = party.commitment()
        party.node.onchain.force(party.channel)
        await self.until_in_mempool(commitment.txid)
        await self.mine(1)
        return commitment

    async def audit(self) -> Audit:
        """Every transaction since the channel was opened, checked by pycoin."""
        outputs: dict[OutPoint, TxOut] = {}
        spent: dict[OutPoint, Transaction] = {}
        fees: dict[bytes, int] = {}
        for height in range(self.first, await self.height() + 1):
            block = await self.rpc.call("getblock", await self.rpc.call("getblockhash", height), 2)
            for entry in block["tx"]:
                tx = Transaction.parse(bytes.fromhex(entry["hex"]))
                for vout, output in enumerate(tx.outputs):
                    outputs[OutPoint(tx.txid, vout)] = output
                if height == self.first or tx.inputs[0].outpoint.txid == bytes(32):
                    continue
                coins = [outputs[txin.outpoint] for txin in tx.inputs]
                assert (why := refusal(tx, coins)) is None, f"{tx.txid_hex}: {why}"
                spent.update((txin.outpoint, tx) for txin in tx.inputs)
                fees[tx.txid] = sum(c.value for c in coins) - sum(o.value for o in tx.outputs)
        return Audit(outputs, spent, fees)


class Audit:
    """What was really mined since the nodes got their coins."""

    def __init__(
        self,
        outputs: dict[OutPoint, TxOut],
        spent: dict[OutPoint, Transaction],
        fees: dict[bytes, int],
    ) -> None:
        self.outputs, self.spent, self.fees = outputs, spent, fees

    def unspent(self, txid: bytes) -> list[int]:
        """The values of the outputs of a transaction that nobody has spent."""
        return [
            output.value
            for outpoint, output in self.outputs.items()
            if outpoint.txid == txid and outpoint not in self.spent
        ]

    def conserved(self, close: Close, commitment: bytes) -> None:
        """No satoshi is lost: coins, anchors that nobody wants, and fees are all there was."""
        left = [value for value in self.unspent(commitment) if value == 330]
        coins = sum(party.coins() for party in close.parties)
        found = coins + sum(left) + sum(self.fees.values())
        assert found == 2 * COINS, f"{found - 2 * COINS} sat too many"

    def spender(self, outpoint: OutPoint) -> Transaction:
        return self.spent[outpoint]


@contextlib.asynccontextmanager
async def closing(chain: Chain, directory: Path) -> AsyncIterator[Close]:
    async with chain.rpc() as rpc, chain.process.rpc(chain.port, wallet=True) as wallet:
        close = Close(chain, rpc, Miner(rpc, wallet), directory)
        try:
            yield close
        finally:
            for payment in close.payments:
                payment.cancel()
            await asyncio.gather(*close.payments, return_exceptions=True)
            for party in close.parties:
                if hasattr(party, "node"):
                    await party.stop()
