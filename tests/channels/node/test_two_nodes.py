"""Two nodes as processes: opening, paying, restarting, closing, on a real bitcoind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from channels.bolt import invoice as bolt11
from channels.bolt.invoice import Invoice
from channels.lightning import LightningError, LightningUnreachable
from channels.node.rpc_params import RpcErrorCode
from channels.units import Msat, Sat, UnixTime
from tests.nodes import (
    LightningNode,
    Nodes,
    balances,
    check_conserved,
    received,
    until,
    until_settled,
)

CHANNEL = Sat(500_000)
PUSH = Msat(200_000_000)
STATIC_REMOTEKEY, ANCHORS = [12], [12, 22]
STRANGER = bytes.fromhex("e1" * 32)
"""The secret key of a node that nobody runs."""


async def pair(nodes: Nodes, **options: Any) -> tuple[LightningNode, LightningNode]:
    """alice, who opened a channel, and bob."""
    alice, bob = await nodes.start("alice", "bob")
    await nodes.open(alice, bob, CHANNEL, push_msat=PUSH, **options)
    return alice, bob


async def refusal(call: Any) -> int:
    with pytest.raises(LightningError) as refused:
        await call
    return refused.value.code


# --- opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel_type", [STATIC_REMOTEKEY, ANCHORS])
async def test_a_channel_opens_carries_payments_and_closes(
    nodes: Nodes, channel_type: list[int]
) -> None:
    alice, bob = await pair(nodes, channel_type=channel_type)
    (at_alice,), (at_bob,) = await alice.channels(), await bob.channels()
    for channel in (at_alice, at_bob):
        assert channel["channel_type"]["bits"] == channel_type
        assert channel["total_msat"] == CHANNEL * 1000
    assert (at_alice["opener"], at_bob["opener"]) == ("local", "remote")
    assert at_alice["short_channel_id"] == at_bob["short_channel_id"]
    before = await balances(alice, bob)
    assert before == [CHANNEL * 1000 - PUSH, PUSH]

    await alice.pay(await bob.new_invoice(1_234_567, "there"))
    await bob.pay(await alice.new_invoice(1, "back"))
    await check_conserved(alice, bob, before)

    closed = await alice.rpc.close(at_alice["channel_id"])
    assert closed.type == "mutual"
    await nodes.mine(1)
    for node in (alice, bob):
        await node.until_state("ONCHAIN")
        await sweep(nodes, node)


async def test_the_reserve_is_what_the_opener_asks_for(nodes: Nodes) -> None:
    """A provider that got exactly its reserve can give back every msat that it earns."""
    alice, bob = await nodes.start("alice", "bob")
    await nodes.open(alice, bob, CHANNEL, push_msat=546_000, reserve=546)
    (channel,) = await bob.channels()
    assert channel["our_reserve_msat"] == channel["to_us_msat"] == 546_000
    assert channel["spendable_msat"] == 0
    await alice.pay(await bob.new_invoice(3_000, "earned"))
    await bob.pay(await alice.new_invoice(3_000, "refund"))
    await check_conserved(alice, bob, [CHANNEL * 1000 - 546_000, 546_000])


async def test_both_sides_open_and_payments_find_the_channel_that_can_carry_them(
    nodes: Nodes,
) -> None:
    alice, bob = await nodes.start("alice", "bob")
    first = await nodes.open(alice, bob, CHANNEL)
    second = await nodes.open(bob, alice, CHANNEL)
    assert first["channel_id"] != second["channel_id"]
    before = await balances(alice, bob)
    await alice.pay(await bob.new_invoice(400_000_000, "there"))
    await bob.pay(await alice.new_invoice(450_000_000, "back"))
    await check_conserved(alice, bob, before)
    # A peer's id does not say which channel to close.
    assert await refusal(alice.rpc.close(bob.id)) == RpcErrorCode.LIGHTNINGD
    for opened in (first, second):
        assert (await alice.rpc.close(opened["channel_id"])).type == "mutual"


async def test_an_opening_that_the_peer_refuses_costs_nothing(nodes: Nodes) -> None:
    alice, bob = await nodes.start("alice", "bob")
    await alice.connect(bob)
    before = (await alice.rpc.listfunds()).outputs
    # BOLT 2: the accepter refuses a reserve above what it puts up with.
    code = await refusal(alice.rpc.call("fundchannel", id=bob.id, amount=100_000, reserve=90_000))
    assert code == RpcErrorCode.LIGHTNINGD
    assert (await alice.rpc.listfunds()).outputs == before
    assert await alice.channels() == await bob.channels() == []
    await nodes.open(alice, bob, CHANNEL)


# --- payments -------------------------------------------------------------------------------------


async def test_fifty_payments_each_way_at_once(nodes: Nodes) -> None:
    alice, bob = await pair(nodes)
    before = await balances(alice, bob)
    there = [await bob.new_invoice(1_000_000 + i, f"there {i}") for i in range(50)]
    back = [await alice.new_invoice(500_000 + i, f"back {i}") for i in range(50)]
    await asyncio.gather(*map(alice.pay, there), *map(bob.pay, back))
    await check_conserved(alice, bob, before)
    assert await received(bob) == sum(1_000_000 + i for i in range(50))
    assert await received(alice) == sum(500_000 + i for i in range(50))


async def test_payments_that_cannot_be_made_cost_nothing(nodes: Nodes) -> None:
    alice, bob = await pair(nodes)
    before = await balances(alice, bob)
    now = UnixTime(int(time.time()))

    too_much = await bob.new_invoice(CHANNEL * 1000, "too much")
    assert await refusal(alice.pay(too_much)) == RpcErrorCode.PAY_ROUTE_NOT_FOUND

    unknown_payee = foreign_invoice(Msat(1_000), now, "bcrt")
    assert await refusal(alice.pay(unknown_payee)) == RpcErrorCode.PAY_ROUTE_NOT_FOUND

    other_network = foreign_invoice(Msat(1_000), now, "tb")
    assert await refusal(alice.pay(other_network)) == RpcErrorCode.INVALID_PARAMS

    own = await alice.new_invoice(1_000, "own")
    assert await refusal(alice.pay(own)) == RpcErrorCode.PAY_ROUTE_NOT_FOUND

    paid = await bob.new_invoice(1_000, "once")
    await alice.pay(paid)
    assert await refusal(alice.pay(paid)) == RpcErrorCode.PAY_ALREADY_PAID

    deleted = await bob.new_invoice(2_000, "deleted")
    await bob.rpc.delinvoice("deleted", "unpaid")
    assert await refusal(alice.pay(deleted)) == RpcErrorCode.PAY_DESTINATION_PERM_FAIL
    await check_conserved(alice, bob, before)


async def test_an_expired_invoice_is_refused_by_the_payer(nodes: Nodes) -> None:
    alice, bob = await pair(nodes)
    expired = await bob.new_invoice(1_000, "short", expiry=1)

    async def has_expired() -> bool:
        (invoice,) = await bob.rpc.listinvoices(label="short")
        # BOLT 11: the payer's bound is the second after the last one in which it is valid.
        return invoice.status == "expired" and time.time() >= invoice.expires_at + 1

    await until(has_expired, "the invoice expires")
    assert await refusal(alice.pay(expired)) == RpcErrorCode.PAY_INVOICE_EXPIRED


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("payment_secret", Msat(10_000)),  # of somebody who never saw the invoice
        ("amount", Msat(20_001)),  # BOLT 4: more than twice the amount
        ("amount", Msat(9_999)),
    ],
)
async def test_the_payee_refuses_what_is_not_its_invoice(
    nodes: Nodes, wanted: str, offered: Msat
) -> None:
    """Invoices that somebody else signs for bob's payment hash: bob sees only the HTLC."""
    alice, bob = await pair(nodes)
    before = await balances(alice, bob)
    true = bolt11.decode(await bob.new_invoice(10_000, "true"))
    secret = true.payment_secret if wanted == "amount" else bytes(32)
    bob_secret = await node_secret(bob)
    forged = bolt11.encode(
        Invoice(
            currency="bcrt",
            amount_msat=offered,
            timestamp=true.timestamp,
            payment_hash=true.payment_hash,
            payment_secret=secret,
            description="forged",
            payee=true.payee,
            features=true.features,
        ),
        bob_secret,
    )
    assert await refusal(alice.pay(forged)) == RpcErrorCode.PAY_DESTINATION_PERM_FAIL
    (invoice,) = await bob.rpc.listinvoices(label="true")
    assert invoice.status == "unpaid"
    await check_conserved(alice, bob, before)


