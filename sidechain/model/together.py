"""Searches that several processes make together: process 0 says what, the others follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import torch

from channels.errors import UserError
from sidechain.model import objective as objectives
from sidechain.model import parts, registry, weights
from sidechain.model.search import Base, Candidate, Look, Plan, Search
from sidechain.model.world import World


class Task(msgspec.Struct, frozen=True, array_like=True):
    """One search, as bytes that process 0 made. checkpoint: a path, the same for all."""

    architecture: bytes
    objective: bytes
    part: bytes
    more: bytes | None
    weights: bytes
    root: bytes
    score: int
    seconds: float
    patience: int
    rate: float
    seed: int
    split: int
    checkpoint: str | None

    def search(self, world: World, device: str) -> Search:
        plan = Plan(
            self.seconds,
            self.patience,
            self.rate,
            self.seed,
            self.split,
            device,
            None if self.checkpoint is None else Path(self.checkpoint),
        )
        return Search(
            registry.decode(self.architecture),
            objectives.decode(self.objective),
            parts.decode(self.part),
            plan,
            world,
            None if self.more is None else parts.decode(self.more),
        )

    def base(self) -> Base:
        shapes = registry.decode(self.architecture).shapes()
        return Base(weights.decode(self.weights, shapes), self.root, self.score)


_task: Final = msgspec.msgpack.Decoder(Task)
_END: Final = b""


def best_device(world: World, wish: str | None = None) -> str:
    """torch's name of what to train on: what was wished for, else a GPU if there is one.

    Raises UserError("bad-device") for a wish that can't be had.
    """
    if wish is not None:
        try:
            torch.zeros(1, device=wish).item()
        except (RuntimeError, AssertionError, NotImplementedError):  # each device has its own
            raise UserError(
                "bad-device", f"torch can't train on {wish!r} here; leave out --device."
            ) from None
        return wish
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{world.rank % count}" if count else "cpu"


def find(
    world: World,
    task: Task,
    device: str,
    required: Callable[[], int],
    *,
    stop: Callable[[], bool],
    progress: Callable[[int, float, float], None],
    looked: Callable[[Look], None],
) -> Candidate | None:
    """Search.find by all processes; for process 0, while the others are in follow()."""
    world.tell(msgspec.msgpack.encode(task))
    search = task.search(world, device)
    return search.find(task.base(), required, stop=stop, progress=progress, looked=looked)


def follow(world: World, device: str) -> None:
    """Take part in all that process 0 finds, until it says that this was all."""
    while (told := world.tell(_END)) != _END:
        task = _task.decode(told)
        task.search(world, device).find(task.base(), lambda: 0)


def dismiss(world: World) -> None:
    """Let the others go."""
    world.tell(_END)
