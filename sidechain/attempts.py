"""Attempts at a better version: its base comes from the swarm, torch searches in a thread, and
what it finds is published and pledged."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sidechain import training, version
from sidechain.model import objective as objectives
from sidechain.model import parts, registry, samples, together
from sidechain.model import weights as formats
from sidechain.model.directory import Model
from sidechain.model.improve import usual_rate
from sidechain.model.parts import Part
from sidechain.model.search import Candidate, Look
from sidechain.model.table import Table
from sidechain.model.together import Task
from sidechain.model.world import ALONE, World
from sidechain.node import ChainNode
from sidechain.pledges import Pledge, Pledges
from sidechain.primitives import sha256d
from sidechain.state import Definition, Version

if TYPE_CHECKING:
    from torrent.swarm import Swarm

RATES: Final = 4
"""Each further attempt on the same base goes at half the rate, so often, then it begins anew."""

TELL_EVERY: Final = 0.2
"""Seconds between two words on how training goes."""

TABLE: Final = Table()

Told = Callable[[str, dict[str, Any]], None]
Fetch = Callable[[bytes, Definition], Awaitable[Path]]


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to train (search.Plan). folder: where a trainer keeps what he must not forget, and his
    checkpoints. data, table: a file with more to learn from, and how it is read. once: end with the
    first version that is confirmed."""

    folder: Path
    seconds: float = 20.0
    patience: int = 4
    rate: float | None = None
    device: str = "cpu"
    data: Path | None = None
    table: Table = TABLE
    once: bool = False


class Attempts:
    """At one model, by one trainer. fetch: a version's directory, by its infohash."""

    def __init__(
        self,
        node: ChainNode,
        swarm: Swarm,
        fetch: Fetch,
        pledges: Pledges,
        wishes: Wishes,
        *,
        model: bytes,
        key: bytes,
        told: Told,
        world: World = ALONE,
    ) -> None:
        self._node = node
        self._swarm = swarm
        self._fetch = fetch
        self._pledges = pledges
        self._wishes = wishes
        self._model = model
        self._key = key
        self._told = told
        self._world = world

    async def improve(self, base: Version, definition: Definition, stop: threading.Event) -> None:
        """One attempt, until it has led to a pledge, to nothing, or was stopped. Raises OdaError
        where the base can't be had."""
        fields = {"base": base.weights_root.hex(), "score": base.score}
        self._told("fetching", fields | {"infohash": base.infohash.hex()})
        path = await self._fetch(base.infohash, definition)
        model = await asyncio.to_thread(version.read, path, definition, base)
        number = self._pledges.attempt(base.weights_root)
        self._told("training", fields | {"attempt": number, "required": self._required()})
        checkpoint = await asyncio.to_thread(self._checkpoint, base, number)
        more = await asyncio.to_thread(self._more, model)
        task = self._task(model, base, number, checkpoint, more)
        found = await self._find(task, stop)
        if found is not None:
            self._told("found", {"score": found.score, "gain": found.gain, "steps": found.steps})
            await self._pledge(model, base, found)
        elif not stop.is_set():
            self._told("nothing-found", fields | {"attempt": number})
            self._pledges.finished(base.weights_root)

    def _required(self) -> int:
        """By a Reveal that is as soon as can be: the next block takes the commit. What is asked for
        falls with every block."""
        state, params = self._node.chain.state, self._node.params
        model, definition = state.model(self._model), state.definition(self._model)
        if model is None or definition is None:
            return 0  # a reorg took the model away: the search is being stopped
        height = self._node.chain.tip.height + 1 + params.reveal_delay
        return training.gain_required(params, model, definition, height)

    def _checkpoint(self, base: Version, number: int) -> Path:
        """Where this attempt is kept; those before it are over."""
        kept = self._wishes.folder / "checkpoints"
        path = kept / f"{base.weights_root.hex()[:16]}-{number}.safetensors"
        kept.mkdir(parents=True, exist_ok=True)
        for old in kept.iterdir():
            if old != path:
                old.unlink()
        return path

    def _more(self, model: Model) -> Part | None:
        """What came with the model and what the trainer has, to learn from. Raises UserError for
        the latter."""
        with_model, wishes = version.more_to_learn(model), self._wishes
        if wishes.data is None:
            return with_model
        own = samples.read_like(model.dataset.public_part, wishes.data, wishes.table)
        return own if with_model is None else parts.join(own, with_model)

    def _task(
        self, model: Model, base: Version, number: int, checkpoint: Path, more: Part | None
    ) -> Task:
        wishes = self._wishes
        rate = wishes.rate or usual_rate(model.architecture)
        # Two trainers who draw the same numbers would find the same weights.
        drawn = int.from_bytes(sha256d(self._key + self._model)[:2], "big")
        return Task(
            registry.encode(model.architecture),
            objectives.encode(model.objective),
            model.dataset.public,
            None if more is None else parts.encode(more),
            formats.encode(model.weights),
            base.weights_root,
            base.score,
            wishes.seconds,
            wishes.patience,
            rate * 0.5 ** (number % RATES),
            (drawn << 6) + number % 64,
            # Of one model, everybody holds out the same samples. Else each would judge by what
            # those before him have trained on, and shards would refute what looked better.
            int.from_bytes(self._model[:4], "big"),
            str(checkpoint),
        )

    async def _find(self, task: Task, stop: threading.Event) -> Candidate | None:
        loop, last = asyncio.get_running_loop(), 0.0

        def tell(name: str, fields: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(self._told, name, fields)

        def progress(steps: int, loss: float, seconds: float) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= TELL_EVERY:
                last = now
                tell("steps", {"steps": steps, "loss": loss, "seconds": round(seconds, 3)})

        def looked(look: Look) -> None:
            tell(
                "look",
                {
                    "steps": look.steps,
                    "seconds": round(look.seconds, 3),
                    "held_out_before": look.before,
                    "held_out": look.held_out,
                    "gain": look.gain,
                    "required": self._required(),
                },
            )

        return await asyncio.to_thread(
            together.find,
            self._world,
            task,
            self._wishes.device,
            self._required,
            stop=stop.is_set,
            progress=progress,
            looked=looked,
        )

    async def _pledge(self, model: Model, base: Version, found: Candidate) -> None:
        """First the bytes are safe and served, then the pledge is, and only then the chain hears of
        them."""
        fresh = self._wishes.folder / "new"
        made = await asyncio.to_thread(version.write, fresh, model, found.weights)
        magnet = await self._swarm.publish(fresh, pin=training.pin(self._model))
        await asyncio.to_thread(shutil.rmtree, fresh)
        salt = secrets.token_bytes(32)
        self._pledges.add(
            Pledge(made.weights_root, magnet.infohash, base.weights_root, found.score, salt)
        )
