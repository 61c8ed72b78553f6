"""How fast training is beside the same plain torch loop: steps per second, as a ratio.

The plain loop is what one would write by hand: torch.nn layers, functional.cross_entropy, the same
Adam, a batch drawn at random. Beside it are Improving, which trains any architecture and objective
of the registry from its definition, and Search between two looks. They take turns of a second, so
that a busy machine is fair to all; the median of the ratios is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sidechain.model import exact
from sidechain.model.architecture import ByteTransformer
from sidechain.model.classifiers import Cnn, Mlp
from sidechain.model.dataset import python_documentation
from sidechain.model.improve import BATCH, TEXT_BATCH, Improving, usual_rate
from sidechain.model.network import Network
from sidechain.model.objective import CrossEntropy
from sidechain.model.parts import Labelled, Part, Text
from sidechain.model.registry import Architecture
from sidechain.model.search import Base, Plan, Search
from sidechain.model.weights import quantise, weights_root

SECONDS: Final = 1.0
ROUNDS: Final = 9


def rows(samples: int, inputs: int, classes: int) -> Labelled:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 4097, (samples, inputs), np.int16)
    return Labelled(pixels, draw.integers(0, classes, samples, np.uint16))


class Image(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 1, 8, 8)


def by_hand(architecture: Architecture) -> nn.Module:
    if isinstance(architecture, ByteTransformer):
        return architecture.build()
    if isinstance(architecture, Mlp):
        (hidden,) = architecture.hidden
        return nn.Sequential(
            nn.Linear(architecture.inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )
    first, second = architecture.filters
    return nn.Sequential(
        Image(),
        nn.Conv2d(1, first, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * second, 10),
    )


def plain(architecture: Architecture, part: Part) -> Callable[[], object]:
    module = by_hand(architecture)
    (size,) = architecture.input_shape
    inputs, targets = part.batch(size, None, 0, part.samples(size))
    if not architecture.reads_text:
        inputs = inputs.float() / 4096
    optimizer = torch.optim.Adam(module.parameters(), usual_rate(architecture), fused=True)
    batch = TEXT_BATCH if architecture.reads_text else BATCH

    def step() -> float:
        chosen = torch.randint(len(inputs), (batch,))
        made = module(inputs[chosen])
        loss = functional.cross_entropy(made.flatten(0, -2), targets[chosen].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.item()

    return step


class _Enough(Exception):
    """Raised out of a search by its progress."""


def searching(architecture: Architecture, part: Part) -> Callable[[float], float]:
    """-> steps per second of Search.find in so many seconds"""
    torch.manual_seed(0)
    weights = quantise(Network(architecture).state_dict()).weights
    score = exact.score(architecture, CrossEntropy(), weights, part)
    base = Base(weights, weights_root(weights), score)
    search = Search(architecture, CrossEntropy(), part, Plan(seconds=1e9))

    def run(seconds: float) -> float:
        first: float | None = None
        steps = 0

        def progress(number: int, loss: float, spent: float) -> None:
            nonlocal first, steps
            if first is None:
                first = time.perf_counter()
                return
            steps += 1
            if time.perf_counter() - first >= seconds:
                raise _Enough

        with suppress(_Enough):
            search.find(base, lambda: 0, progress=progress)
        assert first is not None  # it has made steps
        return steps / (time.perf_counter() - first)

    return run


def rate(step: Callable[[], object], seconds: float) -> float:
    """Steps per second."""
    steps, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        step()
        steps += 1
    return steps / spent


def stepped(attempt: Improving) -> float:
    return attempt.step().item()


def rounds(architecture: Architecture, part: Part) -> Iterator[tuple[float, float, float]]:
    """All three begin anew each time: weights that were trained for long may be slow numbers."""
    search = searching(architecture, part)
    for _ in range(ROUNDS):
        attempt = Improving(architecture, CrossEntropy(), part)
        hand = plain(architecture, part)
        for warm in (hand, attempt.step):
            warm()
        yield (
            rate(hand, SECONDS),
            rate(partial(stepped, attempt), SECONDS),
            search(SECONDS),
        )


def main() -> None:
    text = Text(python_documentation()[:20_000])
    models: list[tuple[str, Architecture, Part]] = [
        ("digits mlp 64-64-10", Mlp(64, (64,), 10), rows(1797, 64, 10)),
        ("digits cnn 16-32", Cnn(8, 8, (16, 32), 10), rows(1797, 64, 10)),
        ("text, 43k, context 64", ByteTransformer(32, 2, 2, 64), text),
        ("text, 135k, context 64", ByteTransformer(context=64), text),
    ]
    torch.set_num_threads(1)
    for name, architecture, part in models:
        found = list(rounds(architecture, part))
        by_hand_rate = median(hand for hand, _, _ in found)
        improved = median(made / hand for hand, made, _ in found)
        searched = median(made / hand for hand, _, made in found)
        print(
            f"{name}: plain {by_hand_rate:.0f} steps/s; "
            f"Improving {improved:.2f} of it, Search {searched:.2f}"
        )


if __name__ == "__main__":
    main()
