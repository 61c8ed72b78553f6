"""A - B - C as three processes on a real chain: what the network learns of them, and keeps."""

from __future__ import annotations

from typing import Any

import pytest

from channels.lightning import LightningError
from channels.units import Sat
from tests.conformance.schema import check
from tests.nodes import LightningNode, Nodes, until

CHANNEL = Sat(500_000)


async def channels(node: LightningNode) -> list[dict[str, Any]]:
    answer = await node.rpc.call("listchannels")
    check("listchannels", answer)
    found: list[dict[str, Any]] = answer["channels"]
    return found


async def until_known(node: LightningNode, directions: int, announced: int) -> None:
    """Wait until a node knows so many directions of channels, and so many nodes by name."""

    async def known() -> bool:
        answer = await node.rpc.call("listnodes")
        check("listnodes", answer)
        named = [n for n in answer["nodes"] if "alias" in n]
        return len(named) == announced and len(await channels(node)) == directions

    await until(known, f"{node.process.name} knows {directions} directions, {announced} nodes")


async def test_a_line_of_three_learns_itself_and_remembers(nodes: Nodes) -> None:
    a, b, c = await nodes.start("a", "b", "c")
    first = await nodes.open(a, b, CHANNEL)
    await nodes.open(b, c, CHANNEL)
    assert await channels(a) == [], "BOLT 7: nothing is announced before six confirmations"
    await nodes.mine(6)
    for node in (a, b, c):
        await until_known(node, directions=4, announced=3)
    seen = {(x["source"], x["destination"]) for x in await channels(a)}
    assert seen == {(a.id, b.id), (b.id, a.id), (b.id, c.id), (c.id, b.id)}

    route = await a.rpc.call("getroute", id=c.id, amount_msat=1_000_000, riskfactor=10)
    check("getroute", route)
    assert [hop["id"] for hop in route["route"]] == [b.id, c.id]
    # B's terms on regtest: 1 msat and 10 millionths; 6 blocks.
    assert [hop["amount_msat"] for hop in route["route"]] == [1_000_011, 1_000_000]
    assert [hop["delay"] for hop in route["route"]] == [15, 9]
    request = {"destination": c.id, "amount_msat": 1_000_000, "final_cltv": 9}
    layers = ["auto.localchans", "auto.sourcefree"]
    routes = await a.rpc.call("getroutes", source=a.id, layers=layers, maxfee_msat=11, **request)
    check("getroutes", routes)
    (only,) = routes["routes"]
    ends = [(hop["node_id_in"], hop["node_id_out"]) for hop in only["path"]]
    assert ends == [(a.id, b.id), (b.id, c.id)]
    with pytest.raises(LightningError) as raised:
        await a.rpc.call("getroutes", source=a.id, layers=layers, maxfee_msat=10, **request)
    assert raised.value.code == 206
    with pytest.raises(LightningError) as raised:
        await a.rpc.call("getroute", id="02" + "00" * 31 + "07", amount_msat=1, riskfactor=1)
    assert raised.value.code == -32602

    await nodes.mine(1)  # what is known is written with every block, and else once in a while
    before = await channels(a)
    await a.kill()
    await a.start()
    assert await channels(a) == before, "what was learned is on disk"

    # A fourth node that comes late asks for what it missed.
    (late,) = await nodes.start("late", coins=Sat(0))
    await late.connect(c)
    await until_known(late, directions=4, announced=3)

    await b.until_usable()
    await b.rpc.call("close", id=first["channel_id"])
    await nodes.mine(1)

    async def disabled() -> bool:
        of_b = [x for x in await channels(late) if {x["source"], x["destination"]} == {a.id, b.id}]
        return len(of_b) == 2 and not any(x["active"] for x in of_b)

    await until(disabled, "the late node hears that A - B is closing")
    await nodes.mine(72)
    for node in (a, b, c, late):
        await until_known(node, directions=2, announced=2)


async def test_a_private_channel_is_known_by_its_hint_alone(nodes: Nodes) -> None:
    a, b = await nodes.start("a", "b")
    await nodes.open(a, b, CHANNEL, announce=False, push_msat=100_000_000)
    await nodes.mine(6)

    labels = map(str, range(10_000))

    async def hinted() -> dict[str, Any]:
        text = await b.new_invoice(1, next(labels))
        decoded: dict[str, Any] = await b.rpc.call("decode", string=text)
        return decoded if decoded.get("routes") else {}

    decoded = await until(hinted, "b knows a's terms for their channel")
    ((hop,),) = decoded["routes"]
    (channel,) = await b.channels()
    assert (hop["pubkey"], hop["short_channel_id"]) == (a.id, channel["short_channel_id"])
    assert (hop["fee_base_msat"], hop["cltv_expiry_delta"]) == (1, 6)
    assert await channels(a) == await channels(b) == []
