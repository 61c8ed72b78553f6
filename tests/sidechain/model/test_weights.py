import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from channels.errors import UserError
from sidechain.model import weights as w
from sidechain.model.architecture import ByteTransformer
from sidechain.model.classifiers import Mlp
from tests.sidechain.model import models

MLP = Mlp(4, (3,), 2)
SHAPES = MLP.shapes()


def good() -> dict[str, torch.Tensor]:
    return models.weights(MLP, "any")


def refused(data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        w.decode(data, SHAPES)
    assert caught.value.reason == "bad-weights"
    return str(caught.value)


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20))
def test_quantising_goes_to_the_nearest_and_is_kept(values: list[float]) -> None:
    real = torch.tensor(values)
    quantised = w.quantise({"x": real})
    back = w.dequantise(quantised.weights)["x"]
    inside = (real >= -2) & (real <= 2 - 2**-14)
    assert bool(((back - real).abs() <= 2**-15)[inside].all())
    assert quantised.clamped <= int((~inside).sum())
    assert torch.equal(w.quantise({"x": back}).weights["x"], quantised.weights["x"])


def test_ties_go_to_even_and_the_ends_are_kept() -> None:
    unit = 2.0**-14
    real = torch.tensor([0.5 * unit, 1.5 * unit, -0.5 * unit, -2.0, 2.0, 1e30, -1e30])
    quantised = w.quantise({"x": real})
    assert quantised.weights["x"].tolist() == [0, 2, 0, -32768, 32767, 32767, -32768]
    assert quantised.clamped == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(UserError) as caught:
        w.quantise({"x": torch.tensor([0.0, value])})
    assert caught.value.reason == "bad-weights"


def test_a_file_is_read_back() -> None:
    data = w.encode(good())
    read = w.decode(data, SHAPES)
    assert all(torch.equal(read[name], good()[name]) for name in SHAPES)
    assert len(data) <= w.file_limit(SHAPES)
    assert w.encode(dict(reversed(good().items()))) == data


def test_the_root_follows_from_the_numbers_alone() -> None:
    root = w.weights_root(good())
    with_metadata = save(good(), {"any": "thing"})
    assert w.weights_root(w.decode(with_metadata, SHAPES)) == root
    strided = {n: t.T.contiguous().T if t.dim() == 2 else t for n, t in good().items()}
    assert w.weights_root(strided) == root
    changed = good()
    changed["layers.1.bias"][1] ^= 1
    assert w.weights_root(changed) != root


def test_a_root_that_was_written_down() -> None:
    # A change of format changes every model's name: this fails then.
    tensors = {"b": torch.arange(6, dtype=torch.int16).view(2, 3), "a": torch.tensor([-1]).short()}
    assert (
        w.weights_root(tensors).hex()
        == "284c539e986e9f2f5c7533c10b151796d8073c51812b5e6ebba2d2e230a0a036"
    )


def changed(how: str) -> dict[str, Any]:
    made = good()
    name = "layers.0.weight"
    match how:
        case "missing":
            del made[name]
        case "extra":
            made["extra"] = torch.zeros(1, dtype=torch.int16)
        case "shape":
            made[name] = made[name].T.contiguous()
        case "flat":
            made[name] = made[name].flatten()
        case "float":
            made[name] = made[name].float()
        case "nan":
            made[name] = torch.full((3, 4), float("nan"), dtype=torch.float16)
        case "unsigned":
            made[name] = made[name].view(torch.uint16)
        case "wide":
            made[name] = made[name].int()
    return made


@pytest.mark.parametrize(
    "how", ["missing", "extra", "shape", "flat", "float", "nan", "unsigned", "wide"]
)
def test_tensors_that_are_not_the_architectures(how: str) -> None:
    refused(save(changed(how)))


def bomb(header: object, rest: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def one_tensor(shape: list[int], offsets: list[int]) -> bytes:
    tensor = {"dtype": "I16", "shape": shape, "data_offsets": offsets}
    return bomb({"layers.0.weight": tensor}, bytes(24))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04cos\nsystem\n",  # the beginning of a pickle
        b"\xff" * 8,
        b"\xff" * 100,
        (1 << 40).to_bytes(8, "little") + b"{}",
        bomb({}),
        bomb([]),
        one_tensor([1 << 62], [0, 1 << 63]),
        one_tensor([3, 4], [24, 0]),
        one_tensor([3, 4], [0, 23]),
        bomb({n: {"dtype": "I16", "shape": s, "data_offsets": [0, 24]} for n, s in SHAPES.items()},
             bytes(24)),
        bomb({f"{i}": {"dtype": "I16", "shape": [0], "data_offsets": [0, 0]} for i in range(900)}),
        bomb({"__metadata__": {"x": "y" * 60_000}}),
    ],
)  # fmt: skip
def test_files_that_are_bombs_or_none(data: bytes) -> None:
    refused(data)


def test_a_file_that_is_too_long_is_not_parsed() -> None:
    assert "longer" in refused(w.encode(good()) + bytes(w.MAX_HEADER))


def test_a_header_that_is_too_long_is_not_parsed() -> None:
    wide = Mlp(4096, (64,), 2).shapes()
    many = {f"{i}": {"dtype": "I16", "shape": [0], "data_offsets": [0, 0]} for i in range(5000)}
    assert len(bomb(many)) < w.file_limit(wide)
    with pytest.raises(UserError) as caught:
        w.decode(bomb(many), wide)
    assert "header is longer" in str(caught.value)


def test_the_most_tensors_there_can_be_fit_a_header() -> None:
    deep = ByteTransformer(width=16, blocks=64, heads=1, context=2)
    weights = models.weights(deep)
    assert w.decode(w.encode(weights), deep.shapes()).keys() == weights.keys()


@given(st.integers(0, 400), st.integers(1, 255))
def test_a_changed_file_has_another_root_or_is_refused(place: int, flip: int) -> None:
    data = bytearray(w.encode(good()))
    place %= len(data)
    data[place] ^= flip
    try:
        read = w.decode(bytes(data), SHAPES)
    except UserError as error:
        assert error.reason == "bad-weights"
        return
    same = all(torch.equal(read[name], good()[name]) for name in SHAPES)
    assert same == (w.weights_root(read) == w.weights_root(good()))
