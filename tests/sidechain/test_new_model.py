"""`oda model new`, as somebody types it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import cli
from sidechain.model import directory, parts
from sidechain.model.architecture import ByteTransformer
from sidechain.model.classifiers import Cnn, Mlp
from sidechain.model.objective import MeanSquaredError
from sidechain.model.parts import Text
from sidechain.shard_keys import ShardKeys

New = Callable[..., Any]
DIGITS = ("--labelled", "digits.csv", "--divide-by", "20")


@pytest.fixture
def new(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> New:
    """Runs it with --json in a folder of its own; -> the document, or the reason of the error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ODA_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("ODA_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def run(*arguments: str) -> Any:
        code = cli.main(["model", "new", *arguments, "--json"])
        told = json.loads(capsys.readouterr().out)
        assert (code == 0) == ("error" not in told)
        return told["error"]["reason"] if "error" in told else told

    return run


def digits(path: Path, count: int = 600) -> Path:
    draw = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*(f"p{i}" for i in range(16)), "digit"])
        for label in draw.integers(0, 4, count).tolist():
            rows.writerow([*(draw.integers(0, 17, 16) + label).tolist(), label])
    return path


def test_from_a_csv(new: New, tmp_path: Path) -> None:
    digits(tmp_path / "digits.csv")
    told = new("model", *DIGITS, "--shards", "3")
    made = directory.read(tmp_path / "model")
    assert made.architecture == Mlp(16, (64,), 4)
    assert made.score() == told["score"]
    assert told["score_cost"] == made.score_cost() <= told["score_cost_limit"] == 10**10
    assert told["weights_root"] == made.weights_root.hex()
    assert told["samples"] == {"public": 450, "shard": 50, "rest": 0}
    keys = ShardKeys.read(tmp_path / "model.keys")
    assert (tmp_path / "model.keys").stat().st_mode & 0o777 == 0o600
    for i, key in enumerate(keys.shards):
        assert made.dataset.open_shard(i, key).samples(16) == 50


def test_from_a_text(new: New, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(i * i % 251 for i in range(200_000)))
    told = new("model", "--text", "text", "--context", "32", "--keys", "elsewhere")
    made = directory.read(tmp_path / "model")
    assert made.architecture == ByteTransformer(context=32)
    assert 2 * made.score_cost() <= 2 * 10**10
    assert made.learn is not None
    rest = parts.decode(made.learn)
    assert isinstance(rest, Text) and rest.samples(32) == told["samples"]["rest"] > 3000
    assert len(ShardKeys.read(tmp_path / "elsewhere").shards) == 8 == len(made.dataset.shards)


def test_images_numbers_and_no_shards(new: New, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        inputs=draw.random((200, 6, 6)),
        labels=draw.integers(0, 3, 200),
        targets=draw.random(200),
    )
    cnn = ("--architecture", "cnn", "--image", "6x6", "--filters", "4")
    told = new("cnn", "--labelled", "data.npz", *cnn, "--shards", "0")
    made = directory.read(tmp_path / "cnn")
    assert made.architecture == Cnn(6, 6, (4,), 3)
    assert (told["keys"], told["shards"]) == (None, 0)
    assert not (tmp_path / "cnn.keys").exists()
    new("mse", "--labelled", "data.npz", "--objective", "mean-squared-error", "--shards", "1")
    made = directory.read(tmp_path / "mse")
    assert (made.architecture, made.objective) == (Mlp(36, (64,), 1), MeanSquaredError())


def test_two_of_the_same_are_two_models(new: New, tmp_path: Path) -> None:
    digits(tmp_path / "digits.csv")
    both = [new(name, *DIGITS) for name in "ab"]
    assert both[0]["weights_root"] != both[1]["weights_root"]
    assert both[0]["dataset_root"] != both[1]["dataset_root"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "bad-option"),
        (("--text", "digits.csv", *DIGITS), "bad-option"),
        (("--labelled", "nothing.csv"), "bad-data"),
        (("--labelled", "digits.csv"), "bad-dataset"),
        (("--labelled", "digits.csv", "--divide-by", "0"), "bad-data"),
        ((*DIGITS, "--architecture", "oracle"), "bad-architecture"),
        ((*DIGITS, "--architecture", "cnn"), "bad-option"),
        ((*DIGITS, "--architecture", "cnn", "--image", "4"), "bad-option"),
        ((*DIGITS, "--hidden", "a"), "bad-option"),
        ((*DIGITS, "--hidden", "0"), "bad-architecture"),
        ((*DIGITS, "--objective", "luck"), "bad-objective"),
        ((*DIGITS, "--shards", "20"), "bad-dataset"),
        ((*DIGITS, "--keys", "model/keys"), "bad-keys-file"),
        (("--text", "digits.csv", "--width", "65"), "bad-architecture"),
        (("--text", "digits.csv", "--context", "1024"), "model-too-costly"),
        (("--text", "digits.csv", "--objective", "mean-squared-error"), "bad-objective"),
    ],
)
def test_what_can_not_be_made(
    new: New, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    digits(tmp_path / "digits.csv")
    assert new("model", *arguments) == reason
    assert not (tmp_path / "model").exists() and not (tmp_path / "model.keys").exists()


def test_nothing_is_overwritten(new: New, tmp_path: Path) -> None:
    digits(tmp_path / "digits.csv")
    (tmp_path / "model.keys").write_text("mine")
    assert new("model", *DIGITS) == "already-exists"
    assert (tmp_path / "model.keys").read_text() == "mine"
    assert not (tmp_path / "model").exists()
    (tmp_path / "other").mkdir()
    assert new("other", *DIGITS) == "model-exists"
    assert not (tmp_path / "other.keys").exists()
