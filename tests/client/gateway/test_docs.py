"""docs/gateway.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import typer
from typer.testing import CliRunner

from client.cli import build_app
from client.gateway.figures import Record
from client.gateway.settings import PORT, GatewaySettings
from client.settings import ClientSettings

PAGE = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text()
README = (Path(__file__).parents[3] / "README.md").read_text()


def names(kind: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind)}


def test_every_setting_is_one() -> None:
    named = set(re.findall(r"`(client|gateway)\.(\w+)`", PAGE))
    assert {name for section, name in named if section == "client"} <= names(ClientSettings)
    assert {name for section, name in named if section == "gateway"} <= names(GatewaySettings)
    assert len(named) > 8


def test_every_flag_is_one() -> None:
    command = typer.main.get_command(build_app()).commands["gateway"]  # type: ignore[attr-defined]  # a group has them
    known = {flag for parameter in command.params for flag in parameter.opts}
    flags = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert flags <= known and len(flags) > 4
    shown = CliRunner().invoke(build_app(), ["gateway", "--help"]).output
    assert str(PORT) in shown


def test_the_port_and_the_record() -> None:
    assert set(re.findall(r"127\.0\.0\.1:(84\d\d)/v1", PAGE)) == {str(PORT)}
    assert f"OPENAI_BASE_URL=http://127.0.0.1:{PORT}/v1" in README
    example = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    document = json.loads(example[1])
    assert list(document) == list(Record.__struct_fields__)
    assert msgspec.convert(document, Record).output_tokens == 80
