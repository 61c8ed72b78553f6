"""Core Lightning: channels with our node, opened, used, interrupted and closed from either side."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from channels.lightning import LightningError
from channels.units import Msat, Sat
from tests.conftest import Chain
from tests.interop.conftest import interoperated
from tests.nodes import LightningNode, Nodes, balances, check_conserved, nodes_on, until

AMOUNT = Sat(600_000)
PUSHED = Msat(200_000_000)
COINS = Sat(2_000_000)
LABELS = itertools.count()

LIVES = [
    # opener, who is killed, closer
    ("oda", "cln", "oda"),
    ("oda", "oda", "cln"),
    ("cln", "oda", "cln"),
    ("cln", "cln", "oda"),
]


@dataclass
class Two:
    """Our node and lightningd, each with a coin."""

    nodes: Nodes
    oda: LightningNode
    cln: LightningNode

    def named(self, name: str) -> tuple[LightningNode, LightningNode]:
        """The node of this name, and the other one."""
        return (self.oda, self.cln) if name == "oda" else (self.cln, self.oda)


@pytest.fixture
def two(bitcoind: Chain, request: pytest.FixtureRequest) -> Iterator[Two]:
    with nodes_on(bitcoind) as nodes:
        two = Two(nodes, nodes.make("oda"), nodes.make_lightningd("cln"))

        async def start() -> None:
            await asyncio.gather(two.oda.start(), two.cln.start())
            await nodes.give(COINS, two.oda, two.cln)
            version = (await two.cln.rpc.getinfo()).version
            interoperated(request.config, f"Core Lightning {version}")

        asyncio.run(start())
        yield two


async def pay(payer: LightningNode, payee: LightningNode, amounts: list[int]) -> list[bool]:
    """Pay all at once; whether each was paid."""
    invoices = [await payee.new_invoice(amount, f"{next(LABELS)}") for amount in amounts]

    async def paid(invoice: str) -> bool:
        try:
            await payer.pay(invoice)
        except LightningError:
            return False
        return True

    return list(await asyncio.gather(*(paid(invoice) for invoice in invoices)))


@pytest.mark.parametrize(("opener", "killed", "closer"), LIVES)
async def test_a_channel_from_opening_to_close(
    two: Two, opener: str, killed: str, closer: str
) -> None:
    first, second = two.named(opener)
    opened = await two.nodes.open(first, second, AMOUNT, push_msat=PUSHED)
    start = [AMOUNT * 1000 - PUSHED, PUSHED]
    assert await balances(first, second) == start
    for node in (first, second):
        (channel,) = await node.channels()
        assert {12, 22} <= set(channel["channel_type"]["bits"])

    assert await pay(first, second, [10_000_000]) == [True]
    assert await pay(second, first, [10_000_001]) == [True]
    # Both at once: the commitments of both directions cross.
    there, back = await asyncio.gather(
        pay(first, second, [1_000_000 + n for n in range(10)]),
        pay(second, first, [2_000_000 + n for n in range(10)]),
    )
    assert all(there + back)
    await check_conserved(first, second, start)

    await kill_in_the_middle(*two.named(killed))
    await check_conserved(first, second, start)
    assert await pay(first, second, [3_000_000]) == [True]
    assert await pay(second, first, [3_000_000]) == [True]
    await check_conserved(first, second, start)
    await close_and_count(two, closer, opened["channel_id"])


async def kill_in_the_middle(killed: LightningNode, other: LightningNode) -> None:
    """Kill one while it is being paid, and start it again."""
    paying = asyncio.create_task(pay(other, killed, [4_000_000 + n for n in range(5)]))

    async def under_way() -> bool:
        return any(c["htlcs"] for c in await other.channels()) or paying.done()

    await until(under_way, "a payment is in flight")
    await killed.kill()
    await killed.start()
    for node in (killed, other):
        await node.until_usable()
    await paying


async def close_and_count(two: Two, closer: str, channel_id: str) -> None:
    """Close together; each gets its balance on chain, less a fee that the opener pays."""
    first, second = two.named(closer)
    expected = [balance // 1000 for balance in await balances(first, second)]
    closed = await first.rpc.close(channel_id, 30)
    assert closed.type == "mutual"
    txid = closed.txids[0]
    await two.nodes.until_in_mempool(txid)
    await two.nodes.mine(1)

    for node, balance in zip((first, second), expected, strict=True):
        coin = await coin_of(node, txid)
        (channel,) = [c for c in await node.channels() if c["channel_id"] == channel_id]
        pays = channel["opener"] == "local"
        assert 0 < balance - coin < 20_000 if pays else coin == balance


async def coin_of(node: LightningNode, txid: str) -> Sat:
    """What a transaction pays to the node, once it knows."""

    async def found() -> Sat | None:
        outputs = (await node.rpc.listfunds()).outputs
        return next((Sat(o.amount_msat // 1000) for o in outputs if o.txid == txid), None)

    coin: Sat = await until(found, f"{node.process.name} is paid by {txid}")
    return coin


@pytest.mark.parametrize("payer", ["oda", "cln"])
async def test_a_payment_that_is_refused(two: Two, payer: str) -> None:
    """The onion of the refusal is read by who pays; the channel goes on."""
    first, second = two.named(payer)
    await two.nodes.open(first, second, AMOUNT, push_msat=PUSHED)
    start = await balances(first, second)
    invoice = await second.new_invoice(5_000_000, "gone")
    await second.rpc.delinvoice("gone", "unpaid")
    with pytest.raises(LightningError, match="incorrect_or_unknown_payment_details") as refused:
        await first.pay(invoice)
    assert refused.value.code == 203
    await check_conserved(first, second, start)
    assert await pay(first, second, [5_000_000]) == [True]


@pytest.mark.parametrize("restarted", ["oda", "cln"])
async def test_they_find_each_other_again(two: Two, restarted: str) -> None:
    """After a clean restart of either the channel goes on without anybody's doing."""
    first, second = two.named(restarted)
    await two.nodes.open(two.oda, two.cln, AMOUNT, push_msat=PUSHED)
    start = await balances(first, second)
    await first.stop()
    await first.start()
    for node in (first, second):
        await node.until_usable()
    assert await pay(first, second, [1_000]) == [True]
    assert await pay(second, first, [1_000]) == [True]
    await check_conserved(first, second, start)
