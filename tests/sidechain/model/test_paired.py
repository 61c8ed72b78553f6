import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidechain.model.paired import confirms

losses = st.integers(-(1 << 60), 1 << 60)


def test_by_hand() -> None:
    # d = 1, 1, 1, 1, -1: S = 3, Q = 5, 5·9 = 45 < 4·(25 − 9) = 64
    assert not confirms([2, 2, 2, 2, 0], [1] * 5)
    # d = 1 (19 times), -1: S = 18, Q = 20, 20·324 ≥ 4·(400 − 324)
    assert confirms([2] * 19 + [0], [1] * 20)
    assert confirms([5, 5], [4, 4])


def test_a_gain_is_needed() -> None:
    assert not confirms([], [])
    assert not confirms([3, 4], [3, 4])
    assert not confirms([4, 4], [5, 5])


def test_exactly_two_is_enough() -> None:
    # d = 3 and 1 in equal parts: mean 2, σ 1, n 1 … z = 2·√n
    assert confirms([3, 1], [0, 0])
    # d = 4 and -2 (mean 1, σ 3): z = √n / 3 ≥ 2 from 36 samples on
    assert confirms([4, -2] * 18, [0] * 36)
    assert not confirms([4, -2] * 17, [0] * 34)


@given(st.lists(st.tuples(losses, losses), min_size=2, max_size=50))
def test_it_is_z(pairs: list[tuple[int, int]]) -> None:
    old, new = zip(*pairs, strict=True)
    differences = [a - b for a, b in pairs]
    spread = statistics.pstdev(differences)
    mean = statistics.fmean(differences)
    z = mean * math.sqrt(len(pairs)) / spread if spread else math.inf * (mean or 1)
    if abs(z - 2) > 1e-6:
        assert confirms(old, new) == (z >= 2 and mean > 0)


def test_different_samples_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="zip"):
        confirms([1], [1, 2])
