"""Each path answers with what /openapi.json says of it, and bad requests with their reason."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidechain import api, openapi
from sidechain import light as proofs_of
from sidechain.light import ProvenView
from sidechain.openapi import ENDPOINTS, PREFIX
from sidechain.primitives import commitment, display, shard_key_hash
from sidechain.scores import PairedRequest, PairedSums
from sidechain.state import model_key, payee_key
from tests.sidechain import api_nodes
from tests.sidechain.api_nodes import Api
from tests.sidechain.test_announcements import announcement
from tests.sidechain.world import (
    ALICE,
    BOB,
    CAROL,
    QUICK,
    World,
    add_model,
    commit,
    h,
    open_shard,
    register,
    reveal,
)


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Api]:
    async with api_nodes.full(tmp_path) as found:
        yield found


@pytest.fixture
async def told(made: Api) -> Api:
    """A chain on which everything has happened once."""
    model = add_model(QUICK, shards=("s0", "s1"), openers=(CAROL,))
    made.node.accept_transaction(model)
    made.scored(model.txid, model.weights_root, model.score)
    made.mine(register(QUICK, ALICE))
    for weights, score in (("second", 9000), ("third", 8500)):
        made.mine(commit(QUICK, model.txid, BOB, weights))
        for _ in range(QUICK.reveal_delay - 1):
            made.mine()
        made.scored(model.txid, h(weights), score)
        made.mine(reveal(QUICK, model.txid, BOB, weights, score))
        index = {"second": 0, "third": 1}[weights]
        old = {"second": "first", "third": "first"}[weights]
        request = PairedRequest(
            model.txid, index, h(f"s{index}"), h(old), h(weights), bytes(32), bytes(32)
        )
        better = weights == "third"
        made.node.scored(request, PairedSums(100, 1000 if better else 1, 12_000))
        made.mine(open_shard(QUICK, model.txid, index, f"s{index}", CAROL))
    made.mine(commit(QUICK, model.txid, ALICE, "open"))
    made.node.accept_transaction(commit(QUICK, model.txid, ALICE, "waiting"))
    made.node.accept_announcement(_announcement(made))
    return made


def _announcement(made: Api) -> Any:
    return announcement(ALICE, expires=made.clock[0] + 1000)


# --- what the document says ----------------------------------------------------------------------


def problems(document: Any, schema: Any, value: Any, where: str = "$") -> Iterator[str]:
    """What is wrong with a value by a schema of the document: JSON Schema as far as it is used."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        yield from problems(document, document["components"]["schemas"][name], value, where)
        return
    if "anyOf" in schema:
        if all(any(problems(document, each, value)) for each in schema["anyOf"]):
            yield f"{where}: {value!r} is none of {schema['anyOf']}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is not one of {schema['enum']}"
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    kind = schema.get("type")
    if kind is not None and not isinstance(value, kinds[kind]):
        yield f"{where}: {value!r} is no {kind}"
    elif kind == "object":
        unknown = value.keys() - schema.get("properties", {}).keys()
        missing = set(schema.get("required", ())) - value.keys()
        yield from (f"{where}: {name}" for name in (*unknown, *missing))
        for name in value.keys() - unknown:
            inside = f"{where}.{name}"
            yield from problems(document, schema["properties"][name], value[name], inside)
    elif kind == "array":
        fixed = schema.get("prefixItems", ())
        for index, each in enumerate(value):
            inner = fixed[index] if index < len(fixed) else schema["items"]
            yield from problems(document, inner, each, f"{where}[{index}]")
    elif kind == "string":
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{where}: {value!r} is not {schema['pattern']}"
    elif kind == "integer" and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
    ):
        yield f"{where}: {value}"


async def asked(made: api_nodes.Client, path: str, answers: str, **query: str) -> Any:
    """What the path says, after it was held against the document."""
    document = await (await made.get("/openapi.json")).json()
    response = await made.get(path, params=query)
    assert response.status == 200, await response.text()
    said = json.loads(await response.text())
    (code,) = (each for each in document["paths"][answers]["get"]["responses"] if each == "200")
    content = document["paths"][answers]["get"]["responses"][code]["content"]
    wrong: list[str] = [*problems(document, content["application/json"]["schema"], said)]
    assert not wrong, wrong
    return said


def names(told: Api) -> dict[str, str]:
    (model,) = told.node.chain.state.models()
    tip = told.node.chain.tip
    block = told.node.chain.block(tip.hash)
    assert block is not None
    return {
        "block": display(tip.hash),
        "txid": block.transactions[1].txid.hex(),
        "model": model.hex(),
        "weights_root": h("third").hex(),
        "commit": commitment(h("open"), model, ALICE.key, h("salt ")).hex(),
        "key": ALICE.key.hex(),
    }


