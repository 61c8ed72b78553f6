"""Searching for an update that the chain will take: train, look, and stop when it is time.

A candidate must gain what the rules ask for now on the public part, by the exact score, and hold
on the trainer's own hold-out with the paired test that sealed shards apply.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from sidechain.model import checkpoints, exact
from sidechain.model.hold_out import divide
from sidechain.model.improve import Improving
from sidechain.model.objective import Objective
from sidechain.model.paired import confirms
from sidechain.model.parts import Part, join
from sidechain.model.registry import Architecture
from sidechain.model.world import ALONE, World


@dataclass(frozen=True, slots=True)
class Plan:
    """How an attempt goes.

    seconds: before the first look; each later one comes after as many steps as the first did.
    patience: looks without a better hold-out after which it ends. seed: what batches are drawn
    from. split: what the hold-out is drawn from; all attempts at a model should have the same, or
    they find samples in it that the base was trained on. device: torch's name.
    """

    seconds: float = 20.0
    patience: int = 4
    rate: float | None = None
    seed: int = 0
    split: int = 0
    device: str = "cpu"
    checkpoint: Path | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """What is to be improved: int16 weights, their root, and their exact score."""

    weights: Mapping[str, Tensor]
    root: bytes
    score: int


@dataclass(frozen=True, slots=True)
class Look:
    """One look at an attempt. held_out: the mean loss on the hold-out in micro-units, before and
    now; gain: of the exact score, None where the hold-out did not confirm it."""

    steps: int
    seconds: float
    loss: float
    before: float
    held_out: float
    gain: int | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """Weights that should be taken: their exact score on the public part, and the gain."""

    weights: dict[str, Tensor]
    score: int
    gain: int
    steps: int


class Search:
    """One model's public part and how it is trained on. `more` is to be learnt from beside it, and
    is not scored. All processes of a `world` make the same calls; the result is process 0's."""

    def __init__(
        self,
        architecture: Architecture,
        objective: Objective,
        part: Part,
        plan: Plan,
        world: World = ALONE,
        more: Part | None = None,
    ) -> None:
        self._architecture = architecture
        self._objective = objective
        self._part = part
        self._plan = plan
        self._world = world
        self._divided = divide(part, architecture.input_shape[0], plan.split)
        self._learn = self._divided.learn if more is None else join(self._divided.learn, more)

    def find(
        self,
        base: Base,
        required: Callable[[], int],
        *,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, float, float], None] | None = None,
        looked: Callable[[Look], None] | None = None,
    ) -> Candidate | None:
        """None when nothing better was found, or `stop` said so (the base was overtaken).

        required: the gain that the rules ask for now; it falls with every block.
        """
        plan = self._plan
        attempt = self._attempt(base)
        judge = _Judge(self, base) if self._world.leads else None
        begun, loss, between = time.monotonic(), 0.0, 0
        best, waited = None, 0
        while True:
            first = attempt.steps
            while not self._is_time_to_look(attempt.steps - first, between, begun):
                loss = attempt.step().item()
                if progress is not None:
                    progress(attempt.steps, loss, time.monotonic() - begun)
                if self._agreed(stop()):
                    return None
            between = between or attempt.steps - first
            found = None
            if judge is not None:
                look, found = judge.look(attempt, required())
                look = replace(look, seconds=time.monotonic() - begun, loss=loss)
                if looked is not None:
                    looked(look)
                is_best = best is None or look.held_out < best
                best, waited = (look.held_out, 0) if is_best else (best, waited + 1)
                self._save(attempt, base)
            if self._agreed(found is not None or waited >= plan.patience):
                return found

    def _is_time_to_look(self, steps: int, between: int, begun: float) -> bool:
        if between:
            return steps >= between
        return self._agreed(steps > 0 and time.monotonic() - begun >= self._plan.seconds)

    def _agreed(self, answer: bool) -> bool:
        return bool(self._world.agree(int(answer)))

    def losses(self, weights: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Exact, on the hold-out."""
        return exact.sample_losses(
            self._architecture, self._objective, weights, self._divided.held_out
        )

    def score(self, weights: Mapping[str, Tensor]) -> int:
        return exact.score(self._architecture, self._objective, weights, self._part)

    def _attempt(self, base: Base) -> Improving:
        """A new one, or the one that a checkpoint has."""

        def fresh() -> Improving:
            return Improving(
                self._architecture,
                self._objective,
                self._learn,
                start=weights,
                seed=self._plan.seed,
                rate=self._plan.rate,
                device=self._plan.device,
                world=self._world,
            )

        weights = self._world.share(base.weights)
        attempt = fresh()
        if self._plan.checkpoint is not None:
            checkpoints.read(self._plan.checkpoint, attempt, base.root)
            if not self._world.same(attempt.steps):
                return fresh()  # not every process has the file
        return attempt

    def _save(self, attempt: Improving, base: Base) -> None:
        if self._plan.checkpoint is not None:
            checkpoints.write(self._plan.checkpoint, attempt, base.root)


class _Judge:
    """What process 0 holds an attempt against."""

    def __init__(self, search: Search, base: Base) -> None:
        self._search = search
        self._base = base
        self._before = search.losses(base.weights)

    def look(self, attempt: Improving, required: int) -> tuple[Look, Candidate | None]:
        weights = attempt.weights()
        now = self._search.losses(weights)
        count = len(now)
        look = Look(attempt.steps, 0.0, 0.0, sum(self._before) / count, sum(now) / count, None)
        if not confirms(self._before, now):
            return look, None
        score = self._search.score(weights)
        gain = self._base.score - score
        look = replace(look, gain=gain)
        if gain < required:
            return look, None
        return look, Candidate(weights, score, gain, attempt.steps)
