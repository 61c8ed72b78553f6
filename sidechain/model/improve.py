"""Training against an objective: Adam in floats from known weights, to new int16 ones.

How weights were found is nobody's business but the trainer's; this is one plain way for every
architecture and objective. `trainer.train` makes the first weights of a text model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from sidechain.model.arithmetic import ACTIVATION_BITS, MICRO
from sidechain.model.exact import count_samples
from sidechain.model.floats import Floats
from sidechain.model.network import Network
from sidechain.model.objective import Accuracy, CrossEntropy, Objective
from sidechain.model.parts import Part
from sidechain.model.registry import Architecture
from sidechain.model.trainer import Budget
from sidechain.model.weights import dequantise, quantise

BATCH: Final = 64
RATE: Final = 3e-3


def improve(
    architecture: Architecture,
    objective: Objective,
    part: Part,
    budget: Budget,
    *,
    start: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    rate: float = RATE,
    progress: Callable[[int, float, float], None] | None = None,
) -> dict[str, Tensor]:
    """-> int16 weights. `start` (int16) is None for fresh ones; `progress` is called each step
    with (steps, loss of the batch in units of the objective, seconds).

    Only a budget of steps alone is reproducible, and only on one machine. Raises UserError as
    exact.count_samples does.
    """
    samples = count_samples(architecture, objective, part)
    inputs, targets = part.batch(architecture.input_shape[0], objective.noise, 0, samples)
    inputs, targets = _real(inputs), _real(targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(architecture)
    if start is not None:
        network.load_state_dict(dequantise(start))
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    begun, steps, seconds = time.monotonic(), 0, 0.0
    while budget.used(steps, seconds) < 1:
        chosen = torch.randint(samples, (min(BATCH, samples),), generator=draw)
        loss = _loss(network, objective, inputs[chosen], targets[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        steps, seconds = steps + 1, time.monotonic() - begun
        if progress is not None:
            progress(steps, loss.item(), seconds)
    return quantise(network.state_dict()).weights


def _loss(network: Network, objective: Objective, inputs: Tensor, targets: Tensor) -> Tensor:
    # Counting mistakes has no slope; cross entropy leads to fewer of them.
    smooth = CrossEntropy() if isinstance(objective, Accuracy) else objective
    weights = dict(network.named_parameters())
    losses: Tensor = smooth.losses(Floats(weights), network(inputs), targets).mean()
    if objective.complexity:
        squares = torch.stack([weight.square().sum() for weight in weights.values()]).sum()
        losses = losses + objective.complexity * squares
    return losses / MICRO


def _real(numbers: Tensor) -> Tensor:
    return numbers.float() * 2.0**-ACTIVATION_BITS if numbers.is_floating_point() else numbers
