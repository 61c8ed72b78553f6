"""A gateway in process, between the openai client and providers whose money is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp.test_utils import TestServer

from channels.units import Msat, UnixTime
from client.discovery import Seller, Survey, survey
from client.gateway.app import Gateway
from client.gateway.figures import Figures, Record
from client.gateway.guard import Guard
from client.gateway.pool import Pool
from client.gateway.sellers import Sellers
from client.gateway.settings import GatewaySettings
from client.sdk import Client, connect
from client.settings import ClientSettings
from client.store import SessionRow, Store
from tests.client.fakes import Shop, UserNode
from tests.nodes import until


class Desk:
    """client: OpenAI's own. records: what `oda gateway --json` would print."""

    def __init__(self, path: Path, shops: list[Shop]) -> None:
        self.serve(shops)
        self.file = path / "client.sqlite"
        self.settings = ClientSettings(stall_seconds=5, patience_seconds=1)
        self.gateway_settings = GatewaySettings()
        self.token: str | None = None
        self.max_total: Msat | None = None
        self.records: list[Record] = []
        self.gateway: Gateway
        self.client: openai.AsyncOpenAI
        self.url = ""
        self._stack = AsyncExitStack()

    def serve(self, shops: list[Shop]) -> None:
        self.shops = shops
        self.nodes = {shop.url: UserNode(shop.node) for shop in shops}

    @property
    def node(self) -> UserNode:
        return self.nodes[self.shops[0].url]

    async def start(self) -> None:
        http = await self._stack.enter_async_context(aiohttp.ClientSession())
        store = Store(self.file)
        self._stack.callback(store.close)
        budget = self.settings.budget(self.max_total, UnixTime(0))

        async def look() -> Survey:
            return await survey([shop.url for shop in self.shops], http, store)

        def new_client(seller: Seller) -> AbstractAsyncContextManager[Client]:
            node = self.nodes[seller.url]
            return connect(seller.url, node, settings=self.settings, store=self.file, budget=budget)

        async def is_ready() -> bool:
            return True

        self.gateway = Gateway(
            Sellers(look),
            Pool(new_client, self.gateway_settings.idle_seconds),
            Guard(self.gateway_settings, self.token),
            Figures(self.records.append),
            self.gateway_settings.capacity,
            is_ready,
        )
        server = TestServer(self.gateway.app())
        await server.start_server(shutdown_timeout=0.1)
        self._stack.push_async_callback(server.close)
        self.url = str(server.make_url("/v1"))
        self.client = openai.AsyncOpenAI(base_url=self.url, api_key="sk-any", max_retries=0)
        self._stack.push_async_callback(self.client.close)

    async def stop(self) -> None:
        await self._stack.aclose()

    async def recorded(self, requests: int) -> list[Record]:
        """Its records, when so many requests have ended here; their programs may know it sooner."""

        async def ended() -> bool:
            return len(self.records) >= requests

        await until(ended, f"{requests} requests have ended")
        assert len(self.records) == requests
        return self.records

    def rows(self) -> list[SessionRow]:
        store = Store(self.file)
        try:
            return store.sessions()
        finally:
            store.close()

    async def ask(self, **given: Any) -> Any:
        asked = {"model": "letters", "max_tokens": 20, "seed": 7} | given
        # Whole or a stream, by what is given: no one type.
        create: Any = self.client.chat.completions.create
        return await create(messages=[{"role": "user", "content": "abc"}], **asked)


@pytest.fixture
async def desk(shops: list[Shop], tmp_path: Path, hasty: None) -> AsyncIterator[Desk]:
    """One shop; tests change it before they start it."""
    made = Desk(tmp_path, shops[:1])
    yield made
    await made.stop()
