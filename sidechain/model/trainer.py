"""Training: AdamW over random windows of a text, seeded, within a budget of time or steps."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from channels.errors import UserError
from sidechain.model.architecture import ByteTransformer, ByteTransformerModule
from sidechain.model.dataset import HOLD_OUT, split

BATCH: Final = 16
PEAK_RATE: Final = 8e-3
LAST_RATE: Final = 0.05  # of the peak
WARM_UP_STEPS: Final = 20
REPORT_EVERY: Final = 10

Progress = Callable[[int, float, float], None]
"""Called with (steps so far, nats per byte of a recent batch, seconds so far)."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Training ends at whichever of the two comes first; only steps alone are reproducible."""

    seconds: float = math.inf
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is None and not 0 < self.seconds < math.inf:
            raise UserError("no-budget", "Training needs a number of seconds or of steps.")

    def used(self, steps: int, seconds: float) -> float:
        """The part of the budget that is gone, 1 or more when it is time to stop."""
        return max(seconds / self.seconds, steps / self.steps if self.steps is not None else 0.0)


@dataclass(frozen=True, slots=True)
class Trained:
    module: ByteTransformerModule
    steps: int
    seconds: float
    holdout_nats_per_byte: float


def train(
    architecture: ByteTransformer,
    text: bytes,
    budget: Budget,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trained:
    """Train a fresh model on nine tenths of `text`; the last tenth measures it.

    Raises UserError("text-too-short") when a part is shorter than one window.
    """
    window = architecture.context + 1
    if len(split(text)[1]) < window:
        raise UserError("text-too-short", f"Train on at least {window * HOLD_OUT} bytes of text.")
    learn, hold_out = (_tokens(part) for part in split(text))
    with _threads(min(2, os.cpu_count() or 1)), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = architecture.build()
        draw = torch.Generator().manual_seed(seed)
        steps, seconds = _loop(module, learn, budget, draw, progress)
        return Trained(module.eval(), steps, seconds, nats_per_byte(module, hold_out))


def _loop(
    module: ByteTransformerModule,
    text: Tensor,
    budget: Budget,
    draw: torch.Generator,
    progress: Progress | None,
) -> tuple[int, float]:
    """-> (steps made, seconds taken)"""
    window = torch.arange(module.architecture.context + 1)
    optimizer = torch.optim.AdamW(
        module.parameters(), PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    start, steps, seconds = time.monotonic(), 0, 0.0
    while (used := budget.used(steps, seconds)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = _rate(steps, used)
        starts = torch.randint(len(text) - len(window) + 1, (BATCH, 1), generator=draw)
        batch = text[starts + window]
        loss = _loss(module, batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        steps, seconds = steps + 1, time.monotonic() - start
        if progress is not None and (steps % REPORT_EVERY == 1 or budget.used(steps, seconds) >= 1):
            progress(steps, loss.item(), seconds)
    return steps, seconds


def _rate(steps: int, used: float) -> float:
    """A short warm-up, then half a cosine down over the budget, however it is counted."""
    warm = min(1.0, (steps + 1) / WARM_UP_STEPS)
    return PEAK_RATE * warm * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * used)) / 2)


def _loss(module: ByteTransformerModule, batch: Tensor) -> Tensor:
    """(n, context + 1) bytes -> mean nats per byte"""
    logits = module(batch[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.inference_mode()
def nats_per_byte(module: ByteTransformerModule, text: bytes | Tensor) -> float:
    """The mean loss over consecutive windows of `text` (at least one window long)."""
    tokens = _tokens(text) if isinstance(text, bytes) else text
    context = module.architecture.context
    windows = tokens.unfold(0, context + 1, context)
    losses = [_loss(module, part).item() * len(part) for part in torch.split(windows, 64)]
    return sum(losses) / len(windows)


def _tokens(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