QUERIES = {
    "proofs": {"keys": payee_key(ALICE.key).hex()},
    "beneficiaries": {"weights_root": h("third").hex()},
}


@pytest.mark.parametrize(
    "endpoint", [each for each in ENDPOINTS if each.method == "GET"], ids=lambda e: e.path
)
async def test_each_path_answers_with_what_its_schema_says(
    told: Api, endpoint: openapi.Endpoint
) -> None:
    known = names(told)
    path = PREFIX + endpoint.path
    query = QUERIES.get(endpoint.operation, {})
    if endpoint.operation == "beneficiaries":
        query = query | {"model": known["model"]}
    said = await asked(told.client, path.format(**known), path, **query)
    assert said, "there is something to hold against it"


async def test_the_schema_checker_sees_what_is_wrong(told: Api) -> None:
    document = openapi.document("1", light=False)
    schema = {"$ref": "#/components/schemas/Status"}
    status = await (await told.client.get(f"{PREFIX}/status")).json()
    assert not [*problems(document, schema, status)]
    changes: list[Any] = [{"height": -1}, {"tip": "00"}, {"light": 1.5}, {"more": 1}]
    for wrong in [*changes, {"mining": {}}]:
        assert [*problems(document, schema, status | wrong)]


async def test_the_document_has_every_path_and_no_other(made: Api) -> None:
    document = openapi.document("1", light=False)
    app = made.client.app
    assert app is not None
    served = {
        route.resource.canonical
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    described = {path for path in served if path.startswith(PREFIX)} | {"/health"}
    assert described == document["paths"].keys()
    refs = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert refs <= document["components"]["schemas"].keys()


# --- what it says --------------------------------------------------------------------------------


async def test_a_model_has_its_versions_with_what_became_of_them(told: Api) -> None:
    path = f"{PREFIX}/models/{names(told)['model']}"
    found = api_of(await (await told.client.get(path)).text(), api.Model)
    states = [(past.version.score, past.state) for past in found.versions]
    assert states == [(10_000, "confirmed"), (9000, "withdrawn"), (8500, "confirmed")]
    assert found.confirmed == found.versions[-1].version and found.provisional is None
    assert [shard.key_hash for shard in found.shards] == [
        shard_key_hash(h(name)).hex() for name in ("s0", "s1")
    ]
    assert [shard.opened for shard in found.shards] == [4 + 1, 8 + 1]


def api_of(text: str, kind: Any) -> Any:
    return msgspec.json.decode(text, type=kind)


async def test_blocks_come_in_pages(told: Api) -> None:
    height = told.node.chain.tip.height
    seen: list[int] = []
    at: str | None = "100000"
    while at is not None:
        page = await asked(told.client, f"{PREFIX}/blocks", f"{PREFIX}/blocks", limit="4", at=at)
        seen += [block["height"] for block in page["blocks"]]
        at = None if page["next"] is None else str(page["next"])
    assert seen == [*range(height, -1, -1)]


async def test_a_block_is_found_by_height_and_hash(told: Api) -> None:
    tip = told.node.chain.tip
    by_hash, by_height = [
        await (await told.client.get(f"{PREFIX}/blocks/{name}")).json()
        for name in (display(tip.hash), str(tip.height))
    ]
    assert by_hash == by_height
    assert [tx["type"] for tx in by_hash["transactions"]] == ["producer", "commit"]


async def test_a_transaction_is_found_where_it_is(told: Api) -> None:
    known = names(told)
    found = await (await told.client.get(f"{PREFIX}/transactions/{known['txid']}")).json()
    assert (found["height"], found["confirmations"]) == (told.node.chain.tip.height, 1)
    (waiting,) = told.node.mempool
    found = await (await told.client.get(f"{PREFIX}/transactions/{waiting.txid.hex()}")).json()
    assert (found["height"], found["block"], found["confirmations"]) == (None, None, 0)


async def test_history_follows_a_reorg(made: Api) -> None:
    other = World(QUICK)
    model = other.model()
    made.clock[0] = other.now
    made.scored(model, h("first"), 10_000)
    for record in [*other.chain.tip.chain()][-2::-1]:
        block = other.chain.block(record.hash)
        assert block is not None
        made.node.accept_block(block)
    made.mine(commit(QUICK, model, BOB, "second"))
    made.mine()
    made.scored(model, h("second"), 9000)
    update = reveal(QUICK, model, BOB, "second", 9000)
    made.mine(update)
    path = f"{PREFIX}/models/{model.hex()}"
    states = [each["state"] for each in (await (await made.client.get(path)).json())["versions"]]
    assert states == ["confirmed", "confirmed"]
    for _ in range(4):
        other.wait(1)
        block = other.chain.block(other.chain.tip.hash)
        assert block is not None
        made.node.accept_block(block)
    assert made.node.chain.tip.hash == other.chain.tip.hash
    states = [each["state"] for each in (await (await made.client.get(path)).json())["versions"]]
    assert states == ["confirmed"]
    found = await made.client.get(f"{PREFIX}/transactions/{update.txid.hex()}")
    # Its commit waits for a block again, and so it can't wait in the mempool itself.
    assert found.status == 404


async def test_a_proof_is_one_that_a_light_client_takes(told: Api) -> None:
    key = model_key(bytes.fromhex(names(told)["model"]))
    said = await asked(told.client, f"{PREFIX}/proofs", f"{PREFIX}/proofs", keys=key.hex())
    (shown,) = said["proofs"]
    proof = proofs_of.EntryProof(
        bytes.fromhex(shown["block"])[::-1],
        bytes.fromhex(shown["producer"]),
        shown["transactions"],
        tuple(bytes.fromhex(each) for each in shown["branch"]),
        bytes.fromhex(shown["key"]),
        bytes.fromhex(shown["value_hash"]),
        bytes.fromhex(shown["value"]),
        tuple((bit, bytes.fromhex(each)) for bit, each in shown["path"]),
    )
    view = ProvenView(told.node.chain.tip)
    view.learn(key, proof)
    assert view.get(key) == told.node.chain.state.get(key)


async def test_what_was_refused_is_shown_with_its_sentence(told: Api) -> None:
    stranger = register(QUICK, ALICE, seq=1)
    await posted(told, stranger.encode())
    said = await asked(told.client, f"{PREFIX}/rejections", f"{PREFIX}/rejections")
    assert said["rejections"][0]["reason"] == "stale-seq"
    assert said["rejections"][0]["hash"] == stranger.txid.hex()


# --- what is posted, and what is wrong -----------------------------------------------------------


async def posted(made: Api, tx: bytes, **headers: str) -> tuple[int, Any]:
    body = json.dumps({"transaction": tx.hex()})
    sent = {"Content-Type": "application/json"} | headers
    response = await made.client.post(f"{PREFIX}/transactions", data=body, headers=sent)
    return response.status, await response.json(content_type=None)


async def test_a_transaction_is_taken(made: Api) -> None:
    tx = register(QUICK, ALICE)
    assert await posted(made, tx.encode()) == (200, {"hash": tx.txid.hex()})
    assert tx.txid in made.node.mempool
    status, problem = await posted(made, tx.encode())
    assert (status, problem["reason"]) == (409, "txn-already-in-mempool")


async def test_an_announcement_is_taken(made: Api) -> None:
    found = _announcement(made)
    body = json.dumps({"announcement": found.encode().hex()})
    sent = {"Content-Type": "application/json"}
    response = await made.client.post(f"{PREFIX}/announcements", data=body, headers=sent)
    assert (await response.json()) == {"hash": found.txid.hex()}
    assert [*made.node.announcements] == [found]


async def test_no_web_page_speaks_for_whoever_visits_it(made: Api) -> None:
    tx = register(QUICK, ALICE).encode()
    assert (await posted(made, tx, **{"Content-Type": "text/plain"}))[1]["reason"] == "not-json"
    status, problem = await posted(made, tx, Host="rebound.example:8403")
    assert (status, problem["reason"]) == (403, "forbidden-host")
    assert not len(made.node.mempool)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "bad-request"),
        (b"{", 400, "bad-request"),
        (b'{"transaction": "00", "more": 1}', 400, "bad-request"),
        (b'{"transaction": "0"}', 400, "bad-request"),
        (b'{"transaction": "00"}', 422, "tx-decode"),
        (b'{"transaction": "00", "holders": ["nobody"]}', 422, "tx-decode"),
        (b'{"transaction": "' + b"00" * 20_000 + b'"}', 413, "body-too-large"),
    ],
)
async def test_bad_posts(made: Api, body: bytes, status: int, reason: str) -> None:
    response = await made.client.post(
        f"{PREFIX}/transactions", data=body, headers={"Content-Type": "application/json"}
    )
    assert response.content_type == "application/problem+json"
    problem = api_of(await response.text(), api.Problem)
    assert (response.status, problem.status, problem.reason) == (status, status, reason)


