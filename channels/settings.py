"""Settings: flags, then `ODA_*` variables, then one TOML file, then defaults.

The file is `$XDG_CONFIG_HOME/oda/config.toml` (`--config` or `ODA_CONFIG` name another one). Keys
at its top are those of `Settings`; every package has a table of its own, read by `load_section`:

    network = "regtest"

    [lightning]
    rpc_file = "~/.lightning/regtest/lightning-rpc"

A key `k` at the top is the variable `ODA_K`, and a key `k` of `[section]` is `ODA_SECTION_K`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar, get_origin

import msgspec
import platformdirs

from channels.errors import UserError

SECTIONS: Final = frozenset(
    {"lightning", "provider", "client", "gateway", "regtest", "sidechain", "torrent"}
)
"""Every table that the file may have; a misspelt one is an error and not ignored."""

T = TypeVar("T", bound=msgspec.Struct)


class Network(StrEnum):
    REGTEST = "regtest"
    SIGNET = "signet"
    MAINNET = "mainnet"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all of ODA shares. Build it with `load_settings`.

    data: the root of everything that is kept; each network has a directory of its own below it.
    cache: what can be fetched or computed again (a provisioned bitcoind, trained models).
    bitcoind: the program to run on regtest; None means PATH, the cache, then provisioning.
    """

    network: Network = Network.REGTEST
    data: Path = msgspec.field(default_factory=lambda: platformdirs.user_data_path("oda"))
    cache: Path = msgspec.field(default_factory=lambda: platformdirs.user_cache_path("oda"))
    bitcoind: Path | None = None

    @property
    def network_dir(self) -> Path:
        """`<data>/<network>`: nothing of one network is ever under that of another."""
        return self.data / self.network

    @property
    def bitcoind_dir(self) -> Path:
        return self.network_dir / "bitcoind"

    @property
    def regtest_dir(self) -> Path:
        """Where `oda regtest` keeps its network, whatever `network` says."""
        return self.data / Network.REGTEST

    @property
    def provider_dir(self) -> Path:
        return self.network_dir / "provider"

    @property
    def client_dir(self) -> Path:
        return self.network_dir / "client"

    def node_dir(self, name: str) -> Path:
        """The directory of an embedded node; its socket is `lightning-rpc` inside."""
        return self.network_dir / "nodes" / name


class LightningSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[lightning]`.

    rpc_file: the socket of a real lightningd; None means the embedded node.
    bitcoind_url, bitcoind_cookie: the bitcoind that the embedded node follows; on regtest that of
        `oda regtest` where they are not given.
    """

    rpc_file: Path | None = None
    bitcoind_url: str | None = None
    bitcoind_cookie: Path | None = None


def config_file(environ: Mapping[str, str] = os.environ) -> Path:
    named = environ.get("ODA_CONFIG")
    return (
        Path(named).expanduser() if named else platformdirs.user_config_path("oda") / "config.toml"
    )


def load_settings(
    flags: Mapping[str, object] | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """The keys that all packages share. A flag that is None was not given.

    Raises UserError: `bad-config-file`, `unknown-setting`, `bad-setting`.
    """
    top = {key: value for key, value in _read_file(environ).items() if key not in SECTIONS}
    return _build(Settings, "", top, flags or {}, environ)


def load_section(
    name: str,
    kind: type[T],
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> T:
    """`[name]` of the file, overridden by `ODA_<NAME>_<KEY>` and by flags (None: not given).

    `kind` needs a default for every key that the user may leave out. Raises as `load_settings`.
    """
    if name not in SECTIONS:
        raise ValueError(f"{name!r} is missing in channels.settings.SECTIONS")
    table = _read_file(environ).get(name, {})
    if not isinstance(table, dict):
        raise UserError(
            "bad-setting", f"`{name}` in {config_file(environ)} must be a table: [{name}]."
        )
    return _build(kind, name, table, flags or {}, environ)


def _read_file(environ: Mapping[str, str]) -> dict[str, object]:
    path = config_file(environ)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if "ODA_CONFIG" in environ:
            raise UserError(
                "bad-config-file", f"The settings file {path} does not exist; create it."
            ) from None
        return {}
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(
            "bad-config-file", f"The settings file {path} can't be read: {error}."
        ) from None


def _build(
    kind: type[T],
    section: str,
    table: Mapping[str, object],
    flags: Mapping[str, object],
    environ: Mapping[str, str],
) -> T:
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    if unknown := sorted(set(table) - set(fields)):
        raise UserError(
            "unknown-setting",
            f"{config_file(environ)} has unknown settings {_names(section, unknown)}; "
            f"known are {_names(section, sorted(fields))}.",
        )
    values = dict(table)
    prefix = f"ODA_{section.upper()}_" if section else "ODA_"
    for name, field in fields.items():
        if (text := environ.get(prefix + name.upper())) is not None:
            values[name] = text.split(",") if get_origin(field.type) in (tuple, list) else text
    values.update({name: value for name, value in flags.items() if value is not None})
    try:
        # Not strict: an environment variable is always text, also where a number is meant.
        return msgspec.convert(values, kind, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        where = f"[{section}]" if section else "settings"
        raise UserError("bad-setting", f"Wrong value in {where}: {error}.") from None


def _decode(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str | Path) and str(value):
        return Path(value).expanduser()
    raise ValueError(f"{value!r} is not a path")


def _names(section: str, keys: list[str]) -> str:
    return ", ".join(f"`{section}.{key}`" if section else f"`{key}`" for key in keys)
