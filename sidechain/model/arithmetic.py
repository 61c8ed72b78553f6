"""The operations that scored models are made of, each with one meaning in integers.

An architecture is a program over these operations and nothing else. The same program is run by
several interpreters: `integers.Integers` (what consensus scores), `floats.Floats` (training and
comparison) and `bounds.Bounds` (the proof that no intermediate result leaves 2^53, and what the
program costs). A new architecture is therefore one class, and a new operation one method in each.

Fixed point: an activation `a` stands for a / 2^12 and is clamped to ±2^21 (±512) by every
operation; a weight `w` is an int16 and stands for w / 2^14 (±2). Below, `⌊·⌋` rounds down and
`clamp` is to ±2^21. All of it can be done with the integers of any language. It is done in
float64, whose +, −, ×, ÷ and √ IEEE 754 rounds correctly: on integers of at most 2^53 the first
three are exact in whatever order they are done, fused or not, and so are floors of the others:

- ⌊fl(a / b)⌋ = ⌊a / b⌋ for integers |a| ≤ 2^53, b ≥ 1: the nearest quotient k ± 1/b is further
  than half an ulp from k, because k·b ≤ 2^53 + 1.
- ⌊fl(√n)⌋ = ⌊√n⌋ for integers 0 ≤ n ≤ 2^52: the nearest root, of k² − 1 with k ≤ 2^26, is
  k − 1/(2k) − …, and half an ulp below k is at most 2^-28.
"""

from __future__ import annotations

from typing import Final, Protocol, TypeVar

ACTIVATION_BITS: Final = 12
WEIGHT_BITS: Final = 14
LIMIT: Final = 1 << 21
"""The largest activation."""

WEIGHT_LIMIT: Final = 1 << 15
EXACT: Final = 1 << 53
"""float64 holds every integer up to here."""

EXACT_ROOT: Final = 1 << 52
MICRO: Final = 1_000_000
"""Losses are in millionths: micro-nats, or millionths of a mistake or of a squared unit."""

NORM_FLOOR: Final = 17
"""Stands for the 10^-6 that the float norm adds to a mean square: 10^-6 · 2^24 = 16.8."""

NORM_ROOT_BITS: Final = 4
"""More bits for the root of a mean square than an activation has."""

MASKED: Final = -(1 << 40)
"""The score of what attention may not see; its exponential is 0 whatever the others are."""

DIFFERENCE_LIMIT: Final = 1 << 19
"""The squared error looks no further than ±128 (so that its square in micro-units is exact)."""

MAX_PARAMETERS: Final = 1 << 24
"""The largest model that is scored: 32 MiB of int16."""

T = TypeVar("T")


class Arithmetic(Protocol[T]):
    """Shapes are given without the leading batch; `weight` and the like name tensors."""

    def embed(self, tokens: T, table: str, positions: str) -> T:
        """(n,) -> (n, width): ⌊(table[token] + positions[i]) / 4 + 1/2⌋"""

    def linear(self, x: T, weight: str, bias: str | None = None) -> T:
        """(…, i) -> (…, o): clamp(⌊(Σ x·w + 2^12·bias) / 2^14 + 1/2⌋), weight (o, i), bias (o,)"""

    def image(self, x: T, channels: int, height: int, width: int) -> T:
        """(channels · height · width,) -> (channels, height, width), row by row"""

    def convolve(self, x: T, weight: str, bias: str) -> T:
        """(i, h, w) -> (o, h, w): as linear over odd k × k windows with zeros around the image"""

    def max_pool(self, x: T) -> T:
        """(c, h, w) -> (c, h // 2, w // 2): the largest of each 2 × 2; an odd edge is left out"""

    def flatten(self, x: T) -> T:
        """(c, h, w) -> (c · h · w,)"""

    def relu(self, x: T) -> T:
        """max(x, 0)"""

    def add(self, x: T, y: T) -> T:
        """clamp(x + y)"""

    def rms_norm(self, x: T, gain: str) -> T:
        """(…, n) -> the same: clamp(⌊⌊2^16 · x / r⌋ · gain / 2^14 + 1/2⌋)

        with r = ⌊√(2^8 · (⌊Σ x² / n⌋ + 17))⌋, gain (n,).
        """

    def attention(self, qkv: T, heads: int) -> T:
        """(n, 3 · width) -> (n, width): causal self-attention

        Per head of size d, s = ⌊q·k / (2^12 · √d)⌋ and e = ⌊EXP(max s − s) / 2^shift⌋ over the
        positions seen, then ⌊Σ e·v / Σ e⌋; `exponential_shift` and tables.EXP are part of it.
        """

    def cross_entropy(self, x: T, targets: T) -> T:
        """(…, classes) logits, (…) class numbers -> (…) micro-nats, ≥ 0

        With d = max x − x and S = Σ EXP(d): ⌊(2^12 · (LOG(S) − 24 · LN2) + 64·10^6 · d[target])
        / 2^18 + 1/2⌋, where LOG counts in 1/64 micro-nats (tables.py).
        """

    def mistakes(self, x: T, targets: T) -> T:
        """(…, classes), (…) -> (…): 0 where the target alone has the largest logit, else 10^6"""

    def squared_error(self, x: T, targets: T) -> T:
        """(n,), (n,) -> (): ⌊15625 · ⌊Σ clampd(x − target)² / n⌋ / 2^18 + 1/2⌋, clampd to ±2^19"""


def exponential_shift(length: int) -> int:
    """Bits taken off each exponential so that Σ e·v over `length` positions stays below 2^53."""
    return max(0, (length - 1).bit_length() - 8)


def half_root(size: int) -> int:
    """log2 of the root of a head size, which is 4, 16 or 64."""
    return (size.bit_length() - 1) // 2