async def test_holders_are_addresses(made: Api) -> None:
    body = json.dumps({"transaction": register(QUICK, ALICE).encode().hex(), "holders": ["x"]})
    sent = {"Content-Type": "application/json"}
    response = await made.client.post(f"{PREFIX}/transactions", data=body, headers=sent)
    assert (response.status, (await response.json())["reason"]) == (400, "bad-peer")


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/api/v1/blocks?limit=101", 400, "bad-request"),
        ("/api/v1/blocks?limit=x", 400, "bad-request"),
        ("/api/v1/blocks?limits=1", 400, "bad-request"),
        ("/api/v1/status?a=1", 400, "bad-request"),
        ("/api/v1/blocks/99", 404, "not-found"),
        ("/api/v1/blocks/-1", 404, "not-found"),
        ("/api/v1/blocks/" + "00" * 32, 404, "not-found"),
        ("/api/v1/models/xyz", 400, "bad-request"),
        ("/api/v1/models/" + "00" * 32, 404, "not-found"),
        ("/api/v1/weights/" + "00" * 32, 404, "not-found"),
        ("/api/v1/commits/" + "00" * 32, 404, "not-found"),
        ("/api/v1/payees/" + "00" * 32, 404, "not-found"),
        ("/api/v1/transactions/" + "00" * 32, 404, "not-found"),
        ("/api/v1/proofs", 400, "bad-request"),
        ("/api/v1/proofs?keys=50", 404, "not-found"),
        ("/api/v1/nothing", 404, "no-such-path"),
    ],
)
async def test_bad_questions(made: Api, path: str, status: int, reason: str) -> None:
    response = await made.client.get(path)
    assert response.content_type == "application/problem+json"
    problem = api_of(await response.text(), api.Problem)
    assert (response.status, problem.reason) == (status, reason)


