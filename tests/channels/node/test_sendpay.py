"""Payments without an invoice's help, over a hub: keysend, and routes that the caller chose."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from channels.lightning import LightningError
from channels.node.rpc_params import RpcErrorCode
from channels.units import Sat
from tests.conformance.schema import check
from tests.nodes import LightningNode, Nodes, until, until_settled

CHANNEL = Sat(300_000)
AMOUNT = 20_000_000
# The hub's terms on regtest: 1 msat and 10 millionths.
FEE = 201


async def public_line(nodes: Nodes) -> tuple[LightningNode, LightningNode, LightningNode]:
    user, hub, provider = await nodes.start("user", "hub", "provider")
    await nodes.open(user, hub, CHANNEL)
    await nodes.open(hub, provider, CHANNEL)
    await nodes.mine(6)

    async def known() -> bool:
        return len((await user.rpc.call("listchannels"))["channels"]) == 4

    await until(known, "the user knows every direction")
    return user, hub, provider


async def refused(calling: Any) -> LightningError:
    with pytest.raises(LightningError) as raised:
        await calling
    return raised.value


async def test_keysend_over_a_hub(nodes: Nodes) -> None:
    user, hub, provider = await public_line(nodes)
    tlvs = {"65537": "c0ffee", "7629169": ""}
    request = {"destination": provider.id, "amount_msat": AMOUNT}
    paid = await user.rpc.call("xkeysend", **request, maxfee=FEE, extratlvs=tlvs)
    check("xkeysend", paid)
    assert (paid["amount_msat"], paid["amount_sent_msat"]) == (AMOUNT, AMOUNT + FEE)
    (invoice,) = await provider.rpc.listinvoices()
    assert (invoice.status, invoice.amount_received_msat) == ("paid", AMOUNT)
    assert invoice.label.startswith("keysend-")
    assert (
        invoice.payment_hash == hashlib.sha256(bytes.fromhex(paid["payment_preimage"])).hexdigest()
    )
    paid = await user.rpc.call("keysend", **request)
    check("keysend", paid)
    pays = await user.rpc.call("listpays")
    check("listpays", pays)
    assert [pay["status"] for pay in pays["pays"]] == ["complete"] * 2

    error = await refused(user.rpc.call("xkeysend", **request, maxfee=FEE - 1))
    assert error.code == RpcErrorCode.PAY_ROUTE_TOO_EXPENSIVE
    error = await refused(user.rpc.call("xkeysend", destination=user.id, amount_msat=1))
    assert error.code == RpcErrorCode.PAY_ROUTE_NOT_FOUND
    # BOLT 1: who does not know an even type must not accept it.
    error = await refused(user.rpc.call("xkeysend", **request, extratlvs={"65538": "00"}))
    assert error.code == RpcErrorCode.PAY_DESTINATION_PERM_FAIL
    wrong: tuple[Any, ...] = (
        {"65535": "00"},
        {"5482373484": "00"},
        {"65537": "0"},
        {"x": "00"},
        [],
    )
    for bad in wrong:
        error = await refused(user.rpc.call("xkeysend", **request, extratlvs=bad))
        assert error.code == RpcErrorCode.INVALID_PARAMS
    await until_settled(user, hub, provider)
    assert len(await provider.rpc.listinvoices()) == 2


async def test_a_route_of_the_callers_own(nodes: Nodes) -> None:
    user, hub, provider = await public_line(nodes)
    invoice = await provider.rpc.call(
        "invoice", amount_msat=AMOUNT, label="own route", description=""
    )
    payment_hash, text = invoice["payment_hash"], invoice["bolt11"]
    found = await user.rpc.call(
        "getroute", id=provider.id, amount_msat=AMOUNT, riskfactor=10, cltv=22
    )
    request = {
        "payment_hash": payment_hash,
        "payment_secret": invoice["payment_secret"],
        "bolt11": text,
    }
    error = await refused(user.rpc.call("waitsendpay", payment_hash=payment_hash))
    assert error.code == RpcErrorCode.PAY_NO_SUCH_PAYMENT

    # A msat less than the hub asks: it says so, and is named.
    route = found["route"]
    poor = [{**route[0], "amount_msat": AMOUNT + FEE - 1}, route[1]]
    sent = await user.rpc.call("sendpay", route=poor, **request)
    check("sendpay", sent)
    assert (sent["status"], sent["groupid"], sent["partid"]) == ("pending", 1, 0)
    error = await refused(user.rpc.call("waitsendpay", payment_hash=payment_hash))
    assert error.code == RpcErrorCode.PAY_TRY_OTHER_ROUTE
    assert "fee_insufficient" in str(error)

    # As getroutes names the fields; then the same part again, which is not sent twice.
    other = [
        {
            "node_id_out": hop["id"],
            "short_channel_id_dir": f"{hop['channel']}/{hop['direction']}",
            "amount_out_msat": hop["amount_msat"],
            "cltv_out": hop["delay"],
        }
        for hop in route
    ]
    sent = await user.rpc.call("sendpay", route=other, **request)
    assert sent["groupid"] == 2
    again = await user.rpc.call("sendpay", route=other, **request)
    assert again["id"] == sent["id"]
    paid = await user.rpc.call("waitsendpay", payment_hash=payment_hash, timeout=20)
    check("waitsendpay", paid)
    assert (paid["status"], paid["amount_sent_msat"]) == ("complete", AMOUNT + FEE)
    again = await user.rpc.call("sendpay", route=other, **request)
    assert (again["status"], again["id"]) == ("complete", sent["id"])
    error = await refused(user.rpc.call("sendpay", route=other, partid=1, **request))
    assert error.code == RpcErrorCode.PAY_RHASH_ALREADY_USED
    await until_settled(user, hub, provider)
    assert [i.amount_received_msat for i in await provider.rpc.listinvoices()] == [AMOUNT]


async def test_two_parts_of_the_callers_own(nodes: Nodes) -> None:
    user, _, provider = await public_line(nodes)
    invoice = await provider.rpc.call("invoice", amount_msat=AMOUNT, label="parts", description="")
    found = await user.rpc.call(
        "getroute", id=provider.id, amount_msat=AMOUNT // 2, riskfactor=10, cltv=22
    )
    request = {
        "route": found["route"],
        "payment_hash": invoice["payment_hash"],
        "payment_secret": invoice["payment_secret"],
        "amount_msat": AMOUNT,
        "groupid": 1,
    }
    await user.rpc.call("sendpay", partid=1, **request)
    error = await refused(
        user.rpc.call("waitsendpay", payment_hash=invoice["payment_hash"], partid=1, timeout=1)
    )
    assert error.code == RpcErrorCode.PAY_IN_PROGRESS
    await user.rpc.call("sendpay", partid=2, **request)
    error = await refused(user.rpc.call("sendpay", partid=3, **request))
    assert error.code == RpcErrorCode.PAY_RHASH_ALREADY_USED, "that would be more than the whole"
    for partid in (1, 2):
        paid = await user.rpc.call(
            "waitsendpay", payment_hash=invoice["payment_hash"], partid=partid, timeout=20
        )
        assert paid["status"] == "complete"
    (row,) = await provider.rpc.listinvoices()
    assert (row.status, row.amount_received_msat) == ("paid", AMOUNT)


async def test_waiting_for_a_block(nodes: Nodes) -> None:
    (user,) = await nodes.start("user", coins=Sat(0))
    height = (await user.rpc.call("getinfo"))["blockheight"]
    answer = await user.rpc.call("waitblockheight", blockheight=height)
    check("waitblockheight", answer)
    error = await refused(user.rpc.call("waitblockheight", blockheight=height + 1, timeout=0))
    assert error.code == RpcErrorCode.WAIT_TIMEOUT
    waiting = asyncio.create_task(user.rpc.call("waitblockheight", blockheight=height + 1))
    await nodes.mine(1)
    assert (await waiting)["blockheight"] == height + 1
