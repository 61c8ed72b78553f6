import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import UserError
from sidechain.model import architecture as architectures
from sidechain.model.architecture import ByteTransformer, Cache


@pytest.mark.parametrize(
    "architecture",
    [ByteTransformer(), ByteTransformer(width=16, blocks=3, heads=1, context=8)],
)
def test_the_shapes_are_those_of_the_module(architecture: ByteTransformer) -> None:
    state = architecture.build().state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == architecture.shapes()
    assert sum(tensor.numel() for tensor in state.values()) == architecture.parameters


def test_the_default_is_the_model_that_scoring_was_tried_on() -> None:
    assert ByteTransformer(context=64).parameters == 135_488


def test_reading_byte_by_byte_gives_what_reading_at_once_does() -> None:
    torch.manual_seed(0)
    module = ByteTransformer(context=32).build().eval()
    tokens = torch.randint(256, (1, 32))
    cache = Cache(module.architecture)
    steps = [module.step(int(token), i, cache) for i, token in enumerate(tokens[0])]
    torch.testing.assert_close(torch.stack(steps), module(tokens)[0].detach())


def test_json_is_read_back() -> None:
    architecture = ByteTransformer(width=32, blocks=1, heads=2, context=64)
    data = b'{"type":"byte-transformer","width":32,"blocks":1,"heads":2,"context":64}'
    assert architectures.encode(architecture) == data
    assert architectures.decode(data) == architecture


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"type":"pickle"}',
        b'{"type":"byte-transformer","code":"import os"}',
        b'{"type":"byte-transformer","width":64.5}',
        b'{"type":"byte-transformer","width":-64}',
        b'{"type":"byte-transformer","width":2048,"heads":32,"blocks":64}',
        b'{"type":"byte-transformer","width":100000000000000000000}',
        b'{"type":"byte-transformer","heads":3}',
        b'{"type":"byte-transformer","heads":2}',
        b'{"type":"byte-transformer","blocks":1000000000}',
        b'{"type":"byte-transformer","context":1}',
        b'{"type":"byte-transformer"}',
        b'{"type":"byte-transformer","width":64,"blocks":2,"heads":4,"context":64} ',
        b'{"type":"byte-transformer"}' + b" " * 4096,
        b"[" * 4000,
    ],
)
def test_what_is_not_in_the_registry_is_refused(data: bytes) -> None:
    with pytest.raises(UserError) as caught:
        architectures.decode(data)
    assert caught.value.reason == "bad-architecture"


@given(st.binary(max_size=100))
def test_no_bytes_make_it_fail_in_another_way(data: bytes) -> None:
    with pytest.raises(UserError):
        architectures.decode(data)
