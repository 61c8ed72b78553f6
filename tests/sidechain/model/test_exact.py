import json
import math
import os
import subprocess
import sys

import pytest
import torch

from channels.errors import UserError
from sidechain.model import exact
from sidechain.model.architecture import ByteTransformer
from sidechain.model.classifiers import Mlp
from sidechain.model.network import Network
from sidechain.model.objective import Accuracy, CrossEntropy, MeanSquaredError, Noise
from sidechain.model.parts import Labelled, Regression, Text, fixed_point
from sidechain.model.weights import quantise
from tests.sidechain.model import models, scores_in_this_environment

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "one thread, no vector instructions": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
    "three threads, AVX2": {
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "3",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "compatible MKL": {"MKL_CBWR": "COMPATIBLE", "MKL_DEBUG_CPU_TYPE": "5"},
}


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    return scores_in_this_environment.scores()


@pytest.mark.parametrize("settings", ENVIRONMENTS)
def test_the_same_scores_in_every_environment(settings: str, here: dict[str, str]) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tests.sidechain.model.scores_in_this_environment"],
        env={**os.environ, **ENVIRONMENTS[settings]},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    capability, found = json.loads(child.stdout)
    assert found == here
    wanted = ENVIRONMENTS[settings]
    if "ATEN_CPU_CAPABILITY" in wanted and os.uname().machine == "x86_64":
        assert capability == wanted["ATEN_CPU_CAPABILITY"].upper()


def test_the_same_scores_with_every_number_of_threads(here: dict[str, str]) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert scores_in_this_environment.scores() == here
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", models.CASES)
def test_exact_and_float_scores_are_close(name: str) -> None:
    architecture, objective, part = models.CASES[name]
    evaluation = exact.evaluate(architecture, objective, models.weights(architecture), part)
    assert evaluation.difference == evaluation.total - evaluation.in_floats
    if isinstance(objective, Accuracy):
        # One answer in many may be so close that the two disagree.
        assert abs(evaluation.difference) <= 2_000_000
    else:
        assert abs(evaluation.difference) < 0.003 * evaluation.in_floats
    in_float32 = exact.evaluate(
        architecture, objective, models.weights(architecture), part, floats=torch.float32
    )
    assert in_float32.losses == evaluation.losses


def test_a_score_is_what_its_unit_says() -> None:
    # All weights 0: every byte has the chance 1/256.
    architecture = ByteTransformer(width=8, blocks=1, heads=2, context=8)
    zeros = {n: torch.zeros(s, dtype=torch.int16) for n, s in architecture.shapes().items()}
    losses = exact.sample_losses(architecture, CrossEntropy(), zeros, Text(bytes(17)))
    assert losses == (8 * 5_545_178,) * 2
    assert abs(math.log(256) * 1e6 - 5_545_178) < 1
    assert exact.score(architecture, Accuracy(), zeros, Text(bytes(17))) == 16 * 1_000_000


def test_the_squared_error_in_millionths() -> None:
    linear = Mlp(1, (), 1)
    weights = {
        "layers.0.weight": torch.tensor([[8192]], dtype=torch.int16),  # 1/2
        "layers.0.bias": torch.tensor([16384], dtype=torch.int16),  # 1
    }
    part = Regression(*(torch.tensor([[v]]).short().numpy() for v in (4096, -4096)))
    assert exact.sample_losses(linear, MeanSquaredError(), weights, part) == (6_250_000,)  # 2.5²


def test_complexity_costs_what_it_says() -> None:
    architecture, _, part = models.CASES["mlp"]
    weights = models.weights(architecture)
    norm = sum(float((w.double() / 2**14).square().sum()) for w in weights.values())
    plain = exact.sample_losses(architecture, CrossEntropy(), weights, part)
    priced = exact.sample_losses(architecture, CrossEntropy(complexity=1000), weights, part)
    assert {b - a for a, b in zip(plain, priced, strict=True)} == {int(1000 * norm)}


@pytest.mark.parametrize("name", ["mlp", "text"])
def test_noise_follows_its_seed_alone(name: str) -> None:
    architecture, _, part = models.CASES[name]
    weights = models.weights(architecture)

    def losses(seed: int, strength: int, batch: int = 4) -> tuple[int, ...]:
        objective = CrossEntropy(noise=Noise(seed, strength))
        return exact.sample_losses(architecture, objective, weights, part, batch=batch)

    assert losses(1, 9000) == losses(1, 9000, batch=1)
    assert losses(1, 9000) != losses(2, 9000)
    assert losses(1, 9000) != exact.sample_losses(architecture, CrossEntropy(), weights, part)


def test_data_that_does_not_fit_is_refused() -> None:
    mlp, text = Mlp(12, (), 5), ByteTransformer(width=8, blocks=1, heads=2, context=8)
    cross, squared = CrossEntropy(), MeanSquaredError()
    for architecture, objective, part in (
        (mlp, cross, Text(models.TEXT)),
        (mlp, cross, models.regression(3, 12, 5)),
        (mlp, squared, models.labelled(3, 12, 5)),
        (mlp, squared, models.regression(3, 12, 4)),
        (mlp, squared, models.regression(3, 11, 5)),
        (mlp, cross, models.labelled(3, 11, 5)),
        (mlp, cross, models.labelled(50, 12, 6)),
        (text, cross, models.labelled(3, 8, 5)),
        (text, cross, Text(bytes(8))),
        (text, cross, Text(b"")),
    ):
        with pytest.raises(UserError) as caught:
            exact.sample_losses(architecture, objective, models.weights(architecture), part)
        assert caught.value.reason == "bad-dataset"
    assert exact.count_samples(text, cross, Text(bytes(9))) == 1


def test_weights_of_another_architecture_are_refused() -> None:
    architecture, objective, part = models.CASES["mlp"]
    for weights in (
        models.weights(Mlp(12, (9, 8), 5)),
        {n: w.float() for n, w in models.weights(architecture).items()},
        {},
    ):
        with pytest.raises(UserError) as caught:
            exact.score(architecture, objective, weights, part)
        assert caught.value.reason == "bad-weights"


def test_training_lowers_the_exact_score_of_handwritten_digits() -> None:
    pytest.importorskip("sklearn", reason="the dev extra brings scikit-learn")
    # sklearn has no type information.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it has no types

    inputs, labels = load_digits(return_X_y=True)
    part = Labelled(fixed_point(inputs / 16), labels.astype("uint16"))
    x, y = part.batch(64, None, 0, 1200)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(Mlp(64, (32,), 10))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    held_out = Labelled(part.inputs[1200:], part.labels[1200:])
    scores = []
    for _ in range(3):
        weights = quantise(network.state_dict()).weights
        evaluation = exact.evaluate(network.architecture, CrossEntropy(), weights, held_out)
        assert abs(evaluation.difference) < 0.002 * evaluation.in_floats
        scores.append(evaluation.total // len(evaluation.losses))
        for _ in range(60):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(x.float() / 4096), y)
            torch.autograd.backward(loss)
            optimizer.step()
    assert scores[0] > 2_000_000 > 500_000 > scores[1] > scores[2]