async def test_twice_the_amount_is_accepted(nodes: Nodes) -> None:
    """BOLT 4: a payer may hide the amount a little. An invoice without one takes any."""
    alice, bob = await pair(nodes)
    before = await balances(alice, bob)
    text = await bob.new_invoice("any", "any")
    await alice.pay(text, amount_msat=12_345)
    assert await received(bob) == 12_345
    await check_conserved(alice, bob, before)


# --- connections and restarts ---------------------------------------------------------------------


async def test_payments_go_on_after_a_disconnection(nodes: Nodes) -> None:
    alice, bob = await pair(nodes)
    before = await balances(alice, bob)
    for number in range(5):
        invoices = [await bob.new_invoice(1_000_000, f"{number}/{i}") for i in range(10)]
        payments = [asyncio.create_task(alice.pay(text)) for text in invoices]
        await asyncio.sleep(0)
        await (bob, alice)[number % 2].rpc.call(
            "disconnect", id=(alice, bob)[number % 2].id, force=True
        )
        results = await asyncio.gather(*payments, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                # Not offered yet when the peer was gone: refused at once, and nothing is sent.
                assert isinstance(result, LightningError)
                assert result.code == RpcErrorCode.PAY_ROUTE_NOT_FOUND
        await alice.until_usable()
        await bob.until_usable()
    await check_conserved(alice, bob, before)


async def test_nodes_that_dial_each_other_both_get_through(nodes: Nodes) -> None:
    alice, bob = await pair(nodes)
    await bob.connect(alice)
    # Both know an address of the other now, so after this both dial.
    await bob.rpc.call("disconnect", id=alice.id, force=True)
    await bob.connect(alice)
    await asyncio.gather(alice.stop(), bob.stop())
    await asyncio.gather(alice.start(), bob.start())
    await alice.until_usable()
    await bob.until_usable()
    await alice.pay(await bob.new_invoice(1_000, "after"))


@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.parametrize("who", ["payer", "payee", "both"])
async def test_a_node_that_ends_in_a_burst_of_payments_loses_nothing(
    nodes: Nodes, how: str, who: str
) -> None:
    alice, bob = await pair(nodes)
    before = await balances(alice, bob)
    invoices = [await bob.new_invoice(1_000_000 + i, f"burst {i}") for i in range(60)]
    back = [await alice.new_invoice(300_000 + i, f"back {i}") for i in range(20)]
    ending = {"payer": [alice], "payee": [bob], "both": [alice, bob]}[who]
    burst = [asyncio.create_task(alice.pay(text)) for text in invoices]
    burst += [asyncio.create_task(bob.pay(text)) for text in back]
    # In the middle: some are paid, some are not.
    await asyncio.wait(burst, return_when=asyncio.FIRST_COMPLETED)
    for node in ending:
        await (node.kill() if how == "kill" else node.stop())
    for node in ending:
        await node.start()
    for outcome in await asyncio.gather(*burst, return_exceptions=True):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, LightningError | LightningUnreachable)
    await alice.until_usable()
    await bob.until_usable()
    await check_conserved(alice, bob, before)
    # Whatever was not paid can be paid now, and nothing is paid twice.
    for payer, texts in ((alice, invoices), (bob, back)):
        done = {p.bolt11 for p in await payer.rpc.listpays() if p.status == "complete"}
        await asyncio.gather(*(payer.pay(text) for text in texts if text not in done))
    await check_conserved(alice, bob, before)
    assert await received(bob) == sum(1_000_000 + i for i in range(60))
    assert await received(alice) == sum(300_000 + i for i in range(20))


