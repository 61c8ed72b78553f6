"""Channels with Electrum that one side closes alone, with a payment in flight."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from decimal import Decimal

import pytest

from channels.units import Sat
from regtest.electrum import bitcoin
from tests.interop.counterparty import Counterparty, Side, until

# The first test may have to fetch Electrum.
pytestmark = pytest.mark.timeout(300)

AMOUNT = Sat(600_000)
PUSHED = Sat(250_000)
HELD = Sat(60_000)

FEES = Sat(100_000)
"""The most that the commitment, or the claims, may cost one side at Electrum's feerates."""


async def electrums_coins(counterparty: Counterparty) -> Sat:
    """What is confirmed."""
    balance = await counterparty.electrum.call("getbalance")
    return Sat(int(Decimal(balance["confirmed"]) * 100_000_000))


async def our_coins(counterparty: Counterparty) -> Sat:
    outputs = (await counterparty.oda.rpc.listfunds()).outputs
    return Sat(sum(o.amount_msat for o in outputs if o.status == "confirmed") // 1000)


async def hold(counterparty: Counterparty, payee: Side, payment_hash: bytes) -> str:
    """An invoice whose payment waits at its payee."""
    if payee is Side.ODA:
        answer = await counterparty.oda.rpc.call(
            "oda-holdinvoice",
            payment_hash=payment_hash.hex(),
            amount_msat=1000 * HELD,
            label=payment_hash.hex(),
            description="hold",
        )
        return str(answer["bolt11"])
    answer = await counterparty.electrum.call(
        "add_hold_invoice", payment_hash=payment_hash.hex(), amount=bitcoin(HELD)
    )
    return str(answer["invoice"])


async def is_held(counterparty: Counterparty, payee: Side, payment_hash: bytes) -> bool:
    text = payment_hash.hex()
    if payee is Side.ODA:
        answer = await counterparty.oda.rpc.call("oda-listholdinvoices", payment_hash=text)
        return bool(answer["holdinvoices"][0]["state"] == "accepted")
    answer = await counterparty.electrum.call("check_hold_invoice", payment_hash=text)
    return bool(answer["status"] == "paid")


async def settle(counterparty: Counterparty, payee: Side, preimage: bytes) -> None:
    if payee is Side.ODA:
        await counterparty.oda.rpc.call("oda-holdinvoice-settle", preimage=preimage.hex())
    else:
        await counterparty.electrum.call("settle_hold_invoice", preimage=preimage.hex())


async def close_alone(counterparty: Counterparty, channel: str, closer: Side) -> None:
    """The other side hears of it and may be the first with its own commitment: either will do."""
    if closer is Side.ODA:
        assert (await counterparty.oda.rpc.close(channel, 1)).type == "unilateral"
    else:
        outpoint = (await counterparty.theirs(channel))["channel_point"]
        await counterparty.electrum.call("close_channel", channel_point=outpoint, force=True)
    await counterparty.until_closing(channel)


@pytest.mark.parametrize("payee", Side)
@pytest.mark.parametrize("closer", Side)
async def test_closed_alone_with_a_payment_in_flight(
    counterparty: Counterparty, closer: Side, payee: Side
) -> None:
    """The payee gets its preimage only then: it claims the HTLC on chain, and so pays its payer."""
    channel = await counterparty.open(Side.ODA, AMOUNT, PUSHED, announce=False)
    before = await our_coins(counterparty), await electrums_coins(counterparty)
    preimage = secrets.token_bytes(32)
    payment_hash = hashlib.sha256(preimage).digest()
    invoice = await hold(counterparty, payee, payment_hash)
    paying = asyncio.create_task(counterparty.pay(payee.other, invoice))
    await until(lambda: is_held(counterparty, payee, payment_hash), "the payee holds the payment")

    await close_alone(counterparty, channel, closer)
    await counterparty.mine(1)
    await settle(counterparty, payee, preimage)

    async def known() -> bool:
        await counterparty.mine(1)
        return paying.done()

    await until(known, "the payer has found the preimage on chain")
    assert await paying

    moved = HELD if payee is Side.ODA else -HELD
    ours, theirs = AMOUNT - PUSHED + moved, PUSHED - moved

    async def all_swept() -> bool:
        await counterparty.mine(2)
        closed = (await counterparty.oda.rpc.call("listclosedchannels"))["closedchannels"]
        electrum = await counterparty.theirs(channel)
        return electrum["state"] == "REDEEMED" and channel in {c["channel_id"] for c in closed}

    await until(all_swept, "both have swept what is theirs")
    gained = (
        await our_coins(counterparty) - before[0],
        await electrums_coins(counterparty) - before[1],
    )
    assert ours - FEES < gained[0] <= ours
    assert theirs - FEES < gained[1] <= theirs
