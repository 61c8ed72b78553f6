"""Exact scoring: the door that consensus uses.

A score is an integer that every machine computes to the bit, whatever the size of a batch, the
number of threads, the instructions of the processor or the BLAS below (arithmetic.py says why).
A claimed score equals the recomputed one or is wrong; there is no tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from channels.errors import UserError
from sidechain.model.arithmetic import ACTIVATION_BITS, WEIGHT_BITS
from sidechain.model.bounds import PASS, Bounds, Extent, Proof
from sidechain.model.floats import Floats
from sidechain.model.integers import Integers
from sidechain.model.objective import MAX_STRENGTH, MeanSquaredError, Objective, complexity_cost
from sidechain.model.parts import Labelled, Part, Text
from sidechain.model.registry import Architecture
from sidechain.model.weights import check_weights

CACHED_ELEMENTS: Final = 1 << 17
"""A batch is as large as lets the numbers that one operation makes (1 MiB) stay in the cache."""

BATCH_ELEMENTS: Final = 1 << 22
WEIGHTS_PER_ELEMENT: Final = 8
"""But it is larger (up to 32 MiB) where reading the weights for each batch would take longer."""

INPUT_LIMIT: Final = (1 << 15) + MAX_STRENGTH
SAMPLE_COST: Final = 20_000
INPUT_COST: Final = 200
"""What any sample costs beyond its operations, and each of its inputs."""

NOISE_COST: Final = 100_000
NOISE_INPUT_COST: Final = 1_000
"""What drawing noise costs beside that."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`losses`: of each sample, complexity included. `in_floats`: the same sum as `total` from
    the dequantised weights in float64, for comparison; no two machines need agree on it."""

    losses: tuple[int, ...]
    in_floats: float

    @property
    def total(self) -> int:
        return sum(self.losses)

    @property
    def difference(self) -> float:
        return self.total - self.in_floats


@lru_cache(maxsize=256)
def prove(architecture: Architecture, objective: Objective) -> Proof:
    """That scoring stays below 2^53, for whatever weights and data.

    Raises UserError: "inexact-architecture", "too-large", or "bad-objective" where the two don't
    go together.
    """
    text = architecture.reads_text
    regression = isinstance(objective, MeanSquaredError)
    if text and regression:
        raise UserError("bad-objective", "Text has no squared error; take cross entropy.")
    bounds = Bounds(architecture.shapes())
    outputs = architecture.output_shape
    largest = 255 if text else INPUT_LIMIT
    made = architecture.forward(bounds, Extent(architecture.input_shape, largest))
    if made.shape != outputs:
        raise UserError("bad-architecture", f"It makes {made.shape} instead of {outputs}.")
    classes = Extent(outputs[:-1], outputs[-1] - 1)
    targets = Extent(outputs, 1 << 15) if regression else classes
    objective.losses(bounds, made, targets)
    return bounds.proof()


def score_cost(architecture: Architecture, objective: Objective, samples: int) -> int:
    """What scoring so many samples counts against a block's limit; raises as prove() does.

    It is part of consensus, and so are the constants it uses. A machine that works off 10^11 in a
    second keeps up (benchmarks/scoring.py).
    """
    proof = prove(architecture, objective)
    (size,) = architecture.input_shape
    each = proof.cost + SAMPLE_COST + INPUT_COST * size
    if objective.noise is not None:
        each += NOISE_COST + NOISE_INPUT_COST * size
    batches = -(-samples // batch_size(architecture, proof))
    return samples * each + (2 + batches) * PASS * architecture.parameters


def batch_size(architecture: Architecture, proof: Proof) -> int:
    """How many samples are scored at once, for speed."""
    cached = CACHED_ELEMENTS // proof.elements
    worthwhile = architecture.parameters // (WEIGHTS_PER_ELEMENT * proof.elements)
    return max(1, cached, min(worthwhile, BATCH_ELEMENTS // proof.elements))


def count_samples(architecture: Architecture, objective: Objective, part: Part) -> int:
    """Raises UserError("bad-dataset") where the data doesn't fit the model, or holds no sample."""
    (size,) = architecture.input_shape
    outputs = architecture.output_shape[-1]
    if isinstance(part, Text):
        fits = architecture.reads_text
    elif isinstance(part, Labelled):
        fits = not architecture.reads_text and not isinstance(objective, MeanSquaredError)
        fits = fits and part.inputs.shape[1] == size and int(part.labels.max()) < outputs
    else:
        fits = not architecture.reads_text and isinstance(objective, MeanSquaredError)
        fits = fits and (part.inputs.shape[1], part.targets.shape[1]) == (size, outputs)
    samples = part.samples(size) if fits else 0
    if samples == 0:
        raise UserError("bad-dataset", "The dataset doesn't fit the architecture and objective.")
    return samples


