from __future__ import annotations

from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest

from channels.errors import UserError
from sidechain.model import exact, parts
from sidechain.model.architecture import ByteTransformer
from sidechain.model.classifiers import Mlp
from sidechain.model.creating import Limits, amounts, create
from sidechain.model.files import MAX_LEARN
from sidechain.model.objective import CrossEntropy, MeanSquaredError
from sidechain.model.parts import Labelled, Part, Regression, Text
from tests.sidechain.directories import samples

MLP = Mlp(4, (6,), 3)
BYTES = ByteTransformer(width=8, blocks=1, heads=2, context=8)
WIDE = Limits(10**12, 8 << 20, 8 << 20)
KEYS = tuple(bytes([i]) * 32 for i in range(1, 5))


def rows(part: Part) -> list[bytes]:
    assert isinstance(part, Labelled)
    return [row.tobytes() + bytes([label]) for row, label in zip(part.inputs, part.labels)]  # noqa: B905 # a Labelled has as many


def test_rows_are_shared_out_and_none_twice() -> None:
    part = samples(500, 3)
    found = amounts(MLP, CrossEntropy(), part, 4, WIDE)
    assert (found.public, found.shard, found.rest) == (372, 32, 0)
    made = create(MLP, CrossEntropy(), part, found, KEYS, seed=1)
    hidden = [made.dataset.open_shard(i, key) for i, key in enumerate(KEYS)]
    shared = [rows(each) for each in (made.dataset.public_part, *hidden)]
    assert sorted(chain.from_iterable(shared)) == sorted(rows(part))
    assert made.learn is None
    other = create(MLP, CrossEntropy(), part, found, KEYS, seed=2)
    assert other.weights_root != made.weights_root
    assert other.dataset.public != made.dataset.public


def test_text_is_shared_out_in_stretches() -> None:
    text = b"".join(i.to_bytes(8, "big") for i in range(2001))
    found = amounts(BYTES, CrossEntropy(), Text(text), 2, WIDE, public=300, shard=64)
    assert (found.public, found.shard, found.rest) == (300, 64, 2000 - 300 - 128)
    made = create(BYTES, CrossEntropy(), Text(text), found, KEYS[:2], seed=1)
    assert made.learn is not None
    hidden = [made.dataset.open_shard(i, key) for i, key in enumerate(KEYS[:2])]
    all_parts = [made.dataset.public_part, *hidden, parts.decode(made.learn)]
    windows = []
    for each, count in zip(all_parts, (300, 64, 64, found.rest), strict=True):
        assert isinstance(each, Text) and each.samples(8) == count
        numbers = [int.from_bytes(each.data[i * 8 : i * 8 + 8], "big") for i in range(count)]
        windows += numbers
        if count == 64:
            seams = sum(b != a + 1 for a, b in pairwise(numbers))
            assert 2 <= seams <= 9, "pieces from several places"
    assert sorted(windows) == list(range(2000))


def test_what_a_block_pays_for_is_public_and_the_rest_is_to_learn_from() -> None:
    text = Text(bytes(i * 7 % 251 for i in range(40_001)))
    each = exact.score_cost(BYTES, CrossEntropy(), 1001) - exact.score_cost(
        BYTES, CrossEntropy(), 1
    )
    limits = replace(WIDE, score_cost=each // 10)
    found = amounts(BYTES, CrossEntropy(), text, 2, limits)
    cost = exact.score_cost(BYTES, CrossEntropy(), found.public)
    assert 2 * cost <= limits.score_cost
    assert 2 * exact.score_cost(BYTES, CrossEntropy(), found.public + 1) > limits.score_cost
    assert found.shard <= found.public
    assert found.rest == 5000 - found.public - 2 * found.shard > 0
    alone = amounts(BYTES, CrossEntropy(), text, 0, limits)
    assert alone.public > 1.9 * found.public, "without shards, versions are never compared"
    with pytest.raises(UserError, match="shorter context") as caught:
        amounts(BYTES, CrossEntropy(), text, 2, replace(WIDE, score_cost=each // 100))
    assert caught.value.reason == "model-too-costly"
    with pytest.raises(UserError, match="not 2000"):
        amounts(BYTES, CrossEntropy(), text, 2, limits, public=2000)


def test_what_is_left_is_cut_to_what_a_directory_may_have() -> None:
    text = Text(np.random.default_rng(0).bytes(1_500_000))
    found = amounts(BYTES, CrossEntropy(), text, 1, WIDE, public=400, shard=40)
    made = create(BYTES, CrossEntropy(), text, found, KEYS[:1], seed=0)
    assert made.learn is not None
    assert MAX_LEARN * 0.99 < len(made.learn) <= MAX_LEARN


@pytest.mark.parametrize(
    ("count", "shards", "limits", "reason"),
    [
        (100, 4, WIDE, "bad-dataset"),
        (500, 4, replace(WIDE, dataset_bytes=1000), "bad-dataset"),
        (500, 4, replace(WIDE, model_bytes=20), "bad-architecture"),
    ],
)
def test_what_does_not_fit(count: int, shards: int, limits: Limits, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        amounts(MLP, CrossEntropy(), samples(count, 0), shards, limits)
    assert caught.value.reason == reason


def test_a_regression() -> None:
    part = samples(300, 0)
    both = Regression(part.inputs, part.inputs[:, :2])
    architecture, objective = Mlp(4, (5,), 2), MeanSquaredError()
    found = amounts(architecture, objective, both, 1, WIDE)
    made = create(architecture, objective, both, found, KEYS[:1], seed=0)
    assert made.score() > 0
    assert isinstance(made.dataset.open_shard(0, KEYS[0]), Regression)
