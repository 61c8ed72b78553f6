"""A trainer's own hold-out: samples of the public part that it does not train on.

Sealed shards judge an update after it is on the chain, with the trainer's commit at stake. The
hold-out asks the same question before: did it get better on what it has not seen?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from channels.errors import UserError
from sidechain.model.parts import Labelled, Part, Regression, Text

EVERY: Final = 10
"""One sample in so many is held out."""


@dataclass(frozen=True, slots=True)
class Divided:
    learn: Part
    held_out: Part


def divide(part: Part, size: int, seed: int = 0) -> Divided:
    """`size`: of a sample, as Part.samples has it. Raises UserError("bad-dataset") for a part
    that is too small to divide.

    Text is cut in two, because windows beside each other tell of each other; where is drawn.
    """
    samples = part.samples(size)
    held = samples // EVERY
    if held == 0:
        raise UserError("bad-dataset", f"A public part of {samples} samples can't be divided.")
    draw = np.random.default_rng(seed)
    if isinstance(part, Text):
        first = int(draw.integers(0, 2)) * (samples - held)
        end = first + held
        data = part.data[: samples * size + 1]
        inside = data[first * size : end * size + 1]
        outside = data[end * size :] if first == 0 else data[: first * size + 1]
        return Divided(Text(outside), Text(inside))
    order = draw.permutation(samples)
    out, rest = np.sort(order[:held]), np.sort(order[held:])
    if isinstance(part, Labelled):
        return Divided(
            Labelled(part.inputs[rest], part.labels[rest]),
            Labelled(part.inputs[out], part.labels[out]),
        )
    return Divided(
        Regression(part.inputs[rest], part.targets[rest]),
        Regression(part.inputs[out], part.targets[out]),
    )
