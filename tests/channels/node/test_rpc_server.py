"""The socket server: framing, limits, permissions, and pyln-client as the caller."""

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyln.client import LightningRpc, Millisatoshi, RpcError

from channels.errors import UserError
from channels.node import rpc_params as params
from channels.node.rpc_server import (
    MAX_DEPTH,
    MAX_REQUEST,
    Call,
    Command,
    Param,
    RequestDecoder,
    RpcErrorCode,
    RpcMethodError,
    RpcServer,
    apply_filter,
    check_filter,
)


class Node:
    """Commands whose progress a test can see and steer."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.release = asyncio.Event()
        self.finished = asyncio.Event()
        self.cancelled = asyncio.Event()

    def commands(self) -> tuple[Command, ...]:
        amount = Param("amount_msat", True, params.msat)
        return (
            Command("echo", (amount, Param("label", False, params.label)), self.echo, "Say it"),
            Command("pay", (), self.hold, "Moves money"),
            Command("wait", (), self.hold, "Only waits", abandonable=True),
            Command("refuse", (), self.refuse, "Always an error"),
            Command("crash", (), self.crash, "A bug"),
            Command("unwritable", (), self.unwritable, "Another bug"),
        )

    async def echo(self, arguments: Mapping[str, Any], call: Call) -> Mapping[str, Any]:
        call.notify("working")
        return {**arguments, "nested": [{"a": 1, "b": 2}]}

    async def hold(self, arguments: Mapping[str, Any], call: Call) -> Mapping[str, Any]:
        self.waiting.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        self.finished.set()
        return {"done": True}

    async def refuse(self, arguments: Mapping[str, Any], call: Call) -> Mapping[str, Any]:
        raise RpcMethodError(RpcErrorCode.INVOICE_STATUS_UNEXPECTED, "is paid", {"now": "paid"})

    async def crash(self, arguments: Mapping[str, Any], call: Call) -> Mapping[str, Any]:
        raise ZeroDivisionError("secret detail")

    async def unwritable(self, arguments: Mapping[str, Any], call: Call) -> Mapping[str, Any]:
        return {"bytes": b"not json"}


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
async def server(tmp_path: Path, node: Node) -> AsyncIterator[RpcServer]:
    server = RpcServer(tmp_path / "node" / "lightning-rpc", node.commands())
    await server.start()
    yield server
    await server.close()


async def exchange(server: RpcServer, *chunks: bytes, replies: int = 1) -> list[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(server.path)
    try:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
        return [json.loads(await reader.readuntil(b"\n\n")) for _ in range(replies)]
    finally:
        writer.close()
        await writer.wait_closed()


def request(method: str, params: Any, id_: Any = 1, **more: Any) -> bytes:
    body = {"jsonrpc": "2.0", "id": id_, "method": method, "params": params, **more}
    return json.dumps(body, ensure_ascii=False).encode()


async def test_pyln_client(server: RpcServer) -> None:
    def caller() -> None:
        rpc, seen = LightningRpc(str(server.path)), []
        answer = {"amount_msat": 5, "label": None, "nested": [{"a": 1, "b": 2}]}
        assert rpc.call("echo", {"amount_msat": 5}) == answer
        assert rpc.echo(5) == answer
        assert rpc.echo(amount_msat=Millisatoshi("1sat"))["amount_msat"] == 1000
        assert rpc.echo(1, "é" * 100_000)["label"] == "é" * 100_000
        with rpc.notify(lambda message, progress, request: seen.append(message)):
            rpc.echo(5)
        assert seen == ["working"]
        with rpc.reply_filter({"nested": [{"b": True}]}):
            assert rpc.echo(5) == {"nested": [{"b": 2}]}
        for method, error in (
            ("nothing", {"code": -32601, "message": "Unknown command 'nothing'"}),
            ("refuse", {"code": 906, "message": "is paid", "data": {"now": "paid"}}),
            ("echo", {"code": -32602, "message": "missing required parameter: amount_msat"}),
        ):
            with pytest.raises(RpcError) as refused:
                rpc.call(method)
            assert refused.value.error == error
        assert {"command": "echo amount_msat [label]", "description": "Say it"} in rpc.help()[
            "help"
        ]
        assert len(rpc.help("echo")["help"]) == 1

    await asyncio.to_thread(caller)


@pytest.mark.parametrize("method", ["crash", "unwritable"])
async def test_a_bug_is_logged_and_answered(
    server: RpcServer, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    (reply,) = await exchange(server, request(method, {}))
    assert reply["error"]["code"] == -1
    assert "secret detail" not in reply["error"]["message"]
    assert f"RPC command {method} failed" in caplog.text


async def test_requests_in_pieces_and_in_one(server: RpcServer) -> None:
    whole = request("echo", [1, 'ü}\\"{']) + b"\n" + request("echo", [2], 2)
    pieces = [whole[i : i + 1] for i in range(len(whole))]
    for chunks in ([whole], pieces):
        replies = await exchange(server, *chunks, replies=2)
        by_id = {reply["id"]: reply["result"] for reply in replies}
        assert by_id[1]["label"] == 'ü}\\"{'
        assert by_id[2]["amount_msat"] == 2


@pytest.mark.parametrize(
    ("garbage", "message"),
    [
        (b"[]", "Expected {} for json command"),
        (b"hello", "Expected {} for json command"),
        (b"{]", "Invalid token in json input"),
        (b'{"a": NaN}', "Invalid token in json input"),
        (b'{"a":' + b"9" * 5000 + b"}", "Invalid token in json input"),
        (b'{"\xff', "Request is not UTF-8"),
        (b'{"a":' + b"[" * MAX_DEPTH, f"Request is nested deeper than {MAX_DEPTH}"),
        (b'{"a":"' + b"x" * (MAX_REQUEST - 5), "Request is larger than 4194304 characters"),
        (b'{"method":"echo"}', "No id"),
        (b'{"method":"echo","id":[]}', "Expected string/primitive for id"),
        (b'{"id":1}', "No method"),
        (b'{"id":1,"method":{}}', "Expected string for method"),
    ],
)
async def test_garbage_is_answered_and_hung_up_on(
    server: RpcServer, garbage: bytes, message: str
) -> None:
    reader, writer = await asyncio.open_unix_connection(server.path)
    writer.write(garbage)
    reply = json.loads(await reader.readuntil(b"\n\n"))
    assert reply == {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": message}}
    assert await reader.read() == b""
    writer.close()


async def test_commands_run_side_by_side(server: RpcServer, node: Node) -> None:
    reader, writer = await asyncio.open_unix_connection(server.path)
    writer.write(request("pay", {}, "slow") + request("echo", [1], "quick"))
    assert json.loads(await reader.readuntil(b"\n\n"))["id"] == "quick"
    node.release.set()
    assert json.loads(await reader.readuntil(b"\n\n"))["id"] == "slow"
    writer.close()


async def test_hanging_up_cancels_only_what_waits(server: RpcServer, node: Node) -> None:
    for method in ("pay", "wait"):
        node.waiting.clear()
        _, writer = await asyncio.open_unix_connection(server.path)
        writer.write(request(method, {}))
        await node.waiting.wait()
        writer.close()
        if method == "wait":
            await node.cancelled.wait()
    node.release.set()
    await node.finished.wait()


async def test_closing_answers_those_who_wait(server: RpcServer, node: Node) -> None:
    reader, writer = await asyncio.open_unix_connection(server.path)
    writer.write(request("pay", {}))
    await node.waiting.wait()
    await server.close()
    reply = json.loads(await reader.readuntil(b"\n\n"))
    assert reply["error"]["code"] == RpcErrorCode.SHUTDOWN
    assert await reader.read() == b""
    assert not server.path.exists()
    writer.close()


async def test_closing_cuts_off_a_caller_that_does_not_read(tmp_path: Path) -> None:
    async def big(arguments: Mapping[str, Any], call: Call) -> Mapping[str, Any]:
        return {"x": "x" * 10_000_000}

    server = RpcServer(tmp_path / "rpc", (Command("big", (), big, ""),))
    await server.start()
    reader, writer = await asyncio.open_unix_connection(server.path)
    writer.write(request("big", {}))
    assert (await reader.read(1)) == b"{"
    await server.close(grace=0)
    writer.close()


async def test_permissions(server: RpcServer) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.path.parent.stat().st_mode) == 0o700


async def test_an_open_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(UserError) as refused:
        await RpcServer(tmp_path / "open" / "rpc", ()).start()
    assert refused.value.reason == "rpc-directory-open"


async def test_a_live_socket_is_kept_and_a_stale_one_replaced(server: RpcServer) -> None:
    with pytest.raises(UserError) as refused:
        await RpcServer(server.path, ()).start()
    assert refused.value.reason == "rpc-socket-in-use"
    await server.close()

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(server.path))
    again = RpcServer(server.path, ())
    await again.start()
    (reply,) = await exchange(again, request("help", {}))
    assert reply["result"]["format-hint"] == "simple"
    await again.close()


async def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "rpc").write_text("precious")
    with pytest.raises(UserError) as refused:
        await RpcServer(tmp_path / "rpc", ()).start()
    assert refused.value.reason == "rpc-path-taken"
    assert (tmp_path / "rpc").read_text() == "precious"


async def test_a_path_longer_than_a_socket_address(tmp_path: Path, node: Node) -> None:
    server = RpcServer(tmp_path / ("d" * 120) / "lightning-rpc", node.commands())
    await server.start()
    rpc = LightningRpc(str(server.path))
    assert (await asyncio.to_thread(rpc.call, "echo", [7]))["amount_msat"] == 7
    await server.close()


@pytest.mark.parametrize("wrong", [1, "x", False, [], [True, True], {"a": None}])
async def test_a_filter_of_the_wrong_shape(server: RpcServer, wrong: Any) -> None:
    (reply,) = await exchange(server, request("echo", [1], filter=wrong))
    assert reply["error"]["code"] == -32602


def test_a_filter_that_does_not_match_keeps_nothing() -> None:
    result = {"a": [{"b": 1}], "c": 2}
    for wanted, kept in (
        ({"a": {"b": True}}, {"a": []}),
        ({"a": [{"b": True, "no": True}]}, {"a": [{"b": 1}]}),
        ({"c": True}, {"c": 2}),
        ([True], {}),
        (True, result),
    ):
        check_filter(wanted)
        assert apply_filter(result, wanted) == kept


objects = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


@given(bodies=st.lists(objects, max_size=4), ascii_=st.booleans(), size=st.integers(1, 9))
def test_any_cut_of_the_stream_decodes_the_same(
    bodies: list[dict[str, Any]], ascii_: bool, size: int
) -> None:
    stream = " ".join(json.dumps(body, ensure_ascii=ascii_) for body in bodies)
    data = stream.encode("utf-8")
    decoder = RequestDecoder()
    seen = [
        decoded for i in range(0, len(data), size) for decoded in decoder.feed(data[i : i + size])
    ]
    assert seen == bodies


@given(data=st.binary(max_size=200))
def test_the_decoder_raises_nothing_but_its_error(data: bytes) -> None:
    try:
        assert all(isinstance(body, dict) for body in RequestDecoder().feed(data))
    except RpcMethodError as refused:
        assert refused.code == RpcErrorCode.INVALID_REQUEST
