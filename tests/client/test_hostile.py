"""Providers that lie, ask for too much or talk nonsense: one clear error, and little is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

import provider.answers as selling
from channels.errors import OdaError
from channels.http import session as session_intent
from channels.http.scheme import Challenge, pack
from channels.units import Msat
from client.sdk import connect
from client.settings import ClientSettings
from provider.ledger import Answer
from provider.ledger import Event as Logged
from tests.client.fakes import Shop, UserNode
from tests.client.test_sdk import client_of, done, expected, read, text_of
from tests.provider.fakes import FakeNode


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    (tmp_path / "shop").mkdir()
    made = Shop(tmp_path / "shop")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def node(shop: Shop) -> UserNode:
    return UserNode(shop.node)


async def refused(shop: Shop, node: UserNode, path: Path, **settings: Any) -> str:
    async with client_of(shop, node, path, **settings) as client:
        with pytest.raises(OdaError) as failed:
            await read(client, max_tokens=500)
    assert str(failed.value).count("\n") == 0
    return failed.value.reason


# Offers ------------------------------------------------------------------------------------------


def changed(**members: Any) -> Callable[[Challenge], Challenge]:
    return lambda c: replace(c, request=pack(c.request_object() | members))


def of_another_node(challenge: Challenge) -> Challenge:
    """The invoice of somebody who is not this provider."""
    request = challenge.request_object()
    other = FakeNode(lambda: 1.0, secret=b"\x55" * 32)  # type: ignore[arg-type]  # a clock is only called
    other.clock = Shop(Path()).clock
    payment_hash = bytes.fromhex(request["paymentHash"])
    text = other.text(Msat(8000), payment_hash, 600)
    return replace(challenge, request=pack(request | {"depositInvoice": text}))


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda c: None, "no-offer"),
        (lambda c: replace(c, request="e30"), "no-offer"),
        (lambda c: replace(c, request="!"), "bad-offer"),
        (changed(depositInvoice="lnbcrt1nonsense"), "bech32-character"),
        (changed(depositAmount="9"), "deposit-too-large"),
        (changed(depositAmount="7"), "wrong-amount"),
        (changed(paymentHash="00" * 32), "wrong-payment-hash"),
        (changed(model="better"), "wrong-model"),
        (changed(outputMsat="20000"), "too-expensive"),
        (changed(tokensPerSecond="100000"), "too-much-exposure"),
        (lambda c: replace(c, expires="2020-01-01T00:00:00Z"), "offer-expired"),
        (lambda c: replace(c, expires="soon"), "bad-offer"),
        (of_another_node, "wrong-payee"),
        (changed(bearerHash="no"), "no-bearer-hash"),
    ],
)
async def test_offers_that_are_not_paid(
    shop: Shop,
    node: UserNode,
    tmp_path: Path,
    lie: Callable[[Challenge], Challenge | None],
    reason: str,
) -> None:
    shop.lie = lie
    assert await refused(shop, node, tmp_path) == reason
    assert not node.attempts


async def test_an_invoice_for_another_network(
    shop: Shop, node: UserNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.network = "signet"
    monkeypatch.setenv("ODA_NETWORK", "signet")
    assert await refused(shop, node, tmp_path) == "wrong-network"
    assert not node.attempts


async def test_a_forged_credential_changes_nothing(
    shop: Shop, node: UserNode, tmp_path: Path
) -> None:
    # The challenge that it paid for is not the one that the provider made.
    shop.lie = lambda c: replace(c, realm="elsewhere")
    assert await refused(shop, node, tmp_path) == "lightning/unknown-challenge"
    assert len(node.attempts) == 1


async def test_a_price_that_rises_in_the_middle(shop: Shop, node: UserNode, tmp_path: Path) -> None:
    seen: list[Challenge] = []

    def dearer_later(challenge: Challenge) -> Challenge:
        seen.append(challenge)
        return changed(outputMsat="251")(challenge) if len(seen) > 2 else challenge

    shop.lie = dearer_later
    assert await refused(shop, node, tmp_path) == "price-changed"
    assert len(node.attempts) <= 2


# Counting ----------------------------------------------------------------------------------------


def ids(count: Callable[[int], int]) -> Callable[[Answer, Logged], str]:
    def event_id(answer: Answer, event: Logged) -> str:
        charged = answer.prompt_tokens if event.completion_tokens else 0
        return f"{answer.id}.{event.seq}.{charged}.{count(event.completion_tokens)}"

    return event_id


async def test_tokens_that_were_never_sent(
    shop: Shop, node: UserNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selling, "event_id", ids(lambda tokens: 2 * tokens))
    assert await refused(shop, node, tmp_path) == "overcharged"


async def test_a_count_that_falls(
    shop: Shop, node: UserNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selling, "event_id", ids(lambda tokens: tokens if tokens < 5 else 1))
    assert await refused(shop, node, tmp_path) == "overcharged"


async def test_input_that_was_never_asked(
    shop: Shop, node: UserNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        selling,
        "event_id",
        lambda answer, event: f"{answer.id}.{event.seq}.999.{event.completion_tokens}",
    )
    assert await refused(shop, node, tmp_path) == "overcharged"


async def test_a_receipt_over_more_than_was_delivered(
    shop: Shop, node: UserNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = selling.named_event

    def dishonest(name: str, document: dict[str, object]) -> bytes:
        if name == "payment-receipt":
            document = document | {"spentMsat": 999_999}
        return honest(name, document)

    monkeypatch.setattr(selling, "named_event", dishonest)
    assert await refused(shop, node, tmp_path) == "overcharged"


async def test_a_balance_that_was_spent_on_nothing(
    shop: Shop, node: UserNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = session_intent.need_topup

    def dishonest(session: bytes, spent: Msat, required: Msat) -> dict[str, object]:
        return honest(session, Msat(spent + 1), required)

    monkeypatch.setattr(session_intent, "need_topup", dishonest)
    # A cap keeps the client from topping up ahead, so that the event comes.
    assert await refused(shop, node, tmp_path, max_session_sat=8) == "overcharged"


async def test_a_provider_that_says_nothing_about_tokens(
    shop: Shop, node: UserNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ids of another kind: the text is counted, and the usage at the end settles it.
    monkeypatch.setattr(selling, "event_id", lambda answer, event: f"{answer.id}-{event.seq}")
    async with client_of(shop, node, tmp_path) as client:
        events = await read(client, max_tokens=120, seed=7)
        assert text_of(events) == await expected(shop, 120)
        assert done(events).cost.spent_msat == 3 * 50 + 120 * 250
        [refund] = await client.close()
        assert refund.unaccounted_msat == 0


# Nonsense ----------------------------------------------------------------------------------------


@pytest.fixture
async def talker() -> AsyncIterator[dict[str, web.Response]]:
    """A server that answers every request with what the test puts here."""
    says: dict[str, web.Response] = {}

    async def answer(request: web.Request) -> web.Response:
        given = says[request.method]
        return web.Response(body=given.body, status=given.status, headers=given.headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    server = TestServer(app)
    await server.start_server()
    says["url"] = server.make_url("")  # type: ignore[assignment]  # where it is, beside what it says
    yield says
    await server.close()


MODELS = b'{"object":"list","data":[{"id":"m","object":"model","created":0,"owned_by":"x",'
MODELS += b'"context_length":9,"input_msat_per_token":1,"output_msat_per_token":1}]}'


@pytest.mark.parametrize(
    ("get", "post", "reason"),
    [
        (web.Response(text="<html>hello"), None, "not-a-provider"),
        (web.Response(text="{}"), None, "not-a-provider"),
        (web.Response(status=500, text="oops"), None, "refused"),
        (web.Response(status=302, headers={"Location": "/"}), None, "refused"),
        (web.Response(text="[" * 100_000), None, "not-a-provider"),
        (web.Response(body=MODELS), web.Response(status=402), "no-offer"),
        (web.Response(body=MODELS), web.Response(status=200, text="free"), "refused"),
        (web.Response(body=MODELS), web.Response(status=429, text="\x1b[2J"), "refused"),
        (
            web.Response(body=MODELS),
            web.Response(status=402, headers={"WWW-Authenticate": 'Payment id="'}),
            "no-offer",
        ),
    ],
)
async def test_what_is_no_provider(
    talker: dict[str, Any],
    node: UserNode,
    tmp_path: Path,
    get: web.Response,
    post: web.Response | None,
    reason: str,
) -> None:
    talker["GET"] = get
    if post is not None:
        talker["POST"] = post
    with pytest.raises(OdaError) as failed:
        async with connect(
            str(talker["url"]), node, settings=ClientSettings(), store=tmp_path / "s"
        ) as client:
            await read(client)
    assert failed.value.reason == reason
    assert "\x1b" not in str(failed.value)
    assert not node.attempts
