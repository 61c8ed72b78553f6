"""The proof that scoring a model is exact, computed from its hyper-parameters.

The architecture's program is walked with the largest magnitude that each operation can see (inputs,
weights and activations at their limits, every term of a sum with the same sign), and no number on
the way may pass 2^53, in any order of summation. The same walk adds up what a sample costs to
score and the most memory one operation needs, both of which a stranger's hyper-parameters decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from channels.errors import UserError
from sidechain.model import tables
from sidechain.model.arithmetic import (
    ACTIVATION_BITS,
    DIFFERENCE_LIMIT,
    EXACT,
    EXACT_ROOT,
    LIMIT,
    MASKED,
    MICRO,
    NORM_FLOOR,
    NORM_ROOT_BITS,
    WEIGHT_BITS,
    WEIGHT_LIMIT,
    exponential_shift,
    half_root,
)

MAX_ELEMENTS: Final = 1 << 24
"""The most numbers one operation may make of one sample: 128 MiB of float64."""

PASS: Final = 32
"""What a pass over one number costs, where one multiplication or addition of a matrix product is
1. Measured (benchmarks/scoring.py): memory, not arithmetic, is what a pass waits for."""


@dataclass(frozen=True, slots=True)
class Extent:
    """All there is to know beforehand of the numbers that an operation makes of one sample."""

    shape: tuple[int, ...]
    largest: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Step:
    """`largest`: of its intermediate numbers, counted in the smallest unit that any of them has."""

    operation: str
    largest: int


@dataclass(frozen=True, slots=True)
class Proof:
    """What was shown of one sample's way through an architecture and an objective."""

    steps: tuple[Step, ...]
    cost: int
    elements: int

    @property
    def largest(self) -> int:
        return max(step.largest for step in self.steps)


