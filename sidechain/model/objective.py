"""Objectives are data too: which cost, how much complexity costs, and which noise is added.

A score is a cost, the sum over samples of integers in micro-units; lower is better. Part of an
objective are

- the loss of each sample (tokens of a window summed): cross entropy in micro-nats; mistakes,
  10^6 for each; squared error, averaged over the outputs, in millionths;
- `complexity`: each sample also costs ⌊complexity · Σ w² / 2^28⌋ micro-units, w being the int16
  weights: `complexity` micro-units for each unit of the squared norm of all weights;
- `noise`: inputs (never targets) are changed as `noise` draws, from a seed that everybody knows.
  It makes overfitting harder, not impossible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct
from torch import Tensor

from channels.errors import UserError
from sidechain.model import canonical
from sidechain.model.arithmetic import WEIGHT_BITS, Arithmetic, T

MAX_JSON: Final = 512
MAX_COMPLEXITY: Final = 1 << 32
MAX_STRENGTH: Final = 1 << 15


class Noise(Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers get an integer of −strength … strength (in 2^-12) added; bytes are replaced by a
    random one with a chance of strength / 2^16."""

    seed: int
    strength: int

    def __post_init__(self) -> None:
        if not (0 <= self.seed < 1 << 63 and 1 <= self.strength <= MAX_STRENGTH):
            raise ValueError("noise is out of bounds")


class _Objective(Struct, frozen=True, forbid_unknown_fields=True):
    complexity: int = 0
    noise: Noise | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.complexity <= MAX_COMPLEXITY:
            raise ValueError("the price of complexity is out of bounds")


class CrossEntropy(_Objective, frozen=True, tag="cross-entropy"):
    def losses(self, ops: Arithmetic[T], outputs: T, targets: T) -> T:
        return ops.cross_entropy(outputs, targets)


class Accuracy(_Objective, frozen=True, tag="accuracy"):
    def losses(self, ops: Arithmetic[T], outputs: T, targets: T) -> T:
        return ops.mistakes(outputs, targets)


class MeanSquaredError(_Objective, frozen=True, tag="mean-squared-error"):
    def losses(self, ops: Arithmetic[T], outputs: T, targets: T) -> T:
        return ops.squared_error(outputs, targets)


Objective = CrossEntropy | Accuracy | MeanSquaredError


def encode(objective: Objective) -> bytes:
    """`{"type":"cross-entropy","complexity":0,"noise":null}`: one spelling for each objective."""
    return msgspec.json.encode(objective)


def decode(data: bytes) -> Objective:
    """Raises UserError("bad-objective") for anything else than what encode() writes."""
    try:
        objective: Objective = canonical.decode(data, Objective, MAX_JSON)
    except ValueError as error:
        raise UserError(
            "bad-objective", f"The objective can't be used: {error}; take another model."
        ) from None
    return objective


def complexity_cost(objective: Objective, weights: Mapping[str, Tensor]) -> int:
    """Micro-units per sample, for int16 weights."""
    if objective.complexity == 0:
        return 0
    # 2^24 weights of at most 2^15 have a sum of squares below 2^55: int64 is enough.
    squares = sum(int(torch.square(weight.long()).sum()) for weight in weights.values())
    return (objective.complexity * squares) >> 2 * WEIGHT_BITS


def add_noise(noise: Noise, rows: npt.NDArray[np.int64], first: int) -> npt.NDArray[np.int64]:
    """Numbers (n, size) with noise; `first` is the place of rows[0] in its part of the data.

    For sample i, with the little-endian uint16 u of SHAKE-256("oda noise" ‖ seed ‖ i) (both as
    eight big-endian bytes): number j gets ⌊u[j] · (2 · strength + 1) / 2^16⌋ − strength added.
    """
    drawn = _draw(noise.seed, first, *rows.shape)
    return rows + (drawn * (2 * noise.strength + 1) >> 16) - noise.strength


def replace_bytes(noise: Noise, rows: npt.NDArray[np.int64], first: int) -> npt.NDArray[np.int64]:
    """Bytes (n, size) with noise: byte j becomes u[2j + 1] mod 256 where u[2j] < strength."""
    drawn = _draw(noise.seed, first, len(rows), 2 * rows.shape[1])
    return np.where(drawn[:, ::2] < noise.strength, drawn[:, 1::2] & 255, rows)


def _draw(seed: int, first: int, samples: int, size: int) -> npt.NDArray[np.int64]:
    head = hashlib.shake_256(b"oda noise" + seed.to_bytes(8, "big"))
    drawn = bytearray()
    for i in range(first, first + samples):
        sample = head.copy()
        sample.update(i.to_bytes(8, "big"))
        drawn += sample.digest(2 * size)
    return np.frombuffer(drawn, "<u2").reshape(samples, size).astype(np.int64)
