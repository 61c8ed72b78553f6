import pytest
import torch

from sidechain.model import exact
from sidechain.model.classifiers import Cnn, Mlp
from sidechain.model.improve import improve
from sidechain.model.objective import Accuracy, CrossEntropy, Objective
from sidechain.model.paired import confirms
from sidechain.model.parts import Labelled, fixed_point
from sidechain.model.registry import Architecture
from sidechain.model.trainer import Budget
from tests.sidechain.model import models


@pytest.mark.parametrize("name", models.CASES)
def test_every_objective_can_be_trained_for(name: str) -> None:
    architecture, objective, part = models.CASES[name]
    steps: list[int] = []
    start = improve(architecture, objective, part, Budget(steps=1), seed=3)
    better = improve(
        architecture, objective, part, Budget(steps=60), start=start, rate=1e-2,
        progress=lambda step, loss, seconds: steps.append(step),
    )  # fmt: skip
    assert steps == list(range(1, 61))
    before, after = (exact.score(architecture, objective, w, part) for w in (start, better))
    assert after < before


def test_the_same_seed_and_steps_give_the_same_weights() -> None:
    architecture, objective, part = models.CASES["mlp"]
    before = torch.random.get_rng_state()
    one, two, other = (
        improve(architecture, objective, part, Budget(steps=5), seed=seed) for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.fixture(scope="module")
def digits() -> Labelled:
    pytest.importorskip("sklearn", reason="the dev extra brings scikit-learn")
    # sklearn has no type information.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it has no types

    inputs, labels = load_digits(return_X_y=True)
    return Labelled(fixed_point(inputs / 16), labels.astype("uint16"))


def part_of(digits: Labelled, start: int, end: int) -> Labelled:
    return Labelled(digits.inputs[start:end], digits.labels[start:end])


def test_the_paired_test_tells_learning_from_overfitting(digits: Labelled) -> None:
    """An honest trainer learns from own data; a cheat from the public part it is scored on."""
    learn, public, hidden = (
        part_of(digits, *ends) for ends in ((0, 1000), (1000, 1400), (1400, 1797))
    )
    architecture, objective = Mlp(64, (64,), 10), CrossEntropy()

    def losses(weights: dict[str, torch.Tensor], part: Labelled) -> tuple[int, ...]:
        return exact.sample_losses(architecture, objective, weights, part)

    first = improve(architecture, objective, learn, Budget(steps=100))
    honest = improve(architecture, objective, learn, Budget(steps=300), start=first)
    cheat = improve(architecture, objective, public, Budget(steps=300), start=honest, rate=1e-2)
    assert sum(losses(honest, public)) < sum(losses(first, public))
    assert sum(losses(cheat, public)) < sum(losses(honest, public)) // 10
    assert confirms(losses(first, hidden), losses(honest, hidden))
    assert not confirms(losses(honest, hidden), losses(cheat, hidden))


@pytest.mark.parametrize(
    ("architecture", "objective"),
    [(Cnn(8, 8, (8,), 10), CrossEntropy()), (Mlp(64, (64,), 10), Accuracy())],
)
def test_digits_are_learnt(
    digits: Labelled, architecture: Architecture, objective: Objective
) -> None:
    learnt = improve(
        architecture, objective, part_of(digits, 0, 1400), Budget(steps=300), rate=1e-2
    )
    held_out = part_of(digits, 1400, 1797)
    mistakes = exact.score(architecture, Accuracy(), learnt, held_out) // 1_000_000
    assert mistakes < 40  # of 397
    evaluation = exact.evaluate(architecture, CrossEntropy(), learnt, held_out)
    assert abs(evaluation.difference) < 0.001 * evaluation.in_floats
