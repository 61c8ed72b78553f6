"""The receipts of earlier sessions, looked at beside what a command does, and what comes of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import Any, Final

from channels.background import background
from channels.errors import OdaError
from channels.settings import Settings
from channels.terminal import stderr
from channels.units import UnixTime
from client.check_table import CheckTable
from client.checking import document, sentence
from client.checks import Check
from client.market import Market, market
from client.settings import ClientSettings, store_file
from client.store import Store

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 10.0
"""How long a command that was not asked for it keeps its user waiting."""
TICK: Final = 60.0


async def look(fair: Market) -> None:
    """Look at the receipts that are due. What takes too long is due again the next time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_SECONDS):
            await fair.checking.due()


async def look_if_due(shared: Settings, settings: ClientSettings) -> None:
    """The same for a command that needs nobody otherwise, and works where nobody answers."""
    path = store_file(shared)
    if not path.exists():
        return
    with closing(Store(path)) as store:
        if not CheckTable(store).due(UnixTime(int(time.time())), 1):
            return
    with suppress(OdaError):
        async with market(shared, settings) as fair:
            await look(fair)


async def look_at(shared: Settings, settings: ClientSettings, sessions: Sequence[int]) -> None:
    """Look at these sessions, which were just closed: what is settled already is known at once."""
    with closing(Store(store_file(shared))) as store:
        table = CheckTable(store)
        sessions = [number for number in sessions if table.get(number) is not None]
    if not sessions:
        return
    with suppress(OdaError, TimeoutError):
        async with asyncio.timeout(LOOK_SECONDS), market(shared, settings) as fair:
            for number in sessions:
                await fair.checking.session(number)


@asynccontextmanager
async def looking(fair: Market, say: Callable[[str], None] = log.warning) -> AsyncIterator[None]:
    """Look again and again while the block runs; `say` gets a sentence for whatever is bad."""

    async def keep_looking() -> None:
        while True:
            await look(fair)
            with untold(fair.store) as news:
                for check in news:
                    say(sentence(check, fair.store.session(check.session).provider))
            await asyncio.sleep(TICK)

    async with background(keep_looking()):
        yield


@contextmanager
def untold(store: Store) -> Iterator[list[Check]]:
    """What is bad and the user has not heard of; it counts as told when the block ends."""
    table = CheckTable(store)
    news = table.untold()
    yield news
    if news:
        table.tell(news)


@contextmanager
def telling(shared: Settings, as_json: bool) -> Iterator[list[dict[str, Any]]]:
    """The same for a command: on stderr, or, with --json, for its document."""
    path = store_file(shared)
    if not path.exists():
        yield []
        return
    with closing(Store(path)) as store, untold(store) as news:
        rows = [(check, store.session(check.session).provider) for check in news]
        if not as_json:
            for check, provider in rows:
                stderr().print(sentence(check, provider), highlight=False)
        yield [document(check) | {"provider": provider} for check, provider in rows]
