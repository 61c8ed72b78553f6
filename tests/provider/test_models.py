"""From a directory to a model that is served, and which directories are refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from channels.errors import UserError
from provider import models
from provider.models import ServedModel, first_model, load
from sidechain.model import bundle, directory, files, weights
from sidechain.model.architecture import ByteTransformer
from sidechain.model.generate import Generation
from sidechain.model.trainer import Budget
from tests.sidechain.model.test_directory import model as registered

SMALL = ByteTransformer(width=16, blocks=1, heads=4, context=16)
FEW = Budget(steps=20)


def first(cache: Path) -> ServedModel:
    return load(first_model(cache, budget=FEW, architecture=SMALL))


def reason(path: Path, name: str | None = None) -> str:
    with pytest.raises(UserError) as refused:
        load(path, name=name)
    return refused.value.reason


def said(model: ServedModel) -> list[int]:
    generation = Generation(model.module, b"What", 1.0, 7)
    return [generation.next() for _ in range(20)]


def test_a_bundle(tmp_path: Path) -> None:
    path = first_model(tmp_path, budget=FEW, architecture=SMALL)
    found = load(path, infohash=bytes(32))
    assert (found.name, found.infohash, found.weights_root) == ("oda-pydoc", bytes(32), None)
    assert found.weights_id == bundle.read(path).manifest.weights_sha256
    assert load(path, name="acme/py:2").name == "acme/py:2"


def test_a_registered_directory_speaks_as_its_integers_say(tmp_path: Path) -> None:
    written = registered("text")
    directory.write(tmp_path / "m", written)
    found = load(tmp_path / "m", infohash=bytes([0xAB] * 32))
    assert found.weights_root == written.weights_root
    assert found.weights_id == written.weights_root.hex()
    assert found.name == "oda-" + "ab" * 8
    assert load(tmp_path / "m").name == f"oda-{written.weights_root.hex()[:16]}"
    # The same numbers as floats in a bundle give the same answers.
    assert isinstance(written.architecture, ByteTransformer)
    module = bundle.with_weights(written.architecture, weights.dequantise(written.weights))
    bundle.write(tmp_path / "b", module, name="b", holdout_nats_per_byte=1, steps=1, seed=1)
    assert said(load(tmp_path / "b")) == said(found)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_who_can_not_read_text_is_not_served(tmp_path: Path, name: str) -> None:
    directory.write(tmp_path / "m", registered(name))
    assert reason(tmp_path / "m") == "not-a-text-model"


def test_what_can_not_be_read(tmp_path: Path) -> None:
    assert reason(tmp_path / "none") == "missing-model"
    directory.write(tmp_path / "m", registered("text"))
    (tmp_path / "m" / files.WEIGHTS).write_bytes(b"x")
    assert reason(tmp_path / "m") == "bad-weights"
    (tmp_path / "m" / files.ARCHITECTURE).write_bytes(b'{"type":"gpt"}')
    assert reason(tmp_path / "m") == "bad-architecture"


@pytest.mark.parametrize("name", ["", "\x1b[2J", "a b", "x" * 129, "ü", "-x"])
def test_names_that_a_stranger_may_not_choose(tmp_path: Path, name: str) -> None:
    path = first_model(tmp_path, budget=FEW, architecture=SMALL)
    manifest = json.loads((path / bundle.MANIFEST).read_bytes())
    (path / bundle.MANIFEST).write_text(json.dumps(manifest | {"name": name}))
    assert reason(path) == "bad-model-name"
    assert load(path, name="mine").name == "mine"


# The model that is there from the beginning ------------------------------------------------------


def test_the_second_start_loads_what_the_first_trained(tmp_path: Path) -> None:
    path = first_model(tmp_path, budget=FEW, architecture=SMALL)
    before = load(path)
    assert first_model(tmp_path, not_called, budget=FEW, architecture=SMALL) == path
    assert load(path).weights_id == before.weights_id


def not_called(step: int, nats_per_byte: float, seconds: float) -> None:
    raise AssertionError("trained although there was a model")


def test_a_corrupt_model_is_trained_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = first(tmp_path)
    file = tmp_path / models.MODEL_ID / bundle.WEIGHTS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    steps: list[int] = []
    with caplog.at_level(logging.WARNING):
        path = first_model(
            tmp_path, lambda step, *_: steps.append(step), budget=FEW, architecture=SMALL
        )
    assert "Training a new one in its place." in caplog.text
    assert steps == [1, 11, 20]
    assert load(path).weights_id == before.weights_id


def test_another_architecture_is_trained_anew(tmp_path: Path) -> None:
    first(tmp_path)
    wider = ByteTransformer(width=32, blocks=1, heads=2, context=8)
    made = load(first_model(tmp_path, budget=FEW, architecture=wider))
    assert made.module.architecture.context == 8
