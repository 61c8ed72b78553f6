"""An independent implementation: channels with Electrum, opened, used, interrupted and closed."""

from __future__ import annotations

import asyncio

import pytest

from channels.lightning import LightningError
from channels.units import Msat, Sat
from tests.interop.counterparty import Counterparty, Side, until

# The first test may have to fetch Electrum.
pytestmark = pytest.mark.timeout(300)

AMOUNT = Sat(600_000)
PUSHED = Sat(200_000)

LIVES = [
    # opener, who is killed, closer
    (Side.ODA, Side.ELECTRUM, Side.ODA),
    (Side.ODA, Side.ODA, Side.ELECTRUM),
    (Side.ELECTRUM, Side.ODA, Side.ELECTRUM),
    (Side.ELECTRUM, Side.ELECTRUM, Side.ODA),
]


async def paid(counterparty: Counterparty, payer: Side, amounts: list[Sat]) -> Msat:
    """Pay all at once, and give what arrived."""
    invoices = [await counterparty.invoice(payer.other, amount) for amount in amounts]
    outcomes = await asyncio.gather(*(counterparty.pay(payer, invoice) for invoice in invoices))
    return Msat(1000 * sum(a for a, arrived in zip(amounts, outcomes, strict=True) if arrived))


@pytest.mark.parametrize(("opener", "killed", "closer"), LIVES)
async def test_a_channel_from_opening_to_close(
    counterparty: Counterparty, opener: Side, killed: Side, closer: Side
) -> None:
    channel = await counterparty.open(opener, AMOUNT, PUSHED)
    balance = 1000 * (AMOUNT - PUSHED if opener is Side.ODA else PUSHED)
    await counterparty.check_balances(channel, Msat(balance))

    for payer in Side:
        assert await paid(counterparty, payer, [Sat(10_000)]) == 10_000_000
    await counterparty.check_balances(channel, Msat(balance))

    # Both at once: the commitments of both directions cross.
    sent, received = await asyncio.gather(
        paid(counterparty, Side.ODA, [Sat(1_000 + n) for n in range(5)]),
        paid(counterparty, Side.ELECTRUM, [Sat(2_000 + n) for n in range(5)]),
    )
    assert (sent, received) == (5_010_000, 10_010_000)
    balance += received - sent
    await counterparty.check_balances(channel, Msat(balance))

    moved = await kill_in_the_middle(counterparty, channel, killed)
    balance += moved if killed is Side.ODA else -moved
    await counterparty.check_balances(channel, Msat(balance))

    for payer in Side:
        assert await paid(counterparty, payer, [Sat(3_000)]) == 3_000_000
    await counterparty.check_balances(channel, Msat(balance))

    txid = await counterparty.close(channel, closer)
    await counterparty.mine(1)
    ours, theirs = await counterparty.coins(txid)
    expected = balance // 1000
    # Who opened it pays the fee.
    if opener is Side.ODA:
        assert theirs == AMOUNT - expected
        assert 0 < expected - ours < 50_000
    else:
        assert ours == expected
        assert 0 < AMOUNT - expected - theirs < 50_000


async def kill_in_the_middle(counterparty: Counterparty, channel: str, killed: Side) -> Msat:
    """Kill one side while it is being paid, start it again, and give what it was paid."""
    amounts = [Sat(4_000 + n) for n in range(4)]
    paying = asyncio.create_task(paid(counterparty, killed.other, amounts))

    async def under_way() -> bool:
        return bool((await counterparty.ours(channel))["htlcs"]) or paying.done()

    await until(under_way, "a payment is in flight")
    await counterparty.kill(killed)
    await counterparty.start(killed)
    await counterparty.until_usable(channel)
    return await paying


@pytest.mark.parametrize("payer", Side)
async def test_a_payment_that_is_refused(counterparty: Counterparty, payer: Side) -> None:
    """The onion of the refusal is read by who pays; the channel goes on."""
    channel = await counterparty.open(Side.ODA, AMOUNT, PUSHED)
    invoice = await counterparty.invoice(payer.other, Sat(5_000))
    if payer is Side.ODA:
        request = (await counterparty.electrum.call("list_requests"))[-1]
        await counterparty.electrum.call("delete_request", request_id=request["request_id"])
        with pytest.raises(LightningError, match="incorrect_or_unknown_payment_details"):
            await counterparty.oda.pay(invoice)
    else:
        await counterparty.oda.rpc.delinvoice(f"invoice {counterparty.invoices}", "unpaid")
        answer = await counterparty.electrum.call("lnpay", invoice=invoice)
        assert not answer["success"]
        assert "INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS" in str(answer["log"])
    await counterparty.check_balances(channel, Msat(1000 * (AMOUNT - PUSHED)))
    assert await paid(counterparty, payer, [Sat(5_000)]) == 5_000_000
    await counterparty.close(channel, payer)
    await counterparty.mine(1)
