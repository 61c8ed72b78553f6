"""Nodes on real sockets, and strangers who call them. All of 127.0.0.0/8 is this machine, so that
everybody can have an address of his own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import aiohttp
from aiohttp import WSMsgType, web

from sidechain.light_node import LightNode
from sidechain.node import ChainNode
from sidechain.peers import PATH, Peers
from sidechain.protocol import Message, Ping, Pong, Verack, Version, decode
from tests.sidechain.wire import version

WITHIN = 20.0


class Clock:
    """Time that goes on as usual, and further when a test says so."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead


@dataclass
class Running:
    """A node with its peers, listening."""

    node: ChainNode | LightNode
    peers: Peers
    host: str
    port: int

    @property
    def chain_node(self) -> ChainNode:
        assert isinstance(self.node, ChainNode)
        return self.node

    async def connect(self, other: Running) -> None:
        await self.peers.connect(other.host, other.port)

    @property
    def hosts(self) -> set[str]:
        """Of the peers."""
        return {info.host for info in self.peers.infos()}


@asynccontextmanager
async def running(
    node: ChainNode | LightNode, host: str = "127.0.0.1", *, port: int = 0, **options: Any
) -> AsyncIterator[Running]:
    """Options are those of Peers."""
    listener = socket.create_server((host, port))
    port = listener.getsockname()[1]
    options.setdefault("random", Random(port))
    peers = Peers(node, agent="test", port=port, **options)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(peers.routes(), [listener]))
        await stack.enter_async_context(peers)
        yield Running(node, peers, host, port)


@asynccontextmanager
async def serving(
    routes: list[web.RouteDef], listeners: list[socket.socket]
) -> AsyncIterator[None]:
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    for listener in listeners:
        await web.SockSite(runner, listener).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], Any], what: str = "", within: float = WITHIN) -> None:
    """Look again until something is so: peers come and go without an event to wait for."""
    try:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110  # as said above
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {within} s in vain: {what}") from None


async def same_tip(*nodes: Running) -> None:
    def one_tip() -> bool:
        return len({each.chain_node.chain.tip.hash for each in nodes}) == 1

    await until(one_tip, "one tip")


class Caller:
    """A stranger at one end of a WebSocket. He answers pings, and says what a test wants."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse | web.WebSocketResponse) -> None:
        self.ws = ws

    async def says(self, *messages: Message) -> None:
        for message in messages:
            await self.ws.send_bytes(message.encode())

    async def hears(self, kind: type[Message]) -> Message:
        """The next message of a kind."""
        async with asyncio.timeout(WITHIN):
            while True:
                frame = await self.ws.receive()
                assert frame.type is WSMsgType.BINARY, f"{frame.type} instead of {kind.__name__}"
                message = decode(frame.data)
                if isinstance(message, Ping):
                    await self.says(Pong(message.nonce))
                if isinstance(message, kind):
                    return message

    async def greets(self, theirs: Version | None = None) -> None:
        await self.says(theirs or version())
        await self.hears(Version)
        await self.says(Verack())
        await self.hears(Verack)

    async def is_left(self) -> None:
        """Until the node closes the connection."""
        async with asyncio.timeout(WITHIN):
            while True:
                frame = await self.ws.receive()
                if frame.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                    return
                if frame.type is WSMsgType.ERROR:
                    return


@asynccontextmanager
async def calling(to: Running, source: str = "127.0.9.9", **headers: str) -> AsyncIterator[Caller]:
    """A connection to a node. Raises aiohttp.WSServerHandshakeError where it is refused."""
    connector = aiohttp.TCPConnector(local_addr=(source, 0))
    async with aiohttp.ClientSession(connector=connector) as session:
        url = f"http://{to.host}:{to.port}{PATH}"
        timeout = aiohttp.ClientWSTimeout(ws_close=0.2)
        async with session.ws_connect(url, headers=headers, timeout=timeout) as ws:
            yield Caller(ws)
