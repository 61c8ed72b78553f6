import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from channels.errors import UserError
from sidechain.model import bundle, weights
from sidechain.model.architecture import ByteTransformer
from sidechain.model.weights import quantise

SMALL = ByteTransformer(width=16, blocks=1, heads=4, context=8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    write(tmp_path / "model")
    return tmp_path / "model"


def write(directory: Path) -> bundle.Manifest:
    return bundle.write(
        directory, SMALL.build(), name="m", holdout_nats_per_byte=1.5, steps=3, seed=4
    )


def refused(directory: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        bundle.read(directory)
    return caught.value


def replace_weights(model: Path, data: bytes) -> None:
    """As a stranger would: with a manifest that fits."""
    (model / bundle.WEIGHTS).write_bytes(data)
    manifest = json.loads((model / bundle.MANIFEST).read_bytes())
    manifest["weights_sha256"] = hashlib.sha256(data).hexdigest()
    (model / bundle.MANIFEST).write_text(json.dumps(manifest))


def test_a_model_is_read_back(model: Path) -> None:
    read = bundle.read(model)
    assert read.architecture == SMALL
    assert (read.manifest.name, read.manifest.steps, read.manifest.seed) == ("m", 3, 4)
    stored = load_file(model / bundle.WEIGHTS)
    for name, tensor in read.module.state_dict().items():
        assert torch.equal(tensor, stored[name])


def test_the_same_weights_are_the_same_files(model: Path, tmp_path: Path) -> None:
    module = bundle.read(model).module
    bundle.write(tmp_path / "again", module, name="m", holdout_nats_per_byte=1.5, steps=3, seed=4)
    for file in (bundle.ARCHITECTURE, bundle.WEIGHTS, bundle.MANIFEST):
        assert (tmp_path / "again" / file).read_bytes() == (model / file).read_bytes()


def test_a_model_is_replaced_whole(model: Path) -> None:
    (model / "junk").write_text("x")
    manifest = write(model)
    assert bundle.read(model).manifest == manifest
    assert sorted(path.name for path in model.parent.iterdir()) == ["model"]
    assert len(list(model.iterdir())) == 3


def test_what_a_crash_left_half_written_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".model.new").mkdir()
    (tmp_path / ".model.new" / bundle.WEIGHTS).write_bytes(b"half")
    write(tmp_path / "model")
    assert bundle.read(tmp_path / "model").manifest.name == "m"


def test_no_model_has_a_reason_of_its_own(tmp_path: Path) -> None:
    assert refused(tmp_path / "none").reason == "missing-model"


@pytest.mark.parametrize("file", [bundle.ARCHITECTURE, bundle.WEIGHTS, bundle.MANIFEST])
def test_a_missing_file(model: Path, file: str) -> None:
    (model / file).unlink()
    assert refused(model).reason == "bad-file"


@pytest.mark.parametrize("file", [bundle.ARCHITECTURE, bundle.WEIGHTS, bundle.MANIFEST])
def test_a_file_that_is_longer_than_it_may_be(model: Path, file: str) -> None:
    with (model / file).open("r+b") as sparse:
        sparse.truncate(1 << 40)
    assert refused(model).reason == "bad-file"


@pytest.mark.parametrize("file", [bundle.ARCHITECTURE, bundle.WEIGHTS, bundle.MANIFEST])
def test_links_and_pipes_are_not_followed(model: Path, file: str, tmp_path: Path) -> None:
    (model / file).rename(tmp_path / "elsewhere")
    (model / file).symlink_to(tmp_path / "elsewhere")
    assert refused(model).reason == "bad-file"
    (model / file).unlink()
    os.mkfifo(model / file)
    assert refused(model).reason == "bad-file"


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{}", '{"name":1}', '{"format":2}', "[" * 4000],
)
def test_a_manifest_that_is_none(model: Path, manifest: str) -> None:
    (model / bundle.MANIFEST).write_text(manifest)
    assert refused(model).reason == "bad-manifest"


def test_a_manifest_of_another_format(model: Path) -> None:
    manifest = json.loads((model / bundle.MANIFEST).read_bytes())
    (model / bundle.MANIFEST).write_text(json.dumps({**manifest, "format": 2}))
    assert refused(model).reason == "bad-manifest"


def test_weights_that_the_manifest_does_not_name(model: Path) -> None:
    data = bytearray((model / bundle.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (model / bundle.WEIGHTS).write_bytes(data)
    assert refused(model).reason == "bad-weights"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04cos\nsystem\n",  # the beginning of a pickle
        b"\xff" * 8,  # a header of 2^64 bytes
        (1 << 20).to_bytes(8, "little") + b"{",
        b"\x02\0\0\0\0\0\0\0{}",
        b"\x02\0\0\0\0\0\0\0[]",
    ],
)
def test_weights_that_are_no_safetensors(model: Path, data: bytes) -> None:
    replace_weights(model, data)
    assert refused(model).reason == "bad-weights"


def changed(weights: dict[str, torch.Tensor], how: str) -> Any:
    name = "head.weight"
    match how:
        case "missing":
            del weights[name]
        case "extra":
            weights["extra"] = torch.zeros(1)
        case "shape":
            weights[name] = weights[name].T.contiguous()
        case "type":
            weights[name] = weights[name].to(torch.float16)
        case "nan":
            weights[name][0, 0] = float("nan")
        case "infinite":
            weights[name][0, 0] = float("inf")
    return weights


@pytest.mark.parametrize("how", ["missing", "extra", "shape", "type", "nan", "infinite"])
def test_tensors_that_do_not_fit_the_architecture(model: Path, how: str) -> None:
    replace_weights(model, save(changed(load_file(model / bundle.WEIGHTS), how)))
    assert refused(model).reason == "bad-weights"


def test_the_weights_that_the_chain_knows_are_served_too(model: Path) -> None:
    stored = quantise(load_file(model / bundle.WEIGHTS)).weights
    replace_weights(model, weights.encode(stored))
    for name, tensor in bundle.read(model).module.state_dict().items():
        assert torch.equal(tensor, stored[name].float() / 2**14)


def test_offsets_outside_the_file(model: Path) -> None:
    header = json.dumps(
        {"head.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    ).encode()
    replace_weights(model, len(header).to_bytes(8, "little") + header)
    assert refused(model).reason == "bad-weights"