async def test_notes_of_the_rules_are_not_proven(told: Api) -> None:
    response = await told.client.get(f"{PREFIX}/proofs", params={"keys": b"E\0\0\0\1".hex()})
    assert (response.status, (await response.json())["reason"]) == (422, "bad-proof")


# --- metrics and events --------------------------------------------------------------------------


async def test_metrics(told: Api) -> None:
    text = await (await told.client.get("/metrics")).text()
    assert f"oda_chain_height {float(told.node.chain.tip.height)}" in text
    assert "oda_chain_mempool_transactions 1.0" in text
    assert 'oda_chain_scores_total{answer="pairedsums"} 2.0' in text
    names_ = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"}
    assert all(name.startswith("oda_chain_") for name in names_)


async def test_events_are_told_as_they_happen(made: Api) -> None:
    async with made.client.get("/events") as response:
        assert response.content_type == "text/event-stream"
        assert await response.content.readuntil(b"\n\n") == b": listening\n\n"
        tx = register(QUICK, ALICE)
        block = made.mine(tx)
        found: list[Any] = []
        while len(found) < 3:
            text = (await response.content.readuntil(b"\n\n")).decode()
            name, _, data = text.partition("\n")
            event = api_of(data.removeprefix("data: "), api.Event)
            assert name == f"event: {type(event).__struct_config__.tag}"
            found.append(event)
    assert [type(each) for each in found] == [
        api.TransactionEvent,
        api.HeadersEvent,
        api.TipEvent,
    ]
    assert found[0].transaction.txid == tx.txid.hex()
    assert found[2].block.hash == display(block.hash)


async def test_a_reader_who_does_not_read_is_left(made: Api) -> None:
    from sidechain.feed import BACKLOG, Feed

    feed = Feed(made.node)
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    feed._queues.add(queue)
    made.node.listen(feed.hear)
    for _ in range(BACKLOG):
        made.mine()
    assert queue.qsize() == BACKLOG + 1
    last = None
    while not queue.empty():
        last = queue.get_nowait()
    assert last is None


# --- light nodes ---------------------------------------------------------------------------------


async def test_a_light_node_answers_what_it_can(tmp_path: Path) -> None:
    async with api_nodes.light(tmp_path) as (node, client):
        for endpoint in ENDPOINTS:
            response = await client.get(PREFIX + endpoint.path)
            assert endpoint.light or response.status == 404
        for path in ("/status", "/blocks", "/peers", "/announcements", "/beneficiaries"):
            await asked(client, PREFIX + path, PREFIX + path)
        found = await asked(client, f"{PREFIX}/blocks/0", f"{PREFIX}/blocks/{{block}}")
        assert found["summary"]["hash"] == display(node.headers.genesis.hash)
        # Genesis is known by definition: there is nothing in its state.
        for path in (f"/models/{'00' * 32}", f"/payees/{'00' * 32}"):
            assert (await client.get(PREFIX + path)).status == 404
