import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import UserError
from sidechain.model import objective as objectives
from sidechain.model.objective import (
    Accuracy,
    CrossEntropy,
    MeanSquaredError,
    Noise,
    Objective,
    add_noise,
    complexity_cost,
    replace_bytes,
)
from tests.sidechain.model import models

noises = st.one_of(
    st.none(), st.builds(Noise, st.integers(0, (1 << 63) - 1), st.integers(1, 1 << 15))
)


@given(st.sampled_from([CrossEntropy, Accuracy, MeanSquaredError]), st.integers(0, 1 << 32), noises)
def test_json_is_read_back(
    kind: type[CrossEntropy | Accuracy | MeanSquaredError], complexity: int, noise: Noise | None
) -> None:
    objective: Objective = kind(complexity, noise)
    assert objectives.decode(objectives.encode(objective)) == objective


def test_what_is_written() -> None:
    assert objectives.encode(CrossEntropy()) == (
        b'{"type":"cross-entropy","complexity":0,"noise":null}'
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"type":"cross-entropy"}',
        b'{"type":"cross-entropy","complexity":0,"noise":null} ',
        b'{"type":"cross-entropy","complexity":-1,"noise":null}',
        b'{"type":"cross-entropy","complexity":4294967297,"noise":null}',
        b'{"type":"cross-entropy","complexity":1.5,"noise":null}',
        b'{"type":"cross-entropy","complexity":0,"noise":null,"code":"x"}',
        b'{"type":"cross-entropy","complexity":0,"noise":{"seed":1,"strength":0}}',
        b'{"type":"cross-entropy","complexity":0,"noise":{"seed":1,"strength":32769}}',
        b'{"type":"cross-entropy","complexity":0,"noise":{"seed":-1,"strength":1}}',
        b'{"type":"perplexity","complexity":0,"noise":null}',
        b"[" * 500,
        b" " * 513,
    ],
)
def test_what_is_no_objective_is_refused(data: bytes) -> None:
    with pytest.raises(UserError) as caught:
        objectives.decode(data)
    assert caught.value.reason == "bad-objective"


def test_complexity_at_the_limits_of_weights_is_exact() -> None:
    architecture = models.CASES["mlp"].architecture
    weights = models.weights(architecture, "largest")
    squares = sum(int(v) ** 2 for weight in weights.values() for v in weight.flatten())
    assert complexity_cost(CrossEntropy(complexity=1 << 32), weights) == squares << 4
    assert complexity_cost(CrossEntropy(complexity=1), weights) == squares >> 28


def drawn(seed: int, sample: int, size: int) -> list[int]:
    """As the docstrings have it, once more."""
    message = b"oda noise" + seed.to_bytes(8, "big") + sample.to_bytes(8, "big")
    data = hashlib.shake_256(message).digest(2 * size)
    return [int.from_bytes(data[i : i + 2], "little") for i in range(0, 2 * size, 2)]


def test_noise_on_numbers() -> None:
    rows = np.array([[100, -100, 0], [5, 5, 5]], dtype=np.int64)
    noisy = add_noise(Noise(3, 10), rows, 40)
    for i, row in enumerate(rows):
        u = drawn(3, 40 + i, 3)
        wanted = [int(v) + (u[j] * 21 >> 16) - 10 for j, v in enumerate(row)]
        assert noisy[i].tolist() == wanted
    spread = add_noise(Noise(3, 10), np.zeros((100, 50), dtype=np.int64), 0)
    assert set(spread.flatten().tolist()) == set(range(-10, 11))


def test_noise_on_bytes() -> None:
    rows = np.zeros((2, 500), dtype=np.int64)
    noisy = replace_bytes(Noise(4, 1 << 13), rows, 7)
    u = drawn(4, 8, 1000)
    wanted = [u[2 * j + 1] % 256 if u[2 * j] < 1 << 13 else 0 for j in range(500)]
    assert noisy[1].tolist() == wanted
    assert 30 < int((noisy[1] != 0).sum()) < 100  # an eighth of 500


def test_noise_does_not_depend_on_what_is_drawn_with_it() -> None:
    rows = np.zeros((5, 4), dtype=np.int64)
    whole = add_noise(Noise(1, 99), rows, 0)
    assert (whole[3:] == add_noise(Noise(1, 99), rows[3:], 3)).all()
