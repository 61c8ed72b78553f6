"""Part of `make demo`: another trainer's version is confirmed while an answer runs.

Two clocks are read: the events of the producer's node say when each block became its tip, and the
provider is asked again and again what it serves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Final

import aiohttp
import msgspec

from channels.background import background
from channels.errors import OdaError
from channels.http.sse import EventParser
from client import sdk
from regtest.earning import Sale, ask, challenger, receipt, told
from regtest.learning import PROMPT, opening, pause
from regtest.school import (
    School,
    console,
    library_path,
    name_of,
    note,
    recorder,
    shown,
    step,
    until,
)
from sidechain import api

TOKENS: Final = 480
"""Fewer than a judge looks at for repetition: what has learned little says little but blanks."""
PACE: Final = 0.04
"""Seconds that a reader takes over a token, while the new version is on its way."""
LAST_TOKENS: Final = 50
"""So many are left to read when it is served."""
SERVED_WITHIN: Final = 50.0
ASK_EVERY: Final = 0.02


async def hand_over(sale: Sale, number: int) -> None:
    step(number, "The trainer changes while an answer runs, and the money follows")
    school = sale.school
    newcomer = await challenger(school)
    old = (await school.state()).confirmed
    waiting = await until(lambda: provisional(school), f"a better version by the {newcomer.name}")
    note(f"Better weights by the {newcomer.name} wait for a sealed part to be opened. Meanwhile:")
    copies = [library_path(school, version.infohash) for version in (old, waiting)]
    async with (
        sale.client(*copies) as client,
        tips(school) as seen,
        opening(school, school.model, school.keys),
    ):
        serving = asyncio.create_task(served_after(school, old, seen))
        try:
            await read_on(client, serving)
            took = await in_time(serving)
        finally:
            serving.cancel()
        school.learned.served_after_seconds = round(took, 1)
        first, _ = await asyncio.gather(receipt(client), pause(newcomer, school))
        await ask(client, PROMPT, seed=5)
        second = await receipt(client)
    new = (await school.state()).confirmed
    note(f"{took:.1f} s after the block that confirmed it was the tip, the provider served the new")
    note("version. The answer that ran was not cut off, and its user has computed parts of it")
    note("again: to the end it came from the weights with which it began.")
    heads = [f"block {v.height}, by the {await name_of(school, v.trainer)}" for v in (old, new)]
    await told(school, first, second, heads=heads)


async def provisional(school: School) -> api.Version | None:
    return (await school.state()).provisional


async def read_on(client: sdk.Client, serving: asyncio.Task[float]) -> None:
    """An answer that lasts until the new version is served: its reader takes time."""
    console.print("   [bold]How do I read a file?[/]")
    answer = recorder.answer(
        client, "How do I read a file?", seed=4, max_tokens=TOKENS, temperature=0.8
    )
    tokens, marked = 0, False
    async with aclosing(shown(answer)) as events:
        async for event in events:
            if serving.done() and not marked:
                console.print("[green]⇄ new weights are served[/]", end="")
                marked = True
            if isinstance(event, sdk.Text) and not marked:
                tokens += len(event.text)
                if tokens >= TOKENS - LAST_TOKENS:
                    await in_time(serving)
                await asyncio.wait([serving], timeout=PACE)


async def in_time(serving: asyncio.Task[float]) -> float:
    await asyncio.wait([serving], timeout=SERVED_WITHIN)
    if not serving.done():
        raise OdaError("demo-step-failed", "The better version was not served in time.")
    return serving.result()


async def served_after(school: School, old: api.Version, seen: dict[int, float]) -> float:
    """Seconds from the block that confirms a version, as the tip, to /v1/models naming it."""
    while True:
        with suppress(OSError):  # it is slow to answer: it is asked again
            served = (await asyncio.to_thread(school.demo.model))["sidechain"]
            if served["weights_root"] != old.weights_root and "height" in served:
                break
        await asyncio.sleep(ASK_EVERY)
    now = time.monotonic()
    # What confirmed it is the last sealed part that was opened.
    opened = max(shard.opened for shard in (await school.state()).shards if shard.opened)
    return now - min(when for height, when in seen.items() if height >= opened)


@asynccontextmanager
async def tips(school: School) -> AsyncIterator[dict[int, float]]:
    """When the producer's node said that it has a new tip, by height."""
    seen: dict[int, float] = {}

    async def listen() -> None:
        parser, forever = EventParser(), aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(timeout=forever, trust_env=False) as http,
            http.get(f"{school.producer.url}/events", raise_for_status=True) as answer,
        ):
            async for piece in answer.content.iter_any():
                for each in parser.feed(piece):
                    event = msgspec.json.decode(each.data, type=api.Event)
                    if isinstance(event, api.TipEvent):
                        seen[event.block.height] = time.monotonic()

    async with background(listen()):
        yield seen
