import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.errors import UserError
from sidechain.model import bounds, exact
from sidechain.model.architecture import ByteTransformer
from sidechain.model.arithmetic import EXACT, EXACT_ROOT, LIMIT
from sidechain.model.bounds import Bounds, Extent
from sidechain.model.classifiers import Cnn, Mlp
from sidechain.model.integers import Integers
from sidechain.model.objective import Accuracy, CrossEntropy, MeanSquaredError, Objective
from sidechain.model.registry import Architecture
from tests.sidechain.model import models
from tests.sidechain.model.python_integers import integers


def refused(architecture: Architecture, objective: Objective) -> str:
    with pytest.raises(UserError) as caught:
        exact.prove(architecture, objective)
    return caught.value.reason


@pytest.mark.parametrize("name", models.CASES)
def test_every_step_is_proved(name: str) -> None:
    architecture, objective, _ = models.CASES[name]
    proof = exact.prove(architecture, objective)
    assert 0 < proof.largest <= EXACT
    assert len(proof.steps) >= 2
    assert proof.cost > 2 * architecture.parameters // 10


def test_the_bound_on_a_sum_is_the_sum_at_the_limit() -> None:
    # 2^16 − 1 terms of 2^21 · 2^15, and what rounding and a bias add.
    bound = Bounds({"w": (1, 65535), "b": (1,)})
    bound.linear(Extent((65535,), LIMIT), "w", "b")
    assert bound.proof().largest == 65535 * 2**36 + 2**27 + 2**13


def test_sums_that_pass_the_bound_are_refused() -> None:
    assert exact.prove(Mlp(64, ((1 << 17) - 1,), 4), CrossEntropy()).largest <= EXACT
    assert refused(Mlp(64, (1 << 17,), 4), CrossEntropy()) == "inexact-architecture"
    # Of 2^18 inputs of at most 2^16, sums stay below 2^50.
    assert exact.prove(Mlp(1 << 18, (), 4), CrossEntropy()).largest <= EXACT


def test_norms_that_pass_the_bound_are_refused() -> None:
    bound = Bounds({"g": (2048,), "h": (2049,)})
    bound.rms_norm(Extent((2048,), LIMIT), "g")
    assert bound.proof().largest == EXACT  # exactly
    with pytest.raises(UserError) as caught:
        bound.rms_norm(Extent((2049,), LIMIT), "h")
    assert caught.value.reason == "inexact-architecture"


def test_more_classes_than_a_logarithm_can_take() -> None:
    assert exact.prove(Mlp(1, (), 32767), CrossEntropy()).largest <= EXACT
    assert refused(Mlp(1, (), 1 << 16), CrossEntropy()) == "inexact-architecture"


def test_what_would_fill_the_memory_is_refused() -> None:
    huge = ByteTransformer(width=64, blocks=1, heads=16, context=8192)
    assert refused(huge, CrossEntropy()) == "too-large"
    assert refused(Cnn(500, 500, (96,), 2), CrossEntropy()) == "too-large"


def test_text_has_no_squared_error() -> None:
    assert refused(ByteTransformer(), MeanSquaredError()) == "bad-objective"


def test_a_program_that_does_not_fit_its_weights_is_refused() -> None:
    for shapes, extent in (({"w": (3, 4)}, (5,)), ({"w": (3, 4)}, (4, 5))):
        with pytest.raises(UserError) as caught:
            Bounds(shapes).linear(Extent(extent, 1), "w")
        assert caught.value.reason == "bad-architecture"


def test_cost_follows_the_samples_and_the_architecture() -> None:
    small, large = Mlp(64, (64,), 10), Mlp(64, (1024,), 10)
    one, thousand = (exact.score_cost(small, CrossEntropy(), n) for n in (1, 1000))
    assert one < thousand < 1000 * one
    assert exact.score_cost(large, CrossEntropy(), 1000) > 2 * thousand
    assert exact.score_cost(small, Accuracy(), 1000) < thousand


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, LIMIT),
    st.integers(-(1 << 15), (1 << 15) - 1),
    st.sampled_from([-1, 1]),
)
def test_results_stay_within_what_was_proved(size: int, value: int, weight: int, sign: int) -> None:
    weights = {
        "g": torch.full((size,), weight, dtype=torch.int16),
        "w": torch.full((3, size), weight, dtype=torch.int16),
        "b": torch.full((3,), weight, dtype=torch.int16),
    }
    bound = Bounds({name: tuple(w.shape) for name, w in weights.items()})
    ops = Integers(weights)
    x = torch.full((1, size), float(sign * value), dtype=torch.float64)
    x[0, 1:] *= torch.arange(1, size) % 2  # one large among small is the worst case of a norm
    extent = Extent((size,), value)
    for found, wanted in (
        (ops.rms_norm(x.clone(), "g"), bound.rms_norm(extent, "g")),
        (ops.linear(x.clone(), "w", "b"), bound.linear(extent, "w", "b")),
        (ops.add(x.clone(), x), bound.add(extent, extent)),
    ):
        assert max(abs(int(v)) for v in integers(found).ravel()) <= wanted.largest


sizes = st.integers(-1, 300_000)
any_architecture = st.one_of(
    st.tuples(st.just(Mlp), st.tuples(sizes, st.lists(sizes, max_size=4).map(tuple), sizes)),
    st.tuples(
        st.just(Cnn),
        st.tuples(sizes, sizes, st.lists(sizes, max_size=3).map(tuple), sizes, sizes, sizes),
    ),
    st.tuples(
        st.just(ByteTransformer),
        st.tuples(st.integers(1, 512), st.integers(1, 64), st.integers(1, 99), st.integers(2, 8192))
        .map(lambda drawn: (drawn[0] * 4, *drawn[1:])),
    ),
)  # fmt: skip


@settings(max_examples=200)
@given(any_architecture, st.sampled_from([CrossEntropy(), Accuracy(), MeanSquaredError()]))
def test_any_hyper_parameters_are_proved_or_refused(built: tuple[type, tuple[object, ...]],
                                                    objective: Objective) -> None:  # fmt: skip
    kind, arguments = built
    try:
        architecture = kind(*arguments)
        proof = exact.prove(architecture, objective)
    except (ValueError, UserError):
        return
    assert all(step.largest <= EXACT for step in proof.steps)
    assert all(step.largest <= EXACT_ROOT for step in proof.steps if "root" in step.operation)
    assert proof.elements <= bounds.MAX_ELEMENTS
    assert msgspec.json.decode(msgspec.json.encode(architecture), type=kind) == architecture


def test_a_batch_is_bounded_by_what_one_operation_makes() -> None:
    architectures: dict[str, Architecture] = {
        "small": Mlp(64, (64,), 10),
        "wide": Mlp(64, (65536,), 64),
        "large": Cnn(128, 128, (8,), 2),
        "huge": Cnn(256, 256, (4,), 2),
    }
    sizes = {
        name: exact.batch_size(architecture, exact.prove(architecture, CrossEntropy()))
        for name, architecture in architectures.items()
    }
    assert sizes == {"small": 2048, "wide": 16, "large": 1, "huge": 1}
