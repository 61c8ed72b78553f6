"""docs/claims.md: what the README says stands there, and what shows it exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from client.cli import build_app

ROOT = Path(__file__).parents[1]
README = " ".join((ROOT / "README.md").read_text().split())
ROWS = re.findall(
    r"^\| (.+) \| ((?:tests|benchmarks)/.+) \|$",
    (ROOT / "docs/claims.md").read_text(),
    re.MULTILINE,
)


@pytest.mark.parametrize(("claim", "shown"), ROWS)
def test_claims(claim: str, shown: str) -> None:
    assert claim in README
    for place in shown.split(", "):
        path, _, name = place.partition("::")
        text = (ROOT / path).read_text()
        assert path.startswith("benchmarks/") or re.search(
            rf"^(async )?def {name}\(", text, re.MULTILINE
        )


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(typer.main.get_command(build_app())))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_and_json(path: tuple[str, ...]) -> None:
    assert ALL[path].help
    assert "--json" in {flag for parameter in ALL[path].params for flag in parameter.opts}
    assert CliRunner().invoke(build_app(), [*path, "--help"]).exit_code == 0
