"""Our node and Electrum with a channel between them, driven the same way from either side."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Any

from channels.lightning import LightningError
from channels.units import Msat, Sat
from regtest.bitcoind import Miner
from regtest.electrum import Electrum, ElectrumError, bitcoin
from tests import nodes
from tests.nodes import LightningNode, Nodes

COINS = Sat(10_000_000)

# What Electrum takes for the feerate on regtest, so what it wants of a closing transaction, too.
FEERATE = "37500perkw"

until = partial(nodes.until, within=90)
"""Three programs in a row have to hear of a block, on a machine that may be busy."""


class Side(Enum):
    ODA = "ODA"
    ELECTRUM = "Electrum"

    @property
    def other(self) -> Side:
        return Side.ELECTRUM if self is Side.ODA else Side.ODA


@dataclass
class Counterparty:
    """`server_port` is that of the server by which Electrum follows the chain."""

    nodes: Nodes
    oda: LightningNode
    electrum: Electrum
    server_port: int
    electrum_id: str = ""
    invoices: int = 0

    async def prepare(self) -> str:
        """Start our node, give coins to both, and give Electrum's version."""
        await self.oda.start()
        address = await self.electrum.call("getunusedaddress")
        process, port = self.nodes.chain.process, self.nodes.chain.port
        async with process.rpc(port) as rpc, process.rpc(port, wallet=True) as wallet:
            await Miner(rpc, wallet).send(address, COINS)
        await self.nodes.give(COINS, self.oda)

        async def rich() -> bool:
            balance: dict[str, str] = await self.electrum.call("getbalance")
            return Decimal(balance["confirmed"]) > 0

        await until(rich, "Electrum sees its coins")
        self.electrum_id = (await self.electrum.call("nodeid")).partition("@")[0]
        version: str = await self.electrum.call("version")
        return version

    async def mine(self, blocks: int) -> None:
        """Mine, and wait until both have seen it."""
        await self.nodes.mine(blocks, self.oda)
        async with self.nodes.chain.rpc() as rpc:
            height = await rpc.call("getblockcount")

        async def seen() -> bool:
            return bool((await self.electrum.call("getinfo"))["blockchain_height"] >= height)

        await until(seen, f"Electrum sees block {height}")

    async def until_synchronized(self) -> None:
        """Wait until Electrum's wallet knows all that it has: what it opens with may be change."""

        async def synchronized() -> bool:
            balance: dict[str, str] = await self.electrum.call("getbalance")
            there = await self.electrum.call("is_synchronized")
            return bool(there) and "unconfirmed" not in balance

        await until(synchronized, "Electrum's coins are confirmed")

    async def open(self, opener: Side, amount: Sat, push: Sat, *, announce: bool = True) -> str:
        """A channel that both can use; gives its channel_id. Electrum announces none of its own."""
        await self.until_synchronized()
        if opener is Side.ODA:
            await self.oda.rpc.connect(self.electrum_id, "127.0.0.1", self.electrum.port)
            opened = await self.oda.rpc.call(
                "fundchannel",
                id=self.electrum_id,
                amount=amount,
                push_msat=1000 * push,
                feerate=FEERATE,
                announce=announce,
            )
            channel_id: str = opened["channel_id"]
        else:
            outpoint = await self.electrum.call(
                "open_channel",
                connection_string=f"{self.oda.id}@127.0.0.1:{self.oda.process.port}",
                amount=bitcoin(amount),
                push_amount=bitcoin(push),
            )

            async def listed() -> str | None:
                channels = await self.electrum.call("list_channels")
                ids = [c["channel_id"] for c in channels if c["channel_point"] == outpoint]
                return ids[0] if ids else None

            channel_id = await until(listed, "Electrum lists the channel that it opened")
        await self.mine(3)
        await self.until_usable(channel_id)
        return channel_id

    async def until_closing(self, channel_id: str) -> None:
        """Wait until something in the mempool spends the channel's funding output."""
        ours = await self.ours(channel_id)
        funding = {"txid": ours["funding_txid"], "vout": ours["funding_outnum"]}
        async with self.nodes.chain.rpc() as rpc:

            async def spent() -> bool:
                (found,) = await rpc.call("gettxspendingprevout", [funding])
                return "spendingtxid" in found

            await until(spent, "the channel's closing transaction is broadcast")

    async def ours(self, channel_id: str) -> dict[str, Any]:
        return next(c for c in await self.oda.channels() if c["channel_id"] == channel_id)

    async def theirs(self, channel_id: str) -> dict[str, Any]:
        channels: list[dict[str, Any]] = await self.electrum.call("list_channels")
        return next(c for c in channels if c["channel_id"] == channel_id)

    async def until_usable(self, channel_id: str) -> None:
        seen: list[str] = []

        async def usable() -> bool:
            ours, theirs = await self.ours(channel_id), await self.theirs(channel_id)
            now = (ours["state"], str(ours.get("reestablished")))
            seen[:] = [*now, theirs["state"], theirs["peer_state"]]
            return seen == ["CHANNELD_NORMAL", "True", "OPEN", "GOOD"]

        # Electrum looks at a channel when something happens on chain, and else once a minute: what
        # it misses in a busy moment another block makes it see.
        for _ in range(5):
            with contextlib.suppress(AssertionError):
                await nodes.until(usable, "both sides can use the channel", within=20)
                return
            await self.mine(1)
        raise AssertionError(f"the channel can't be used: {seen}")

    async def invoice(self, payee: Side, amount: Sat) -> str:
        self.invoices += 1
        if payee is Side.ODA:
            return await self.oda.new_invoice(1000 * amount, f"invoice {self.invoices}")
        request = await self.electrum.call(
            "add_request", amount=bitcoin(amount), memo=f"{self.invoices}", lightning=True
        )
        text: str = request["lightning_invoice"]
        return text

    async def pay(self, payer: Side, invoice: str) -> bool:
        """Whether it was paid."""
        try:
            if payer is Side.ODA:
                await self.oda.pay(invoice)
                return True
            answer = await self.electrum.call("lnpay", invoice=invoice)
            return bool(answer["success"])
        except (LightningError, ElectrumError):
            return False

    async def check_balances(self, channel_id: str, expected: Msat) -> None:
        """Nothing is in flight any more, and both say that we have `expected`."""

        async def quiet() -> bool:
            theirs = await self.theirs(channel_id)
            in_flight = theirs["local_unsettled_sent"] + theirs["remote_unsettled_sent"]
            return not in_flight and not (await self.ours(channel_id))["htlcs"]

        await until(quiet, "every HTLC is settled")
        ours, theirs = await self.ours(channel_id), await self.theirs(channel_id)
        assert ours["to_us_msat"] == expected
        assert theirs["remote_balance"] == expected // 1000
        assert theirs["local_balance"] == (ours["total_msat"] - expected) // 1000

    async def kill(self, side: Side) -> None:
        """SIGKILL: it gets no chance to tidy up."""
        if side is Side.ODA:
            await self.oda.kill()
            return
        await asyncio.to_thread(self.electrum.daemon.kill)

    async def start(self, side: Side) -> None:
        await (self.oda.start() if side is Side.ODA else self.electrum.start(self.server_port))

    async def close(self, channel_id: str, closer: Side) -> str:
        """Close together; gives the closing transaction's id."""
        if closer is Side.ODA:
            closed = await self.oda.rpc.close(channel_id, 30)
            assert closed.type == "mutual"
            return closed.txids[0]
        outpoint = (await self.theirs(channel_id))["channel_point"]
        txid: str = await self.electrum.call("close_channel", channel_point=outpoint)
        return txid

    async def coins(self, txid: str) -> tuple[Sat, Sat]:
        """What of a confirmed transaction each wallet calls its own: ours, and Electrum's."""

        async def found() -> tuple[Sat, Sat] | None:
            funds = await self.oda.rpc.call("listfunds")
            ours = [o["amount_msat"] // 1000 for o in funds["outputs"] if o["txid"] == txid]
            unspent = await self.electrum.call("listunspent")
            theirs = [
                int(Decimal(o["value"]) * 100_000_000)
                for o in unspent
                if o["prevout_hash"] == txid and o["height"] > 0
            ]
            return (Sat(sum(ours)), Sat(sum(theirs))) if ours and theirs else None

        coins: tuple[Sat, Sat] = await until(found, "both wallets see the closing transaction")
        return coins
