"""The root command: what is mounted, what is missing, how it ends."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from types import ModuleType

import pytest
import typer

from channels.errors import UserError
from channels.terminal import ExitCode
from client import cli


class Entry:
    """An entry point; `outcome` is what loading it does."""

    def __init__(self, name: str, outcome: Exception | None = None) -> None:
        self.name = name
        self._outcome = outcome

    def load(self) -> object:
        if self._outcome is not None:
            raise self._outcome
        return lambda app: app.command("greet")(greet)


def greet(problem: str = "") -> None:
    match problem:
        case "funds":
            raise UserError("not-enough-funds", "You have 3 sat and need 5; add some.")
        case "bug":
            raise ValueError("odd")
        case "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")
        case "interrupt":
            raise KeyboardInterrupt
        case "code":
            raise typer.Exit(ExitCode.PAYMENT_FAILED)
        case _:
            typer.echo("hello")


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ModuleNotFoundError("No module named 'torch'", name="torch")

    def entry_points(group: str) -> list[Entry]:
        assert group == "oda.commands"
        return [Entry("one"), Entry("heavy", missing)]

    metadata = ModuleType("metadata")
    vars(metadata).update(entry_points=entry_points, version=importlib.metadata.version)
    monkeypatch.setattr(cli, "metadata", metadata)


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        ("funds", ExitCode.NOT_ENOUGH_FUNDS, "You have 3 sat and need 5; add some."),
        ("bug", ExitCode.UNEXPECTED, "Unexpected ValueError: odd."),
        ("torch", ExitCode.NOT_INSTALLED, "pip install 'oda[provider]'"),
        ("interrupt", ExitCode.INTERRUPTED, "Interrupted."),
    ],
)
def test_errors(
    problem: str, code: ExitCode, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["greet", "--problem", problem]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.count("\n") == 1


def test_success_and_chosen_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["greet"]) == ExitCode.OK
    assert cli.main(["greet", "--problem", "code"]) == ExitCode.PAYMENT_FAILED
    assert capsys.readouterr() == ("hello\n", "")


def test_a_package_without_its_extra_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["heavy", "serve", "--port", "1"]) == ExitCode.NOT_INSTALLED
    assert capsys.readouterr().err == (
        "oda: This command needs torch, which the base install leaves out; "
        "install it with: pip install 'oda[provider]'\n"
    )


@pytest.mark.parametrize("arguments", [["nothing"], ["greet", "--what"], ["--network", "moon"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("oda: ")
    assert cli.main([*arguments, "--json"]) == ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "usage"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == ExitCode.OK
    assert capsys.readouterr().out == importlib.metadata.version("oda") + "\n"


def test_a_root_flag_stands_for_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODA_NETWORK", "regtest")
    assert cli.main(["--network", "signet", "greet"]) == ExitCode.OK
    assert os.environ["ODA_NETWORK"] == "signet"


def test_it_starts_quickly() -> None:
    heavy = "{'torch', 'aiohttp', 'bitcoinlib', 'pyln'}"
    code = (
        f"import sys, client.cli; client.cli.build_app(); print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
