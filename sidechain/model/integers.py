"""Exact scoring's interpreter: every operation of `arithmetic`, in float64 tensors of integers.

Nothing here rounds except where arithmetic.py says so. Powers of two are multiplied into operands
beforehand, which only moves the point. Divisors are tensors, never Python numbers: torch may turn a
division by a number into a multiplication by its reciprocal, which is not the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from sidechain.model import tables
from sidechain.model.arithmetic import (
    ACTIVATION_BITS,
    DIFFERENCE_LIMIT,
    LIMIT,
    MASKED,
    MICRO,
    NORM_FLOOR,
    NORM_ROOT_BITS,
    WEIGHT_BITS,
    exponential_shift,
    half_root,
)


class Integers:
    """Arithmetic[Tensor] over batches: float64 holding integers; tokens and classes are int64.

    `weights`: int16 tensors by name. Exact only for what `bounds.Bounds` has passed.
    """

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        scale = 2.0**-WEIGHT_BITS
        self._scaled = {name: w.to(device, torch.float64) * scale for name, w in weights.items()}
        self._exp = tables.EXP.to(device)
        self._log = tables.LOG.to(device)

    def embed(self, tokens: Tensor, table: str, positions: str) -> Tensor:
        both = functional.embedding(tokens, self._scaled[table]) + self._scaled[positions]
        return both.mul_(2.0**ACTIVATION_BITS).add_(0.5).floor_()

    def linear(self, x: Tensor, weight: str, bias: str | None = None) -> Tensor:
        matrix = self._scaled[weight]
        rows = x.reshape(-1, matrix.shape[1])
        total = torch.addmm(self._halves(weight, bias), rows, matrix.T)
        return _clamp(total.floor_()).view(*x.shape[:-1], matrix.shape[0])

    def image(self, x: Tensor, channels: int, height: int, width: int) -> Tensor:
        return x.view(-1, channels, height, width)

    def convolve(self, x: Tensor, weight: str, bias: str) -> Tensor:
        # Not torch's own convolution, which may transform (Winograd, FFT) and round.
        batch, _, height, width = x.shape
        kernel = self._scaled[weight]
        windows = functional.unfold(x, kernel.shape[2:], padding=kernel.shape[2] // 2)
        total = torch.matmul(kernel.flatten(1), windows).add_(self._halves(weight, bias)[:, None])
        return _clamp(total.floor_()).view(batch, -1, height, width)

    def max_pool(self, x: Tensor) -> Tensor:
        height, width = (2 * (size // 2) for size in x.shape[2:])
        rows = torch.maximum(x[:, :, 0:height:2, :width], x[:, :, 1:height:2, :width])
        return torch.maximum(rows[..., ::2], rows[..., 1::2])

    def flatten(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def relu(self, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return _clamp(x + y)

    def rms_norm(self, x: Tensor, gain: str) -> Tensor:
        squares = (x * x).sum(-1, keepdim=True)
        mean = squares.div_(torch.full_like(squares, x.shape[-1])).floor_().add_(NORM_FLOOR)
        root = mean.mul_(4.0**NORM_ROOT_BITS).sqrt_().floor_()
        normed = (x * 2.0 ** (ACTIVATION_BITS + NORM_ROOT_BITS)).div_(root).floor_()
        return _clamp(normed.mul_(self._scaled[gain]).add_(0.5).floor_())

    def attention(self, qkv: Tensor, heads: int) -> Tensor:
        batch, length, _ = qkv.shape
        q, k, v = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q = q * 2.0 ** -(ACTIVATION_BITS + half_root(q.shape[-1]))
        scores = torch.matmul(q, k.transpose(-1, -2)).floor_()
        unseen = torch.ones(length, length, dtype=torch.bool, device=qkv.device).triu_(1)
        scores.masked_fill_(unseen, float(MASKED))
        table = self._exp
        if shift := exponential_shift(length):
            table = (table * 2.0**-shift).floor_()
        below = scores.sub_(scores.amax(-1, keepdim=True)).neg_()
        exp = _exponentials(below, table)
        mixed = torch.matmul(exp, v).div_(exp.sum(-1, keepdim=True)).floor_()
        return mixed.transpose(1, 2).reshape(batch, length, -1)

    def cross_entropy(self, x: Tensor, targets: Tensor) -> Tensor:
        below = x.amax(-1, keepdim=True) - x
        wanted = below.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        log = self._logarithm(_exponentials(below, self._exp).sum(-1))
        log.sub_(tables.EXP_BITS * tables.LN2).mul_(2.0**ACTIVATION_BITS)
        loss = wanted.mul_(tables.LOG_UNIT).add_(log).mul_(2.0 ** -(ACTIVATION_BITS + 6))
        return loss.add_(0.5).floor_()

    def mistakes(self, x: Tensor, targets: Tensor) -> Tensor:
        # argmax would do, if it were fixed which of several maxima it finds.
        wanted = x.gather(-1, targets.unsqueeze(-1))
        return ((x >= wanted).sum(-1) != 1).double().mul_(MICRO)

    def squared_error(self, x: Tensor, targets: Tensor) -> Tensor:
        difference = (x - targets).clamp_(-DIFFERENCE_LIMIT, DIFFERENCE_LIMIT)
        total = difference.mul_(difference).sum(-1)
        mean = total.div_(torch.full_like(total, x.shape[-1])).floor_()
        return mean.mul_(MICRO >> 6).mul_(2.0**-18).add_(0.5).floor_()

    def _halves(self, weight: str, bias: str | None) -> Tensor:
        """What is added to each row of sums: the bias, and 1/2 to round by."""
        matrix = self._scaled[weight]
        if bias is None:
            return matrix.new_full((matrix.shape[0],), 0.5)
        return self._scaled[bias] * 2.0**ACTIVATION_BITS + 0.5

    def _logarithm(self, n: Tensor) -> Tensor:
        fraction, exponent = torch.frexp(n)  # n = fraction · 2^exponent, 1/2 ≤ fraction < 1
        place = fraction.mul_(2).sub_(1).mul_(tables.LOG_STEPS)
        whole = place.floor()
        i = whole.long()
        low = self._log[i]
        slope = self._log[i + 1] - low
        part = place.sub_(whole).mul_(slope).floor_()
        return exponent.double().sub_(1).mul_(tables.LN2).add_(low).add_(part)


def _exponentials(below: Tensor, table: Tensor) -> Tensor:
    """EXP of activations ≥ 0; `below` is used up."""
    step = tables.EXP_STEPS / 2.0**ACTIVATION_BITS
    places = below.mul_(step).add_(0.5).clamp_(max=tables.EXP_END).int()  # int rounds down here
    return table.index_select(0, places.view(-1)).view(places.shape)


def _clamp(x: Tensor) -> Tensor:
    return x.clamp_(-LIMIT, LIMIT)
