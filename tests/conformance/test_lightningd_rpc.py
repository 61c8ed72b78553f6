"""The RPC dialect of Core Lightning 26.06: the same calls, answers and error codes on both nodes.

Answers are checked against lightningd's schemas, error codes against the "errors" of its manual
pages (doc/schemas).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from functools import partial
from typing import Any

import pytest
from pyln.client import LightningRpc, RpcError

from channels.units import Sat
from tests.conformance.conftest import CHANNEL, NOBODY, PUSH, Pair, ask, code_of, new_node
from tests.conformance.methods import METHODS
from tests.nodes import LightningNode, until
from tests.vectors import lightningd_messages

ADDRESS = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"
"""BIP 173's witness program of that key, on regtest."""

CATCHALL = -1
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602


async def new_invoice(node: LightningNode, amount: object, label: str, **more: Any) -> str:
    answer = await ask(
        node, "invoice", amount_msat=amount, label=label, description=f"for {label}", **more
    )
    text: str = answer["bolt11"]
    return text


# --- the node -------------------------------------------------------------------------------------


async def test_help_names_every_method(pair: Pair) -> None:
    answer = await ask(pair.alice, "help")
    names = {entry["command"].split()[0] for entry in answer["help"]}
    # lightningd hides what it deprecates.
    assert names | {"getroute", "keysend"} >= METHODS
    (one,) = (await ask(pair.alice, "help", command="withdraw"))["help"]
    assert one["command"].startswith("withdraw destination satoshi [feerate]")


@pytest.mark.parametrize("method", ["nonsense", "help"])
async def test_unknown_methods(pair: Pair, method: str) -> None:
    params = {"command": "nonsense"} if method == "help" else {}
    assert await code_of(pair.alice, method, **params) == METHOD_NOT_FOUND


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("invoice", {"label": "x"}),
        ("invoice", {"amount_msat": "five", "label": "x", "description": ""}),
        ("invoice", {"amount_msat": 1, "label": "x", "description": "", "preimage": "00"}),
        ("getinfo", {"extra": 1}),
        ("newaddr", {"addresstype": "p2pkh"}),
        ("fundchannel", {"id": "02", "amount": 100_000}),
        ("withdraw", {"destination": ADDRESS, "satoshi": "-1"}),
        ("withdraw", {"destination": ADDRESS}),
        ("connect", {"id": "nobody"}),
        ("disconnect", {"id": "nobody"}),
        ("listpeers", {"id": "nobody"}),
        ("listpeerchannels", {"id": "nobody"}),
        ("listclosedchannels", {"id": "nobody"}),
        ("close", {"id": "nobody"}),
        ("xpay", {"invstring": "lnbcrt1nonsense"}),
        ("pay", {"bolt11": "lnbcrt1nonsense"}),
        ("waitinvoice", {}),
        ("waitanyinvoice", {"timeout": "soon"}),
        ("delinvoice", {"label": "x"}),
        ("listpays", {"status": "gone"}),
        ("listfunds", {"spent": "gone"}),
        ("listinvoices", {"label": "x", "payment_hash": "00" * 32}),
        ("decode", {"string": "lnbcrt1nonsense"}),
        ("stop", {"extra": 1}),
        ("signmessage", {}),
        ("checkmessage", {"message": "x"}),
    ],
)
async def test_bad_parameters(pair: Pair, method: str, params: dict[str, Any]) -> None:
    assert await code_of(pair.alice, method, **params) == INVALID_PARAMS


async def test_getinfo(pair: Pair) -> None:
    answer = await ask(pair.alice, "getinfo")
    assert answer["network"] == "regtest"
    assert answer["num_active_channels"] >= 1
    async with pair.nodes.chain.rpc() as rpc:
        assert answer["blockheight"] == await rpc.call("getblockcount")


async def test_feerates(pair: Pair) -> None:
    perkw = (await ask(pair.alice, "feerates", style="perkw"))["perkw"]
    perkb = (await ask(pair.alice, "feerates", style="perkb"))["perkb"]
    assert perkb["max_acceptable"] == 4 * perkw["max_acceptable"]
    assert await code_of(pair.alice, "feerates", style="perbyte") == INVALID_PARAMS


async def test_stop(pair: Pair) -> None:
    carol = new_node(pair.kind, pair.nodes, "carol")
    await carol.start()
    await ask(carol, "stop")
    await carol.until_ended()


