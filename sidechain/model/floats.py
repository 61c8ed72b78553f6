"""The same programs in floats: what training differentiates and what exact scores are compared to.

Activations and weights are the numbers that the integers of `arithmetic` stand for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from sidechain.model.arithmetic import MICRO

NORM_EPSILON: Final = 1e-6


class Floats:
    """Arithmetic[Tensor] over batches of floats; tokens and classes are int64. unit: what losses
    are counted in, as parts of one."""

    def __init__(self, weights: Mapping[str, Tensor], unit: int = MICRO) -> None:
        self._weights = weights
        self._unit = unit

    def embed(self, tokens: Tensor, table: str, positions: str) -> Tensor:
        length = tokens.shape[1]
        return (
            functional.embedding(tokens, self._weights[table]) + self._weights[positions][:length]
        )

    def linear(self, x: Tensor, weight: str, bias: str | None = None) -> Tensor:
        return functional.linear(x, self._weights[weight], self._weights[bias] if bias else None)

    def image(self, x: Tensor, channels: int, height: int, width: int) -> Tensor:
        return x.view(-1, channels, height, width)

    def convolve(self, x: Tensor, weight: str, bias: str) -> Tensor:
        kernel = self._weights[weight]
        return functional.conv2d(x, kernel, self._weights[bias], padding=kernel.shape[2] // 2)

    def max_pool(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 2)

    def flatten(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def relu(self, x: Tensor) -> Tensor:
        return functional.relu(x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def rms_norm(self, x: Tensor, gain: str) -> Tensor:
        weight = self._weights[gain]
        return functional.rms_norm(x, weight.shape, weight, NORM_EPSILON)

    def attention(self, qkv: Tensor, heads: int) -> Tensor:
        batch, length, _ = qkv.shape
        q, k, v = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return seen.transpose(1, 2).reshape(batch, length, -1)

    def cross_entropy(self, x: Tensor, targets: Tensor) -> Tensor:
        if x.dim() > 2:
            each = functional.cross_entropy(x.flatten(0, -2), targets.flatten(), reduction="none")
            return self._counted(each.view(targets.shape))
        return self._counted(functional.cross_entropy(x, targets, reduction="none"))

    def mistakes(self, x: Tensor, targets: Tensor) -> Tensor:
        wanted = x.gather(-1, targets.unsqueeze(-1))
        return self._counted(((x >= wanted).sum(-1) != 1).to(x.dtype))

    def squared_error(self, x: Tensor, targets: Tensor) -> Tensor:
        return self._counted(torch.square(x - targets).mean(-1))

    def _counted(self, losses: Tensor) -> Tensor:
        return losses if self._unit == 1 else losses * self._unit
