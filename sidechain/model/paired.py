"""Did an update get better on data nobody had seen? The paired test of opened shards. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

Z_SQUARED: Final = 4
"""z ≥ 2: luck passes once in 44 times."""


def confirms(old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether the new losses are lower than the old ones with z ≥ 2; sample i is the same in both.

    With d = old − new, S = Σ d and Q = Σ d² over n samples: S > 0 and n·S² ≥ 4·(n·Q − S²). That
    is z = mean(d) / (σ(d) / √n) ≥ 2 with the population's σ, squared and freed of divisions.
    ValueError for lists of different lengths.
    """
    differences = [before - after for before, after in zip(old, new, strict=True)]
    n = len(differences)
    total = sum(differences)
    squares = sum(difference * difference for difference in differences)
    return total > 0 and n * total * total >= Z_SQUARED * (n * squares - total * total)