async def test_a_restarted_node_keeps_what_it_knew(nodes: Nodes) -> None:
    alice, bob = await pair(nodes)
    await alice.pay(await bob.new_invoice(5_000, "before"))
    await until_settled(alice, bob)

    async def memory(node: LightningNode) -> list[Any]:
        rpc = node.rpc
        return [
            node.id,
            await rpc.listinvoices(),
            await rpc.listpays(),
            (await rpc.listfunds()).outputs,
            await balances(node),
        ]

    remembered = [await memory(node) for node in (alice, bob)]
    for node in (alice, bob):
        await node.kill()
        await node.start()
    assert [await memory(node) for node in (alice, bob)] == remembered


# --- closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("closer", ["opener", "accepter", "both"])
async def test_closing_with_payments_under_way_pays_out_to_the_msat(
    nodes: Nodes, closer: str
) -> None:
    alice, bob = await pair(nodes)
    invoices = [await bob.new_invoice(1_000_000, f"burst {i}") for i in range(30)]
    burst = [asyncio.create_task(alice.pay(text)) for text in invoices]
    await asyncio.wait(burst, return_when=asyncio.FIRST_COMPLETED)
    closers = {"opener": [alice], "accepter": [bob], "both": [alice, bob]}[closer]
    (channel,) = await alice.channels()
    closed = await asyncio.gather(*(n.rpc.close(channel["channel_id"]) for n in closers))
    assert all(answer.txids == closed[0].txids for answer in closed)
    for outcome in await asyncio.gather(*burst, return_exceptions=True):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, LightningError)
            assert outcome.code == RpcErrorCode.PAY_ROUTE_NOT_FOUND
    await until_settled(alice, bob)
    await nodes.mine(1)
    bobs = await confirmed_by(bob, closed[0].txids[0])
    assert bobs == (PUSH + await received(bob)) // 1000
    alices = await confirmed_by(alice, closed[0].txids[0])
    fee = CHANNEL - alices - bobs
    assert 0 < fee < 1_000
    for node in (alice, bob):
        await sweep(nodes, node)


