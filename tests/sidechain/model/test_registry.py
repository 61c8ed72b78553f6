import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import UserError
from sidechain.model import registry
from sidechain.model.architecture import ByteTransformer
from sidechain.model.classifiers import Cnn, Mlp
from sidechain.model.floats import Floats
from sidechain.model.network import Network
from tests.sidechain.model import models

ARCHITECTURES = {name: case.architecture for name, case in models.CASES.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_json_is_read_back(name: str) -> None:
    architecture = ARCHITECTURES[name]
    assert registry.decode(registry.encode(architecture)) == architecture


def test_one_spelling() -> None:
    architecture = ByteTransformer(width=32, blocks=1, heads=2, context=64)
    data = b'{"type":"byte-transformer","width":32,"blocks":1,"heads":2,"context":64}'
    assert registry.encode(architecture) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"type":"rnn"}',
        b'{"type":"mlp","inputs":64,"hidden":[32],"outputs":10} ',
        b'{"type":"mlp","inputs":64,"hidden":[32],"outputs":10,"code":"x"}',
        b'{"type":"mlp","inputs":64,"hidden":[0],"outputs":10}',
        b'{"type":"mlp","inputs":-1,"hidden":[],"outputs":10}',
        b'{"type":"mlp","inputs":100000000000000000000000,"hidden":[],"outputs":10}',
        b'{"type":"mlp","inputs":262144,"hidden":[262144],"outputs":1}',
        b'{"type":"mlp","inputs":1,"hidden":[' + b"1," * 16 + b'1],"outputs":1}',
        b'{"type":"cnn","height":8,"width":8,"filters":[],"outputs":1,"channels":1,"kernel":3}',
        b'{"type":"cnn","height":8,"width":8,"filters":[1],"outputs":1,"channels":1,"kernel":2}',
        b'{"type":"cnn","height":3,"width":8,"filters":[1,1],"outputs":1,"channels":1,"kernel":3}',
        b'{"type":"cnn","height":9999,"width":9999,"filters":[1],"outputs":1,"channels":1,"kernel":3}',
        b'{"type":"cnn","height":8,"width":8,"filters":[9999,9999],"outputs":1,"channels":1,"kernel":7}',
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
        b" " * 4097,
    ],
)
def test_what_is_not_in_the_registry_is_refused(data: bytes) -> None:
    with pytest.raises(UserError) as caught:
        registry.decode(data)
    assert caught.value.reason == "bad-architecture"


@given(st.binary(max_size=100))
def test_no_bytes_make_it_fail_in_another_way(data: bytes) -> None:
    with pytest.raises(UserError):
        registry.decode(data)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_has_the_architectures_weights(name: str) -> None:
    architecture = ARCHITECTURES[name]
    network = Network(architecture)
    state = network.state_dict()
    assert {n: tuple(t.shape) for n, t in state.items()} == architecture.shapes()
    assert architecture.parameters == sum(t.numel() for t in state.values())
    size = architecture.input_shape
    inputs = torch.randint(2, (3, *size)) if architecture.reads_text else torch.randn(3, *size)
    assert network(inputs).shape == (3, *architecture.output_shape)


def test_the_program_is_the_module_that_is_served() -> None:
    architecture = ByteTransformer(width=32, blocks=2, heads=2, context=20)
    module = architecture.build().eval()
    tokens = torch.randint(256, (3, 20))
    with torch.inference_mode():
        made = architecture.forward(Floats(dict(module.named_parameters())), tokens)
        torch.testing.assert_close(made, module(tokens))


def test_networks_are_torchs_own_layers() -> None:
    network = Network(Mlp(6, (5,), 4))
    plain = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4))
    plain.load_state_dict(dict(zip(plain.state_dict(), network.state_dict().values(), strict=True)))
    x = torch.randn(3, 6)
    torch.testing.assert_close(network(x), plain(x))

    images = Network(Cnn(8, 8, (4,), 3, channels=2))
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(64, 3),
    )  # fmt: skip
    state = zip(layers.state_dict(), images.state_dict().values(), strict=True)
    layers.load_state_dict(dict(state))
    x = torch.randn(5, 128)
    torch.testing.assert_close(images(x), layers(x.view(5, 2, 8, 8)))
