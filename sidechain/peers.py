"""The peers of one node: WebSockets both ways, slots, bans, and whom to connect to next.

What is said is `Exchange`'s. Here messages are gathered into turns of the node, so that many of
them share one commit, and what they lead to is sent after it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random as randomness
import socket as sockets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp
from aiohttp import hdrs, web
from yarl import URL

from channels.errors import UserError
from sidechain.addresses import AddressBook, Place, eviction, is_dialable
from sidechain.bans import BAN_SECONDS, Bans
from sidechain.connection import Connection, Socket
from sidechain.conversation import Conversation
from sidechain.events import AnnouncementAdded, BlockRejected, Event, TipChanged, TransactionAdded
from sidechain.exchange import Exchange, Identity
from sidechain.light_node import LightNode
from sidechain.limits import PATIENCE, Patience
from sidechain.node import ChainNode
from sidechain.primitives import MAX_INT
from sidechain.protocol import MAX_MESSAGE, Service
from sidechain.store import KnownPeer

log = logging.getLogger(__name__)

PATH: Final = "/peer"
MAX_INBOUND: Final = 64
MAX_OUTBOUND: Final = 8
"""Nodes that are dialled because they are in the book; those that the operator named come on top.
No inbound connection ever takes one of these slots."""

DIAL_SECONDS: Final = 5.0
TICK_SECONDS: Final = 0.5
TURN_SECONDS: Final = 0.05
"""How long messages are handled before what came of them is committed, and others have a turn."""

SLICE: Final = 16
"""Messages of one peer that are handled before the next one's."""

MAX_KEPT: Final = 256
"""Nodes that were reached and are remembered over a restart."""

OWN_HOSTS: Final = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """One peer, for people. `port` is where it listens (0: it does not), `height` that of its chain
    as it says, `score` its points for misbehaviour, `latency` seconds from a ping to its pong."""

    host: str
    port: int
    inbound: bool
    height: int
    agent: str
    services: int
    swarm_port: int
    score: int
    connected_since: int
    latency: float | None