async def test_closing_waits_for_a_peer_that_is_away(nodes: Nodes) -> None:
    alice, bob = await pair(nodes)
    await bob.kill()
    closing = asyncio.create_task(alice.rpc.close(bob.id))
    await alice.until_state("CHANNELD_NORMAL")
    await bob.start()
    assert (await closing).type == "mutual"


async def test_both_killed_at_the_end_of_a_close_still_agree(nodes: Nodes) -> None:
    alice, bob = await pair(nodes)
    closing = asyncio.create_task(alice.rpc.close(bob.id))

    async def negotiating() -> bool:
        return bool((await bob.channels())[0]["state"] != "CHANNELD_NORMAL")

    await until(negotiating, "bob hears of the close")
    await asyncio.gather(alice.kill(), bob.kill())
    await asyncio.gather(closing, return_exceptions=True)
    await asyncio.gather(alice.start(), bob.start())
    for node in (alice, bob):
        await node.until_state("CLOSINGD_COMPLETE")
    async with nodes.chain.rpc() as rpc:

        async def broadcast() -> bool:
            return len(await rpc.call("getrawmempool")) == 1

        await until(broadcast, "the closing transaction is in the mempool")
    await nodes.mine(1)
    for node in (alice, bob):
        await node.until_state("ONCHAIN")


# --- helpers --------------------------------------------------------------------------------------


def foreign_invoice(amount: Msat, now: UnixTime, currency: str) -> str:
    """An invoice of a node that nobody knows."""
    return bolt11.encode(
        Invoice(
            currency=currency,
            amount_msat=amount,
            timestamp=now,
            payment_hash=bytes(32),
            payment_secret=bytes(32),
            description="foreign",
            payee=b"",  # recovered from the signature
            features=frozenset({8, 14}),
        ),
        STRANGER,
    )


async def node_secret(node: LightningNode) -> bytes:
    """From the words in the node's own file."""
    from channels.node import seed

    words = (node.process.directory / "hsm_secret").read_text()
    return seed.derive(seed.to_seed(words.strip()), "node-identity", "regtest")


async def confirmed_by(node: LightningNode, txid: str) -> int:
    """How many satoshis of a confirmed transaction are a node's."""

    async def found() -> list[int]:
        outputs = (await node.rpc.listfunds()).outputs
        return [
            o.amount_msat // 1000 for o in outputs if o.txid == txid and o.status == "confirmed"
        ]

    return sum(await until(found, f"{node.process.name} sees {txid}"))


async def sweep(nodes: Nodes, node: LightningNode) -> None:
    """All coins on chain can be sent on, and the chain takes the transaction."""
    async with nodes.chain.rpc() as rpc:
        sent = await node.rpc.call("withdraw", destination=await node.rpc.newaddr(), satoshi="all")

        async def accepted() -> bool:
            return sent["txid"] in await rpc.call("getrawmempool")

        await until(accepted, "bitcoind takes the withdrawal")
    await nodes.mine(1)
    swept = await confirmed_by(node, sent["txid"])
    # No channel needs a reserve any more, so this is all that there is.
    assert swept * 1000 == sum(o.amount_msat for o in (await node.rpc.listfunds()).outputs)
