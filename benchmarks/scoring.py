"""What exact scoring costs beside float evaluation of the same samples, on this machine.

For each model: seconds of exact scoring, its ratio to float64 and float32 evaluation, the
difference of the exact score from float64 in millionths of it, and how much score_cost is worked
off in a second (a block's limit is 5e11 on the main network, meant to be about 5 s on 2 cores, so
no model should fall far below 1e11).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np
import torch

from sidechain.model import exact
from sidechain.model.architecture import ByteTransformer
from sidechain.model.classifiers import Cnn, Mlp
from sidechain.model.dataset import python_documentation, split
from sidechain.model.network import Network
from sidechain.model.objective import Accuracy, CrossEntropy, Noise, Objective
from sidechain.model.parts import Labelled, Part, Text
from sidechain.model.registry import Architecture
from sidechain.model.weights import quantise

REPEATS: Final = 15


def rows(samples: int, inputs: int, classes: int) -> Labelled:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 4097, (samples, inputs), np.int16)
    return Labelled(pixels, draw.integers(0, classes, samples, np.uint16))


def text(size: int) -> Text:
    return Text(split(python_documentation())[1][: size + 1])


MODELS: Final[list[tuple[str, Architecture, Objective, Part]]] = [
    ("digits mlp 64-64-10", Mlp(64, (64,), 10), CrossEntropy(), rows(1797, 64, 10)),
    ("digits, noise", Mlp(64, (64,), 10), CrossEntropy(noise=Noise(1, 99)), rows(1797, 64, 10)),
    ("digits cnn 16-32", Cnn(8, 8, (16, 32), 10), CrossEntropy(), rows(1797, 64, 10)),
    ("mlp 784-1024-1024-10", Mlp(784, (1024, 1024), 10), Accuracy(), rows(4000, 784, 10)),
    ("cnn 32x32x3, 32-64", Cnn(32, 32, (32, 64), 10, 3), CrossEntropy(), rows(300, 3072, 10)),
    ("text, 135k, context 64", ByteTransformer(context=64), CrossEntropy(), text(32768)),
    ("text, 139k, context 128", ByteTransformer(context=128), CrossEntropy(), text(32768)),
    (
        "text, 3.3M, context 256",
        ByteTransformer(width=256, blocks=4, heads=4, context=256),
        CrossEntropy(),
        text(8192),
    ),
    (
        "text, 16 heads of 4",
        ByteTransformer(width=64, blocks=2, heads=16, context=256),
        CrossEntropy(),
        text(8192),
    ),
]


def best(*work: Callable[[], object]) -> list[float]:
    """Seconds of the fastest run of each; in turns, so that a busy machine is fair to all."""
    times = [[_seconds(each) for each in work] for _ in range(REPEATS)]
    return [min(column) for column in zip(*times, strict=True)]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(architecture: Architecture, objective: Objective, part: Part) -> str:
    torch.manual_seed(0)
    weights = quantise(Network(architecture).state_dict()).weights
    model = (architecture, objective, weights, part)
    evaluation = exact.evaluate(*model)
    took, double, single = best(
        lambda: exact.sample_losses(*model),
        lambda: exact.float_losses(*model),
        lambda: exact.float_losses(*model, torch.float32),
    )
    cost = exact.score_cost(architecture, objective, len(evaluation.losses))
    off = 1e6 * evaluation.difference / evaluation.in_floats
    return (
        f"{took:8.3f} s {took / double:7.2f} {took / single:7.2f} {off:9.1f} {cost / took:10.1e}/s"
    )


def main() -> None:
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{'':24}{'exact':>10} {'/ f64':>7} {'/ f32':>7} {'diff ppm':>9} {'score_cost':>12}")
    for name, architecture, objective, part in MODELS:
        print(f"{name:24}{measure(architecture, objective, part)}", flush=True)


if __name__ == "__main__":
    main()
