import math

import pytest
import torch

from channels.errors import UserError
from sidechain.model.architecture import ByteTransformer
from sidechain.model.dataset import python_documentation, split
from sidechain.model.trainer import Budget, nats_per_byte, train

TINY = ByteTransformer(width=16, blocks=1, heads=4, context=16)


def test_the_text_is_real_and_a_tenth_is_held_out() -> None:
    text = python_documentation()
    learn, hold_out = split(text)
    assert learn + hold_out == text
    assert len(text) > 300_000
    assert len(hold_out) == len(text) // 10
    assert b"list" in hold_out


def test_training_learns_what_was_held_out() -> None:
    # The training batches must not need the hold-out for its loss to fall.
    text = python_documentation()
    untrained = nats_per_byte(ByteTransformer().build(), split(text)[1])
    assert untrained > 5  # a byte at random is ln 256 = 5.55 nats
    trained = train(ByteTransformer(), text, Budget(steps=150))
    assert trained.steps == 150
    assert trained.holdout_nats_per_byte < 2.6


def test_the_same_seed_and_steps_give_the_same_model() -> None:
    text = python_documentation()[:20_000]
    before = torch.random.get_rng_state()
    one, two, other = (train(TINY, text, Budget(steps=5), seed=seed) for seed in (1, 1, 2))
    assert one.holdout_nats_per_byte == two.holdout_nats_per_byte
    assert torch.equal(one.module.head.weight, two.module.head.weight)
    assert not torch.equal(one.module.head.weight, other.module.head.weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_progress_is_reported_from_the_first_step_to_the_last() -> None:
    reports: list[tuple[int, float, float]] = []
    text = python_documentation()[:20_000]
    trained = train(TINY, text, Budget(steps=25), progress=lambda *args: reports.append(args))
    assert [step for step, _, _ in reports] == [1, 11, 21, 25]
    assert reports[-1][2] == trained.seconds
    assert reports[-1][1] < reports[0][1]
    assert [seconds for _, _, seconds in reports] == sorted(seconds for _, _, seconds in reports)


def test_time_ends_training_too() -> None:
    trained = train(TINY, python_documentation()[:20_000], Budget(seconds=0.05, steps=10**9))
    assert 1 <= trained.steps < 10**9


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
def test_a_budget_without_an_end_is_refused(seconds: float) -> None:
    with pytest.raises(UserError) as caught:
        Budget(seconds=seconds)
    assert caught.value.reason == "no-budget"


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        train(TINY, b"short", Budget(steps=1))
    assert caught.value.reason == "text-too-short"
