"""`oda regtest`, through the whole command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import regtest.network
from channels.settings import load_settings
from channels.terminal import ExitCode
from client.cli import main
from tests.regtest.test_network import NODE


@pytest.fixture
def oda(
    bitcoind_program: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    # The cache that the fixture has filled, and everything else new.
    monkeypatch.setenv("ODA_CACHE", str(load_settings().cache))
    monkeypatch.setenv("ODA_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    network = partial(regtest.network.Network, node=NODE)
    monkeypatch.setattr(regtest.network, "Network", network)
    yield lambda *arguments: main(["regtest", *arguments])
    main(["regtest", "down"])


def test_for_programs(oda: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def document(*arguments: str) -> tuple[int, Any]:
        code = oda(*arguments, "--json")
        return code, json.loads(capfd.readouterr().out)

    code, result = document("up", "alice", "--coins", "20000")
    assert code == ExitCode.OK
    assert [node["name"] for node in result["nodes"]] == ["alice"]
    assert Path(result["nodes"][0]["rpc_file"]).is_socket()
    assert document("status") == (ExitCode.OK, result)
    code, result = document("fund", "alice", "5000")
    assert (code, result["sat"], len(result["txid"])) == (ExitCode.OK, 5000, 64)
    code, result = document("mine", "2")
    assert (code, len(result["blocks"])) == (ExitCode.OK, 2)
    code, result = document("fund", "nobody", "5000")
    assert (code, result["error"]["reason"]) == (ExitCode.NOT_FOUND, "not-found")
    code, result = document("fund", "alice", "10")
    assert (code, result["error"]["reason"]) == (ExitCode.USAGE, "usage")
    assert document("down") == (ExitCode.OK, {"stopped": ["alice", "bitcoind"]})
    code, result = document("mine")
    assert (code, result["error"]["reason"]) == (ExitCode.UNREACHABLE, "not-running")


def test_for_people(oda: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert oda("up", "alice") == ExitCode.OK
    shown = capfd.readouterr()
    socket = tmp_path / "data" / "regtest" / "nodes" / "alice" / "lightning-rpc"
    assert f"socket  {socket}" in shown.out
    assert shown.err == "", "a progress bar where there is no terminal"
    assert oda("status") == ExitCode.OK
    assert capfd.readouterr().out == shown.out
    assert oda("down") == ExitCode.OK
    assert capfd.readouterr().out == "Stopped alice, bitcoind\n"
    assert oda("status") == ExitCode.OK
    assert "oda regtest up" in capfd.readouterr().out


def test_only_on_regtest(
    oda: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODA_NETWORK", "signet")
    assert oda("up", "--json") == ExitCode.USAGE
    assert json.loads(capfd.readouterr().out)["error"]["reason"] == "wrong-network"
    monkeypatch.delenv("ODA_NETWORK")


def test_a_bitcoind_that_is_not_there(oda: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert oda("up", "--bitcoind", "/nowhere/bitcoind") == ExitCode.NOT_FOUND
    error = capfd.readouterr().err
    assert error == "oda: /nowhere/bitcoind is not a program; name bitcoind itself.\n"