@pytest.mark.parametrize(("message", "signature", "recid", "zbase"), lightningd_messages.SIGNED)
async def test_messages_that_lightningd_signed(
    pair: Pair, message: str, signature: str, recid: str, zbase: str
) -> None:
    answer = await ask(
        pair.alice,
        "checkmessage",
        message=message,
        zbase=zbase,
        pubkey=lightningd_messages.NODE_ID,
    )
    assert answer == {"verified": True, "pubkey": lightningd_messages.NODE_ID}


async def test_messages_that_we_sign(pair: Pair) -> None:
    signed = await ask(pair.alice, "signmessage", message="hello")
    again = await ask(pair.alice, "signmessage", message="hello")
    assert signed == again
    answer = await ask(
        pair.bob, "checkmessage", message="hello", zbase=signed["zbase"], pubkey=pair.alice.id
    )
    assert answer["verified"]
    forged = await pair.bob.rpc.call(
        "checkmessage", message="hullo", zbase=signed["zbase"], pubkey=pair.alice.id
    )
    assert forged["verified"] is False
    assert await code_of(pair.bob, "checkmessage", message="hello", zbase="ybndr") == INVALID_PARAMS


# --- coins ----------------------------------------------------------------------------------------


async def test_coins(pair: Pair) -> None:
    bob = pair.bob
    address = (await ask(bob, "newaddr", addresstype="bech32"))["bech32"]
    assert address.startswith("bcrt1q")
    sent = await ask(bob, "withdraw", destination=address, satoshi="50000sat")
    unconfirmed = await ask(bob, "listfunds")
    ours = [o for o in unconfirmed["outputs"] if o["txid"] == sent["txid"]]
    assert {o["status"] for o in ours} <= {"unconfirmed"}
    await pair.nodes.until_in_mempool(sent["txid"])
    async with pair.nodes.chain.rpc() as rpc:
        if pair.kind == "embedded":  # lightningd's is of version 2 (BIP 370): not for bitcoind
            assert (await rpc.call("finalizepsbt", sent["psbt"]))["hex"] == sent["tx"]
        assert base64.b64decode(sent["psbt"]).startswith(b"psbt\xff")
    await pair.nodes.mine(1)
    funds = await ask(bob, "listfunds", spent=True)
    (coin,) = [
        o for o in funds["outputs"] if o["txid"] == sent["txid"] and o["amount_msat"] == 50_000_000
    ]
    assert (coin["address"], coin["status"]) == (address, "confirmed")
    assert any(o["status"] == "spent" for o in funds["outputs"])


