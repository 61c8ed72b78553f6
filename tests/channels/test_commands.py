"""`oda wallet` and `oda lightning`."""

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from channels import commands
from channels.errors import UserError
from channels.node import rpc_params as params
from channels.node.rpc_server import Arguments, Call, Command, Param, RpcServer
from channels.settings import load_settings
from channels.terminal import ExitCode, exit_code
from tests.conftest import Chain

WORDS = "abandon " * 11 + "about"  # BIP 39, the first of its test vectors


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("ODA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("ODA_DATA", str(tmp_path))
    return tmp_path


def oda(*arguments: str, stdin: str | None = None) -> str:
    """Its stdout; raises what the command raised."""
    app = typer.Typer()
    commands.mount(app)
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def fails(*arguments: str, stdin: str | None = None) -> tuple[ExitCode, str]:
    with pytest.raises(UserError) as failed:
        oda(*arguments, stdin=stdin)
    return exit_code(failed.value), failed.value.reason


# Words -------------------------------------------------------------------------------------------


def test_new_words_are_shown_once_and_kept_for_their_owner_alone(data: Path) -> None:
    shown = oda("wallet", "new")
    secret = data / "regtest/nodes/user/hsm_secret"
    words = secret.read_text().split()
    assert len(words) == 12
    numbered = [f"{number}. {word}" for number, word in enumerate(words, 1)]
    assert all(each in shown for each in numbered)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(secret.parent.stat().st_mode) == 0o700
    assert fails("wallet", "new") == (ExitCode.IN_USE, "secret-file-exists")
    assert fails("wallet", "restore", stdin=WORDS) == (ExitCode.IN_USE, "secret-file-exists")
    assert secret.read_text().split() == words
    assert not (secret.parent / "restored").exists()


def test_new_in_json(data: Path) -> None:
    document = json.loads(oda("wallet", "new", "--name", "other", "--json"))
    secret = data / "regtest/nodes/other/hsm_secret"
    assert document == {"words": secret.read_text().split(), "file": str(secret)}


def test_off_regtest_the_words_must_be_written_down(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODA_NETWORK", "signet")
    secret = data / "signet/nodes/user/hsm_secret"
    assert fails("wallet", "new", stdin="wrong\nwrong\n") == (
        ExitCode.USAGE,
        "words-not-confirmed",
    )
    assert not secret.exists()
    monkeypatch.setattr("channels.node.seed.generate_mnemonic", lambda: "abandon " * 11 + "about")
    monkeypatch.setattr(secrets.SystemRandom, "sample", lambda self, of, size: [0, 11])
    assert "Type word 12 again" in oda("wallet", "new", stdin="abandon\nabout\n")
    assert secret.read_text().strip() == WORDS


def test_restored_words_are_marked_so_that_the_node_looks_for_their_coins(data: Path) -> None:
    folder = data / "regtest/nodes/user"
    assert fails("wallet", "restore", stdin="abandon about") == (ExitCode.USAGE, "bad-mnemonic")
    assert fails("wallet", "restore", stdin="") == (ExitCode.USAGE, "bad-mnemonic")
    assert not folder.exists()
    document = json.loads(oda("wallet", "restore", "--json", stdin=WORDS.upper() + "\n"))
    assert document == {"file": str(folder / "hsm_secret")}
    assert (folder / "hsm_secret").read_text().strip() == WORDS
    assert (folder / "restored").exists()


# Coins -------------------------------------------------------------------------------------------


class Node:
    def output(self, amount: int, status: str) -> dict[str, Any]:
        row = {"txid": "00" * 32, "output": 0, "amount_msat": amount, "scriptpubkey": ""}
        return row | {"status": status, "reserved": False}

    async def newaddr(self, arguments: Arguments, call: Call) -> Mapping[str, Any]:
        return {"bech32": "bcrt1qx"}

    async def listfunds(self, arguments: Arguments, call: Call) -> Mapping[str, Any]:
        channel = {"peer_id": "02", "our_amount_msat": 70_001, "amount_msat": 100_000}
        channel |= {"funding_txid": "00", "funding_output": 0, "connected": True, "state": "x"}
        outputs = [
            self.output(5_000, "confirmed"),
            self.output(3_000, "unconfirmed"),
            self.output(9_000, "spent"),
        ]
        ended = channel | {"state": "ONCHAIN"}  # as lightningd lists it for a hundred blocks
        return {"outputs": outputs, "channels": [channel, ended]}

    async def listcloses(self, arguments: Arguments, call: Call) -> Mapping[str, Any]:
        close: dict[str, Any] = {
            "peer_id": "02",
            "channel_id": "cc",
            "state": "ONCHAIN",
            "closer": "us",
        }
        close |= {"txid": "bb", "confirmed": True, "blockheight": 1}
        output = {"txid": "bb", "outnum": 0, "type": "x", "amount_msat": 6_000}
        states = ("waiting", "claiming", "spent", "theirs", "ignored")
        return {"closes": [close | {"outputs": [output | {"status": s} for s in states]}]}


@pytest.fixture
async def rpc_file(tmp_path: Path) -> AsyncIterator[Path]:
    node = Node()
    path = tmp_path / "rpc"
    address_type = Param("addresstype", False, params.string)
    made = (
        Command("newaddr", (address_type,), node.newaddr, ""),
        Command("listfunds", (), node.listfunds, ""),
        Command("oda-listcloses", (), node.listcloses, ""),
    )
    server = RpcServer(path, made)
    await server.start()
    yield path
    await server.close()


async def test_balance_and_address(rpc_file: Path) -> None:
    assert await commands._address(rpc_file) == "bcrt1qx"
    assert await commands._balance(rpc_file) == commands.Balance(5, 3, 70_001, 12_000)


def test_without_a_node_a_sentence_says_how_to_start_one() -> None:
    for command in ("address", "balance"):
        with pytest.raises(UserError) as failed:
            oda("wallet", command)
        assert failed.value.reason == "not-running"
        assert "oda regtest up" in str(failed.value)
        assert "oda lightning start" in str(failed.value)


# The node ----------------------------------------------------------------------------------------


def test_a_node_needs_a_bitcoind() -> None:
    assert fails("lightning", "start") == (ExitCode.UNREACHABLE, "no-bitcoind")
    assert fails("lightning", "run") == (ExitCode.UNREACHABLE, "no-bitcoind")


def test_the_bitcoind_of_the_regtest_network_is_found(data: Path) -> None:
    file = data / "regtest/network.json"
    file.parent.mkdir()
    file.write_text('{"bitcoind_port": 20001, "nodes": {"user": {"port": 20002, "funded": true}}}')
    command = commands.node_command(load_settings(), "user", None, None, False)
    assert command[:3] == [sys.executable, "-m", "channels.node"]
    assert "--bitcoind-url=http://127.0.0.1:20001" in command
    assert f"--bitcoind-cookie={data}/regtest/bitcoind/regtest/.cookie" in command
    assert "--listen=127.0.0.1:20002" in command
    other = commands.node_command(load_settings(), "other", "http://127.0.0.1:5", None, True)
    assert "--bitcoind-url=http://127.0.0.1:5" in other
    assert "--listen=127.0.0.1:0" in other
    assert "--i-know-this-is-young-software" in other
    file.write_text("{")
    assert fails("lightning", "start") == (ExitCode.USAGE, "bad-network-file")


def test_run_becomes_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: became.append((path, command)))
    started = oda("lightning", "run", "--bitcoind-url", "http://127.0.0.1:5", "--json")
    assert json.loads(started)["pid"] == os.getpid()
    [(path, command)] = became
    assert path == sys.executable
    assert "--bitcoind-url=http://127.0.0.1:5" in command


def test_start_use_and_stop(bitcoind: Chain, data: Path) -> None:
    where = ("--bitcoind-url", bitcoind.url, "--bitcoind-cookie", str(bitcoind.cookie))
    start = ("lightning", "start", *where)
    try:
        document = json.loads(oda(*start, "--json"))
        assert document["rpc_file"] == str(data / "regtest/nodes/user/lightning-rpc")
        assert fails(*start) == (ExitCode.IN_USE, "already-running")
        assert oda("wallet", "address").startswith("bcrt1q")
        assert json.loads(oda("wallet", "balance", "--json"))["onchain_sat"] == 0
    finally:
        stopped = oda("lightning", "stop")
    assert stopped == "Node user has stopped.\n"
    assert oda("lightning", "stop") == "Node user was not running.\n"
    with pytest.raises(ProcessLookupError):
        os.kill(document["pid"], 0)


def test_a_node_that_ends_at_once_says_why(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = data / "regtest/nodes/user/hsm_secret"
    secret.parent.mkdir(parents=True)
    secret.write_text("not words")
    secret.chmod(0o600)
    with pytest.raises(UserError) as failed:
        oda("lightning", "start", "--bitcoind-url", "http://127.0.0.1:1")
    assert failed.value.reason == "did-not-start"
    assert "words of a wallet" in str(failed.value)
