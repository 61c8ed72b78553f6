"""Part of `make demo`: a model gets better, and those who only pretend are caught.

As in demo.py each step uses what any program can use: the `oda` programs, a node's HTTP API, the
bytes that the swarm gives to everybody.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from channels.background import background
from channels.errors import OdaError
from channels.units import Sat
from regtest.cheats import Cheat, cheat, memorised, nudged
from regtest.school import (
    Party,
    School,
    answers,
    console,
    library_path,
    name_of,
    note,
    step,
    until,
)
from sidechain import api
from sidechain.primitives import Reveal
from sidechain.reasons import REASONS

IMPROVEMENTS: Final = 4
TRAIN_SECONDS: Final = 3.0
PROMPT: Final = "What is a list?"


async def publish(school: School, number: int) -> None:
    step(number, "A model is published untrained, on a chain that a block producer has begun")
    demo, producer = school.demo, school.producer
    await demo.network.up(["producer", *(t.name for t in school.trainers)], Sat(0))
    for party in (producer, *school.trainers):
        party.has_node(demo)
    mining = ("--mine", "--processes", "1", "--empty-after", "1")
    producer.start("node", *mining, "--port", str(producer.port), "--pay-to", "producer")
    await until(lambda: answers(producer), "the producer's node", 60)
    text = producer.directory / "text"
    from sidechain.model.dataset import python_documentation

    text.write_bytes(python_documentation())
    directory = producer.directory / "model"
    made = await producer.oda(
        *("model", "new", str(directory), "--text", str(text), "--keys", str(school.keys)),
    )
    school.bytes_scored = made["samples"]["public"] * json.loads(made["architecture"])["context"]
    at = ("--url", producer.url)
    added = await producer.oda(
        *("model", "add", str(directory), "--shard-keys", str(school.keys), *at)
    )
    await producer.oda("payee", "register", "--node", "producer", *at)
    school.model = added["model"]
    school.learned.score_before = added["score"]
    note(f"Model {school.model[:16]}…, {made['parameters']:,} parameters at random:")
    before = school.per_byte(added["score"])
    note(f"{before:.2f} nats per byte of Python's documentation. Eight parts of the text are")
    note("sealed: they decide whether an improvement is one.")
    note(f"The explorer is at {producer.url}")


async def compete(school: School, number: int) -> None:
    step(number, "Two trainers compete: who commits better weights first, is in the next block")
    for trainer in school.trainers:
        train(trainer, school)
    await asyncio.gather(*(until(lambda t=t: answers(t), t.name, 60) for t in school.trainers))  # type: ignore[misc]  # mypy can't infer a lambda's default
    await asyncio.gather(
        *(t.oda("payee", "register", "--node", t.name, "--url", t.url) for t in school.trainers)
    )
    shown: set[str] = set()

    async def enough() -> bool:
        state = await school.state()
        for past in state.versions[1:]:
            if past.state == "confirmed" and past.version.weights_root not in shown:
                shown.add(past.version.weights_root)
                who = await name_of(school, past.version.trainer)
                now = school.per_byte(past.version.score)
                note(f"block {past.version.height:>3}: {now:.3f} nats/byte by the {who}")
        return len(shown) >= IMPROVEMENTS

    async def quiet() -> bool:
        waiting = await school.node("/mempool", dict[str, Any])
        return (await school.state()).provisional is None and not waiting["transactions"]

    async with opening(school, school.model, school.keys):
        await until(enough, f"{IMPROVEMENTS} improvements")
        # Whoever trains on now would only make the accounts harder to follow.
        for trainer in school.trainers:
            await pause(trainer, school)
        await until(quiet, "the last improvement to be decided")
    state = await school.state()
    plot(
        [
            (p.version.height, school.per_byte(p.version.score))
            for p in state.versions
            if p.state == "confirmed"
        ]
    )


def train(trainer: Party, school: School) -> None:
    trainer.start(
        *("train", school.model, "--connect", school.producer.address),
        *("--port", str(trainer.port), "--seconds", str(TRAIN_SECONDS)),
        *("--pay-to", trainer.name, "--json"),
    )


async def resume(trainer: Party, school: School) -> None:
    """What pause() has ended."""
    await asyncio.to_thread(trainer.daemon.stop)
    train(trainer, school)


async def pause(trainer: Party, school: School) -> None:
    """The trainer stops training and goes on as a node: it is paid, and seeds its weights."""
    await asyncio.to_thread(trainer.daemon.stop)
    trainer.start(
        *("node", "--connect", school.producer.address, "--port", str(trainer.port)),
        *("--pay-to", trainer.name),
    )
    await until(lambda: answers(trainer), f"the {trainer.name}'s node", 60)


def improvements(state: api.Model) -> int:
    """That were confirmed."""
    return sum(past.state == "confirmed" for past in state.versions) - 1


@asynccontextmanager
async def opening(school: School, model: str, keys: Path) -> AsyncIterator[None]:
    """While the block of code runs, a model's owner reveals a sealed part whenever an improvement
    waits for its proof."""
    async with background(_open_shards(school, model, keys)):
        yield


async def _open_shards(school: School, model: str, keys: Path) -> None:
    while True:
        state = await school.node(f"/models/{model}", api.Model)
        if state.provisional is not None:
            index = next(i for i, shard in enumerate(state.shards) if not shard.opened)
            await school.producer.oda(
                *("model", "open", model, str(index), "--shard-keys", str(keys)),
                *("--url", school.producer.url),
            )
        await asyncio.sleep(0.3)


def plot(points: list[tuple[int, float]], rows: int = 8) -> None:
    """Score over height, for a terminal."""
    if len(points) < 2:
        return
    lowest, highest = min(y for _, y in points), max(y for _, y in points)
    span = max(highest - lowest, 1e-9)
    width = 6 * len(points)
    grid = [[" "] * width for _ in range(rows)]
    for index, (_, y) in enumerate(points):
        row = rows - 1 - round((y - lowest) / span * (rows - 1))
        grid[row][6 * index + 2] = "●"
    for row, cells in enumerate(grid):
        value = highest - span * row / (rows - 1)
        console.print(f"   [dim]{value:5.2f} │[/]{''.join(cells)}")
    heights = "".join(f"{height:>5} " for height, _ in points)
    console.print(f"   [dim]nats  └{'─' * width}\n   block  {heights}[/]")


async def side_by_side(school: School, number: int) -> None:
    step(number, "The same question to the first version and to the newest")
    state = await school.state()
    first, newest = state.versions[0].version, state.confirmed
    said = [await asyncio.to_thread(says, school, v.infohash) for v in (first, newest)]
    learned = school.learned
    table = Table("", "as published", f"after {improvements(state)} improvements", box=None)
    table.add_row("answer", *(repr(text) for text in said))
    bits = [f"{school.per_byte(v.score) / math.log(2):.2f}" for v in (first, newest)]
    table.add_row("bits per byte", *bits)
    digits = (learned.digits_accuracy_before, learned.digits_accuracy_after)
    table.add_row("digits read right", *(f"{percent} %" for percent in digits))
    console.print(table)


def says(school: School, infohash: str) -> str:
    from provider.models import load
    from sidechain.model.generate import Generation
    from sidechain.model.prompt import render_chat

    module = load(library_path(school, infohash)).module
    generation = Generation(module, render_chat([PROMPT]), 0.6, 3)
    return bytes(generation.next() for _ in range(60)).decode(errors="replace")


async def cheating(school: School, number: int) -> None:
    step(number, "A thief, a liar and one who learns by heart try for the trainer's share")
    state = await school.state()
    newest, path = state.confirmed, library_path(school, state.confirmed.infohash)
    from sidechain.model import directory

    model = await asyncio.to_thread(directory.read, path)
    folder = school.demo.data / "cheat"
    by_heart = asyncio.create_task(asyncio.to_thread(memorised, model))
    async with cheat(b"\x07" * 32, school.producer.url, folder, bytes.fromhex(school.model)) as he:
        school.names[he.key] = "a cheat"
        lie = replace(model, weights=nudged(model.weights))
        lie_hash = await he.publish("lie", lie)
        stolen = bytes.fromhex(newest.weights_root)
        ripe = max([await he.commit(root) for root in (stolen, lie.weights_root)])
        learnt = await by_heart
        learnt_hash = await he.publish("by heart", learnt)
        ripe = max(ripe, await he.commit(learnt.weights_root))
        await until(lambda: reached(he, ripe), f"height {ripe}")
        await refused(
            school, he, "The thief", he.reveal(stolen, bytes.fromhex(newest.infohash), newest.score)
        )
        half = newest.score // 2
        await refused(school, he, "The liar", he.reveal(lie.weights_root, lie_hash, half))
        score = await asyncio.to_thread(learnt.score)
        note(f"By heart: {school.per_byte(score):.3f} nats/byte on what is scored, and it is true.")
        await he.send(he.reveal(learnt.weights_root, learnt_hash, score))
        async with opening(school, school.model, school.keys):
            fate = await until(lambda: fate_of(school, learnt.weights_root), "the sealed part")
        if fate == "withdrawn":
            school.caught(
                "One who learns by heart", fate, "Sealed data, once opened, showed no gain."
            )
        note(f"Then a sealed part was opened, and the version was {fate}.")


async def reached(he: Cheat, height: int) -> bool:
    return await he.height() >= height


async def refused(school: School, he: Cheat, who: str, reveal: Reveal) -> None:
    """The node says no at once, or when it has scored the weights."""
    try:
        await he.send(reveal)
        reason = await until(lambda: he.refusal(reveal), f"what becomes of {who}", 60)
    except OdaError as error:
        reason = error.reason
        if reason == "demo-step-failed":
            raise
    school.caught(who, reason, REASONS.get(reason, ""))
    note(f"{who}: {reason}")


async def fate_of(school: School, root: bytes) -> str | None:
    """ "confirmed" or "withdrawn", when it is decided."""
    for past in (await school.state()).versions:
        if past.version.weights_root == root.hex() and past.state != "provisional":
            return past.state
    return None
