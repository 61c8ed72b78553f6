"""What lightningd tells of the network: three nodes in a line, of one kind, and public channels."""

from __future__ import annotations

from typing import Any

from tests.conformance.conftest import AMOUNT, NOBODY, Line, ask, code_of

INVALID_PARAMS = -32602
ROUTE_NOT_FOUND = 205


async def test_listnodes(line: Line) -> None:
    every = (await ask(line.alice, "listnodes"))["nodes"]
    assert {node["nodeid"] for node in every} == {line.alice.id, line.bob.id, line.carol.id}
    (carol,) = (await ask(line.alice, "listnodes", id=line.carol.id))["nodes"]
    assert (carol["nodeid"], carol["alias"]) == (line.carol.id, "carol")
    port = line.carol.process.port
    assert carol["addresses"] == [{"type": "ipv4", "address": "127.0.0.1", "port": port}]
    assert (await ask(line.carol, "getinfo"))["address"] == carol["addresses"]
    assert (await ask(line.alice, "listnodes", id=NOBODY))["nodes"] == []
    assert await code_of(line.alice, "listnodes", id="02") == INVALID_PARAMS


async def test_listchannels(line: Line) -> None:
    assert len((await ask(line.alice, "listchannels"))["channels"]) == 4
    found = (await ask(line.alice, "listchannels", short_channel_id=line.second))["channels"]
    ends = {(c["source"], c["destination"]) for c in found}
    assert ends == {(line.bob.id, line.carol.id), (line.carol.id, line.bob.id)}
    for channel in found:
        assert channel["direction"] == int(channel["source"] > channel["destination"])
        assert channel["amount_msat"] == AMOUNT * 1000
        terms = ("base_fee_millisatoshi", "fee_per_millionth", "delay")
        assert [channel[name] for name in terms] == [1, 10, 6]
        assert (channel["public"], channel["active"]) == (True, True)
    for way in ("source", "destination"):
        chosen = (await ask(line.alice, "listchannels", **{way: line.bob.id}))["channels"]
        assert {c["short_channel_id"] for c in chosen} == {line.first, line.second}
    assert (await ask(line.alice, "listchannels", short_channel_id="1x1x1"))["channels"] == []
    both = {"source": line.bob.id, "destination": line.bob.id}
    assert await code_of(line.alice, "listchannels", **both) == INVALID_PARAMS
    assert await code_of(line.alice, "listchannels", short_channel_id="1x1") == INVALID_PARAMS


async def test_getroute(line: Line) -> None:
    request: dict[str, Any] = {"id": line.carol.id, "amount_msat": 1_000_000, "riskfactor": 1}
    route = (await ask(line.alice, "getroute", **request))["route"]
    assert [(hop["id"], hop["channel"]) for hop in route] == [
        (line.bob.id, line.first),
        (line.carol.id, line.second),
    ]
    # 1 msat and 10 millionths for bob, and 6 blocks.
    assert [(hop["amount_msat"], hop["delay"]) for hop in route] == [
        (1_000_011, 15),
        (1_000_000, 9),
    ]
    assert {hop["style"] for hop in route} == {"tlv"}
    from_bob = await ask(line.alice, "getroute", **request, fromid=line.bob.id)
    assert [hop["channel"] for hop in from_bob["route"]] == [line.second]

    direction = int(line.bob.id > line.carol.id)
    for excluded in (f"{line.second}/{direction}", line.bob.id):
        code = await code_of(line.alice, "getroute", **request, exclude=[excluded])
        assert code == ROUTE_NOT_FOUND
    too_much = request | {"amount_msat": AMOUNT * 2000}
    assert await code_of(line.alice, "getroute", **too_much) == ROUTE_NOT_FOUND
    assert await code_of(line.alice, "getroute", **request, maxhops=1) == ROUTE_NOT_FOUND
    assert await code_of(line.alice, "getroute", **request | {"id": NOBODY}) == INVALID_PARAMS
    assert await code_of(line.alice, "getroute", id=line.carol.id) == INVALID_PARAMS


async def test_getroutes(line: Line) -> None:
    request: dict[str, Any] = {
        "source": line.alice.id,
        "destination": line.carol.id,
        "amount_msat": 1_000_000,
        "layers": ["auto.localchans", "auto.sourcefree"],
        "maxfee_msat": 100,
        "final_cltv": 9,
    }
    answer = await ask(line.alice, "getroutes", **request)
    (route,) = answer["routes"]
    assert (route["amount_msat"], route["final_cltv"]) == (1_000_000, 9)
    first, second = route["path"]
    # alice takes no fee of her own; bob takes 1 msat and 10 millionths, and 6 blocks.
    terms = ("amount_in_msat", "amount_out_msat", "cltv_in", "cltv_out")
    assert [first[name] for name in terms] == [1_000_011, 1_000_011, 15, 15]
    assert [second[name] for name in terms] == [1_000_011, 1_000_000, 15, 9]
    direction = int(line.bob.id > line.carol.id)
    assert second["short_channel_id_dir"] == f"{line.second}/{direction}"
    assert await code_of(line.alice, "getroutes", **request | {"maxfee_msat": 10}) == 206
    assert await code_of(line.alice, "getroutes", **request | {"destination": NOBODY}) == 205
    too_much = request | {"amount_msat": AMOUNT * 2000}
    assert await code_of(line.alice, "getroutes", **too_much) == ROUTE_NOT_FOUND
    unknown = request | {"layers": ["nonsense"]}
    assert await code_of(line.alice, "getroutes", **unknown) == INVALID_PARAMS
