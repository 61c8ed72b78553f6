import pytest
import torch

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
