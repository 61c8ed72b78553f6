"""Gossip's IO: peers tell, the chain confirms, the store keeps, and once a while all is passed on.

What is believed is decided in channels.bolt.gossip. Nothing here is needed to keep a channel safe,
so nothing waits for it and a failure costs at most a question to another peer.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from channels.bolt.channel import Channel
from channels.bolt.features import OUR_INIT, Feature, negotiated, offers
from channels.bolt.gossip import FundingOutput, Gossip, Ignored, LookUp
from channels.bolt.gossip_sync import GOSSIP_QUERIES, PeerGossip, own_news
from channels.bolt.graph import Graph
from channels.bolt.invoice_fields import RouteHop
from channels.bolt.messages import (
    AnnouncementSignatures,
    ChannelAnnouncement,
    ChannelUpdate,
    Message,
    NodeAnnouncement,
    Warning_,
)
from channels.bolt.transactions import OutPoint, Transaction
from channels.errors import OdaError, RemoteProtocolError
from channels.node.own_gossip import OwnGossip
from channels.node.tasks import Tasks
from channels.units import BlockHeight, ShortChannelId

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)

GOSSIP_MESSAGES: tuple[type[Message], ...] = (
    AnnouncementSignatures,
    ChannelAnnouncement,
    ChannelUpdate,
    NodeAnnouncement,
    *GOSSIP_QUERIES,
)

PRUNE_SECONDS = 3600.0

SYNCING_PEERS, SYNC_SECONDS = 3, 120.0
"""Peers asked for their whole graph at a time, and how long one may keep the others waiting."""

STRIKES = 10
"""Broken rules that a peer is warned of before it is disconnected."""

MOST_UNSENT = 1 << 18
"""Bytes that may wait in a peer's connection before it is sent more gossip."""

PORTION = 100
"""Messages sent, or rows written, before others get their turn."""

CHANNELS_PENDING = 200
"""No more is asked for while so many channels wait to be looked up."""


