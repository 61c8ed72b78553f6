"""Several providers: who is asked first, and who next."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from channels.errors import OdaError, UserError
from channels.lightning import PaymentFailed
from client.answer import Event, Text
from client.discovery import Seller, ordered, survey
from client.failover import Switched, ask_any
from client.judge import FaultKind
from client.reputation import Record, fault
from client.sdk import Client, connect
from client.settings import ClientSettings
from client.store import Store
from provider.api import Model
from tests.client.fakes import LOST, Shop, UserNode
from tests.provider.fakes import MODEL


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "client.sqlite")
    yield made
    made.close()


pytestmark = pytest.mark.usefixtures("hasty")


class Buyer:
    """One user with a node that pays each of the shops."""

    def __init__(self, path: Path, shops: list[Shop], **settings: Any) -> None:
        self._path = path / "client.sqlite"
        self._nodes = {shop.url: UserNode(shop.node) for shop in shops}
        self._settings = ClientSettings(**settings)

    def node(self, shop: Shop) -> UserNode:
        return self._nodes[shop.url]

    def connect(self, seller: Seller) -> AbstractAsyncContextManager[Client]:
        node = self._nodes[seller.url]
        return connect(seller.url, node, settings=self._settings, store=self._path)

    async def ask(self, sellers: list[Seller], **more: Any) -> tuple[str, list[Switched]]:
        said, switched = "", []

        def question(client: Client, seller: Seller) -> AsyncGenerator[Event, None]:
            return client.chat("abc", model=seller.model.id, max_tokens=20, seed=7)

        answer = ask_any(sellers, self.connect, question, **more)
        async with aclosing(answer) as events:
            async for event in events:
                if isinstance(event, Switched):
                    said = ""
                    switched.append(event)
                if isinstance(event, Text):
                    said += event.text
        return said, switched


def seller(url: str, price: int = 100, score: int = 1000, latency: int = 10) -> Seller:
    model = Model(MODEL, "model", 0, "oda", 128, price, price)
    return Seller(url, None, None, model, latency, score)


def test_by_price_as_reputation_makes_it_then_by_latency() -> None:
    rows = [
        seller("dear", 300),
        seller("cheap and slow", 100, latency=50),
        seller("cheap and bad", 90, score=500),
        seller("cheapest and awful", 1, score=200),
        seller("cheap", 100),
    ]
    names = [each.url for each in ordered(rows)]
    assert names == ["cheap", "cheap and slow", "cheap and bad", "dear", "cheapest and awful"]


async def test_a_survey(shops: list[Shop], http: aiohttp.ClientSession, store: Store) -> None:
    good, bad = shops
    store.remember(bad.node_id.hex(), lambda record: fault(record, FaultKind.WRONG_MODEL))
    urls = [bad.url, "http://127.0.0.1:1", good.url, "ftp://nonsense", good.url]
    found = await survey(urls, http, store)
    assert [each.url for each in found.sellers] == [good.url, bad.url]
    assert [each.reason for each in found.silent] == ["provider-unreachable", "bad-provider-url"]
    assert (await survey([good.url], http, store, "another")).sellers == ()
    assert store.reputation("nobody") == Record()


async def sellers_of(shops: list[Shop], http: aiohttp.ClientSession, store: Store) -> list[Seller]:
    found = (await survey([shop.url for shop in shops], http, store)).sellers
    return sorted(found, key=lambda each: [shop.url for shop in shops].index(each.url))


async def test_the_next_one_is_asked_where_one_is_gone(
    shops: list[Shop], http: aiohttp.ClientSession, store: Store, tmp_path: Path
) -> None:
    sellers = await sellers_of(shops, http, store)
    first, second = shops
    buyer = Buyer(tmp_path, shops)
    await first.client.close()
    said, switched = await buyer.ask(sellers)
    assert len(said) == 20
    assert switched == [Switched(second.url, "provider-unreachable")]
    assert buyer.node(first).attempts == []


async def test_a_bad_answer_is_left_refunded_and_asked_again_elsewhere(
    shops: list[Shop], http: aiohttp.ClientSession, store: Store, tmp_path: Path
) -> None:
    sellers = await sellers_of(shops, http, store)
    first, second = shops
    first.engine.stall_at = 5
    buyer = Buyer(tmp_path, shops, stall_seconds=1)
    said, switched = await buyer.ask(sellers)
    assert len(said) == 20
    assert switched == [Switched(second.url, "answer-stall")]
    paid = {row.provider: row.value for row in store.sessions()}
    left = paid[first.url]
    assert left.refund == left.paid - (3 * 50 + 5 * 250)
    assert store.reputation(first.node_id.hex()).faults == {"stall": 1}


async def test_nobody_else_is_paid_while_a_payment_is_unknown(
    shops: list[Shop],
    http: aiohttp.ClientSession,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sellers = await sellers_of(shops, http, store)
    buyer = Buyer(tmp_path, shops)
    buyer.node(shops[0]).outcomes = [LOST] * 100
    with pytest.raises(OdaError) as caught:
        await buyer.ask(sellers)
    assert caught.value.reason == "payment-unknown"
    assert buyer.node(shops[1]).attempts == []


async def test_a_channel_is_opened_once_where_one_can_not_be_paid(
    shops: list[Shop], http: aiohttp.ClientSession, store: Store, tmp_path: Path
) -> None:
    sellers = await sellers_of(shops, http, store)
    buyer = Buyer(tmp_path, shops)
    buyer.node(shops[0]).outcomes = [PaymentFailed("no route", 205)]
    opened: list[str] = []

    async def open_channel(which: Seller) -> bool:
        opened.append(which.url)
        return True

    said, switched = await buyer.ask(sellers, open_channel=open_channel)
    assert len(said) == 20
    assert opened == [shops[0].url]
    assert switched == [Switched(shops[0].url, "channel-opened")]
    assert buyer.node(shops[1]).attempts == []


async def test_nobody(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        await Buyer(tmp_path, []).ask([])
    assert caught.value.reason == "no-provider"
