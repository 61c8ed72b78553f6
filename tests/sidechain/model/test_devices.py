"""What runs where: training on the device that was asked for, scores the same on all of them.

torch's "meta" device has shapes and no numbers, and refuses to be mixed with another: what goes
through on it leaves nothing behind on the CPU, and would not on a GPU.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from channels.errors import UserError
from sidechain.model import exact, together
from sidechain.model.architecture import ByteTransformer
from sidechain.model.classifiers import Cnn, Mlp
from sidechain.model.dataset import python_documentation
from sidechain.model.improve import Improving
from sidechain.model.integers import Integers
from sidechain.model.objective import CrossEntropy
from sidechain.model.parts import Part, Text
from sidechain.model.registry import Architecture
from sidechain.model.search import Base, Look, Plan, Search
from sidechain.model.weights import weights_root
from sidechain.model.world import ALONE, World
from tests.sidechain.directories import samples
from tests.sidechain.model import models

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
META = torch.device("meta")


@pytest.mark.parametrize("name", models.CASES)
def test_scoring_leaves_nothing_elsewhere(name: str) -> None:
    architecture, objective, part = models.CASES[name]
    ops = Integers(models.weights(architecture), META)
    inputs, targets = part.batch(architecture.input_shape[0], objective.noise, 0, 3)
    made = architecture.forward(ops, inputs.to(META))
    losses = objective.losses(ops, made, targets.to(META))
    assert losses.device == META
    assert len(losses) == 3


@pytest.mark.parametrize("name", models.CASES)
def test_scores_are_the_same_whatever_the_device_that_torch_prefers(name: str) -> None:
    architecture, objective, part = models.CASES[name]
    weights = models.weights(architecture)
    here = exact.sample_losses(architecture, objective, weights, part)
    with META:
        assert exact.sample_losses(architecture, objective, weights, part) == here


@NO_GPU
def test_the_same_scores_on_a_gpu() -> None:
    for architecture, objective, part in models.CASES.values():
        for kind in ("small", "any", "largest"):
            weights = models.weights(architecture, kind)
            on_gpu = exact.sample_losses(architecture, objective, weights, part, device="cuda")
            assert on_gpu == exact.sample_losses(architecture, objective, weights, part)


@pytest.mark.parametrize("name", models.CASES)
def test_training_leaves_nothing_elsewhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adam = torch.optim.Adam

    def not_fused(parameters: Any, rate: float, fused: bool) -> torch.optim.Adam:
        return adam(parameters, rate)  # a fused one needs numbers

    monkeypatch.setattr(torch.optim, "Adam", not_fused)
    architecture, objective, part = models.CASES[name]
    start = models.weights(architecture)
    attempt = Improving(architecture, objective, part, start=start, device="meta")
    loss = attempt.step()
    assert loss.device == META
    parameters = dict(attempt.network.named_parameters())
    assert {each.device for each in parameters.values()} == {META}
    assert all(each.grad is not None for each in parameters.values())


TRAINED: dict[str, tuple[Architecture, Part]] = {
    "mlp": (Mlp(4, (6,), 3), samples(600, 0)),
    "cnn": (Cnn(2, 2, (3,), 3), samples(600, 0)),
    "text": (
        ByteTransformer(width=16, blocks=1, heads=1, context=16),
        Text(python_documentation()[:8000]),
    ),
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
@pytest.mark.parametrize("name", TRAINED)
def test_an_attempt_goes_on_from_its_checkpoint_on_any_device(
    device: str, name: str, tmp_path: Path
) -> None:
    """And what it finds are int16 weights in memory that everybody scores the same."""
    architecture, part = TRAINED[name]
    goal = CrossEntropy()
    start = Improving(architecture, goal, part).weights()
    base = Base(start, weights_root(start), exact.score(architecture, goal, start, part))
    looks: list[Look] = []
    for number, each in enumerate((device, "cpu", device)):
        plan = Plan(0.05, device=each, checkpoint=tmp_path / "checkpoint")
        one_look = partial(has_more_than, looks, number)
        search = Search(architecture, goal, part, plan)
        assert search.find(base, lambda: base.score, stop=one_look, looked=looks.append) is None
    steps = [look.steps for look in looks]
    assert len(steps) == 3 and steps == sorted(set(steps)), "it was not begun anew"
    found = Search(architecture, goal, part, Plan(0.1, 50, device=device)).find(base, lambda: 1)
    assert found is not None
    assert {weight.device.type for weight in found.weights.values()} == {"cpu"}
    assert found.score == exact.score(architecture, goal, found.weights, part) < base.score


def has_more_than(looks: list[Look], number: int) -> bool:
    return len(looks) > number


def test_what_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for, else a GPU for each process, as far as there are."""
    assert together.best_device(ALONE, "cpu") == "cpu"
    for wish in ("gpu", "meta", ""):
        with pytest.raises(UserError) as caught:
            together.best_device(ALONE, wish)
        assert caught.value.reason == "bad-device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert together.best_device(ALONE) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [together.best_device(World(rank, 4)) for rank in range(4)] == [
        *("cuda:0", "cuda:1", "cuda:0", "cuda:1")
    ]
