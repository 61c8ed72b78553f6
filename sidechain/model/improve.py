"""Training against an objective: Adam in floats from known weights, to new int16 ones.

How weights were found is nobody's business but the trainer's; this is one plain way for every
architecture and objective, on one machine or several. `trainer.train` makes the first weights of
a text model.

What a step draws follows from the seed and its number alone, so an attempt that was saved
(checkpoints.py) goes on as if it had never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sidechain.model.arithmetic import ACTIVATION_BITS, MICRO
from sidechain.model.exact import count_samples
from sidechain.model.floats import Floats
from sidechain.model.network import Network
from sidechain.model.objective import Accuracy, CrossEntropy, Objective
from sidechain.model.parts import Part
from sidechain.model.registry import Architecture
from sidechain.model.trainer import Budget
from sidechain.model.weights import dequantise, quantise
from sidechain.model.world import ALONE, World

BATCH: Final = 64
TEXT_BATCH: Final = 16
"""A window of text is many samples in one: few of them make a step, so that more steps fit."""
RATE: Final = 3e-3
TEXT_RATE: Final = 6e-3


def usual_rate(architecture: Architecture) -> float:
    """Adam's, where nobody says another."""
    return TEXT_RATE if architecture.reads_text else RATE


class Improving:
    """An attempt at better weights, step by step.

    `start` (int16) is None for fresh weights; `rate` is Adam's, None for one that suits. In a
    `world` of several processes each draws batches of its own and their gradients are averaged;
    all must make the same calls. Raises UserError as exact.count_samples does.
    """

    def __init__(
        self,
        architecture: Architecture,
        objective: Objective,
        part: Part,
        *,
        start: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        rate: float | None = None,
        device: str = "cpu",
        world: World = ALONE,
    ) -> None:
        self._samples = count_samples(architecture, objective, part)
        inputs, targets = part.batch(architecture.input_shape[0], objective.noise, 0, self._samples)
        self._inputs, self._targets = _real(inputs).to(device), _real(targets).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = Network(architecture)
        if start is not None:
            self.network.load_state_dict(dequantise(start))
        self.network.on(device)
        module: nn.Module = _Loss(self.network, objective)
        if world.size > 1:
            module = DistributedDataParallel(module)
        self._module = module
        rate = rate or usual_rate(architecture)
        self.optimizer = torch.optim.Adam(self.network.parameters(), rate, fused=True)
        self._batch = min(TEXT_BATCH if architecture.reads_text else BATCH, self._samples)
        self._seed = seed
        self._world = world
        self._draw = torch.Generator()
        self.steps = 0

    def step(self) -> Tensor:
        """-> the loss of the batch before the step, in units of the objective"""
        # A generator of its own for each step and process: nothing else has to be remembered.
        number = self.steps * self._world.size + self._world.rank
        self._draw.manual_seed((self._seed << 40) + number)
        chosen = torch.randint(self._samples, (self._batch,), generator=self._draw).to(
            self._inputs.device
        )
        loss: Tensor = self._module(self._inputs[chosen], self._targets[chosen])
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.steps += 1
        return loss.detach()

    def weights(self) -> dict[str, Tensor]:
        """int16, as they are now"""
        return quantise(self.network.state_dict()).weights


def improve(
    architecture: Architecture,
    objective: Objective,
    part: Part,
    budget: Budget,
    *,
    start: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    rate: float | None = None,
    progress: Callable[[int, float, float], None] | None = None,
) -> dict[str, Tensor]:
    """-> int16 weights, within a budget. `progress` is called each step with (steps, loss of the
    batch in units of the objective, seconds).

    Only a budget of steps alone is reproducible, and only on one machine. Raises UserError as
    exact.count_samples does.
    """
    attempt = Improving(architecture, objective, part, start=start, seed=seed, rate=rate)
    begun, seconds = time.monotonic(), 0.0
    while budget.used(attempt.steps, seconds) < 1:
        loss = attempt.step()
        seconds = time.monotonic() - begun
        if progress is not None:
            progress(attempt.steps, loss.item(), seconds)
    return attempt.weights()


class _Loss(nn.Module):
    """The mean loss of a batch: what gradients are taken of, and averaged between processes."""

    def __init__(self, network: Network, objective: Objective) -> None:
        super().__init__()
        self.network = network
        self._complexity = objective.complexity
        # Counting mistakes has no slope; cross entropy leads to fewer of them.
        self._objective = CrossEntropy() if isinstance(objective, Accuracy) else objective
        self._weights = dict(network.named_parameters())
        self._floats = Floats(self._weights, unit=1)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        made = self.network(inputs)
        losses: Tensor = self._objective.losses(self._floats, made, targets).mean()
        if self._complexity:
            squares = torch.stack([w.square().sum() for w in self._weights.values()]).sum()
            losses = losses + self._complexity / MICRO * squares
        return losses


def _real(numbers: Tensor) -> Tensor:
    return numbers.float() * 2.0**-ACTIVATION_BITS if numbers.is_floating_point() else numbers
