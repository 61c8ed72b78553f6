"""The provider over HTTP, with a fake node and engine: who pays, what for, and who doesn't."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from channels.http import l402
from channels.http.scheme import Receipt
from provider import api
from tests.provider.buyers import (
    CHAT,
    all_events,
    challenges,
    charged,
    chat,
    offer,
    paying,
    texts,
)
from tests.provider.fakes import MODEL, FakeEngine, World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "before")
    await made.start()
    yield made
    await made.stop()


async def refused(world: World, **request: Any) -> tuple[int, str]:
    response = await world.client.post(CHAT, **request)
    document = await response.json()
    assert document["error"]["message"]
    return response.status, document["error"]["code"]


# Before anything is paid -------------------------------------------------------------------------


async def test_an_unpaid_request_is_offered_three_ways_to_pay(world: World) -> None:
    response = await world.client.post(CHAT, json=chat())
    assert response.status == 402
    assert response.headers["Cache-Control"] == "no-store"
    assert response.content_type == "application/problem+json"
    lines = response.headers.getall("WWW-Authenticate")
    assert lines[0].startswith('L402 macaroon="')
    assert [c.intent for c in challenges(response)] == ["charge", "session"]
    document = await response.json()
    assert document["type"] == "https://paymentauth.org/problems/payment-required"
    assert document["error"]["code"] == "payment_required"
    assert "Payment-Receipt" not in response.headers
    # 2 tokens at 50 and 5 at 250 msat; and half of D.
    assert offer(response, "charge").request_object()["amount"] == "2"
    assert offer(response, "session").request_object()["depositAmount"] == "8"
    assert offer(response, "charge").digest is not None


async def test_the_key_of_an_openai_client_counts_as_unpaid(world: World) -> None:
    headers = {"Authorization": "Bearer sk-anything"}
    response = await world.client.post(CHAT, json=chat(), headers=headers)
    assert response.status == 402
    assert (await response.json())["error"]["code"] == "payment_required"


async def test_what_is_wrong_with_a_request_is_said_before_the_price(world: World) -> None:
    assert await refused(world, data=b"{") == (400, "invalid_json")
    assert await refused(world, data=b"") == (400, "invalid_json")
    assert await refused(world, json=chat(model="gpt")) == (404, "model_not_found")
    assert await refused(world, json=chat(messages=[])) == (400, "invalid_request")
    assert await refused(world, json=chat(max_tokens=5000)) == (400, "invalid_request")
    assert await refused(world, data=BytesIO(b"x" * (api.MAX_BODY + 1))) == (413, "body_too_large")
    assert not world.node.rows


async def test_a_full_house_is_said_before_the_price(world: World) -> None:
    headers = await charged(world, chat())
    for _ in range(world.settings.capacity):
        await world.provider.answers._places.acquire()
    response = await world.client.post(CHAT, json=chat())
    assert (response.status, response.headers["Retry-After"]) == (503, "5")
    assert (await response.json())["error"]["code"] == "at_capacity"
    # Whoever has paid waits for a place instead.

    async def ask() -> int:
        return (await world.client.post(CHAT, json=chat(), headers=headers)).status

    waiting = asyncio.create_task(ask())
    await world.settled()
    for _ in range(world.settings.capacity):
        world.provider.answers._places.release()
    assert await waiting == 200


async def test_offers_are_rate_limited(tmp_path: Path) -> None:
    world = World(tmp_path, offers_per_minute=2)
    await world.start()
    assert [(await world.client.get(CHAT)).status for _ in range(3)] == [402, 402, 429]
    assert len(world.node.rows) == 2
    await world.stop()


async def test_without_a_node_nothing_is_offered(world: World) -> None:
    world.node.down = True
    assert (await refused(world, json=chat()))[0] == 503
    world.node.down = False
    assert (await refused(world, json=chat()))[0] == 402


async def test_free_pages(world: World) -> None:
    assert (await (await world.client.get("/health")).json())["status"] == "ok"
    models = await (await world.client.get("/v1/models")).json()
    assert models["data"][0]["id"] == MODEL
    assert models["data"][0]["output_msat_per_token"] == 250
    assert models["oda"] == {
        "node_id": world.node_id.hex(),
        "address": "127.0.0.1:9735",
        "network": "regtest",
    }
    metrics = await (await world.client.get("/metrics")).text()
    assert 'oda_requests_total{status="200"} 2.0' in metrics
    assert "oda_spent_msat 0.0" in metrics
    missing = await world.client.get("/v1/nothing")
    assert (missing.status, (await missing.json())["error"]["code"]) == (404, "no_such_path")
    wrong = await world.client.delete(CHAT)
    assert (wrong.status, wrong.headers["Allow"]) == (405, "GET,POST")


# Single payments ---------------------------------------------------------------------------------


async def test_a_charge_is_answered_and_a_repetition_gets_the_same(world: World) -> None:
    headers = await charged(world, chat())
    first = await world.client.post(CHAT, json=chat(), headers=headers)
    assert first.status == 200
    assert first.headers["Cache-Control"] == "private"
    receipt = Receipt.parse(first.headers["Payment-Receipt"])
    assert receipt.status == "success"
    document = await first.json()
    assert document["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert len(document["choices"][0]["message"]["content"]) == 5
    again = await world.client.post(CHAT, json=chat(), headers=headers)
    assert await again.read() == await first.read()
    account = world.ledger.session(bytes.fromhex(receipt.reference))
    assert account is not None
    assert (account.credited, account.spent, account.rest) == (2_000, 1_350, 650)
    assert world.engine.computed == 5


async def test_a_charge_is_for_one_body(world: World) -> None:
    headers = await charged(world, chat())
    response = await world.client.post(CHAT, json=chat(seed=2), headers=headers)
    assert (response.status, response.headers["x-should-retry"]) == (403, "false")
    assert "WWW-Authenticate" not in response.headers
    # The payment has kept its worth.
    assert (await world.client.post(CHAT, json=chat(), headers=headers)).status == 200


async def test_a_charge_can_be_streamed_without_named_events(world: World) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    headers = await charged(world, body)
    found = await all_events(await world.client.post(CHAT, json=body, headers=headers))
    assert not any(event.name for event in found)
    assert found[-1].data == "[DONE]"
    assert found[-2].document["usage"]["completion_tokens"] == 5
    assert found[-3].document["choices"][0]["finish_reason"] == "length"
    assert len(texts(found)) == 5
    last = found[3].id
    headers["Last-Event-ID"] = last
    rest = await all_events(await world.client.post(CHAT, json=body, headers=headers))
    assert rest == found[4:]
    headers["Last-Event-ID"] = "nonsense"
    assert await all_events(await world.client.post(CHAT, json=body, headers=headers)) == found


async def test_l402(world: World) -> None:
    asked = await world.client.post(CHAT, json=chat())
    offered = l402.parse_offer(asked.headers.getall("WWW-Authenticate"))
    assert offered is not None
    preimage = world.node.pay(offered.invoice)
    headers = {"Authorization": offered.authorization(preimage)}
    first = await world.client.post(CHAT, json=chat(), headers=headers)
    assert first.status == 200
    again = await world.client.post(CHAT, json=chat(), headers=headers)
    assert await again.read() == await first.read()
    # What is left of the payment is too little for another answer, but enough for a short one.
    more = await world.client.post(CHAT, json=chat(seed=2), headers=headers)
    assert more.status == 402
    assert (await more.json())["type"].endswith("/payment-insufficient")
    short = await world.client.post(CHAT, json=chat(max_tokens=1), headers=headers)
    assert short.status == 200


async def test_l402_that_was_not_paid(world: World) -> None:
    asked = await world.client.post(CHAT, json=chat())
    offered = l402.parse_offer(asked.headers.getall("WWW-Authenticate"))
    assert offered is not None
    label = next(row for row in world.node.rows.values() if row.invoice.bolt11 == offered.invoice)
    headers = {"Authorization": offered.authorization(label.preimage)}
    assert await refused(world, json=chat(), headers=headers) == (402, "verification_failed")
    headers = {"Authorization": offered.authorization(bytes(32))}
    assert (await refused(world, json=chat(), headers=headers))[0] == 402
    headers = {"Authorization": "L402 nonsense"}
    assert (await refused(world, json=chat(), headers=headers))[0] == 402


async def test_forged_and_malformed_credentials(world: World) -> None:
    asked = await world.client.post(CHAT, json=chat())
    challenge = offer(asked, "charge")
    invoice = challenge.request_object()["methodDetails"]["invoice"]
    row = next(row for row in world.node.rows.values() if row.invoice.bolt11 == invoice)

    async def slug(headers: dict[str, str]) -> str:
        response = await world.client.post(CHAT, json=chat(), headers=headers)
        assert response.status == 402
        assert challenges(response)
        return str((await response.json())["type"]).removeprefix(
            "https://paymentauth.org/problems/"
        )

    assert await slug({"Authorization": "Payment !!!"}) == "lightning/malformed-credential"
    assert await slug(paying(challenge, preimage="no")) == "lightning/malformed-credential"
    assert await slug(paying(challenge, preimage="00" * 32)) == "lightning/invalid-preimage"
    # The right preimage of an invoice that nobody paid.
    assert await slug(paying(challenge, preimage=row.preimage.hex())) == "verification-failed"
    other = offer(await world.client.post(CHAT, json=chat()), "charge")
    world.node.pay(other.request_object()["methodDetails"]["invoice"])
    assert await slug(paying(other, preimage=row.preimage.hex())) == "lightning/invalid-preimage"
    world.clock.ahead += 10_000
    assert await slug(paying(challenge, preimage=row.preimage.hex())) == (
        "lightning/expired-invoice"
    )
    two = [("Authorization", "Payment a"), ("Authorization", "Payment b")]
    response = await world.client.post(CHAT, json=chat(), headers=two)
    assert response.status == 400


async def test_a_payment_for_another_model(world: World) -> None:
    headers = await charged(world, chat())
    served = world.provider.models.current[MODEL]
    world.provider.models.swap(replace(served, engine=FakeEngine(model_id="other")))
    response = await world.client.post(CHAT, json=chat(model="other"), headers=headers)
    assert (response.status, response.headers["x-should-retry"]) == (403, "false")


async def test_completions(world: World) -> None:
    body = {"model": MODEL, "prompt": "hi", "max_tokens": 3, "seed": 1}
    asked = await world.client.post("/v1/completions", json=body)
    challenge = offer(asked, "charge")
    preimage = world.node.pay(challenge.request_object()["methodDetails"]["invoice"])
    headers = paying(challenge, preimage=preimage.hex())
    done = await world.client.post("/v1/completions", json=body, headers=headers)
    assert (await done.json())["object"] == "text_completion"