class Bounds:
    """Arithmetic[Extent]. `shapes`: of the weights, by name.

    Every method raises UserError("inexact-architecture") where 2^53 could be passed, and
    UserError("too-large") where one operation would make more than MAX_ELEMENTS numbers.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._steps: list[Step] = []
        self._cost = 0
        self._elements = 0

    def proof(self) -> Proof:
        return Proof(tuple(self._steps), self._cost, self._elements)

    def embed(self, tokens: Extent, table: str, positions: str) -> Extent:
        (length,) = tokens.shape
        rows, width = self._shapes[table]
        _same(
            "an embedding",
            (tokens.largest < rows, self._shapes[positions]),
            (True, (length, width)),
        )
        shift = WEIGHT_BITS - ACTIVATION_BITS
        total = 2 * WEIGHT_LIMIT + (1 << (shift - 1))
        self._step("embed", total)
        return self._made((length, width), total >> shift, passes=5)

    def linear(self, x: Extent, weight: str, bias: str | None = None) -> Extent:
        outputs, inputs = self._shapes[weight]
        _same(weight, x.shape[-1], inputs)
        _same(weight, self._shapes[bias] if bias else (outputs,), (outputs,))
        total = self._sum_of_products(f"linear {weight}", x.largest, inputs, bias is not None)
        positions = math.prod(x.shape[:-1])
        self._cost += 2 * positions * inputs * outputs
        return self._made((*x.shape[:-1], outputs), min(total, LIMIT), passes=3)

    def image(self, x: Extent, channels: int, height: int, width: int) -> Extent:
        _same("an image", x.shape, (channels * height * width,))
        return Extent((channels, height, width), x.largest)

    def convolve(self, x: Extent, weight: str, bias: str) -> Extent:
        outputs, inputs, kernel, same_kernel = self._shapes[weight]
        channels, height, width = x.shape
        _same(weight, (channels, same_kernel, kernel % 2), (inputs, kernel, 1))
        _same(weight, self._shapes[bias], (outputs,))
        window = inputs * kernel * kernel
        total = self._sum_of_products(f"convolve {weight}", x.largest, window, True)
        self._cost += 2 * outputs * window * height * width
        self._made((window, height, width), x.largest, passes=3)  # the windows, side by side
        return self._made((outputs, height, width), min(total, LIMIT), passes=4)

    def max_pool(self, x: Extent) -> Extent:
        channels, height, width = x.shape
        return self._made((channels, height // 2, width // 2), x.largest, passes=8)

    def flatten(self, x: Extent) -> Extent:
        return Extent((x.elements,), x.largest)

    def relu(self, x: Extent) -> Extent:
        return self._made(x.shape, x.largest, passes=1)

    def add(self, x: Extent, y: Extent) -> Extent:
        _same("a sum", x.shape, y.shape)
        self._step("add", x.largest + y.largest)
        return self._made(x.shape, min(x.largest + y.largest, LIMIT), passes=2)

    def rms_norm(self, x: Extent, gain: str) -> Extent:
        size = x.shape[-1]
        _same(gain, self._shapes[gain], (size,))
        squares = size * x.largest**2
        self._step(f"rms_norm {gain}, sum of squares", squares)
        under_root = (x.largest**2 + NORM_FLOOR) << 2 * NORM_ROOT_BITS
        self._step(f"rms_norm {gain}, root", under_root, EXACT_ROOT)
        shifted = x.largest << (ACTIVATION_BITS + NORM_ROOT_BITS)
        self._step(f"rms_norm {gain}, dividend", shifted)
        # r > 2^4 · √(x² / size) − 1 and r ≥ 16, so r ≥ 16/17 of that root, and x over the root
        # of the mean square is at most √size; 1 for the rounding down of a negative quotient.
        ratio = ((17 * (math.isqrt(size) + 1)) << ACTIVATION_BITS) // 16 + 1
        normed = min(shifted // (1 << NORM_ROOT_BITS), ratio) + 1
        total = self._sum_of_products(f"rms_norm {gain}, gain", normed, 1, False)
        return self._made(x.shape, min(total, LIMIT), passes=10)

    def attention(self, qkv: Extent, heads: int) -> Extent:
        length, three_widths = qkv.shape
        width = three_widths // 3
        size = width // heads
        _same("attention", (3 * heads * size, size in (4, 16, 64)), (three_widths, True))
        scores = size * qkv.largest**2
        self._step("attention, scores", scores)
        shift = ACTIVATION_BITS + half_root(size)
        # What is masked must be far enough below the rest to have the exponential 0.
        far_enough = -MASKED - (tables.EXP_END << ACTIVATION_BITS)
        self._step("attention, mask", 2 * (scores >> shift) + 2, far_enough)
        exponentials = length << (tables.EXP_BITS - exponential_shift(length))
        self._step("attention, weighted sum", exponentials * qkv.largest)
        self._cost += 4 * length * length * width
        self._made((heads, length, length), scores >> shift, passes=24)
        return self._made((length, width), qkv.largest + 1, passes=8)

    def cross_entropy(self, x: Extent, targets: Extent) -> Extent:
        classes = x.shape[-1]
        _same("cross entropy", (x.shape[:-1], targets.largest < classes), (targets.shape, True))
        total = classes << tables.EXP_BITS
        log = total.bit_length() * tables.LN2
        # LOG multiplies a slope of at most 2^14 by a fraction with as many bits as the sum has.
        self._step("cross entropy, logarithm", total << 14)
        difference = 2 * x.largest
        both = (log << ACTIVATION_BITS) + tables.LOG_UNIT * difference
        self._step("cross entropy", both + (1 << (ACTIVATION_BITS + 5)))
        loss = (both >> (ACTIVATION_BITS + 6)) + 1
        self._made(x.shape, loss, passes=14)
        return self._losses(targets.shape, loss, passes=20)

    def mistakes(self, x: Extent, targets: Extent) -> Extent:
        _same("accuracy", (x.shape[:-1], targets.largest < x.shape[-1]), (targets.shape, True))
        self._made(x.shape, 1, passes=3)
        return self._losses(targets.shape, MICRO, passes=4)

    def squared_error(self, x: Extent, targets: Extent) -> Extent:
        _same("squared error", x.shape, targets.shape)
        self._step("squared error, difference", x.largest + targets.largest)
        self._step("squared error, sum", x.elements * DIFFERENCE_LIMIT**2)
        scaled = DIFFERENCE_LIMIT**2 * (MICRO >> 6)
        self._step("squared error, in micro-units", scaled + (1 << 17))
        self._made(x.shape, DIFFERENCE_LIMIT**2, passes=4)
        return self._losses((), (scaled >> 18) + 1, passes=6)

    def _losses(self, shape: Sequence[int], loss: int, passes: int) -> Extent:
        total = self._made(tuple(shape), loss, passes)
        self._step("losses of one sample", total.elements * loss)
        return total

    def _sum_of_products(self, what: str, largest: int, terms: int, bias: bool) -> int:
        """-> the largest magnitude after rounding"""
        total = terms * largest * WEIGHT_LIMIT + (1 << (WEIGHT_BITS - 1))
        total += (WEIGHT_LIMIT << ACTIVATION_BITS) if bias else 0
        self._step(what, total)
        return (total >> WEIGHT_BITS) + 1

    def _step(self, operation: str, largest: int, limit: int = EXACT) -> None:
        if largest > limit:
            raise UserError(
                "inexact-architecture",
                f"{operation} may reach {largest}, more than {limit}; take a smaller architecture.",
            )
        self._steps.append(Step(operation, largest))

    def _made(self, shape: tuple[int, ...], largest: int, passes: int) -> Extent:
        extent = Extent(shape, largest)
        if extent.elements > MAX_ELEMENTS:
            raise UserError(
                "too-large",
                f"One sample makes {extent.elements} numbers at once, more than {MAX_ELEMENTS}; "
                "take a smaller architecture.",
            )
        self._elements = max(self._elements, extent.elements)
        self._cost += PASS * passes * extent.elements
        return extent


def _same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise UserError("bad-architecture", f"{what} does not fit: {found} instead of {wanted}.")
