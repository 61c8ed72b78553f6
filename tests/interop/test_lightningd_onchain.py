"""Channels with Core Lightning that end on chain without the other's consent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from channels.units import Msat, Sat
from tests.conftest import Chain
from tests.nodes import LightningNode, Nodes, balances, nodes_on, until

AMOUNT = Sat(600_000)
PUSHED = Msat(200_000_000)
PAID = Sat(50_000)
COINS = Sat(2_000_000)
FEES = Sat(20_000)
"""More than all closing transactions of one side may cost."""
DISPUTE = 40
"""Blocks in which every output is claimed: delays of 6, expiries of some 20."""


@pytest.fixture
def nodes(bitcoind: Chain) -> Iterator[Nodes]:
    with nodes_on(bitcoind) as nodes:
        yield nodes


async def coins(node: LightningNode) -> int:
    """Satoshis on chain."""
    outputs = (await node.rpc.listfunds()).outputs
    return sum(o.amount_msat for o in outputs if o.status != "spent") // 1000


async def until_resolved(
    nodes: Nodes, before: dict[LightningNode, int], expected: dict[LightningNode, int]
) -> None:
    """Mine until every node has got that many satoshis back, less fees."""
    for _ in range(DISPUTE):
        await nodes.mine(1)
        gained = {node: await coins(node) - before[node] for node in expected}
        if all(gained[node] > expected[node] - FEES for node in expected):
            break
        # What a block lets a node broadcast shall be in the next one.
        await asyncio.sleep(0.3)
    for node, amount in expected.items():
        assert amount - FEES < gained[node] <= amount, (node.process.name, gained)


async def until_paid_or_not(nodes: Nodes, payer: LightningNode, invoice: str, status: str) -> None:
    """Mine until a payment is known as that: what a reorganization could undo is not yet."""
    for _ in range(DISPUTE):
        (pay,) = await payer.rpc.listpays(bolt11=invoice)
        if pay.status != "pending":
            break
        await nodes.mine(1)
    assert pay.status == status


@pytest.mark.parametrize("closer", ["oda", "cln"])
async def test_one_closes_while_the_other_is_away(nodes: Nodes, closer: str) -> None:
    oda, cln = nodes.make("oda"), nodes.make_lightningd("cln")
    await asyncio.gather(oda.start(), cln.start())
    await nodes.give(COINS, oda, cln)
    await nodes.open(oda, cln, AMOUNT, push_msat=PUSHED)
    await oda.pay(await cln.new_invoice(1000 * PAID, "one"))
    await cln.pay(await oda.new_invoice(123_456, "two"))
    first, second = (oda, cln) if closer == "oda" else (cln, oda)

    async def settled() -> bool:
        return not any(c["htlcs"] for c in [*await oda.channels(), *await cln.channels()])

    await until(settled, "nothing is in flight")
    expected = [balance // 1000 for balance in await balances(first, second)]
    before = {node: await coins(node) for node in (first, second)}
    await second.stop()
    closed = await first.rpc.close((await first.channels())[0]["channel_id"], 1)
    assert closed.type == "unilateral"
    await nodes.mine(1)
    await second.start()
    await until_resolved(nodes, before, dict(zip((first, second), expected, strict=True)))


@pytest.mark.parametrize(("closer", "status"), [("oda", "complete"), ("cln", "failed")])
async def test_an_htlc_to_lightningd(nodes: Nodes, closer: str, status: str) -> None:
    """It goes on ignoring the HTLC until it is started again: then it claims it on chain."""
    oda, cln = nodes.make("oda"), nodes.make_lightningd("cln")
    await asyncio.gather(oda.start(), cln.start())
    await nodes.give(COINS, oda, cln)
    opened = await nodes.open(oda, cln, AMOUNT, push_msat=PUSHED)
    await cln.rpc.call("dev-ignore-htlcs", id=oda.id, ignore=True)
    invoice = await cln.new_invoice(1000 * PAID, "ignored")
    paying = asyncio.create_task(oda.rpc.pay_once(invoice, maxfee=Msat(0)))

    async def in_flight() -> bool:
        states = [h["state"] for c in await cln.channels() for h in c["htlcs"]]
        return states == ["SENT_ADD_ACK_REVOCATION"] or states == ["RCVD_ADD_ACK_REVOCATION"]

    await until(in_flight, "the HTLC is in both commitments")
    before = {node: await coins(node) for node in (oda, cln)}
    first, second = (oda, cln) if closer == "oda" else (cln, oda)
    await second.stop()
    closed = await first.rpc.close(opened["channel_id"], 1)
    assert closed.type == "unilateral"
    await nodes.mine(1)
    await second.start()
    moved = PAID if status == "complete" else 0
    theirs = PUSHED // 1000 + moved
    await until_resolved(nodes, before, {oda: AMOUNT - theirs, cln: theirs})
    await until_paid_or_not(nodes, oda, invoice, status)
    await paying


async def test_an_htlc_from_lightningd_is_claimed_on_chain(nodes: Nodes, tmp_path: Path) -> None:
    """lightningd is gone when we know the preimage; it learns it from the chain."""
    script = tmp_path / "disconnect"
    script.write_text("+WIRE_REVOKE_AND_ACK\n")
    oda = nodes.make("oda")
    cln = nodes.make_lightningd("cln", f"--dev-disconnect={script}", "--dev-no-reconnect")
    await asyncio.gather(oda.start(), cln.start())
    await nodes.give(COINS, oda, cln)
    opened = await nodes.open(cln, oda, AMOUNT, push_msat=PUSHED)
    invoice = await oda.new_invoice(1000 * PAID, "claimed")
    paying = asyncio.create_task(cln.rpc.pay_once(invoice, maxfee=Msat(0)))
    await asyncio.wait_for(oda.rpc.waitinvoice("claimed"), 20)
    before = {node: await coins(node) for node in (oda, cln)}
    closed = await oda.rpc.close(opened["channel_id"], 1)
    assert closed.type == "unilateral"
    theirs = AMOUNT - PUSHED // 1000 - PAID
    await until_resolved(nodes, before, {oda: PUSHED // 1000 + PAID, cln: theirs})
    await until_paid_or_not(nodes, cln, invoice, "complete")
    await paying
