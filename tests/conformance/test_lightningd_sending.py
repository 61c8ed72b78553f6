"""Payments without an invoice's help, the terms of a hub, and what it tells of its forwards."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from tests.conformance.conftest import AMOUNT, NOBODY, Line, ask, code_of, refusal
from tests.nodes import until

PAID = 20_000_000
FEE = 201
"""bob's for that: 1 msat and 10 millionths."""

CATCHALL = -1
INVALID_PARAMS = -32602
IN_PROGRESS, HASH_USED, PERM_FAIL, TRY_OTHER_ROUTE = 200, 201, 203, 204
ROUTE_NOT_FOUND, TOO_EXPENSIVE, NO_SUCH_PAYMENT, STOPPED_RETRYING = 205, 206, 208, 210
WAIT_TIMEOUT = 2000


async def a_part(line: Line, label: str, share: int = 1) -> tuple[dict[str, Any], Any]:
    """What sendpay needs for an invoice of carol's, and a route for a share of it."""
    invoice = await ask(line.carol, "invoice", amount_msat=PAID, label=label, description="by hand")
    found = await ask(
        line.alice, "getroute", id=line.carol.id, amount_msat=PAID // share, riskfactor=1, cltv=18
    )
    return {
        "payment_hash": invoice["payment_hash"],
        "payment_secret": invoice["payment_secret"],
        "bolt11": invoice["bolt11"],
    }, found["route"]


# --- keysend --------------------------------------------------------------------------------------


async def test_payments_that_nobody_asked_for(line: Line) -> None:
    request = {"destination": line.carol.id, "amount_msat": PAID}
    tlvs = {"65537": "c0ffee", "7629169": ""}
    for method in ("xkeysend", "keysend"):
        paid = await ask(line.alice, method, **request, maxfee=FEE, extratlvs=tlvs)
        assert (paid["amount_msat"], paid["amount_sent_msat"]) == (PAID, PAID + FEE)
        preimage = bytes.fromhex(paid["payment_preimage"])
        payment_hash = hashlib.sha256(preimage).hexdigest()
        listed = await ask(line.carol, "listinvoices", payment_hash=payment_hash)
        (invoice,) = listed["invoices"]
        assert (invoice["status"], invoice["amount_received_msat"]) == ("paid", PAID)
        assert invoice["label"].startswith("keysend-")
        (pay,) = (await ask(line.alice, "listpays", payment_hash=payment_hash))["pays"]
        assert (pay["status"], pay["destination"]) == ("complete", line.carol.id)


async def test_payments_that_nobody_asked_for_and_fail(line: Line) -> None:
    alice, request = line.alice, {"destination": line.carol.id, "amount_msat": PAID}
    assert await code_of(alice, "xkeysend", **request, maxfee=FEE - 1) == TOO_EXPENSIVE
    large = request | {"amount_msat": AMOUNT * 2000}
    unknown = request | {"destination": NOBODY}
    assert await code_of(alice, "xkeysend", **large) == ROUTE_NOT_FOUND
    assert await code_of(alice, "xkeysend", **unknown) == ROUTE_NOT_FOUND
    # lightningd's older keysend says no more than that it gave up.
    for wanted in (large, unknown):
        code = await code_of(alice, "keysend", **wanted)
        assert code in (ROUTE_NOT_FOUND, STOPPED_RETRYING)
    for method in ("xkeysend", "keysend"):
        to_itself = request | {"destination": alice.id}
        assert await code_of(alice, method, **to_itself) == INVALID_PARAMS
        assert await code_of(alice, method, destination=line.carol.id) == INVALID_PARAMS
        malformed: tuple[Any, ...] = ({"65537": "0"}, {"x": "00"}, [])
        for bad in malformed:
            assert await code_of(alice, method, **request, extratlvs=bad) == INVALID_PARAMS
    assert await code_of(alice, "xkeysend", **request | {"amount_msat": 0}) == INVALID_PARAMS


# --- routes of the caller's own -------------------------------------------------------------------


