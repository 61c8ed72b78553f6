"""keysend over a hub, and records of one's own: what tests/conformance has not for both nodes."""

from __future__ import annotations

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
