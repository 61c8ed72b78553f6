"""A payment of lightningd's that we hold while its channel is closed by either side alone."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator

import pytest

from channels.units import Msat
from tests.conftest import Chain
from tests.interop.test_lightningd_onchain import (
    AMOUNT,
    COINS,
    PAID,
    PUSHED,
    coins,
    until_paid_or_not,
    until_resolved,
)
from tests.nodes import Nodes, nodes_on, until

PREIMAGE = bytes(range(32))
FINAL_CLTV = 20


@pytest.fixture
def nodes(bitcoind: Chain) -> Iterator[Nodes]:
    with nodes_on(bitcoind) as nodes:
        yield nodes


@pytest.mark.parametrize("settled", [True, False], ids=["settled", "kept"])
@pytest.mark.parametrize("closer", ["oda", "cln"])
async def test_the_htlc_goes_to_whom_it_belongs(nodes: Nodes, closer: str, settled: bool) -> None:
    """With the preimage it is ours; without it is lightningd's again once it has expired."""
    oda, cln = nodes.make("oda"), nodes.make_lightningd("cln")
    await asyncio.gather(oda.start(), cln.start())
    await nodes.give(COINS, oda, cln)
    opened = await nodes.open(cln, oda, AMOUNT, push_msat=PUSHED)
    held = await oda.rpc.call(
        "oda-holdinvoice",
        payment_hash=hashlib.sha256(PREIMAGE).hexdigest(),
        amount_msat=1000 * PAID,
        label="held",
        description="",
        cltv=FINAL_CLTV,
    )
    paying = asyncio.create_task(cln.rpc.pay_once(held["bolt11"], maxfee=Msat(0)))

    async def accepted() -> bool:
        found = (await oda.rpc.call("oda-listholdinvoices"))["holdinvoices"]
        return [h["state"] for h in found] == ["accepted"]

    await until(accepted, "we hold the payment")
    before = {node: await coins(node) for node in (oda, cln)}
    first = oda if closer == "oda" else cln
    closed = await first.rpc.close(opened["channel_id"], 1)
    assert closed.type == "unilateral"
    await nodes.until_in_mempool(closed.txids[0])
    await nodes.mine(1)
    if settled:
        await oda.rpc.call("oda-holdinvoice-settle", preimage=PREIMAGE.hex())
    ours = PUSHED // 1000 + (PAID if settled else 0)
    await until_resolved(nodes, before, {oda: ours, cln: AMOUNT - ours})
    status = "complete" if settled else "failed"
    await until_paid_or_not(nodes, cln, held["bolt11"], status)
    await paying