class Peers:
    """Use as an async context manager, while `routes()` are served on `port`: within the server's
    own, which would else wait for connections that nobody ends.

    `clock` goes forward, in seconds; `wall` is the time since 1970.
    """

    def __init__(
        self,
        node: ChainNode | LightNode,
        *,
        agent: str = "",
        port: int = 0,
        swarm_port: int = 0,
        max_inbound: int = MAX_INBOUND,
        max_outbound: int = MAX_OUTBOUND,
        patience: Patience = PATIENCE,
        random: randomness.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._node = node
        self._max_inbound = max_inbound
        self._max_outbound = max_outbound
        self._patience = patience
        self._random = random or randomness.SystemRandom()
        self._clock = clock
        self._wall = wall
        self._loopback = node.params.name == "regtest"
        self._book = AddressBook(loopback=self._loopback)
        self._bans = Bans(node.store)
        self._nonce = self._draw()
        self._exchange = Exchange(
            node,
            node.headers if isinstance(node, LightNode) else node.chain.headers,
            Identity(self._nonce, agent, port, swarm_port),
            full=node if isinstance(node, ChainNode) else None,
            proving=node.proving if isinstance(node, LightNode) else None,
            addresses=lambda: self._book.sample(self._random),
            draw=self._draw,
            patience=patience,
        )
        self._connections: dict[Conversation, Connection] = {}
        self._since: dict[Conversation, int] = {}
        self._dialling: set[Place] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._scheduled = False
        self._stopping = True
        self._unlisten: Callable[[], None] | None = None
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._stopping = False
        for known in self._node.store.peers():
            if known.port:
                self._book.restore((known.host, known.port), known.last_seen)
        self._session = aiohttp.ClientSession(trust_env=False)
        self._unlisten = self._node.listen(self._heard)
        if isinstance(self._node, LightNode):
            self._node.proving.wake = self._schedule
        self._spawn(self._keep_going())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._stopping = True
        if self._unlisten is not None:
            self._unlisten()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._connections.values():
            await connection.close()  # it had not begun to run
        if self._session is not None:
            await self._session.close()

    async def wait_failed(self) -> None:
        """Return never, or raise what keeps the node from keeping what it learns (a full disk,
        say): then all peers are gone, and the node must stop."""
        await self._failed.wait()
        assert self._failure is not None  # set before the event
        raise self._failure

    def routes(self) -> list[web.RouteDef]:
        """GET /peer, a WebSocket."""
        return [web.get(PATH, self._accept)]

    # --- what people ask -------------------------------------------------------------------------

    def infos(self) -> list[PeerInfo]:
        """Peers whose handshake is through, the oldest first."""
        return [self._info(peer) for peer in self._connections if peer.ready]

    def _info(self, peer: Conversation) -> PeerInfo:
        version = peer.version
        assert version is not None  # it is ready
        shown = peer.best.height if peer.best else 0
        return PeerInfo(
            peer.host,
            peer.port,
            peer.inbound,
            max(version.height, shown),
            version.agent,
            version.services,
            version.swarm_port,
            peer.points,
            self._since[peer],
            peer.latency,
        )

    def swarm_peers(self) -> list[tuple[str, int]]:
        """Where the peers' BitTorrent sessions listen."""
        found = ((peer.host, peer.version) for peer in self._connections if peer.ready)
        return [(host, each.swarm_port) for host, each in found if each and each.swarm_port]

    def ban(self, host: str, seconds: int = BAN_SECONDS) -> None:
        """Disconnect a host and don't speak with it for so long."""
        with self._node.turn():
            self._bans.add(host, int(self._wall()), seconds)
        for peer in self._connections:
            if peer.host == host:
                peer.close("banned")
        self._schedule()

    def unban(self, host: str) -> None:
        with self._node.turn():
            self._bans.lift(host)

    def bans(self) -> dict[str, int]:
        """Banned hosts, and until when, in seconds since 1970."""
        return self._bans.active(int(self._wall()))

    def _banned(self, host: str) -> bool:
        return (host, int(self._wall())) in self._bans

    def offer_again(self, txid: bytes) -> None:
        """Offer a transaction of our own to all peers once more, if it still waits here."""
        if isinstance(self._node, ChainNode) and txid in self._node.mempool:
            self._exchange.offer_again(txid)
            self._schedule()

    # --- connections -----------------------------------------------------------------------------

    async def _accept(self, request: web.Request) -> web.StreamResponse:
        host = _plain(request.remote)
        # Browsers say which page speaks, nodes don't: no web page is a peer.
        if host is None or hdrs.ORIGIN in request.headers or self._banned(host):
            return web.Response(status=403)
        if self._stopping or self._failure is not None or not self._make_room():
            return web.Response(status=503)
        socket = web.WebSocketResponse(
            max_msg_size=MAX_MESSAGE, compress=False, autoping=False, timeout=1.0
        )
        await socket.prepare(request)
        connection = self._take_up(socket, Conversation(host, inbound=True, now=self._clock()))
        running = self._spawn(self._run(connection))
        try:
            await asyncio.wait({running})
        finally:
            running.cancel()
        return socket

    def _make_room(self) -> bool:
        """Whether there is an inbound slot, if need be by sending somebody away."""
        inbound = [peer for peer in self._connections if peer.inbound]
        staying = [peer for peer in inbound if peer.over is None]
        if len(staying) < self._max_inbound:
            return len(inbound) < 2 * self._max_inbound  # some may take their time to go
        leaving = eviction(staying)
        if leaving is None:
            return False
        leaving.close("evicted")
        self._schedule()
        return True

    async def connect(self, host: str, port: int) -> None:
        """Connect to a node, and again whenever the connection is lost. Returns when the handshake
        is through.

        Raises UserError: "peer-not-loopback" on regtest, which speaks with this machine only, and
        "peer-unreachable" or "peer-banned", after which it goes on trying.
        """
        place = await self._resolve(host, port), port
        if self._loopback and not is_dialable(place[0], loopback=True):
            raise UserError(
                "peer-not-loopback",
                f"regtest stays on this machine: {host} is none of its addresses; take 127.0.0.1.",
            )
        self._book.keep(place)
        if place not in self._connected():
            await self._dial(place)

    async def _resolve(self, host: str, port: int) -> str:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=sockets.SOCK_STREAM
            )
        except OSError as error:
            raise UserError(
                "peer-unreachable", f"There is no host {host!r} ({error.strerror})."
            ) from error
        # "localhost" is both 127.0.0.1 and ::1, and nodes listen on the first.
        found.sort(key=lambda each: each[0] != sockets.AF_INET)
        return str(found[0][4][0])

    def _connected(self) -> set[Place]:
        """Where outbound connections lead, and those under way."""
        outbound = (peer for peer in self._connections if not peer.inbound)
        return {*self._dialling, *((peer.host, peer.dialled_port) for peer in outbound)}

    async def _dial(self, place: Place) -> None:
        """Returns when the handshake is through. Raises UserError."""
        host, port = place
        if self._banned(host):
            self._book.failed(place, self._clock(), self._random)
            raise UserError("peer-banned", f"{host} is banned; unban it first.")
        self._dialling.add(place)
        try:
            connection = self._take_up(*await self._open(place))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._book.failed(place, self._clock(), self._random)
            raise UserError(
                "peer-unreachable",
                f"No node answers at {host}:{port} ({error or 'it took too long'}); is it running?",
            ) from error
        finally:
            self._dialling.discard(place)
        self._spawn(self._run(connection))
        await asyncio.wait({connection.ready})
        if connection.ready.cancelled():
            raise UserError(
                "peer-unreachable",
                f"The node at {host}:{port} ended the handshake ({connection.peer.over}).",
            )

    async def _open(self, place: Place) -> tuple[Socket, Conversation]:
        assert self._session is not None  # within the context
        host, port = place
        peer = Conversation(host, inbound=False, now=self._clock(), port=port)
        async with asyncio.timeout(DIAL_SECONDS):
            socket = await self._session.ws_connect(
                URL.build(scheme="http", host=host, port=port, path=PATH),
                max_msg_size=MAX_MESSAGE,
                autoping=False,
                timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
            )
        return socket, peer

    def _take_up(self, socket: Socket, peer: Conversation) -> Connection:
        connection = Connection(
            socket,
            peer,
            clock=self._clock,
            arrived=self._schedule,
            serve=self._exchange.serve,
        )
        self._connections[peer] = connection
        self._since[peer] = int(self._wall())
        self._exchange.joined(peer)
        return connection

    async def _run(self, connection: Connection) -> None:
        peer = connection.peer
        try:
            await connection.run()
        finally:
            now = self._clock()
            del self._connections[peer], self._since[peer]
            self._exchange.left(peer, now)
            log.info("%r left: %s", peer, peer.over)
            if not peer.inbound:
                place = (peer.host, peer.dialled_port)
                self._book.failed(place, now, self._random, lasted=now - peer.since)
                if peer.over == "self-connect":
                    self._book.shun(place)
            self._schedule()

    # --- turns -----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Have a turn once the loop has run what is ready now."""
        if not self._scheduled and not self._stopping:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._stopping or self._failure is not None:
            return
        now = self._clock()
        waiting = [each for each in self._connections.values() if each.inbox]
        try:
            with self._node.turn():
                while waiting and self._clock() < now + TURN_SECONDS:
                    for connection in waiting:
                        for data in connection.take(SLICE):
                            self._exchange.received(connection.peer, data, now)
                    waiting = [each for each in waiting if each.inbox]
            self._exchange.flush(now)
            self._look_after()
        except Exception as error:  # noqa: BLE001  # whatever it is, nothing may be sent after it
            self._fail(error)
            return
        if waiting:
            self._schedule()

    def _look_after(self) -> None:
        """What follows for each connection from what was said."""
        for peer, connection in list(self._connections.items()):
            if peer.ready and not connection.ready.done():
                self._welcome(peer)
            for address in peer.addresses:
                self._book.add((address.host, address.port), peer.host, self._random)
            peer.addresses = ()
            if peer.misbehaved and not self._banned(peer.host):
                self._punish(peer)
            connection.turned()

    def _welcome(self, peer: Conversation) -> None:
        """The handshake is through."""
        log.info("%r is connected", peer)
        assert peer.version is not None  # it is ready
        if peer.inbound:
            if peer.version.port and peer.version.services & Service.FULL:
                self._book.add((peer.host, peer.version.port), peer.host, self._random)
            return
        place = (peer.host, peer.dialled_port)
        self._book.reached(place, int(self._wall()))
        with self._node.turn():
            self._node.store.put_peer(KnownPeer(*place, int(self._wall())))
            reached = [each for each in self._node.store.peers() if each.port]
            for each in reached[MAX_KEPT:]:
                self._node.store.remove_peer(each.host, each.port)
        if not self._book.is_kept(place) and self._has_twin(peer):
            peer.close("already-connected")

    def _has_twin(self, peer: Conversation) -> bool:
        """Whether the node that we dialled had dialled us before. Where both did so at the same
        time, one of the two gives way. Only whoever shares its host can pretend to be it."""
        assert peer.version is not None  # it is ready
        nonce = peer.version.nonce
        for other in self._connections:
            same_host = other.inbound and other.ready and other.host == peer.host
            if same_host and other.version and other.version.nonce == nonce:
                return other.since < peer.since or self._nonce > nonce
        return False

    def _punish(self, peer: Conversation) -> None:
        log.warning("%r misbehaved: %s", peer, peer.over)
        if self._loopback and peer.host in OWN_HOSTS:
            # All of a regtest is on one host: others there are not to blame.
            if not peer.inbound:
                self._book.shun((peer.host, peer.dialled_port))
            peer.misbehaved = False
            return
        self.ban(peer.host)

    def _heard(self, event: Event) -> None:
        """The node says what changed, once it is on disk."""
        if isinstance(event, TipChanged):
            self._exchange.tip_moved(event.advance.connected, event.advance.disconnected)
        elif isinstance(event, TransactionAdded):
            self._exchange.transaction_added(event.tx.txid)
        elif isinstance(event, AnnouncementAdded):
            self._exchange.announcement_added(event.announcement)
        elif isinstance(event, BlockRejected):
            self._exchange.block_rejected(event.block_hash, event.reason)
        else:
            return
        self._schedule()

    def _fail(self, error: BaseException) -> None:
        log.error("the node can't go on", exc_info=error)
        self._failure = error
        self._failed.set()
        for task in self._tasks:
            task.cancel()

    # --- time ------------------------------------------------------------------------------------

    async def _keep_going(self) -> None:
        while True:
            self.tick()
            await asyncio.sleep(TICK_SECONDS)

    def tick(self) -> None:
        """What is due: time-outs, pings, and new connections. Runs by itself twice a second."""
        now = self._clock()
        self._exchange.tick(now)
        for connection in self._connections.values():
            connection.tick(now, self._patience.unsent)
        self._dial_more(now)
        self._schedule()

    def _dial_more(self, now: float) -> None:
        connected = self._connected()
        for place in self._book.due(connected, now):
            self._spawn(self._try(place))
        chosen = [place for place in connected if not self._book.is_kept(place)]
        for _ in range(self._max_outbound - len(chosen)):
            picked = self._book.pick(connected, now, self._random)
            if picked is None:
                return
            connected.add(picked)
            self._spawn(self._try(picked))

    async def _try(self, place: Place) -> None:
        try:
            await self._dial(place)
        except UserError as error:
            log.debug("%s", error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self._failure is None:
            self._fail(task.exception() or RuntimeError())

    def _draw(self) -> int:
        return self._random.randint(0, MAX_INT)


def _plain(remote: str | None) -> str | None:
    """The IP address of a connection in the form in which it is counted and banned."""
    try:
        address = ipaddress.ip_address(remote or "")
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address).split("%")[0]
