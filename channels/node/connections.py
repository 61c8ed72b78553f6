"""Which peers we are connected to: listening, connecting, and connecting again."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from channels.bolt.messages import Message
from channels.errors import OdaError, RemoteProtocolError, UserError
from channels.node.peer import Disconnected, PeerConnection, accept, connect
from channels.node.store import PeerRow
from channels.node.tasks import Tasks

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)

MAX_PEERS = 500
FIRST_RETRY = 0.2
LAST_RETRY = 30.0


class Connections:
    """One task per connected peer reads its messages; one task brings back peers we need."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.peers: dict[bytes, PeerConnection] = {}
        self.inbound: set[bytes] = set()
        self.address: tuple[str, int] = ("", 0)
        self._server: asyncio.Server | None = None
        self._tasks = Tasks()
        self._dialling: set[bytes] = set()
        self._retry: dict[bytes, tuple[float, float]] = {}
        self._stopping = False

    async def start(self, host: str, port: int) -> None:
        try:
            self._server = await asyncio.start_server(self._accepted, host, port)
        except OSError as error:
            raise UserError(
                "port-in-use",
                f"Can't listen on {host}:{port} ({error.strerror}): choose another port with "
                "--listen.",
            ) from error
        self.address = self._server.sockets[0].getsockname()[:2]
        self._tasks.spawn(self._keep_connected())

    async def stop(self) -> None:
        self._stopping = True
        if self._server is not None:
            self._server.close()
        for peer in list(self.peers.values()):
            await peer.close()
        await self._tasks.cancel()

    def sender(self, peer_id: bytes) -> Callable[[Message], None]:
        """What sends to the peer over the connection of this moment, and over no later one.

        A message belongs to the connection that it was made for: on the next one nothing may come
        before channel_reestablish, which sends again what counts (BOLT 2).
        """
        peer = self.peers.get(peer_id)

        def send(message: Message) -> None:
            if peer is not None and self.peers.get(peer_id) is peer:
                self._send(peer, message)

        return send

    def _send(self, peer: PeerConnection, message: Message) -> None:
        try:
            peer.send(message)
        except OdaError as error:
            log.warning("sending to %s failed: %s", peer.remote_node_id.hex(), error)
            self._tasks.spawn(peer.close())

    async def connect(self, peer_id: bytes, host: str, port: int) -> PeerConnection:
        """Connect unless we are; raises UserError or RemoteProtocolError."""
        existing = self.peers.get(peer_id)
        if existing is not None:
            return existing
        node = self._node
        peer = await connect(host, port, node.node_secret, peer_id, node.params.policy.chain_hash)
        self._welcome(peer, inbound=False)
        node.store.save_peer(peer_id, host, port)
        await node.turn.committed()
        return peer

    async def disconnect(self, peer_id: bytes) -> None:
        peer = self.peers.get(peer_id)
        if peer is not None:
            await peer.close()
            self._gone(peer)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self.peers) >= MAX_PEERS or self._stopping:
            writer.close()
            return
        node = self._node
        try:
            peer = await accept(reader, writer, node.node_secret, node.params.policy.chain_hash)
        except OdaError as error:
            log.info("a connection failed before init: %s", error)
            return
        self._welcome(peer, inbound=True)

    def _welcome(self, peer: PeerConnection, *, inbound: bool) -> None:
        older = self.peers.pop(peer.remote_node_id, None)
        if older is not None:
            # The peer reconnected before we noticed that the old connection was dead.
            self._node.on_disconnected(peer.remote_node_id)
            self._tasks.spawn(older.close())
        self.peers[peer.remote_node_id] = peer
        (self.inbound.add if inbound else self.inbound.discard)(peer.remote_node_id)
        self._retry.pop(peer.remote_node_id, None)
        self._tasks.spawn(self._read(peer))
        self._node.on_connected(peer.remote_node_id)

    async def _read(self, peer: PeerConnection) -> None:
        peer_id = peer.remote_node_id
        try:
            while True:
                message = await peer.receive()
                if self.peers.get(peer_id) is not peer:
                    return
                if isinstance(message, Message):
                    self._node.on_message(peer_id, message)
        except Disconnected as error:
            log.info("peer %s is gone: %s", peer_id.hex(), error)
        except RemoteProtocolError as error:
            log.warning("peer %s broke the protocol: %s", peer_id.hex(), error)
        finally:
            await peer.close()
            self._gone(peer)

    def _gone(self, peer: PeerConnection) -> None:
        if self.peers.get(peer.remote_node_id) is peer:
            del self.peers[peer.remote_node_id]
            self._node.on_disconnected(peer.remote_node_id)

    async def _keep_connected(self) -> None:
        """Reconnect, with back-off, to peers with whom a channel is still to be served."""
        while True:
            moment = asyncio.get_running_loop().time()
            known = {row.node_id: row for row in self._node.store.load_peers()}
            for peer_id in self._node.peers_to_reach() - self.peers.keys() - self._dialling:
                due, delay = self._retry.get(peer_id, (moment, FIRST_RETRY))
                if peer_id in known and due <= moment:
                    self._retry[peer_id] = (moment + delay, min(2 * delay, LAST_RETRY))
                    self._tasks.spawn(self._dial(known[peer_id]))
            # Two nodes that dial each other at the same moment would each drop the other's
            # connection; they must not stay in step.
            await asyncio.sleep(FIRST_RETRY * random.uniform(0.5, 1.5))  # noqa: S311  # no secret

    async def _dial(self, row: PeerRow) -> None:
        self._dialling.add(row.node_id)
        try:
            await self.connect(row.node_id, row.host, row.port)
        except OdaError as error:
            log.debug("peer %s can't be reached: %s", row.node_id.hex(), error)
        finally:
            self._dialling.discard(row.node_id)
