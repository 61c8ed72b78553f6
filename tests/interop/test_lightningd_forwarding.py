"""Payments through a hub where one of three is another's: fees, delays, failures, hold, kill -9."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from channels.lightning import LightningError
from tests.conftest import Chain
from tests.interop import line as lines
from tests.interop.conftest import interoperated
from tests.interop.line import DELTA, PUSHED, SECOND, Kinds, Line, fee, invoice, pay
from tests.nodes import LightningNode, balances, nodes_on, until, until_settled

AMOUNT = 20_000_000
LINES: list[Kinds] = [("oda", "cln", "oda"), ("cln", "oda", "cln"), ("oda", "oda", "cln")]

PERM_FAIL, TRY_OTHER_ROUTE = 203, 204


@pytest.fixture(scope="module", params=LINES, ids="-".join)
def line(request: pytest.FixtureRequest, bitcoind: Chain) -> Iterator[Line]:
    with nodes_on(bitcoind) as nodes:

        async def build() -> Line:
            line = await lines.new_line(nodes, request.param)
            lightningd = line.all[request.param.index("cln")]
            version = (await lightningd.rpc.getinfo()).version
            interoperated(request.config, f"Core Lightning {version}")
            return line

        yield asyncio.run(build())


# --- payments that arrive -------------------------------------------------------------------------


async def test_fees_and_delays(line: Line) -> None:
    """Both ways, by gossip alone: invoices of nodes with public channels have no hints."""
    known = len((await line.hub.rpc.call("listforwards"))["forwards"])
    for payer, payee in ((line.payer, line.payee), (line.payee, line.payer)):
        path = await lines.route(payer, payee, AMOUNT)
        hops = [(hop["amount_out_msat"], hop["cltv_out"]) for hop in path]
        assert hops == [(AMOUNT + fee(AMOUNT), 40 + DELTA), (AMOUNT, 40)]
        paid = await payer.pay(await invoice(payee, AMOUNT), maxfee=fee(AMOUNT))
        assert paid["amount_sent_msat"] == AMOUNT + fee(AMOUNT)
        with pytest.raises(LightningError) as refused:
            await payer.pay(await invoice(payee, AMOUNT), maxfee=fee(AMOUNT) - 1)
        assert refused.value.code == 206
    await until_settled(*line.all)
    forwards = (await line.hub.rpc.call("listforwards"))["forwards"][known:]
    assert [f["fee_msat"] for f in forwards] == [fee(AMOUNT)] * 2
    ways = [(f["in_channel"], f["out_channel"]) for f in forwards]
    assert ways == [(line.first, line.second), (line.second, line.first)]


async def test_payments_that_nobody_asked_for(line: Line) -> None:
    for payer, payee in ((line.payer, line.payee), (line.payee, line.payer)):
        paid = await payer.rpc.call(
            "xkeysend", destination=payee.id, amount_msat=AMOUNT, extratlvs={"65537": "c0ffee"}
        )
        payment_hash = hashlib.sha256(bytes.fromhex(paid["payment_preimage"])).hexdigest()
        (got,) = await payee.rpc.listinvoices(payment_hash=payment_hash)
        assert (got.status, got.amount_received_msat) == ("paid", AMOUNT)
        assert paid["amount_sent_msat"] == AMOUNT + fee(AMOUNT)


# --- payments that fail ---------------------------------------------------------------------------


async def blamed(line: Line, hops: list[dict[str, Any]], text: str) -> tuple[int, str]:
    """Who is blamed for a failure (1: the hub), and for what; nothing has moved."""
    await until_settled(*line.all)
    before = await balances(*line.all)
    error = await lines.failure(line.payer, hops, text)
    data, code = error["data"], error["code"]
    assert data["erring_node"] == line.all[data["erring_index"]].id
    assert data["erring_channel"] == line.second
    assert code == (PERM_FAIL if data["erring_index"] == 2 else TRY_OTHER_ROUTE)
    await until_settled(*line.all)
    assert await balances(*line.all) == before
    name: str = data["failcodename"]
    return data["erring_index"], name.removeprefix("WIRE_")


async def test_the_payee_does_not_know_the_payment(line: Line) -> None:
    text = await line.payee.new_invoice(AMOUNT, "gone")
    await line.payee.rpc.delinvoice("gone", "unpaid")
    hops = await lines.route(line.payer, line.payee, AMOUNT)
    assert await blamed(line, hops, text) == (2, "INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS")
    with pytest.raises(LightningError) as refused:
        await line.payer.pay(text)
    assert refused.value.code == PERM_FAIL


async def test_what_the_hub_refuses(line: Line) -> None:
    first, second = await lines.route(line.payer, line.payee, AMOUNT)
    text = await invoice(line.payee, AMOUNT)
    # More than the hub has on its side of the second channel, and less than the payer in its own.
    more = 1000 * SECOND - PUSHED + 50_000_000
    much = [first | {"amount_out_msat": more + fee(more)}, second | {"amount_out_msat": more}]
    cases = [
        ([first | {"amount_out_msat": AMOUNT}, second], "FEE_INSUFFICIENT"),
        ([first | {"cltv_out": 40 + DELTA - 1}, second], "INCORRECT_CLTV_EXPIRY"),
        ([first | {"cltv_out": DELTA}, second | {"cltv_out": 0}], "EXPIRY_TOO_SOON"),
        (much, "TEMPORARY_CHANNEL_FAILURE"),
    ]
    for hops, name in cases:
        assert await blamed(line, hops, text) == (1, name)
    assert await pay(line.payer, line.payee, [AMOUNT]) == [True]


async def heard(line: Line, node: LightningNode, base: int) -> bool:
    """Whether a node knows the hub's base fee for the second channel."""
    found = (await node.rpc.call("listchannels", source=line.hub.id))["channels"]
    (way,) = [c for c in found if c["short_channel_id"] == line.second]
    return bool(way["base_fee_millisatoshi"] == base)