class Gossiper:
    """One node's part in the gossip. `graph` is for whoever looks for a route."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._chain_hash = node.params.policy.chain_hash
        self.gossip = Gossip(self._chain_hash, node.node_id)
        self.own = OwnGossip(node, self.gossip)
        self._peers: dict[bytes, PeerGossip] = {}
        self._syncing: dict[bytes, float] = {}
        self._strikes: dict[bytes, int] = {}
        self._lookups: asyncio.Queue[ShortChannelId] = asyncio.Queue()
        self._owed = asyncio.Event()
        self._tasks = Tasks()

    @property
    def graph(self) -> Graph:
        return self.gossip.graph

    def start(self) -> None:
        store = self._node.store
        self.gossip.restore(store.load_gossip_channels(), store.load_gossip_nodes())
        self.gossip.height = self._node.height
        # A graph of objects that live on: the garbage collector would go through all of them again
        # and again, for longer than it takes to find a route.
        gc.freeze()
        self._tasks.spawn(self._tick())
        self._tasks.spawn(self._pump())
        self._tasks.spawn(self._look_up())
        self._tasks.spawn(self._prune())

    async def stop(self) -> None:
        await self._tasks.cancel()
        self._write()

    # --- peers ---------------------------------------------------------------------------------

    def on_connected(self, peer_id: bytes) -> None:
        theirs = self._node.connections.peers[peer_id].their_features
        now = self._node.now()
        peer = PeerGossip(
            peer_id,
            self.gossip,
            queries=offers(theirs, Feature.GOSSIP_QUERIES),
            extended=negotiated(OUR_INIT, theirs, Feature.GOSSIP_QUERIES_EX),
            now=now,
        )
        self._peers[peer_id] = peer
        self._send(peer_id, peer.hello(self._chain_hash, now))
        peer.broadcast(own_news(self.graph, self._node.node_id))
        self._owed.set()
        self._ask_more()

    def on_disconnected(self, peer_id: bytes) -> None:
        self._peers.pop(peer_id, None)
        self._syncing.pop(peer_id, None)
        self._strikes.pop(peer_id, None)
        self.own.on_disconnected(peer_id)

    def on_message(self, peer_id: bytes, message: Message) -> None:
        """One of GOSSIP_MESSAGES. Raises nothing."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return
        try:
            self._receive(peer, message)
        except Ignored as ignored:
            log.debug("gossip of %s ignored: %s", peer_id.hex(), ignored)
            if ignored.reason == "update-unknown-channel" and isinstance(message, ChannelUpdate):
                peer.want(message.short_channel_id)
        except OdaError as error:
            self._blame(peer_id, error)

    def _receive(self, peer: PeerGossip, message: Message) -> None:
        now = self._node.now()
        if isinstance(message, AnnouncementSignatures):
            self.own.on_signatures(peer.peer_id, message)
        elif isinstance(message, ChannelUpdate) and self.own.on_update(peer.peer_id, message):
            return
        elif isinstance(message, GOSSIP_QUERIES):
            peer.receive(message, self._chain_hash, now)
            self._owed.set()
            self._ask_more()
        else:
            self._queue(self.gossip.receive(peer.peer_id, message, now))

    def _blame(self, peer_id: bytes, error: OdaError) -> None:
        """BOLT 7: SHOULD send a warning, MAY close the connection."""
        if not isinstance(error, RemoteProtocolError):
            return
        log.warning("gossip of %s is refused: %s", peer_id.hex(), error)
        self._send(peer_id, [Warning_(channel_id=bytes(32), data=str(error).encode())])
        self._strikes[peer_id] = self._strikes.get(peer_id, 0) + 1
        if self._strikes[peer_id] >= STRIKES:
            self._tasks.spawn(self._node.connections.disconnect(peer_id))

    def _send(self, peer_id: bytes, messages: Iterable[Message]) -> None:
        send = self._node.connections.sender(peer_id)
        for message in messages:
            send(message)

    def _ask_more(self) -> None:
        """Go on with whoever is being asked, and begin with the next when there is room."""
        if not self._node.tracker.synced.is_set():
            return  # what is not in our chain yet would be refused
        if self.gossip.height < self._node.height:
            # A new wallet begins at the tip, and no block is told before the next one.
            self._queue(self.gossip.block_connected(self._node.height, ()))
        moment, now = asyncio.get_running_loop().time(), self._node.now()
        for peer_id, since in list(self._syncing.items()):
            if moment - since > SYNC_SECONDS:
                self._peers[peer_id].stop_sync()
            if not self._peers[peer_id].syncing:
                del self._syncing[peer_id]
        for peer_id, peer in self._peers.items():
            if len(self._syncing) < SYNCING_PEERS and peer_id not in self._syncing:
                questions = peer.start_sync(self._chain_hash)
                if questions:
                    self._syncing[peer_id] = moment
                    self._send(peer_id, questions)
        if self.gossip.pending >= CHANNELS_PENDING:
            return
        for peer_id, peer in self._peers.items():
            questions = peer.next_query(self._chain_hash, now)
            if questions and peer_id in self._syncing:
                self._syncing[peer_id] = moment
            self._send(peer_id, questions)

    async def _pump(self) -> None:
        """Send what peers are owed, as fast as each of them reads."""
        while True:
            await self._owed.wait()
            self._owed.clear()
            for peer_id, peer in list(self._peers.items()):
                connection = self._node.connections.peers.get(peer_id)
                if connection is None or not peer.owed:
                    continue
                if connection.unsent < MOST_UNSENT:
                    self._send(peer_id, peer.take(PORTION))
                if peer.owed:
                    self._owed.set()
            await asyncio.sleep(0.01 if self._owed.is_set() else 0)

    # --- the chain -----------------------------------------------------------------------------

    def block_connected(self, height: BlockHeight, transactions: Sequence[Transaction]) -> None:
        spent = (put.outpoint for transaction in transactions for put in transaction.inputs)
        self._queue(self.gossip.block_connected(height, spent))
        # What a block did to a channel is not told twice, so it is on disk with the block.
        self._write()

    def block_disconnected(self, height: BlockHeight) -> None:
        self.gossip.block_disconnected(height)
        self._write()

    def _queue(self, lookups: Iterable[LookUp]) -> None:
        for lookup in lookups:
            self._lookups.put_nowait(lookup.short_channel_id)

    async def _look_up(self) -> None:
        """One output after the other: bitcoind has more important things to do."""
        while True:
            scid = await self._lookups.get()
            try:
                output = await self._output(scid)
            except OdaError as error:
                log.info("the output of channel %s can't be looked up: %s", scid, error)
                self.gossip.unavailable(scid)
                continue
            for peer_id, blame in self.gossip.funding(scid, output, self._node.now()):
                self._blame(peer_id, blame)
            if self._lookups.empty():
                self._ask_more()

    async def _output(self, scid: ShortChannelId) -> FundingOutput | None:
        """The unspent output at this place; None when there is none."""
        call = self._node.chain.call
        block_hash = await call("getblockhash", scid.block)
        txids = (await call("getblock", block_hash, 1))["tx"]
        if scid.transaction >= len(txids):
            return None
        txid = txids[scid.transaction]
        if await call("gettxout", txid, scid.output, False) is None:
            return None
        # gettxout gives the value as a fraction of a bitcoin; the transaction has it in satoshis.
        raw = await call("getrawtransaction", txid, False, block_hash)
        found = Transaction.parse(bytes.fromhex(raw)).outputs[scid.output]
        outpoint = OutPoint(bytes.fromhex(txid)[::-1], scid.output)
        return FundingOutput(outpoint, found.script, found.value)

    # --- now and then --------------------------------------------------------------------------

    async def _tick(self) -> None:
        """BOLT 7: SHOULD flush outgoing gossip once every 60 seconds."""
        while True:
            await asyncio.sleep(self._node.params.gossip_flush_seconds)
            for channel in list(self._node.channels.values()):
                self.own.refresh(channel)
            self.own.refresh_node()
            news = self.gossip.take_news()
            if news:
                for peer in self._peers.values():
                    peer.broadcast(news)
                self._owed.set()
            self._ask_more()
            self._write()

    def _write(self) -> None:
        changed = self.gossip.take_changed()
        if not changed:
            return
        graph, store = self.graph, self._node.store
        kept = [graph.channels[scid] for scid in changed.channels if scid in graph.channels]
        store.save_gossip_channels(kept)
        store.forget_gossip_channels(changed.channels - graph.channels.keys())
        nodes = graph.announcements
        store.save_gossip_nodes(nodes[n] for n in changed.nodes if n in nodes)
        store.forget_gossip_nodes(changed.nodes - nodes.keys())
        self._node.turn.begin()

    async def _prune(self) -> None:
        while True:
            forgotten = self.gossip.prune(self._node.now())
            if forgotten:
                log.info("%d channels were silent for two weeks and are forgotten", forgotten)
            await asyncio.sleep(PRUNE_SECONDS)

    # --- for others ----------------------------------------------------------------------------

    def refresh(self, channel: Channel) -> None:
        """Something about our channel changed that the peer or the network should hear of."""
        self.own.refresh(channel)

    def hints(self) -> tuple[tuple[RouteHop, ...], ...]:
        """The `r` fields of our invoices (BOLT 11)."""
        return self.own.hints()
