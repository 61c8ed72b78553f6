"""The providers as they were when they were last asked; asking all for each request would be slow.

What is a little old is used while it is asked for anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from channels.errors import OdaError, UserError
from client.discovery import Seller, Survey
from provider.api import unknown_model

FRESH: Final = 30.0
STALE: Final = 300.0
"""Seconds: what is older than FRESH is looked at again, what is older than STALE is not used."""
AGAIN: Final = 2.0
"""A model that nobody had is not asked for again sooner."""


class Sellers:
    """survey: asks every provider for its catalogue."""

    def __init__(
        self,
        survey: Callable[[], Awaitable[Survey]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._survey = survey
        self._clock = clock
        self._found = Survey((), ())
        self._time = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def all(self) -> Survey:
        age = self._clock() - self._time
        if age >= FRESH or (not self._found.sellers and age >= AGAIN):
            asking = self._ask()
            if age >= STALE or not self._found.sellers:
                await asyncio.shield(asking)
        return self._found

    async def of(self, model: str) -> list[Seller]:
        """Best first. Raises ApiError `model-not-found`, UserError `no-provider`."""
        found = await self.all()
        sellers = _of(found, model)
        if not sellers and self._clock() - self._time >= AGAIN:
            await asyncio.shield(self._ask())
            sellers = _of(self._found, model)
        if sellers:
            return sellers
        if self._found.sellers:
            raise unknown_model(model)
        silent = "; ".join(each.sentence for each in self._found.silent[:3])
        raise UserError("no-provider", f"No provider answers now. {silent}".strip())

    def expire(self) -> None:
        """A seller failed: what is remembered of it may have changed."""
        self._time = min(self._time, self._clock() - FRESH)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            with suppress(asyncio.CancelledError, OdaError):
                await self._asking

    def _ask(self) -> asyncio.Task[None]:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._look())
        return self._asking

    async def _look(self) -> None:
        self._found = await self._survey()
        self._time = self._clock()


def _of(found: Survey, model: str) -> list[Seller]:
    return [s for s in found.sellers if model in (s.model.id, s.model.infohash)]


def catalogue(found: Survey) -> bytes:
    """GET /v1/models: each model once, with the prices of all that serve it, best first."""
    entries: dict[str, dict[str, Any]] = {}
    for seller in found.sellers:
        entry = entries.setdefault(seller.model.id, _entry(seller))
        entry["providers"].append(seller.document())
    return msgspec.json.encode({"object": "list", "data": list(entries.values())})


def entry(found: Survey, model: str) -> bytes:
    """GET /v1/models/{model}, by its name or infohash. Raises ApiError `model-not-found`."""
    sellers = _of(found, model)
    if not sellers:
        raise unknown_model(model)
    documents = [seller.document() for seller in sellers]
    return msgspec.json.encode(_entry(sellers[0]) | {"providers": documents})


def _entry(seller: Seller) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(seller.model)
    return document | {"providers": []}
