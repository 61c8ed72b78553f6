"""`oda node`, `oda model` and `oda payee`: what they say, and with which exit code they end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from channels import lightning
from channels.bolt import signmessage
from channels.errors import OdaError, UserError
from channels.settings import Settings
from channels.terminal import ExitCode
from sidechain import api, model_commands, payee_commands
from sidechain.events import Event, TransactionAdded
from sidechain.model_commands import _scored
from sidechain.node_client import NodeClient
from sidechain.params import REGTEST
from sidechain.settings import Key, load
from sidechain.shard_keys import ShardKeys
from tests.sidechain import api_nodes, oda
from tests.sidechain.api_nodes import Api
from tests.sidechain.directories import KEYS, written
from tests.sidechain.node_processes import NodeProcess, ended, environment
from tests.sidechain.world import (
    ALICE,
    BOB,
    QUICK,
    Person,
    add_model,
    h,
    register,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in environment(tmp_path / "home").items():
        if name.startswith("ODA_"):
            monkeypatch.setenv(name, value)
    return Settings(data=tmp_path / "home")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Api]:
    """Mines whatever comes."""
    async with api_nodes.full(tmp_path / "chain") as made:

        def hear(event: Event) -> None:
            if isinstance(event, TransactionAdded):
                asyncio.get_running_loop().call_soon(made.mine)

        made.node.listen(hear)
        yield made


def url(node: Api) -> str:
    return str(node.client.make_url("")).rstrip("/")


def oda_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = oda.main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


# --- oda node ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--light", "--mine"), "bad-option"),
        (("--connect", "nobody"), "bad-peer"),
        (("--host", "192.0.2.1"), "bad-setting"),
    ],
)
def test_what_makes_no_sense_is_refused(
    home: Settings, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], reason: str
) -> None:
    code, said = oda_json(capsys, "node", *options)
    assert (code, said["error"]["reason"]) == (ExitCode.USAGE, reason)


def test_a_port_that_is_taken_is_named(home: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = oda_json(capsys, "node", "--light", "--port", str(port))
    assert (code, said["error"]["reason"]) == (ExitCode.IN_USE, "port-in-use")
    assert str(port) in said["error"]["message"]


async def test_one_data_directory_has_one_node(
    tmp_path: Path, home: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    first = NodeProcess(home.data, ("--light",))
    with ended(first):
        await first.start()
        command = ["node", "--light", "--port", "0"]
        code, said = await asyncio.to_thread(oda_json, capsys, *command)
        assert (code, said["error"]["reason"]) == (ExitCode.IN_USE, "store-in-use")
        assert (await first.status()).light
        assert first.interrupt() == 0


def test_the_key_is_drawn_once_and_is_nobody_elses(home: Settings) -> None:
    key = Key.load(home)
    file = home.data / "regtest" / "sidechain" / "key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert Key.load(home).public == key.public and len(key.public) == 32
    file.write_bytes(b"short")
    with pytest.raises(UserError) as caught:
        Key.load(home)
    assert caught.value.reason == "bad-key-file"


def test_empty_blocks_come_by_themselves_on_regtest_alone_after_a_while(home: Settings) -> None:
    assert load(home).empty_after == 5.0
    assert load(Settings(data=home.data, network="signet")).empty_after == 0  # type: ignore[arg-type] # it is a StrEnum


# --- the client of the API -----------------------------------------------------------------------


async def test_a_node_that_is_not_there_is_said_to_be_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with NodeClient(f"http://127.0.0.1:{unused.getsockname()[1]}") as client:
            with pytest.raises(UserError) as caught:
                await client.get("/status", api.Status)
    assert caught.value.reason == "node-unreachable" and "oda node" in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>", b'"text"', b"{}", b"[" * 5_000_000])
async def test_what_is_no_node_is_said_to_be_none(body: bytes) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    app = web.Application()
    app.router.add_get("/api/v1/status", answer)
    async with TestServer(app) as server, NodeClient(str(server.make_url(""))) as client:
        with pytest.raises(UserError) as caught:
            await client.get("/status", api.Status)
    assert caught.value.reason == "node-unreachable"


async def test_a_transaction_is_followed_into_a_block(node: Api) -> None:
    tx = register(QUICK, ALICE)
    async with NodeClient(url(node)) as client:
        assert await client.send(tx) == tx.txid
        found = await client.confirmed(tx)
        assert found.height == 1


async def test_what_was_dropped_is_told_with_its_reason(node: Api) -> None:
    tx = add_model(QUICK)
    async with NodeClient(url(node)) as client:
        await client.send(tx)
        waiting = asyncio.create_task(client.confirmed(tx))
        node.scored(tx.txid, tx.weights_root, tx.score + 1)
        with pytest.raises(OdaError) as caught:
            await waiting
        assert caught.value.reason == "bad-score"
        with pytest.raises(OdaError) as caught:
            await client.confirmed(register(QUICK, BOB))
        assert caught.value.reason == "dropped"


# --- oda payee -----------------------------------------------------------------------------------


class Lightning:
    """The door to a node whose key is known."""

    def __init__(self, rpc_file: Path) -> None:
        self.person = Person("paid")

    async def __aenter__(self) -> Lightning:
        return self

    async def __aexit__(self, *exception: object) -> None:
        pass

    async def getinfo(self) -> SimpleNamespace:
        return SimpleNamespace(id=self.person.node_id.hex())

    async def signmessage(self, text: str) -> str:
        return signmessage.sign(self.person.node_secret, text)[1]


async def test_a_payee_is_registered_and_then_again(
    node: Api,
    home: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lightning, "Lightning", Lightning)
    socket = payee_commands.rpc_file(home, "paid")
    key = Key.load(home)
    for seq in (1, 2):
        endpoint = f"http://127.0.0.1:1/{seq}"
        await payee_commands._register(home, url(node), socket, endpoint, True)
        assert json.loads(capsys.readouterr().out)["seq"] == seq
        payee = node.node.chain.state.payee(key.public)
        assert payee is not None
        assert (payee.seq, payee.endpoint) == (seq, endpoint)
        assert payee.node_id == Person("paid").node_id
    await payee_commands._show(key, url(node), True)
    said = json.loads(capsys.readouterr().out)
    assert said["key"] == key.public.hex() and said["payee"]["endpoint"].endswith("/2")
    with pytest.raises(UserError) as caught:
        await payee_commands._register(home, url(node), socket, "two words", True)
    assert caught.value.reason == "bad-payee-endpoint"


def test_a_lightning_node_has_to_be_named(home: Settings) -> None:
    with pytest.raises(UserError) as caught:
        payee_commands.rpc_file(home, None)
    assert caught.value.reason == "no-lightning"


# --- oda model -----------------------------------------------------------------------------------


async def test_models_are_listed_and_shown(node: Api, capsys: pytest.CaptureFixture[str]) -> None:
    models = [add_model(QUICK, weights=f"w{i}", score=1000 + i) for i in range(3)]
    for tx in models:
        node.node.accept_transaction(tx)
        node.scored(tx.txid, tx.weights_root, tx.score)
        await asyncio.sleep(0)  # it is mined
        node.mine()
    found = await model_commands._all_models(url(node))
    assert [each.model for each in found] == [tx.txid.hex() for tx in models]
    shown = await model_commands._model(url(node), models[1].txid.hex().upper())
    assert shown.confirmed.score == 1001
    with pytest.raises(UserError) as caught:
        await model_commands._model(url(node), "xyz")
    assert caught.value.reason == "bad-hash"
    for arguments in (["list"], ["show", models[1].txid.hex()]):
        command = ["model", *arguments, "--url", url(node)]
        assert await asyncio.to_thread(oda.main, command) == 0
        said = capsys.readouterr().out
        assert models[1].txid.hex() in said and "1001" in said


async def test_a_shard_is_opened(
    node: Api, home: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    class Opener(Person):
        @property
        def key(self) -> bytes:
            return Key.load(home).public

    tx = add_model(QUICK, shards=("s0",), openers=(Opener("me"),))
    node.node.accept_transaction(tx)
    node.scored(tx.txid, tx.weights_root, tx.score)
    await asyncio.sleep(0)
    node.mine()
    keys = ShardKeys(None, (h("s0"),))
    await model_commands._open(home, url(node), tx.txid, 0, keys, True)
    assert json.loads(capsys.readouterr().out)["confirmed"]["score"] == tx.score
    model = node.node.chain.state.model(tx.txid)
    assert model is not None and model.opened[0] > 0


def test_what_the_network_would_refuse_is_found_before_it_is_shared(tmp_path: Path) -> None:
    from dataclasses import replace

    made = written(tmp_path / "model")
    openers = (ALICE.key,)
    _, score, cost = _scored(made.path, REGTEST, KEYS[:1], openers)
    assert (score, cost) == (made.model.score(), made.model.score_cost())
    for params, keys, who, reason in (
        (REGTEST, (), (), "bad-shards"),
        (REGTEST, KEYS[:1], (), "bad-shards"),
        (REGTEST, KEYS[1:2], openers, "bad-shard"),
        (replace(REGTEST, dataset_bytes=10), KEYS[:1], openers, "bad-dataset"),
        (replace(REGTEST, model_bytes=10), KEYS[:1], openers, "bad-architecture"),
        (replace(REGTEST, score_cost=cost), KEYS[:1], openers, "model-too-costly"),
    ):
        with pytest.raises(UserError) as caught:
            _scored(made.path, params, keys, who)
        assert caught.value.reason == reason


def test_keys_of_shards_are_not_shared(
    tmp_path: Path, home: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    made = written(tmp_path / "model")
    for place in (made.path / "keys", tmp_path / "k"):
        place.write_text("12")
        code, said = oda_json(capsys, "model", "add", str(made.path), "--shard-keys", str(place))
        assert (code, said["error"]["reason"]) == (ExitCode.USAGE, "bad-keys-file")
