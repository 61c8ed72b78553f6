"""Did these weights give this answer? Sampled positions are computed again and compared.

An answer follows from (weights, prompt, temperature, seed), see generate.py, so whoever has the
weights can check any byte of it alone. Floats differ between machines in their last digits, and
what is drawn is compared with a threshold: a byte counts as another one only where it lies
further from the threshold than any rounding puts it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch

from sidechain.model.architecture import ByteTransformerModule
from sidechain.model.generate import seen_prompt, uniform, window_start

TOLERANCE: Final = 1e-3
"""Of probability. Rounding moves a byte's probability by less than a hundredth of this."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """A byte that these weights would not have given; `by` is in probability, above TOLERANCE."""

    position: int
    by: float


@torch.inference_mode()
def deviations(
    module: ByteTransformerModule,
    prompt: bytes,
    answer: bytes,
    temperature: float,
    seed: int,
    positions: Iterable[int],
) -> list[Deviation]:
    """Those of the positions, each an index into the answer, where another byte was due.

    Temperature and seed are those of the request. IndexError for a position outside of the answer.
    """
    context = module.architecture.context
    text = seen_prompt(prompt, context) + answer
    before = len(text) - len(answer)
    found = []
    for position in positions:
        if not 0 <= position < len(answer):
            raise IndexError(f"the answer has no byte {position}")
        end = before + position
        seen = torch.tensor([list(text[window_start(end, context) : end])])
        logits = module(seen)[0, -1].double()
        if (by := _outside(logits, text[end], temperature, seed, position)) > TOLERANCE:
            found.append(Deviation(position, by))
    return found


def _outside(
    logits: torch.Tensor, byte: int, temperature: float, seed: int, position: int
) -> float:
    """How far the byte's interval is from what was drawn, in probability; 0 inside of it."""
    if temperature == 0:
        likely = logits.softmax(0)
        return float(likely.max() - likely[byte])
    summed = ((logits - logits.max()) / temperature).softmax(0).cumsum(0)
    drawn = uniform(seed, position)
    low = float(summed[byte - 1]) if byte else 0.0
    return max(low - drawn, drawn - float(summed[byte]), 0.0)
