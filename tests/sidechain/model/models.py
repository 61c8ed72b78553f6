"""Small models and data of every kind, for tests that hold for all of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sidechain.model.architecture import ByteTransformer
from sidechain.model.classifiers import Cnn, Mlp
from sidechain.model.objective import Accuracy, CrossEntropy, MeanSquaredError, Noise, Objective
from sidechain.model.parts import Labelled, Part, Regression, Text
from sidechain.model.registry import Architecture
from sidechain.model.weights import check_weights

TEXT = b"The quick brown fox jumps over the lazy dog. " * 6


class Case(NamedTuple):
    architecture: Architecture
    objective: Objective
    part: Part


def labelled(samples: int, inputs: int, classes: int) -> Labelled:
    draw = np.random.default_rng(1)
    rows = draw.integers(-(1 << 15), 1 << 15, (samples, inputs), np.int16)
    return Labelled(rows, draw.integers(0, classes, samples, np.uint16))


def regression(samples: int, inputs: int, outputs: int) -> Regression:
    draw = np.random.default_rng(2)
    rows = draw.integers(-(1 << 15), 1 << 15, (samples, inputs + outputs), np.int16)
    return Regression(rows[:, :inputs].copy(), rows[:, inputs:].copy())


CASES = {
    "mlp": Case(Mlp(12, (9, 7), 5), CrossEntropy(), labelled(23, 12, 5)),
    "linear": Case(Mlp(6, (), 3), Accuracy(complexity=5), labelled(40, 6, 3)),
    "mlp-mse": Case(Mlp(5, (8,), 3), MeanSquaredError(), regression(17, 5, 3)),
    "mlp-noise": Case(
        Mlp(12, (9,), 5), CrossEntropy(1_000_000, Noise(7, 400)), labelled(23, 12, 5)
    ),
    "cnn": Case(Cnn(7, 6, (3, 4), 5, channels=2), CrossEntropy(), labelled(9, 84, 5)),
    "cnn-wide": Case(Cnn(5, 5, (3,), 4, kernel=5), Accuracy(), labelled(9, 25, 4)),
    "text": Case(
        ByteTransformer(width=16, blocks=2, heads=4, context=12), CrossEntropy(), Text(TEXT)
    ),
    "text-noise": Case(
        ByteTransformer(width=16, blocks=1, heads=1, context=9),
        CrossEntropy(noise=Noise(1, 6000)),
        Text(TEXT),
    ),
    "text-accuracy": Case(
        ByteTransformer(width=8, blocks=1, heads=2, context=8), Accuracy(), Text(TEXT)
    ),
}


def weights(architecture: Architecture, kind: str = "small", seed: int = 0) -> dict[str, Tensor]:
    """int16: "small" ones as training finds them, "any" ones, or the "largest" there are"""
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in architecture.shapes().items():
        if kind == "small":
            # Not randn, which draws other numbers with other vector instructions.
            drawn = torch.randint(-4300, 4301, (4, *shape), generator=draw).sum(0).double()
        elif kind == "any":
            drawn = torch.randint(-(1 << 15), 1 << 15, shape, generator=draw).double()
        else:
            drawn = torch.randint(0, 2, shape, generator=draw) * 65535.0 - 32768
        made[name] = drawn.round().clamp(-32768, 32767).to(torch.int16)
    check_weights(architecture.shapes(), made)
    return made