async def test_a_route_of_the_callers_own(line: Line) -> None:
    alice = line.alice
    request, route = await a_part(line, "own route")
    named = {"payment_hash": request["payment_hash"]}
    assert await code_of(alice, "waitsendpay", **named) == NO_SUCH_PAYMENT
    # As getroutes names the fields of a hop.
    hops = [
        {
            "node_id_out": hop["id"],
            "short_channel_id_dir": f"{hop['channel']}/{hop['direction']}",
            "amount_out_msat": hop["amount_msat"],
            "cltv_out": hop["delay"],
        }
        for hop in route
    ]
    sent = await ask(alice, "sendpay", route=hops, **request)
    assert (sent["status"], sent["groupid"], sent.get("partid", 0)) == ("pending", 1, 0)
    paid = await ask(alice, "waitsendpay", **named, timeout=20)
    assert (paid["status"], paid["amount_sent_msat"]) == ("complete", PAID + FEE)
    again = await ask(alice, "sendpay", route=route, **request)
    assert (again["status"], again["id"]) == ("complete", sent["id"])

    less = [hop | {"amount_msat": hop["amount_msat"] - 1} for hop in route]
    assert await code_of(alice, "sendpay", route=less, **request) == HASH_USED
    other = request | {"partid": 1, "amount_msat": PAID}
    assert await code_of(alice, "sendpay", route=route, **other) == HASH_USED
    assert await code_of(alice, "waitsendpay", **named, partid=3) == NO_SUCH_PAYMENT
    (listed,) = (await ask(alice, "listsendpays", **named))["payments"]
    assert (listed["status"], listed["amount_msat"]) == ("complete", PAID)


async def test_routes_that_nobody_takes(line: Line) -> None:
    request, route = await a_part(line, "bad routes")
    first = route[0]["channel"]
    wrong: list[tuple[Any, dict[str, Any]]] = [
        ([], request),
        ("x", request),
        ([{"id": line.carol.id}], request),
        (route, request | {"partid": 1}),  # a part of what?
        (route, request | {"amount_msat": PAID + 1}),  # not what the route brings
        (route, {}),
    ]
    for hops, params in wrong:
        assert await code_of(line.alice, "sendpay", route=hops, **params) == INVALID_PARAMS
    elsewhere = [route[0] | {"channel": "1x1x1"}, route[1]]
    error = await refusal(line.alice, "sendpay", route=elsewhere, **request)
    assert error["code"] == TRY_OTHER_ROUTE
    told = {"erring_index": 0, "erring_node": line.alice.id, "failcode": 0x400A}
    assert told.items() <= error["data"].items()
    assert error["data"]["failcodename"] == "WIRE_UNKNOWN_NEXT_PEER"
    assert first == line.first


async def test_failures_are_attributed(line: Line) -> None:
    """To the hop that failed, and the channel behind it; to the payee by the channel before."""
    request, route = await a_part(line, "attributed")
    blame = {"erring_channel": line.second, "erring_direction": route[1]["direction"]}
    bob = {"erring_index": 1, "erring_node": line.bob.id, **blame}
    carol = {"erring_index": 2, "erring_node": line.carol.id, **blame}
    nowhere = bob | {"erring_channel": "1x1x1"}

    def changed(at: int, **change: Any) -> list[Any]:
        return [hop | change if index == at else hop for index, hop in enumerate(route)]

    amount, delay = route[0]["amount_msat"], route[0]["delay"]
    lacking = request | {"payment_secret": "00" * 32}
    # What is wrong, who says so, and BOLT 4's code and name for it.
    cases: list[tuple[Any, Any, dict[str, Any], int, str]] = [
        (changed(0, amount_msat=amount - 1), request, bob, 0x100C, "FEE_INSUFFICIENT"),
        (changed(0, delay=delay - 1), request, bob, 0x100D, "INCORRECT_CLTV_EXPIRY"),
        (changed(1, channel="1x1x1"), request, nowhere, 0x400A, "UNKNOWN_NEXT_PEER"),
        (route, lacking, carol, 0x400F, "INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS"),
    ]
    for hops, params, where, failcode, name in cases:
        await ask(line.alice, "sendpay", route=hops, **params)
        error = await refusal(
            line.alice, "waitsendpay", payment_hash=request["payment_hash"], timeout=20
        )
        final = where["erring_index"] == 2
        assert error["code"] == (PERM_FAIL if final else TRY_OTHER_ROUTE)
        data = error["data"]
        told = {**where, "failcode": failcode, "failcodename": f"WIRE_{name}"}
        told |= {"payment_hash": request["payment_hash"], "bolt11": request["bolt11"]}
        assert told.items() <= data.items()
    parts = await ask(line.alice, "listsendpays", payment_hash=request["payment_hash"])
    assert {part["status"] for part in parts["payments"]} == {"failed"}
    # lightningd has an entry for each of the four, the embedded node one for the hash.
    pays = (await ask(line.alice, "listpays", bolt11=request["bolt11"]))["pays"]
    assert {(pay["status"], pay["amount_sent_msat"]) for pay in pays} == {("failed", 0)}

    async def refused() -> list[Any]:
        forwards = (await ask(line.bob, "listforwards", status="local_failed"))["forwards"]
        return [forward.get("failreason") for forward in forwards]

    assert {"WIRE_FEE_INSUFFICIENT", "WIRE_INCORRECT_CLTV_EXPIRY"} <= set(await refused())