async def test_new_terms_of_the_hub(line: Line) -> None:
    """A sender that has not heard of them yet is told; once it has, it pays by them."""
    hops = await lines.route(line.payer, line.payee, AMOUNT)
    terms = {"id": line.second, "enforcedelay": 0}
    await line.hub.rpc.call("setchannel", feebase=5000, htlcmin=1_000_000, **terms)
    text = await invoice(line.payee, AMOUNT)
    assert await blamed(line, hops, text) == (1, "FEE_INSUFFICIENT")
    small = [hops[0] | {"amount_out_msat": 600_000}, hops[1] | {"amount_out_msat": 500_000}]
    little = await invoice(line.payee, 500_000)
    # lightningd has BOLT 4's word only for what its peer would not accept.
    ours = (await line.hub.rpc.getinfo()).version.startswith("oda")
    below = "AMOUNT_BELOW_MINIMUM" if ours else "TEMPORARY_CHANNEL_FAILURE"
    assert await blamed(line, small, little) == (1, below)

    # lightningd's invoices hint at the hub by its terms, so the payee has to hear, too.
    for node in (line.payer, line.payee):
        await until(partial(heard, line, node, 5000), "all hear of the new terms", within=60)
    paid = await line.payer.pay(await invoice(line.payee, AMOUNT))
    assert paid["amount_sent_msat"] == AMOUNT + fee(AMOUNT) + 4999
    await line.hub.rpc.call("setchannel", feebase=1, htlcmin=0, **terms)
    for node in (line.payer, line.payee):
        await until(partial(heard, line, node, 1), "all hear of the old terms", within=60)