def sample_losses(
    architecture: Architecture,
    objective: Objective,
    weights: Mapping[str, Tensor],
    part: Part,
    *,
    batch: int | None = None,
    device: str = "cpu",
) -> tuple[int, ...]:
    """The loss of each sample in micro-units, complexity included; the score is their sum.

    `weights` are int16. `batch` (samples at once) and `device` change the time it takes, never
    the result. Raises UserError as prove() and count_samples() do, or "bad-weights".
    """
    proof = prove(architecture, objective)
    check_weights(architecture.shapes(), weights)
    ops = Integers(weights, device)

    def losses(inputs: Tensor, targets: Tensor) -> Tensor:
        made = architecture.forward(ops, inputs.to(device))
        return objective.losses(ops, made, targets.to(device))

    most = batch or batch_size(architecture, proof)
    found = _by_sample(architecture, objective, part, most, losses)
    penalty = complexity_cost(objective, weights)
    return tuple(int(loss) + penalty for loss in found.tolist())


def score(
    architecture: Architecture, objective: Objective, weights: Mapping[str, Tensor], part: Part
) -> int:
    """What a block claims and every node recomputes; lower is better. Raises as sample_losses."""
    return sum(sample_losses(architecture, objective, weights, part))


def evaluate(
    architecture: Architecture,
    objective: Objective,
    weights: Mapping[str, Tensor],
    part: Part,
    *,
    floats: torch.dtype = torch.float64,
) -> Evaluation:
    """The exact losses and beside them the sum in floats; raises as sample_losses."""
    losses = sample_losses(architecture, objective, weights, part)
    total = float_losses(architecture, objective, weights, part, floats).sum().item()
    return Evaluation(losses, total + len(losses) * complexity_cost(objective, weights))


def float_losses(
    architecture: Architecture,
    objective: Objective,
    weights: Mapping[str, Tensor],
    part: Part,
    floats: torch.dtype = torch.float64,
) -> Tensor:
    """Micro-units of each sample (n,) without complexity, as floats see it."""
    ops = Floats({name: w.to(floats) * 2.0**-WEIGHT_BITS for name, w in weights.items()})
    scale = 2.0**-ACTIVATION_BITS

    def real(numbers: Tensor) -> Tensor:
        return numbers.to(floats) * scale if numbers.is_floating_point() else numbers

    def losses(inputs: Tensor, targets: Tensor) -> Tensor:
        made = architecture.forward(ops, real(inputs))
        return objective.losses(ops, made, real(targets)).double()

    most = batch_size(architecture, prove(architecture, objective))
    return _by_sample(architecture, objective, part, most, losses)


@torch.inference_mode()
def _by_sample(
    architecture: Architecture,
    objective: Objective,
    part: Part,
    most: int,
    losses: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """(samples,) of what `losses` finds, summed over the positions of a sample"""
    samples = count_samples(architecture, objective, part)
    (size,) = architecture.input_shape
    found = []
    for first in range(0, samples, most):
        end = min(first + most, samples)
        made = losses(*part.batch(size, objective.noise, first, end))
        found.append((made.sum(-1) if made.dim() == 2 else made).cpu())
    return torch.cat(found)
