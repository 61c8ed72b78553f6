"""The providers that a user can choose from, and the means to pay any of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import aiohttp

from channels.settings import Settings
from client.answer import Event
from client.chain import FollowedChain, following
from client.checking import Checking
from client.discovery import Seller, Survey, survey
from client.failover import OpenChannel, Switched, ask_any
from client.sdk import Client, connect
from client.settings import ClientSettings, store_file
from client.store import Store


class Market:
    """chain: None where no node of the sidechain is named. named: whether only the provider of the
    settings is to be asked, because the user named it. checking: of the receipts of what was bought
    here."""

    def __init__(
        self,
        settings: ClientSettings,
        http: aiohttp.ClientSession,
        store: Store,
        chain: FollowedChain | None,
        *,
        named: bool = False,
    ) -> None:
        self._named = named
        self._settings = settings
        self._http = http
        self.store = store
        self.chain = chain
        self.checking = Checking(store, http, chain, settings.share_grace_seconds)

    @property
    def urls(self) -> list[str]:
        """Named by the user first, then those that announced themselves."""
        if self._named:
            return [self._settings.provider]
        announced = [] if self.chain is None else self.chain.announced()
        settings = self._settings
        named = [settings.provider, *settings.providers]
        return list(dict.fromkeys([*named, *(each.url for each in announced)]))

    async def survey(self, model: str | None = None) -> Survey:
        return await survey(self.urls, self._http, self.store, model)

    def connect(self, seller: Seller) -> AbstractAsyncContextManager[Client]:
        return connect(seller.url, settings=self._settings, chain=self.chain)

    async def ask(
        self, question: Any, given: dict[str, Any], open_channel: OpenChannel | None = None
    ) -> AsyncGenerator[Event | Switched, None]:
        """The answer of the best provider that gives one. Raises as failover.ask_any does."""
        found = await self.survey(given.get("model"))

        def ask(client: Client, seller: Seller) -> AsyncGenerator[Event, None]:
            return client.chat(question, **given | {"model": seller.model.id})

        answer = ask_any(found.sellers, self.connect, ask, open_channel)
        async with aclosing(answer) as events:
            async for event in events:
                yield event


@asynccontextmanager
async def market(
    shared: Settings, settings: ClientSettings, *, named: bool = False
) -> AsyncIterator[Market]:
    """Raises OdaError where the sidechain is named and can't be followed."""
    async with AsyncExitStack() as stack:
        store = Store(store_file(shared))
        stack.callback(store.close)
        http = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
        chain = None
        if settings.chain:
            chain = await stack.enter_async_context(following(shared, settings.chain))
        yield Market(settings, http, store, chain, named=named)
