"""Clients that stay open between requests, and with them their sessions.

A client gives one answer at a time for each model, so requests at once have a client each. A
session that was not used for a while is closed, and one into which much was paid already, before
its cap ends an answer: the rest comes back, and the next request opens another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from channels.errors import OdaError
from channels.http.payer import MAX_PROVENANCES
from channels.units import Msat
from client.discovery import Seller
from client.sdk import Client
from client.session import PaidSession

log = logging.getLogger(__name__)

CLOSE_SECONDS: Final = 30.0
"""How long closing one client's sessions may take; `oda close` goes on with what is left."""
WORN: Final = 2
"""A session is not used again when one part in so many of what it may hold is used up."""


@dataclass(eq=False)
class Kept:
    """A client, and what closes it. used: when it was given back, by a clock that only goes on."""

    url: str
    client: Client
    stack: AsyncExitStack
    used: float = 0.0

    @property
    def at_risk(self) -> Msat:
        return Msat(sum(max(0, session.value.exposure) for session in self.client.held))

    @property
    def is_worn(self) -> bool:
        return any(_is_worn(session) for session in self.client.held)

    def serves(self, model: str) -> bool:
        return any(session.value.model == model for session in self.client.held)


class Pool:
    """connect: a new client of a provider. idle_seconds: how long sessions wait for a request."""

    def __init__(
        self,
        connect: Callable[[Seller], AbstractAsyncContextManager[Client]],
        idle_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._idle: list[Kept] = []
        self._busy: set[Kept] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._look = asyncio.Event()

    @property
    def at_risk(self) -> Msat:
        """What providers hold of ours now, paid and not used."""
        return Msat(sum(kept.at_risk for kept in (*self._idle, *self._busy)))

    @property
    def sessions(self) -> int:
        return sum(len(kept.client.held) for kept in (*self._idle, *self._busy))

    @asynccontextmanager
    async def connect(self, seller: Seller) -> AsyncIterator[Client]:
        """A client that nobody else uses meanwhile. Raises as client.sdk.connect does."""
        kept = self._take(seller) or await self._open(seller)
        self._busy.add(kept)
        try:
            yield kept.client
        finally:
            self._busy.discard(kept)
            kept.used = self._clock()
            self._idle.append(kept)
            self._look.set()

    def _take(self, seller: Seller) -> Kept | None:
        """Of those that wait the one that was used last, so that the others can be closed."""
        here = [each for each in self._idle if each.url == seller.url and not each.is_worn]
        open_ = [each for each in here if each.serves(seller.model.id)]
        kept = next(reversed(open_ or here), None)
        if kept is not None:
            self._idle.remove(kept)
        return kept

    async def _open(self, seller: Seller) -> Kept:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(self._connect(seller))
            return Kept(seller.url, client, stack.pop_all())

    # Closing -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Close what is not used any more while the block runs, and everything at its end."""
        tending = asyncio.create_task(self._tend())
        try:
            yield
        finally:
            tending.cancel()
            with suppress(asyncio.CancelledError):
                await tending
            # Answers that were cut off give their clients back in a moment.
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    while self._busy:
                        self._retire(self._idle)
                        self._look.clear()
                        await self._look.wait()
            self._retire(self._idle)
            await asyncio.gather(*self._closing)

    async def _tend(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._until_due()):
                    await self._look.wait()
            self._look.clear()
            now = self._clock()
            self._retire([k for k in self._idle if k.is_worn or now >= k.used + self._idle_seconds])

    def _until_due(self) -> float | None:
        due = [kept.used + self._idle_seconds - self._clock() for kept in self._idle]
        return max(0.0, min(due)) if due else None

    def _retire(self, kept: Iterable[Kept]) -> None:
        for each in list(kept):
            self._idle.remove(each)
            closing = asyncio.create_task(self._close(each))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _close(self, kept: Kept) -> None:
        """Close its sessions; what can't be settled now stays on record for `oda close`."""
        for number in [session.number for session in kept.client.held]:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await kept.client.close(number)
            except (OdaError, TimeoutError) as error:
                log.warning("Session %d was not closed (%s): oda close %d", number, error, number)
        await kept.stack.aclose()


def _is_worn(session: PaidSession) -> bool:
    value = session.value
    return (
        value.paid * WORN >= value.caps.max_session
        or len(value.provenances) * WORN >= MAX_PROVENANCES
    )
