"""float64 does what Python's integers do, at every magnitude that the proof allows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidechain.model import exact
from sidechain.model.arithmetic import EXACT, EXACT_ROOT, LIMIT
from sidechain.model.integers import Integers
from sidechain.model.objective import complexity_cost
from tests.sidechain.model import models
from tests.sidechain.model.python_integers import PythonIntegers, integers

AROUND = st.integers(-3, 3)


@pytest.mark.parametrize("kind", ["small", "any", "largest"])
@pytest.mark.parametrize("name", models.CASES)
def test_scores_are_those_of_python_integers(name: str, kind: str) -> None:
    architecture, objective, part = models.CASES[name]
    weights = models.weights(architecture, kind)
    samples = min(6, exact.count_samples(architecture, objective, part))
    inputs, targets = part.batch(architecture.input_shape[0], objective.noise, 0, samples)
    ops = PythonIntegers(weights)
    made = objective.losses(ops, architecture.forward(ops, integers(inputs)), integers(targets))
    wanted = made.reshape(samples, -1).sum(1) + complexity_cost(objective, weights)
    assert exact.sample_losses(architecture, objective, weights, part)[:samples] == tuple(wanted)


@settings(max_examples=300)
@given(st.integers(1, EXACT), st.integers(1, EXACT), AROUND, st.booleans())
def test_floors_of_quotients(product: int, b: int, around: int, negative: bool) -> None:
    a = min(EXACT, max(0, product // b * b + around)) * (-1 if negative else 1)
    assert int(np.floor(np.float64(a) / np.float64(b))) == a // b
    # Several at once, so that vector instructions divide too.
    dividends, divisors = (torch.full((9,), v, dtype=torch.float64) for v in (a, b))
    assert (dividends / divisors).floor().tolist() == [a // b] * 9


@settings(max_examples=300)
@given(st.integers(0, 1 << 26), AROUND)
def test_floors_of_roots(root: int, around: int) -> None:
    n = min(EXACT_ROOT, max(0, root * root + around))
    roots = torch.full((9,), n, dtype=torch.float64).sqrt().floor()
    assert roots.tolist() == [math.isqrt(n)] * 9


def wide(values: list[int]) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


activations = st.one_of(
    st.integers(-LIMIT, LIMIT), st.sampled_from([-LIMIT, LIMIT, 0, 1, -1]), st.integers(-50, 50)
)


@settings(max_examples=100, deadline=None)
@given(st.lists(activations, min_size=2, max_size=40), st.data())
def test_losses_of_any_outputs(values: list[int], data: st.DataObject) -> None:
    x, target = wide(values), torch.tensor([data.draw(st.integers(0, len(values) - 1))])
    ops, plain = Integers({}), PythonIntegers({})
    for objective in ("cross_entropy", "mistakes"):
        found = getattr(ops, objective)(x.clone(), target)
        assert integers(found) == getattr(plain, objective)(integers(x), integers(target))
        assert found >= 0
    other = wide(data.draw(st.lists(st.integers(-(1 << 15), 1 << 15), min_size=len(values),
                                    max_size=len(values))))  # fmt: skip
    found = ops.squared_error(x, other)
    assert integers(found) == plain.squared_error(integers(x), integers(other))


@settings(max_examples=60, deadline=None)
@given(st.lists(activations, min_size=1, max_size=40), st.data())
def test_the_norm_of_anything(values: list[int], data: st.DataObject) -> None:
    gains = st.lists(
        st.integers(-(1 << 15), (1 << 15) - 1), min_size=len(values), max_size=len(values)
    )
    weights = {"gain": torch.tensor(data.draw(gains), dtype=torch.int16)}
    found = Integers(weights).rms_norm(wide(values), "gain")
    assert (
        integers(found) == PythonIntegers(weights).rms_norm(integers(wide(values)), "gain")
    ).all()


@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 300])
@pytest.mark.parametrize("largest", [3000, 15_000, 0])
def test_attention_at_the_limit_and_beyond_256_positions(length: int, largest: int) -> None:
    """With scores alike, with scores many nats apart (most exponentials are of a few units), and
    with the largest weighted sums there are."""
    draw = torch.Generator().manual_seed(length)
    qkv = torch.randint(-LIMIT, LIMIT + 1, (1, length, 12), generator=draw).double()
    qkv[:, :, :8] = torch.randint(-largest, largest + 1, (1, length, 8), generator=draw).double()
    if largest == 0:
        qkv[:, :, 8:] = LIMIT
    found = Integers({}).attention(qkv, 1)
    assert (integers(found) == PythonIntegers({}).attention(integers(qkv), 1)).all()


def test_a_tie_is_a_mistake() -> None:
    ops = Integers({})
    assert ops.mistakes(wide([5, 5, 1]), torch.tensor([0])).tolist() == [1e6]
    assert ops.mistakes(wide([5, 4, 1]), torch.tensor([0])).tolist() == [0]
