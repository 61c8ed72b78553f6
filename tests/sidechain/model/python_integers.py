"""The operations of sidechain.model.arithmetic once more, in Python's integers, slow and plain.

Written from the docstrings there and in tables.py; numpy only arranges the integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from sidechain.model import tables
from sidechain.model.arithmetic import LIMIT, exponential_shift

Array = Any  # numpy arrays of dtype object have no better type

EXP = [int(value) for value in tables.EXP.tolist()]
LOG = [int(value) for value in tables.LOG.tolist()]


def integers(values: torch.Tensor) -> Array:
    return np.array([int(v) for v in values.flatten()], dtype=object).reshape(tuple(values.shape))


def each(function: Callable[[int], int], x: Array) -> Array:
    return np.array([function(v) for v in x.ravel()], dtype=object).reshape(x.shape)


def clamp(value: int, limit: int = LIMIT) -> int:
    return max(-limit, min(limit, value))


def rounded(value: int, bits: int) -> int:
    return (value + (1 << (bits - 1))) >> bits


def exp(below: int) -> int:
    return EXP[min((below + 2) // 4, tables.EXP_END)]


def log(n: int) -> int:
    e = n.bit_length() - 1
    place = (n - (1 << e)) * 4096
    i, rest = place >> e, place & ((1 << e) - 1)
    return e * tables.LN2 + LOG[i] + ((LOG[i + 1] - LOG[i]) * rest >> e)


class PythonIntegers:
    """Arithmetic[Array] over batches"""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.weights = {name: integers(weight) for name, weight in weights.items()}

    def embed(self, tokens: Array, table: str, positions: str) -> Array:
        rows = self.weights[table][tokens.astype(int)] + self.weights[positions]
        return each(lambda v: rounded(v, 2), rows)

    def linear(self, x: Array, weight: str, bias: str | None = None) -> Array:
        total = x @ self.weights[weight].T
        if bias is not None:
            total = total + self.weights[bias] * 4096
        return each(lambda v: clamp(rounded(v, 14)), total)

    def image(self, x: Array, channels: int, height: int, width: int) -> Array:
        return x.reshape(-1, channels, height, width)

    def convolve(self, x: Array, weight: str, bias: str) -> Array:
        kernels, biases = self.weights[weight], self.weights[bias]
        batch, _, height, width = x.shape
        edge = kernels.shape[2] // 2
        padded = np.zeros((*x.shape[:2], height + 2 * edge, width + 2 * edge), dtype=object)
        padded[:, :, edge : edge + height, edge : edge + width] = x
        made = np.zeros((batch, len(kernels), height, width), dtype=object)
        for b, o, i, j in np.ndindex(*made.shape):
            window = padded[b, :, i : i + 2 * edge + 1, j : j + 2 * edge + 1]
            total = int((window * kernels[o]).sum()) + biases[o] * 4096
            made[b, o, i, j] = clamp(rounded(total, 14))
        return made

    def max_pool(self, x: Array) -> Array:
        height, width = (x.shape[2] // 2 * 2, x.shape[3] // 2 * 2)
        parts = [x[:, :, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
        return np.maximum.reduce(parts)

    def flatten(self, x: Array) -> Array:
        return x.reshape(len(x), -1)

    def relu(self, x: Array) -> Array:
        return each(lambda v: max(v, 0), x)

    def add(self, x: Array, y: Array) -> Array:
        return each(clamp, x + y)

    def rms_norm(self, x: Array, gain: str) -> Array:
        mean = (x * x).sum(-1, keepdims=True) // x.shape[-1] + 17
        root = each(lambda v: math.isqrt(v << 8), mean)
        return each(lambda v: clamp(rounded(v, 14)), ((x << 16) // root) * self.weights[gain])

    def attention(self, qkv: Array, heads: int) -> Array:
        batch, length, three_widths = qkv.shape
        size = three_widths // 3 // heads
        q, k, v = np.moveaxis(qkv.reshape(batch, length, 3, heads, size), 2, 0)
        made = np.zeros((batch, length, heads, size), dtype=object)
        shift = exponential_shift(length)
        for b, i, h in np.ndindex(batch, length, heads):
            scores = [
                int(q[b, i, h] @ k[b, j, h]) // (4096 * math.isqrt(size)) for j in range(i + 1)
            ]
            weights = [exp(max(scores) - s) >> shift for s in scores]
            made[b, i, h] = sum(w * v[b, j, h] for j, w in enumerate(weights)) // sum(weights)
        return made.reshape(batch, length, heads * size)

    def cross_entropy(self, x: Array, targets: Array) -> Array:
        made = np.zeros(targets.shape, dtype=object)
        for place in np.ndindex(*targets.shape):
            below = [int(max(x[place]) - v) for v in x[place]]
            sum_of_exp = sum(exp(d) for d in below)
            nats = (log(sum_of_exp) - 24 * tables.LN2) * 4096 + 64_000_000 * below[targets[place]]
            made[place] = rounded(nats, 18)
        return made

    def mistakes(self, x: Array, targets: Array) -> Array:
        made = np.zeros(targets.shape, dtype=object)
        for place in np.ndindex(*targets.shape):
            wanted = x[place][targets[place]]
            made[place] = 0 if sum(v >= wanted for v in x[place]) == 1 else 1_000_000
        return made

    def squared_error(self, x: Array, targets: Array) -> Array:
        squares = each(lambda v: clamp(v, 1 << 19) ** 2, x - targets)
        return each(lambda v: rounded(15625 * v, 18), squares.sum(-1) // x.shape[-1])
