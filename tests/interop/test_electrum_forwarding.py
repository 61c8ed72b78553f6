"""user (ODA) - hub (ODA) - Electrum: payments through our hub in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from channels.units import Sat
from tests.interop.counterparty import Counterparty, Side, until
from tests.nodes import LightningNode, until_settled

# The first test may have to fetch Electrum.
pytestmark = pytest.mark.timeout(300)

AMOUNT = Sat(600_000)
PUSHED = Sat(250_000)


@pytest.fixture
async def user(counterparty: Counterparty) -> AsyncIterator[LightningNode]:
    """A node with a private channel to the hub, which has one with Electrum."""
    nodes, hub = counterparty.nodes, counterparty.oda
    user = nodes.make("user")
    await user.start()
    await nodes.give(Sat(1_000_000), user)
    await nodes.open(user, hub, AMOUNT, push_msat=1000 * PUSHED, announce=False)
    yield user
    await user.stop()


async def hinted(counterparty: Counterparty, payee: LightningNode | None) -> None:
    """Wait until the payee (None: Electrum) knows the hub's terms, so that invoices have them."""

    async def has_terms() -> bool:
        text = await counterparty.invoice(Side.ELECTRUM, Sat(1)) if payee is None else ""
        if payee is not None:
            counterparty.invoices += 1
            text = await payee.new_invoice(1000, f"hint {counterparty.invoices}")
        decoded = await counterparty.oda.rpc.call("decode", string=text)
        # Without the hub's channel_update, Electrum hints at a way that is free.
        return any(hop[0]["fee_base_msat"] for hop in decoded.get("routes", ()))

    await until(has_terms, "the payee hints at the hub")


async def to_user(counterparty: Counterparty, user: LightningNode, amount: Sat) -> bool:
    """Electrum pays the user."""
    counterparty.invoices += 1
    text = await user.new_invoice(1000 * amount, f"invoice {counterparty.invoices}")
    return await counterparty.pay(Side.ELECTRUM, text)


async def test_through_our_hub_and_back(counterparty: Counterparty, user: LightningNode) -> None:
    hub = counterparty.oda
    channel = await counterparty.open(Side.ODA, AMOUNT, PUSHED, announce=False)
    await hinted(counterparty, None)
    await hinted(counterparty, user)
    before = sum(c["to_us_msat"] for c in await hub.channels())

    # One by one, then all at once and in both directions.
    paid = await user.pay(await counterparty.invoice(Side.ELECTRUM, Sat(10_000)))
    assert paid["amount_msat"] == 10_000_000 < paid["amount_sent_msat"]
    assert await to_user(counterparty, user, Sat(10_000))
    there = [await counterparty.invoice(Side.ELECTRUM, Sat(2_000 + n)) for n in range(4)]
    back = [to_user(counterparty, user, Sat(3_000 + n)) for n in range(4)]
    sent = asyncio.gather(*(user.pay(text) for text in there))
    assert all(await asyncio.gather(*back))
    await sent

    # Electrum dies and comes back while it is being paid: nothing is lost, nothing paid twice.
    there = [await counterparty.invoice(Side.ELECTRUM, Sat(5_000 + n)) for n in range(4)]
    paying = asyncio.gather(*(user.pay(text) for text in there))
    await counterparty.kill(Side.ELECTRUM)
    await counterparty.start(Side.ELECTRUM)
    await paying
    await counterparty.until_usable(channel)
    await until_settled(user, hub)

    to_electrum = 10_000 + sum(2_000 + n for n in range(4)) + sum(5_000 + n for n in range(4))
    to_user_sat = 10_000 + sum(3_000 + n for n in range(4))
    (own,) = await user.channels()
    pays = (await user.rpc.call("listpays", status="complete"))["pays"]
    fees = sum(p["amount_sent_msat"] - p["amount_msat"] for p in pays)
    assert own["to_us_msat"] == 1000 * (AMOUNT - PUSHED - to_electrum + to_user_sat) - fees
    rows = (await hub.rpc.call("listforwards", status="settled"))["forwards"]
    assert len(rows) == 14
    assert sum(c["to_us_msat"] for c in await hub.channels()) == before + sum(
        row["fee_msat"] for row in rows
    )
    assert (await counterparty.theirs(channel))["local_balance"] == pytest.approx(
        PUSHED + to_electrum - to_user_sat, abs=100
    )

    # Both channels close together, whoever asks.
    txid = await counterparty.close(channel, Side.ELECTRUM)
    closed = await user.rpc.close(hub.id, 30)
    assert closed.type == "mutual"
    await counterparty.mine(1)
    assert all(await counterparty.coins(txid))