async def test_parts_of_the_callers_own(line: Line) -> None:
    alice = line.alice
    request, route = await a_part(line, "two parts", share=2)
    request |= {"groupid": 1, "amount_msat": PAID}
    part = {"payment_hash": request["payment_hash"], "groupid": 1}
    sent = await ask(alice, "sendpay", route=route, partid=1, **request)
    assert (sent["partid"], sent["amount_msat"]) == (1, PAID // 2)
    again = await ask(alice, "sendpay", route=route, partid=1, **request)
    assert again["id"] == sent["id"]
    assert await code_of(alice, "waitsendpay", **part, partid=1, timeout=1) == IN_PROGRESS
    (pay,) = (await ask(alice, "listpays", payment_hash=part["payment_hash"]))["pays"]
    under_way = (pay["status"], pay["amount_msat"], pay["amount_sent_msat"])
    assert under_way == ("pending", PAID // 2, route[0]["amount_msat"])

    less = [hop | {"amount_msat": hop["amount_msat"] - 1} for hop in route]
    assert await code_of(alice, "sendpay", route=less, partid=1, **request) == HASH_USED
    other_total = request | {"amount_msat": PAID + 1}
    code = await code_of(alice, "sendpay", route=route, partid=2, **other_total)
    assert code == INVALID_PARAMS
    other_group = request | {"groupid": 2}
    assert await code_of(alice, "sendpay", route=route, partid=2, **other_group) == IN_PROGRESS

    async def waits() -> bool:
        """The hub holds the part, both sides of it."""
        htlcs = (await ask(line.bob, "listhtlcs"))["htlcs"]
        states = {(h["direction"], h["state"]) for h in htlcs if h["payment_hash"] == part_hash}
        return states == {("in", "RCVD_ADD_ACK_REVOCATION"), ("out", "SENT_ADD_ACK_REVOCATION")}

    part_hash = part["payment_hash"]
    await until(waits, "the first part waits at carol")
    offered = (await ask(line.bob, "listforwards", status="offered"))["forwards"]
    assert [(f["in_channel"], f["out_channel"]) for f in offered] == [(line.first, line.second)]

    await ask(alice, "sendpay", route=route, partid=2, **request)
    code = await code_of(alice, "sendpay", route=route, partid=3, **request)
    assert code in (IN_PROGRESS, HASH_USED)  # the second when both have arrived already
    for partid in (1, 2):
        paid = await ask(alice, "waitsendpay", **part, partid=partid, timeout=20)
        assert paid["status"] == "complete"
    (pay,) = (await ask(alice, "listpays", payment_hash=part["payment_hash"]))["pays"]
    assert (pay["status"], pay["number_of_parts"]) == ("complete", 2)
    wrong = {"payment_hash": part["payment_hash"], "bolt11": request["bolt11"]}
    for method in ("listsendpays", "listpays"):
        assert await code_of(alice, method, **wrong) == INVALID_PARAMS
        assert await code_of(alice, method, status="x") == INVALID_PARAMS
        assert await code_of(alice, method, bolt11="x") == INVALID_PARAMS


async def test_waiting_for_a_block(line: Line) -> None:
    height = (await ask(line.alice, "getinfo"))["blockheight"]
    assert await ask(line.alice, "waitblockheight", blockheight=height) == {"blockheight": height}
    later = {"blockheight": height + 1}
    assert await code_of(line.alice, "waitblockheight", **later, timeout=0) == WAIT_TIMEOUT
    assert await code_of(line.alice, "waitblockheight", blockheight=-1) == INVALID_PARAMS
    waiting = asyncio.create_task(ask(line.alice, "waitblockheight", **later))
    await line.nodes.mine(1)
    assert (await waiting)["blockheight"] == height + 1


# --- the hub --------------------------------------------------------------------------------------


async def test_what_a_hub_tells_of_its_forwards(line: Line) -> None:
    bob = line.bob
    before = (await ask(bob, "getinfo"))["fees_collected_msat"]
    known = {f["created_index"] for f in (await ask(bob, "listforwards"))["forwards"]}
    text = await ask(line.carol, "invoice", amount_msat=PAID, label="hub", description="")
    await ask(line.alice, "xpay", invstring=text["bolt11"], maxfee=FEE)

    async def settled() -> Any:
        forwards = (await ask(bob, "listforwards", status="settled"))["forwards"]
        return [f for f in forwards if f["created_index"] not in known]

    (forward,) = await until(settled, "bob has settled the forward")
    assert (forward["in_channel"], forward["out_channel"]) == (line.first, line.second)
    amounts = [forward[name] for name in ("in_msat", "out_msat", "fee_msat")]
    assert amounts == [PAID + FEE, PAID, FEE]
    assert forward["resolved_time"] >= forward["received_time"]
    assert (await ask(bob, "getinfo"))["fees_collected_msat"] == before + FEE
    by_channel = (await ask(bob, "listforwards", out_channel=line.second))["forwards"]
    assert forward in by_channel
    assert (await ask(bob, "listforwards", in_channel=line.second))["forwards"] == []
    assert await code_of(bob, "listforwards", status="x") == INVALID_PARAMS
    assert await code_of(bob, "listforwards", in_channel="1x1") == INVALID_PARAMS
    await ask(bob, "listhtlcs", id=line.first)
    for unknown in ("1x1x1", "nonsense", "00" * 32):
        assert await code_of(bob, "listhtlcs", id=unknown) == INVALID_PARAMS


async def test_the_terms_of_a_channel(line: Line) -> None:
    """Last: it changes them."""
    bob = line.bob
    terms = {"feebase": 5, "feeppm": 1000, "htlcmin": 2000, "htlcmax": 400_000_000}
    (changed,) = (await ask(bob, "setchannel", id=line.second, **terms))["channels"]
    assert (changed["peer_id"], changed["short_channel_id"]) == (line.carol.id, line.second)
    names = ("fee_base_msat", "fee_proportional_millionths")
    limits = ("minimum_htlc_out_msat", "maximum_htlc_out_msat")
    assert [changed[name] for name in (*names, *limits)] == [5, 1000, 2000, 400_000_000]

    async def told() -> bool:
        found = await ask(line.alice, "listchannels", source=bob.id)
        (way,) = [c for c in found["channels"] if c["short_channel_id"] == line.second]
        return (way["base_fee_millisatoshi"], way["fee_per_millionth"]) == (5, 1000)

    await until(told, "alice hears of bob's new terms")
    (channel,) = (await ask(bob, "listpeerchannels", short_channel_id=line.second))["channels"]
    assert [channel[name] for name in names] == [5, 1000]
    for name in (changed["channel_id"], line.carol.id):
        (same,) = (await ask(bob, "setchannel", id=name))["channels"]
        assert same == changed
    assert len((await ask(bob, "setchannel", id="all"))["channels"]) == 2
    (most,) = (await ask(bob, "setchannel", id=line.second, htlcmax="1000000sat"))["channels"]
    assert most["warning_htlcmax_too_high"]
    assert most["maximum_htlc_out_msat"] <= AMOUNT * 1000

    wrong: list[dict[str, Any]] = [
        {"id": "nonsense"},
        {"id": "1x1x1"},
        {"id": "00" * 32},
        {"id": NOBODY},
        {"id": line.second, "feebase": "x"},
        {"id": line.second, "feebase": 1 << 32},
        {"id": line.second, "feeppm": 1 << 32},
        {},
    ]
    for params in wrong:
        assert await code_of(bob, "setchannel", **params) == INVALID_PARAMS
    crossed = {"htlcmin": 1000, "htlcmax": 500}
    assert await code_of(bob, "setchannel", id=line.second, **crossed) == CATCHALL