async def test_coins_that_cannot_be_sent(pair: Pair) -> None:
    send = {"destination": (await ask(pair.bob, "newaddr", addresstype="bech32"))["bech32"]}
    assert await code_of(pair.bob, "withdraw", **send, satoshi=10**12) == 301
    # lightningd has a code for dust, too, but lets bitcoind refuse it.
    dust = 302 if pair.kind == "embedded" else CATCHALL
    assert await code_of(pair.bob, "withdraw", **send, satoshi=100) == dust
    for address in ("nowhere", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"):
        assert await code_of(pair.bob, "withdraw", destination=address, satoshi=10_000) == CATCHALL


# --- peers and channels ---------------------------------------------------------------------------


async def test_peers(pair: Pair) -> None:
    carol = new_node(pair.kind, pair.nodes, "carol2")
    await carol.start()
    assert await code_of(carol, "connect", id=NOBODY) == 400
    # Nobody listens there once carol knows her own port is hers alone: port 1 is never ours.
    assert await code_of(carol, "connect", id=NOBODY, host="127.0.0.1", port=1) == 401
    address = {"host": "127.0.0.1", "port": pair.alice.process.port}
    # Somebody else answers there.
    assert await code_of(carol, "connect", id=NOBODY, **address) == 401

    connected = await ask(carol, "connect", id=f"{pair.alice.id}@127.0.0.1:{address['port']}")
    assert (connected["id"], connected["direction"]) == (pair.alice.id, "out")
    again = await ask(carol, "connect", id=pair.alice.id)
    assert again["id"] == pair.alice.id
    (peer,) = (await ask(carol, "listpeers"))["peers"]
    assert (peer["id"], peer["connected"], peer["num_channels"]) == (pair.alice.id, True, 0)
    assert (await ask(carol, "listpeers", id=NOBODY))["peers"] == []

    await ask(carol, "disconnect", id=pair.alice.id)
    assert await code_of(carol, "disconnect", id=pair.alice.id) == INVALID_PARAMS  # unknown now
    assert await code_of(pair.alice, "disconnect", id=pair.bob.id) == CATCHALL
    await carol.stop()


async def test_listpeerchannels(pair: Pair) -> None:
    (channel,) = (await ask(pair.alice, "listpeerchannels", id=pair.bob.id))["channels"]
    assert channel["state"] == "CHANNELD_NORMAL"
    assert channel["opener"] == "local"
    assert channel["total_msat"] == CHANNEL * 1000
    funding = {"local_funds_msat": CHANNEL * 1000, "remote_funds_msat": 0, "pushed_msat": PUSH}
    assert funding.items() <= channel["funding"].items()
    assert channel["channel_type"] == {
        "bits": [12, 22],
        "names": ["static_remotekey/even", "anchors/even"],
    }
    by_scid = await ask(
        pair.alice, "listpeerchannels", short_channel_id=channel["short_channel_id"]
    )
    assert [c["channel_id"] for c in by_scid["channels"]] == [channel["channel_id"]]
    assert (await ask(pair.alice, "listpeerchannels", id=NOBODY))["channels"] == []
    funds = await ask(pair.alice, "listfunds")
    assert channel["channel_id"] in {c["channel_id"] for c in funds["channels"]}


async def test_channels_that_cannot_be_opened(pair: Pair) -> None:
    bob = pair.bob.id
    # lightningd connects by itself, if it knows where to.
    assert await code_of(pair.alice, "fundchannel", id=NOBODY, amount=100_000) == 400
    assert await code_of(pair.alice, "fundchannel", id=bob, amount=16_000_000) == 301
    if pair.kind == "embedded":  # lightningd opens large channels
        assert await code_of(pair.alice, "fundchannel", id=bob, amount=2**24) == 300
    funds = await ask(pair.alice, "listfunds")
    assert all(not o["reserved"] for o in funds["outputs"])


async def test_opening_and_closing(pair: Pair) -> None:
    alice, bob = pair.alice, pair.bob
    # bob never dialled alice, so he can't know her address; he is connected, though.
    opened = await ask(bob, "fundchannel", id=alice.id, amount="200000sat", announce=False)
    # lightningd asks itself for scid_alias (46), too.
    assert {12, 22} <= set(opened["channel_type"]["bits"]) <= {12, 22, 46}
    await ask(bob, "listpeerchannels")  # a channel that waits for its funding is shown, too
    await pair.nodes.mine(opened.get("mindepth", 1))
    for node in (alice, bob):
        await node.until_state("CHANNELD_NORMAL", opened["channel_id"])
    assert await code_of(alice, "close", id=bob.id) == CATCHALL  # which of the two?
    nowhere = {"id": opened["channel_id"], "destination": "nowhere"}
    assert await code_of(alice, "close", **nowhere) == CATCHALL
    address = (await ask(bob, "newaddr", addresstype="bech32"))["bech32"]
    closed = await ask(bob, "close", id=opened["channel_id"], destination=address)
    assert closed["type"] == "mutual"
    await ask(bob, "listpeerchannels")
    await ask(bob, "listfunds")
    await pair.nodes.mine(1)

    async def paid_out() -> bool:
        outputs = (await ask(bob, "listfunds"))["outputs"]
        return any(o["txid"] in closed["txids"] and o["address"] == address for o in outputs)

    await until(paid_out, "the closing transaction pays to the address that was asked for")
    await ask(bob, "listpeerchannels")
    assert await code_of(bob, "close", id="00" * 32) == INVALID_PARAMS


async def test_channels_that_are_history(pair: Pair) -> None:
    """After 100 more blocks (regtest's embedded nodes: 6) nothing can undo a close."""
    alice, bob = pair.alice, pair.bob
    opened = await pair.nodes.open(alice, bob, Sat(200_000), push_msat=20_000_000, announce=False)
    channel_id = opened["channel_id"]
    (live,) = (await ask(alice, "listpeerchannels", channel_id=channel_id))["channels"]
    closed = await ask(alice, "close", id=channel_id)

    async def forgotten(node: LightningNode) -> dict[str, Any] | None:
        entries = (await ask(node, "listclosedchannels"))["closedchannels"]
        return next((e for e in entries if e["channel_id"] == channel_id), None)

    assert await forgotten(alice) is None
    await pair.nodes.until_in_mempool(closed["txids"][0])
    await pair.nodes.mine(101)
    for node, opener, peer in ((alice, "local", bob), (bob, "remote", alice)):
        entry = await until(partial(forgotten, node), "the channel is history")
        assert entry["peer_id"] == peer.id
        assert (entry["opener"], entry["closer"]) == (opener, opener)
        assert entry["close_cause"] == ("user" if node is alice else "remote")
        assert entry["private"] is True
        assert entry["total_msat"] == 200_000_000
        assert entry["funding_pushed_msat"] == 20_000_000
        ours = 180_000_000 if node is alice else 20_000_000
        assert entry["final_to_us_msat"] == entry["min_to_us_msat"] == entry["max_to_us_msat"]
        assert entry["final_to_us_msat"] == ours
        assert entry["total_htlcs_sent"] == 0
        assert entry["funding_txid"] == live["funding_txid"]
        assert entry["last_commitment_txid"] == closed["txids"][0]
        left = await ask(node, "listpeerchannels")
        assert channel_id not in {c.get("channel_id") for c in left["channels"]}
        chosen = await ask(node, "listclosedchannels", id=NOBODY)
        assert chosen["closedchannels"] == []


# --- invoices -------------------------------------------------------------------------------------


async def test_invoices(pair: Pair) -> None:
    bob = pair.bob
    preimage = hashlib.sha256(b"invoices").hexdigest()
    text = await new_invoice(bob, "1sat", "first", preimage=preimage, expiry=600)
    payment_hash = hashlib.sha256(bytes.fromhex(preimage)).hexdigest()
    decoded = await ask(pair.alice, "decode", string=text)
    assert (decoded["amount_msat"], decoded["payment_hash"]) == (1_000, payment_hash)
    assert (decoded["description"], decoded["expiry"]) == ("for first", 600)
    assert (decoded["payee"], decoded["currency"]) == (bob.id, "bcrt")
    for wanted in ({"label": "first"}, {"payment_hash": payment_hash}, {"invstring": text}):
        (found,) = (await ask(bob, "listinvoices", **wanted))["invoices"]
        assert (found["bolt11"], found["status"]) == (text, "unpaid")
    assert (await ask(bob, "listinvoices", label="none"))["invoices"] == []

    create = {"amount_msat": 1, "description": "again"}
    assert await code_of(bob, "invoice", label="first", **create) == 900
    assert await code_of(bob, "invoice", label="second", preimage=preimage, **create) == 901
    deleted = await ask(bob, "delinvoice", label="first", status="unpaid")
    assert deleted["status"] == "unpaid"
    assert await code_of(bob, "delinvoice", label="first", status="unpaid") == 905
    assert await code_of(bob, "delinvoice", label="first", status="gone") == 905
    assert await code_of(bob, "waitinvoice", label="first") == CATCHALL


async def test_an_invoice_whose_status_is_another_is_not_deleted(pair: Pair) -> None:
    await new_invoice(pair.bob, "any", "open")
    assert await code_of(pair.bob, "delinvoice", label="open", status="paid") == 906
    rpc = LightningRpc(str(pair.bob.process.rpc_file))
    with pytest.raises(RpcError) as refused:
        await asyncio.to_thread(rpc.delinvoice, "open", "expired")
    assert refused.value.error["data"] == {
        "current_status": "unpaid",
        "expected_status": "expired",
    }


async def test_waiting_for_invoices(pair: Pair) -> None:
    alice, bob = pair.alice, pair.bob
    before = [i.get("pay_index", 0) for i in (await ask(bob, "listinvoices"))["invoices"]]
    last = max(before, default=0)
    assert await code_of(bob, "waitanyinvoice", lastpay_index=last, timeout=0) == 904
    text = await new_invoice(bob, 7_000, "awaited")
    one = asyncio.create_task(ask(bob, "waitinvoice", label="awaited"))
    any_ = asyncio.create_task(ask(bob, "waitanyinvoice", lastpay_index=last, timeout=30))
    paid = await ask(alice, "xpay", invstring=text)
    invoice = await one
    assert invoice == await any_
    assert (invoice["status"], invoice["amount_received_msat"]) == ("paid", 7_000)
    assert invoice["payment_preimage"] == paid["payment_preimage"]
    assert invoice["pay_index"] == last + 1
    assert (await ask(bob, "waitinvoice", label="awaited")) == invoice
    assert (await ask(bob, "delinvoice", label="awaited", status="paid"))["status"] == "paid"


async def test_an_invoice_that_expires_while_it_is_awaited(pair: Pair) -> None:
    await new_invoice(pair.bob, 1_000, "brief", expiry=1)
    assert await code_of(pair.bob, "waitinvoice", label="brief") == 903
    assert await code_of(pair.bob, "waitinvoice", label="brief") == 903
    (found,) = (await ask(pair.bob, "listinvoices", label="brief"))["invoices"]
    assert found["status"] == "expired"


# --- payments -------------------------------------------------------------------------------------


async def test_paying_once_with_each_command(pair: Pair) -> None:
    alice, bob = pair.alice, pair.bob
    text = await new_invoice(bob, 2_500_000, "xpaid")
    paid = await ask(alice, "xpay", invstring=text, maxfee=0)
    assert (paid["amount_msat"], paid["amount_sent_msat"]) == (2_500_000, 2_500_000)
    assert await code_of(alice, "xpay", invstring=text) == 219
    again = await ask(alice, "pay", bolt11=text)
    assert (again["status"], again["payment_preimage"]) == ("complete", paid["payment_preimage"])

    any_amount = await new_invoice(alice, "any", "paid back")
    first = await ask(bob, "pay", bolt11=any_amount, amount_msat=1_234)
    assert (first["status"], first["amount_msat"]) == ("complete", 1_234)
    second = await ask(bob, "pay", bolt11=any_amount, amount_msat=1_234)
    assert second["payment_preimage"] == first["payment_preimage"]


async def test_what_is_known_of_payments(pair: Pair) -> None:
    alice, bob = pair.alice, pair.bob
    text = await new_invoice(bob, 4_000, "listed")
    payment_hash = (await ask(alice, "decode", string=text))["payment_hash"]
    assert (await ask(alice, "listpays", bolt11=text))["pays"] == []
    paid = await ask(alice, "xpay", invstring=text)
    for wanted in ({"bolt11": text}, {"payment_hash": payment_hash}):
        (pay,) = (await ask(alice, "listpays", **wanted))["pays"]
        assert (pay["status"], pay["preimage"]) == ("complete", paid["payment_preimage"])
        (part,) = (await ask(alice, "listsendpays", **wanted))["payments"]
        assert (part["status"], part["amount_sent_msat"]) == ("complete", 4_000)
    complete = (await ask(alice, "listpays", status="complete"))["pays"]
    assert payment_hash in {p["payment_hash"] for p in complete}
    assert (await ask(alice, "listpays", status="pending"))["pays"] == []


async def test_payments_that_fail(pair: Pair) -> None:
    alice, bob = pair.alice, pair.bob
    gone = await new_invoice(bob, 1_000, "gone")
    await ask(bob, "delinvoice", label="gone", status="unpaid")
    assert await code_of(alice, "xpay", invstring=gone) == 203

    async def known_as_failed() -> bool:
        # xpay answers when it knows that it can't succeed; lightningd writes down a little later
        # that the part has failed.
        pays = (await ask(alice, "listpays", bolt11=gone))["pays"]
        return {p["status"] for p in pays} == {"failed"}

    await until(known_as_failed, "the payment is listed as failed")
    await ask(alice, "listsendpays", bolt11=gone)

    large = await new_invoice(bob, CHANNEL * 1000, "large")
    assert await code_of(alice, "xpay", invstring=large) == 205
    open_amount = await new_invoice(bob, "any", "any amount")
    assert await code_of(alice, "xpay", invstring=open_amount) == INVALID_PARAMS
    for method, name in (("xpay", "invstring"), ("pay", "bolt11")):
        nothing = {name: open_amount, "amount_msat": 0}
        assert await code_of(alice, method, **nothing) == INVALID_PARAMS

    await new_invoice(bob, 1_000, "late", expiry=1)
    (late,) = (await ask(bob, "listinvoices", label="late"))["invoices"]
    await code_of(bob, "waitinvoice", label="late")

    async def refused_as_expired() -> bool:
        return await code_of(alice, "xpay", invstring=late["bolt11"]) == 207

    # The payee's clock may be a second ahead of BOLT 11's "more than expiry seconds".
    await until(refused_as_expired, "the payer sees that the invoice has expired")
