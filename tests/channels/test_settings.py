"""Flags before variables before the file before defaults; nothing misspelt is ignored."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from channels.errors import UserError
from channels.settings import (
    LightningSettings,
    Network,
    Settings,
    config_file,
    load_section,
    load_settings,
)
from channels.units import Sat


class Example(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    price: Sat = Sat(1)
    names: tuple[str, ...] = ()
    tls: bool = False
    file: Path | None = None


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def environ(config: Path, **variables: str) -> dict[str, str]:
    return {"ODA_CONFIG": str(config), **variables}


def test_precedence(config: Path) -> None:
    config.write_text('network = "signet"\ndata = "/file"\n[provider]\nprice = 2\n')
    variables = environ(config, ODA_DATA="/variable", ODA_PROVIDER_PRICE="3")
    assert load_settings({}, environ(config)).network is Network.SIGNET
    assert load_settings({}, environ(config)).data == Path("/file")
    assert load_settings({"data": None}, variables).data == Path("/variable")
    assert load_settings({"data": Path("/flag")}, variables).data == Path("/flag")
    assert load_section("client", Example, {}, environ(config)).price == 1
    assert load_section("provider", Example, {}, environ(config)).price == 2
    assert load_section("provider", Example, {}, variables).price == 3
    assert load_section("provider", Example, {"price": 4}, variables).price == 4


def test_variables_are_text_of_every_type(config: Path) -> None:
    config.touch()
    variables = {"PRICE": "7", "NAMES": "a,b", "TLS": "true", "FILE": "~/x"}
    loaded = load_section(
        "provider",
        Example,
        {},
        environ(config, **{f"ODA_PROVIDER_{key}": value for key, value in variables.items()}),
    )
    assert loaded == Example(price=Sat(7), names=("a", "b"), tls=True, file=Path.home() / "x")


def test_every_network_has_a_directory_of_its_own() -> None:
    places = {
        place
        for network in Network
        for settings in [Settings(network=network, data=Path("/d"), cache=Path("/c"))]
        for place in (
            settings.bitcoind_dir,
            settings.node_dir("user"),
            settings.provider_dir,
            settings.client_dir,
        )
    }
    assert len(places) == 4 * len(Network)
    assert Path("/d/signet/nodes/user") in places


def test_xdg_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    assert config_file({}) == tmp_path / "CONFIG" / "oda" / "config.toml"
    settings = load_settings({}, {})
    assert (settings.data, settings.cache) == (tmp_path / "DATA/oda", tmp_path / "CACHE/oda")
    assert settings.network is Network.REGTEST
    assert load_section("lightning", LightningSettings, {}, {}).rpc_file is None


@pytest.mark.parametrize(
    ("text", "reason", "named"),
    [
        ('netwrok = "signet"', "unknown-setting", "netwrok"),
        ("[provder]\nprice = 1", "unknown-setting", "provder"),
        ('network = "testnet"', "bad-setting", "testnet"),
        ("data = 5", "bad-setting", "data"),
        ('data = ""', "bad-setting", "data"),
        ("network = ", "bad-config-file", "Invalid value"),
    ],
)
def test_what_is_wrong_at_the_top(config: Path, text: str, reason: str, named: str) -> None:
    config.write_text(text)
    with pytest.raises(UserError, match=named) as caught:
        load_settings({}, environ(config))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("text", "reason", "named"),
    [
        ("[provider]\nprize = 1", "unknown-setting", "provider.prize"),
        ('[provider]\nprice = "dear"', "bad-setting", "price"),
        ("[provider]\nnames = 3", "bad-setting", "names"),
        ("provider = 3", "bad-setting", "table"),
    ],
)
def test_what_is_wrong_in_a_section(config: Path, text: str, reason: str, named: str) -> None:
    config.write_text(text)
    with pytest.raises(UserError, match=named) as caught:
        load_section("provider", Example, {}, environ(config))
    assert caught.value.reason == reason


def test_a_file_that_was_named_must_exist(config: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_settings({}, environ(config))
    assert caught.value.reason == "bad-config-file"


def test_a_section_must_be_declared() -> None:
    with pytest.raises(ValueError, match="SECTIONS"):
        load_section("elsewhere", Example, {}, {})