# --- payments that wait ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["settle", "cancel"])
async def test_a_payment_that_is_held(line: Line, end: str) -> None:
    if not (await line.payee.rpc.getinfo()).version.startswith("oda"):
        pytest.skip("lightningd has no hold invoices")
    preimage = hashlib.sha256(f"{end} {line.first}".encode()).digest()
    payment_hash = hashlib.sha256(preimage).hexdigest()
    held = await line.payee.rpc.call(
        "oda-holdinvoice",
        payment_hash=payment_hash,
        amount_msat=AMOUNT,
        label=f"hold to {end}",
        description="",
    )
    await until_settled(*line.all)
    before = await balances(*line.all)
    paying = asyncio.create_task(line.payer.pay(held["bolt11"]))

    async def accepted() -> bool:
        found = (await line.payee.rpc.call("oda-listholdinvoices"))["holdinvoices"]
        return any(h["payment_hash"] == payment_hash and h["state"] == "accepted" for h in found)

    await until(accepted, "the payee holds the payment")
    htlcs = {
        h["direction"]: h
        for channel in await line.hub.channels()
        for h in channel["htlcs"]
        if h["payment_hash"] == payment_hash
    }
    assert htlcs["in"]["expiry"] - htlcs["out"]["expiry"] == DELTA
    assert htlcs["in"]["amount_msat"] - htlcs["out"]["amount_msat"] == fee(AMOUNT)
    if end == "settle":
        await line.payee.rpc.call("oda-holdinvoice-settle", preimage=preimage.hex())
        assert (await paying)["payment_preimage"] == preimage.hex()
        moved = [-AMOUNT - fee(AMOUNT), fee(AMOUNT), AMOUNT]
    else:
        await line.payee.rpc.call("oda-holdinvoice-cancel", payment_hash=payment_hash)
        with pytest.raises(LightningError) as refused:
            await paying
        assert refused.value.code == PERM_FAIL
        moved = [0, 0, 0]
    await until_settled(*line.all)
    now = await balances(*line.all)
    assert now == [b + m for b, m in zip(before, moved, strict=True)]


# --- kill -9 --------------------------------------------------------------------------------------


async def test_the_hub_is_killed_in_the_middle(line: Line) -> None:
    """Payments of both directions go on, or fail; nothing is lost, doubled or stuck."""
    start = lines.start_balances()
    await lines.check_conserved(line, start)
    there = asyncio.create_task(pay(line.payer, line.payee, [2_000_000 + n for n in range(4)]))
    back = asyncio.create_task(pay(line.payee, line.payer, [3_000_000 + n for n in range(4)]))

    async def under_way() -> bool:
        forwards = (await line.hub.rpc.call("listforwards", status="offered"))["forwards"]
        return bool(forwards) or (there.done() and back.done())

    await until(under_way, "the hub forwards")
    await line.hub.kill()
    await line.hub.start()
    for node in line.all:
        await node.until_usable()
    await asyncio.gather(there, back)
    await lines.check_conserved(line, start)
    # What was interrupted has taught the payers that larger amounts may not go through.
    for payer, payee in ((line.payer, line.payee), (line.payee, line.payer)):
        await until(partial(paid_again, payer, payee), "payments arrive again", within=50)
    await lines.check_conserved(line, start)


async def paid_again(payer: LightningNode, payee: LightningNode) -> bool:
    try:
        await payer.pay(await invoice(payee, AMOUNT // 20))
    except LightningError:
        return False
    return True


# --- last: gossip may go on calling the second channel disabled -----------------------------------


async def test_the_payee_is_away(line: Line) -> None:
    hops = await lines.route(line.payer, line.payee, AMOUNT)
    text = await invoice(line.payee, AMOUNT)
    await line.payee.stop()

    async def gone() -> bool:
        (channel,) = [c for c in await line.hub.channels() if c["short_channel_id"] == line.second]
        return not channel["peer_connected"]

    await until(gone, "the hub sees that the payee is away")
    error = await lines.failure(line.payer, hops, text)
    assert (error["code"], error["data"]["erring_node"]) == (TRY_OTHER_ROUTE, line.hub.id)
    assert error["data"]["failcodename"] == "WIRE_TEMPORARY_CHANNEL_FAILURE"
    await line.payee.start()
    for node in line.all:
        await node.until_usable()
    # A hub may have disabled the channel and takes its time to say otherwise, but it forwards.
    decoded = await line.payer.rpc.decode(text)
    named = {"payment_hash": decoded.payment_hash}
    await line.payer.rpc.call(
        "sendpay", route=hops, payment_secret=decoded.payment_secret, bolt11=text, **named
    )
    paid = await line.payer.rpc.call("waitsendpay", **named, timeout=25)
    assert paid["status"] == "complete"
