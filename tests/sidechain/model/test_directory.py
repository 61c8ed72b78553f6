from dataclasses import replace
from pathlib import Path

import pytest
import torch

from channels.errors import UserError
from sidechain import version
from sidechain.model import directory, exact, files, parts
from sidechain.model.directory import Model
from sidechain.model.parts import Text
from sidechain.model.sealed import Dataset, seal
from tests.sidechain.model import models

KEY = bytes(range(32))


def model(name: str) -> Model:
    architecture, objective, part = models.CASES[name]
    return Model(architecture, objective, models.weights(architecture), seal(part, [part], [KEY]))


@pytest.mark.parametrize("name", models.CASES)
def test_a_model_is_read_back(name: str, tmp_path: Path) -> None:
    written = model(name)
    directory.write(tmp_path / "m", written)
    read = directory.read(tmp_path / "m")
    assert (read.architecture, read.objective) == (written.architecture, written.objective)
    assert read.weights_root == written.weights_root
    assert read.dataset == written.dataset
    assert read.score() == exact.score(
        *models.CASES[name][:2], written.weights, models.CASES[name][2]
    )
    assert read.score_cost() > 0
    opened = read.dataset.open_shard(0, KEY)
    assert exact.score(read.architecture, read.objective, read.weights, opened) == read.score()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("learn", [b"oda-data\x01\0abc", b"what a stranger put there"])
def test_what_is_to_be_learnt_from_is_passed_on(tmp_path: Path, learn: bytes) -> None:
    written = replace(model("text"), learn=learn)
    directory.write(tmp_path / "m", written)
    read = directory.read(tmp_path / "m")
    assert read.learn == learn
    found = version.more_to_learn(read)
    assert found == (Text(b"abc") if learn.startswith(b"oda") else None)
    assert version.more_to_learn(replace(model("mlp"), learn=learn)) is None, "of another kind"


def test_too_much_to_learn_from_is_left(tmp_path: Path) -> None:
    directory.write(tmp_path / "m", replace(model("text"), learn=bytes(files.MAX_LEARN + 1)))
    assert directory.read(tmp_path / "m").learn is None


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    directory.write(tmp_path / "m", model("mlp"))
    with pytest.raises(UserError) as caught:
        directory.write(tmp_path / "m", model("cnn"))
    assert caught.value.reason == "model-exists"


def test_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        directory.read(tmp_path / "m")
    assert caught.value.reason == "missing-model"


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (files.ARCHITECTURE, "bad-architecture"),
        (files.OBJECTIVE, "bad-objective"),
        (files.WEIGHTS, "bad-weights"),
        ("public.oda", "bad-dataset"),
        ("shard-00.oda", "bad-dataset"),
    ],
)
def test_files_from_strangers(file: str, reason: str, tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(UserError) as caught:
            directory.read(tmp_path / "m")
        return caught.value.reason

    directory.write(tmp_path / "m", model("mlp"))
    path = tmp_path / "m" / file
    path.write_bytes(b"junk")
    assert refused() == reason
    with path.open("r+b") as sparse:
        sparse.truncate(1 << 40)
    assert refused() == "bad-file"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert refused() == "bad-file"


def test_data_that_does_not_fit_is_no_score() -> None:
    mlp = model("mlp")
    other = Model(
        mlp.architecture, mlp.objective, mlp.weights, Dataset(parts.encode(Text(b"text")))
    )
    for act in (other.score, other.score_cost):
        with pytest.raises(UserError) as caught:
            act()
        assert caught.value.reason == "bad-dataset"


def test_another_architecture_is_not_these_weights(tmp_path: Path) -> None:
    directory.write(tmp_path / "a", model("mlp"))
    directory.write(tmp_path / "b", model("linear"))
    (tmp_path / "a" / files.ARCHITECTURE).write_bytes(
        (tmp_path / "b" / files.ARCHITECTURE).read_bytes()
    )
    with pytest.raises(UserError) as caught:
        directory.read(tmp_path / "a")
    assert caught.value.reason == "bad-weights"
    assert torch.is_tensor(directory.read(tmp_path / "b").weights["layers.0.bias"])
