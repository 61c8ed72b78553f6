"""All conversations of one node: what comes from a peer, what it changes, and who is told.

Pure: messages in as bytes, messages out in each conversation's outbox, `now` an argument (seconds
of a clock that only goes forward). The node behind it is called synchronously; whoever drives this
puts the calls between two commits, and sends afterwards.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sidechain import announcements, light
from sidechain.announcements import Announcement, Announcements
from sidechain.chain import Chain, Status
from sidechain.conversation import Conversation
from sidechain.headers import HeaderIndex, HeaderRecord
from sidechain.limits import PATIENCE, Known, Patience
from sidechain.mempool import Mempool
from sidechain.params import Params
from sidechain.primitives import (
    HEADER_BYTES,
    AnyTransaction,
    Block,
    Header,
    decode_transaction,
    sha256d,
)
from sidechain.protocol import (
    BLOCK_PENALTIES,
    MAX_HEADERS,
    MAX_INVENTORY,
    PENALTIES,
    PROTOCOL,
    Addr,
    Address,
    Announce,
    BlockData,
    GetAddr,
    GetData,
    GetHeaders,
    GetProofs,
    Headers,
    Inv,
    Item,
    Message,
    NotFound,
    Phase,
    Ping,
    Pong,
    Proofs,
    Reject,
    Service,
    Tx,
    Verack,
    Version,
    check_version,
    decode,
    next_phase,
)
from sidechain.proving import Proving
from sidechain.reasons import Rejection
from sidechain.relay import Relay
from sidechain.serving import Serving
from sidechain.sync import Downloads

MAX_TOLD: Final = 16
"""Headers of new blocks that are sent unasked; who lacks more is told the last one's hash."""

MAX_SOURCES: Final = 4_096
MAX_MINED: Final = 8_192


class Node(Protocol):
    """What every node has."""

    @property
    def params(self) -> Params: ...
    @property
    def announcements(self) -> Announcements: ...
    def accept_headers(self, headers: Sequence[Header]) -> HeaderRecord: ...
    def accept_announcement(self, announcement: Announcement) -> object: ...


class FullNode(Node, Protocol):
    """What a node has that checks blocks."""

    @property
    def chain(self) -> Chain: ...
    @property
    def mempool(self) -> Mempool: ...
    def accept_block(self, block: Block) -> object: ...
    def accept_transaction(self, tx: AnyTransaction) -> object: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node says of itself. `nonce` is drawn anew at each start."""

    nonce: int
    agent: str = ""
    port: int = 0
    swarm_port: int = 0


class Exchange:
    """`full` is the node itself if it checks blocks, and `proving` the questions of one that does
    not. `addresses` gives what to answer to GetAddr, `draw` numbers below 2^63."""

    def __init__(
        self,
        node: Node,
        headers: HeaderIndex,
        identity: Identity,
        *,
        full: FullNode | None,
        proving: Proving | None = None,
        addresses: Callable[[], tuple[Address, ...]] = tuple,
        draw: Callable[[], int],
        patience: Patience = PATIENCE,
    ) -> None:
        self._node = node
        self._headers = headers
        self._identity = identity
        self._full = full
        self._proving = proving
        self._addresses = addresses
        self._draw = draw
        self._patience = patience
        self.peers: list[Conversation] = []
        self._relay = Relay(self._has, patience)
        self._downloads = Downloads(full.chain, patience) if full else None
        self._serving = Serving(
            node.announcements, full.chain if full else None, full.mempool if full else None
        )
        self._announced = full.chain.tip if full else None
        self._mined = Known(MAX_MINED)
        self._sources: dict[bytes, Conversation] = {}
        """Who sent a block that is not judged yet."""
        self._handlers: dict[type[Message], Callable[[Conversation, Message, float], bool]] = {}
        self._register()

    # --- connections -----------------------------------------------------------------------------

    def joined(self, peer: Conversation) -> None:
        """A connection is there. Who dialled speaks first."""
        self.peers.append(peer)
        if not peer.inbound:
            peer.send(self._version())

    def left(self, peer: Conversation, now: float) -> None:
        """A connection is gone."""
        peer.close("connection-lost")
        self.peers.remove(peer)
        self._relay.left(peer, now)
        if self._downloads:
            self._downloads.left(peer)
        if self._proving:
            self._proving.left(peer)

    def _version(self) -> Version:
        me, full = self._identity, self._full
        return Version(
            PROTOCOL,
            self._node.params.network_id,
            self._headers.genesis.hash,
            me.nonce,
            full.chain.tip.height if full else self._headers.best.height,
            me.port,
            me.swarm_port,
            Service.FULL | Service.PROOFS if full else 0,
            me.agent,
        )

    # --- what comes in ---------------------------------------------------------------------------

    def received(self, peer: Conversation, data: bytes, now: float) -> Rejection | None:
        """Take one message. What breaks a rule is held against the peer and returned."""
        if peer.over is not None:
            return None
        peer.heard = now
        kind: type[Message] = Message
        try:
            message = decode(data)
            kind = type(message)
            peer.phase = next_phase(peer.phase, message)
            if not self._handlers[kind](peer, message, now):
                peer.charge(len(data), now)
        except Rejection as rejection:
            peer.charge(len(data), now)
            self.refuse(peer, rejection, about_block=kind in (Headers, BlockData))
            return rejection
        return None

    def refuse(self, peer: Conversation, rejection: Rejection, *, about_block: bool) -> None:
        """Hold a refusal against the peer, and tell it."""
        penalties = BLOCK_PENALTIES if about_block else PENALTIES
        if peer.ready:
            peer.send(Reject(rejection.reason, bytes(32)))
        peer.refused(rejection.reason, penalties[rejection.reason])

    def _register(self) -> None:
        """Each handler says whether the message was asked for; what was not is charged."""
        handlers = {
            Version: self._on_version,
            Verack: self._on_verack,
            Ping: self._on_ping,
            Pong: self._on_pong,
            GetAddr: self._on_get_addr,
            Addr: self._on_addr,
            GetHeaders: self._on_get_headers,
            Headers: self._on_headers,
            Inv: self._on_inv,
            GetData: self._on_get_data,
            NotFound: self._on_not_found,
            BlockData: self._on_block,
            Tx: self._on_tx,
            Reject: self._on_reject,
            GetProofs: self._on_get_proofs,
            Proofs: self._on_proofs,
            Announce: self._on_announce,
        }
        # decode() gives each handler the kind that it is listed for.
        self._handlers.update(handlers)  # type: ignore[arg-type]

    # --- handshake, pings, addresses -------------------------------------------------------------

    def _on_version(self, peer: Conversation, message: Version, now: float) -> bool:
        genesis, nonce = self._headers.genesis.hash, self._identity.nonce
        if peer.inbound and message.nonce == nonce:
            peer.send(self._version())  # so that the end which dialled sees whom it reached
        check_version(self._node.params, genesis, nonce, message)
        peer.version = message
        if not peer.inbound and not message.services & Service.FULL:
            peer.close("peer-not-full")  # nothing can be learnt from it
        peer.welcome(self._version())
        return False

    def _on_verack(self, peer: Conversation, message: Verack, now: float) -> bool:
        if peer.offers(Service.FULL):
            self._ask_headers(peer, now)
            if not peer.inbound:
                peer.addresses_asked = True
                peer.send(GetAddr())
        peer.ping_at = now + self._patience.ping
        waiting = self._full.mempool if self._full else ()
        txids = [tx.txid for tx, _ in zip(waiting, range(MAX_INVENTORY), strict=False)]
        self._relay.joined(peer, txids, [each.txid for each in self._node.announcements])
        return False

    def _on_ping(self, peer: Conversation, message: Ping, now: float) -> bool:
        peer.send(Pong(message.nonce))
        return False

    def _on_pong(self, peer: Conversation, message: Pong, now: float) -> bool:
        if peer.pinged is None or peer.pinged[0] != message.nonce:
            raise Rejection("not-requested", "pong")
        latency = now - peer.pinged[1]
        peer.latency = latency if peer.latency is None else min(latency, peer.latency)
        peer.pinged = None
        return True

    def _on_get_addr(self, peer: Conversation, message: GetAddr, now: float) -> bool:
        if peer.addresses_given:
            raise Rejection("too-many-requests", "addresses, twice")
        peer.addresses_given = True
        peer.send(Addr(self._addresses()))
        return False

    def _on_addr(self, peer: Conversation, message: Addr, now: float) -> bool:
        peer.took_addresses(message.addresses)
        return True

    def _on_reject(self, peer: Conversation, message: Reject, now: float) -> bool:
        return False

    # --- headers ---------------------------------------------------------------------------------

    def _ask_headers(
        self, peer: Conversation, now: float, last: HeaderRecord | None = None
    ) -> None:
        """Ask for what comes after what we have; `last` is where its last answer ended."""
        if peer.headers_asked is not None:
            return
        peer.headers_asked = peer.headers_at = now
        best = self._headers.best
        locator = self._headers.locator(best)
        if last is not None:
            # Where it is on our best chain, we need not be sent the rest of that again.
            ours = last.height <= best.height and best.ancestor(last.height) is last
            heights = {each: self._headers.records[each].height for each in locator}
            above = [each for each in locator if ours and heights[each] > last.height]
            below = [each for each in locator if heights[each] < last.height]
            locator = [*above, last.hash, *below]
        peer.send(GetHeaders(tuple(locator), bytes(32)))

    def _on_get_headers(self, peer: Conversation, message: GetHeaders, now: float) -> bool:
        peer.asks(message)
        return False

    def _on_headers(self, peer: Conversation, message: Headers, now: float) -> bool:
        peer.headers_asked = None
        if not message.headers:
            return False
        # The known ones come first. A flood of them costs a few hashes, not one for each.
        first = bisect_left(
            message.headers, True, key=lambda data: self._headers.get(sha256d(data)) is None
        )
        headers = [Header.decode(data) for data in message.headers[max(0, first - 1) :]]
        before = len(self._headers.records)
        try:
            last = self._node.accept_headers(headers)
        except Rejection as rejection:
            if rejection.reason == "prev-blk-not-found":
                self._ask_headers(peer, now)
                return False
            raise
        finally:
            new = len(self._headers.records) - before
            self._showed(peer, headers, new, now)
        # Who repeats what is known leads nowhere, however much there is of it.
        if len(message.headers) == MAX_HEADERS and (new or last is peer.best):
            self._ask_headers(peer, now, last)
        return new > 0

    def _showed(self, peer: Conversation, headers: Sequence[Header], new: int, now: float) -> None:
        """Note the best of the headers, as far as they were taken."""
        for header in reversed(headers):
            record = self._headers.get(header.hash)
            if record is not None and record.invalid is None:
                break
        else:
            return
        tip = self._full.chain.tip if self._full else self._headers.best
        if record.work < tip.work:
            peer.charge_lesser(new, now)
        if peer.best is None or peer.best.invalid is not None or record.work > peer.best.work:
            peer.best = record

    # --- things ----------------------------------------------------------------------------------

    def _has(self, item: Item, each: bytes) -> bool:
        if item is Item.ANNOUNCEMENT:
            return self._node.announcements.get(each) is not None
        if item is Item.TX and self._full:
            return each in self._full.mempool or each in self._mined
        return True  # a light node wants no transactions

    def _on_inv(self, peer: Conversation, message: Inv, now: float) -> bool:
        if message.item is not Item.BLOCK:
            self._relay.offered(peer, message.item, message.hashes, now)
            return False
        for each in message.hashes:
            record = self._headers.get(each)
            if record is None:
                self._ask_headers(peer, now)
            elif record.invalid is None and (peer.best is None or record.work > peer.best.work):
                peer.best = record
        return False

    def _on_get_data(self, peer: Conversation, message: GetData, now: float) -> bool:
        peer.asks(*((message.item, each) for each in message.hashes))
        return False

    def _on_not_found(self, peer: Conversation, message: NotFound, now: float) -> bool:
        if message.item is not Item.BLOCK:
            return self._relay.missing(peer, message.item, message.hashes, now)
        if self._proving:
            return self._proving.missing(peer, message.hashes[0])
        if self._downloads and self._downloads.missing(peer, message.hashes, now):
            peer.best = None  # it is on another chain by now
            self._ask_headers(peer, now)
            return True
        return False

    def _on_tx(self, peer: Conversation, message: Tx, now: float) -> bool:
        txid = sha256d(message.tx)
        if self._full is None or not self._relay.arrived(peer, Item.TX, txid, now):
            raise Rejection("not-requested", "transaction")
        try:
            self._full.accept_transaction(decode_transaction(message.tx))
        except Rejection:
            self._relay.refuse(txid)
            raise
        return True

    def _on_announce(self, peer: Conversation, message: Announce, now: float) -> bool:
        hashed = sha256d(message.announcement)
        if not self._relay.arrived(peer, Item.ANNOUNCEMENT, hashed, now):
            raise Rejection("not-requested", "announcement")
        try:
            self._node.accept_announcement(announcements.decode(message.announcement))
        except Rejection:
            self._relay.refuse(hashed)
            raise
        return True

    def _on_block(self, peer: Conversation, message: BlockData, now: float) -> bool:
        block_hash = sha256d(message.block[:HEADER_BYTES])
        full, downloads = self._full, self._downloads
        if full is None or downloads is None or not downloads.arrived(peer, block_hash, now):
            raise Rejection("not-requested", "block")
        if full.chain.status(block_hash) is not Status.HEADER:
            return True  # another was faster
        try:
            block = Block.decode(message.block, self._node.params.block_bytes)
            self._sources[block_hash] = peer
            if len(self._sources) > MAX_SOURCES:
                del self._sources[next(iter(self._sources))]
            full.accept_block(block)
        except Rejection:
            downloads.failed()
            raise
        peer.useful = now
        return True

    def _on_get_proofs(self, peer: Conversation, message: GetProofs, now: float) -> bool:
        if any(key[:1] not in light.PROVABLE for key in message.keys):
            raise Rejection("bad-proof", "no such kind of entry")
        peer.asks(message)
        return False

    def _on_proofs(self, peer: Conversation, message: Proofs, now: float) -> bool:
        if self._proving is None:
            raise Rejection("not-requested", "proofs")
        self._proving.proofs(peer, message)
        return True

    # --- what the node says ----------------------------------------------------------------------

    def tip_moved(self, connected: Sequence[Block], disconnected: Sequence[Block] = ()) -> None:
        """The tip moved over these blocks; flush() tells the peers."""
        self._relay.moved()
        for block in disconnected:
            for tx in block.transactions[1:]:
                self._mined.discard(tx.txid)
        for block in connected:
            self._sources.pop(block.hash, None)
            for tx in block.transactions[1:]:
                self._mined.add(tx.txid)

    def transaction_added(self, txid: bytes) -> None:
        self._relay.added(self.peers, Item.TX, txid)

    def offer_again(self, txid: bytes) -> None:
        """To those who have refused it before, or lost it by a reorg: what is too early for one tip
        is right for the next, and only its owner knows that it is still wanted."""
        for peer in self.peers:
            peer.known.discard(txid)
        self._relay.added(self.peers, Item.TX, txid)

    def announcement_added(self, announcement: Announcement) -> None:
        self._relay.added(self.peers, Item.ANNOUNCEMENT, announcement.txid)

    def block_rejected(self, block_hash: bytes, reason: str) -> None:
        """A block turned out to be invalid after it was taken."""
        peer = self._sources.pop(block_hash, None)
        if peer is not None and peer in self.peers:
            self.refuse(peer, Rejection(reason), about_block=True)

    # --- what goes out ---------------------------------------------------------------------------

    def serve(self, peer: Conversation, now: float) -> None:
        """Put the next of what the peer asked for into its outbox."""
        self._serving.serve(peer, now)

    def flush(self, now: float) -> None:
        """At the end of a turn: tell of a new tip and new things, ask for what is missing."""
        self._announce()
        self._relay.flush()
        if self._downloads:
            self._downloads.fill(self.peers, now)
        if self._proving:
            self._proving.assign(self.peers, now)

    def _announce(self) -> None:
        tip = self._full.chain.tip if self._full else None
        if tip is None or tip is self._announced:
            return
        self._announced = tip
        for peer in self.peers:
            # Who has as much work would not follow.
            best = peer.best if peer.best and peer.best.invalid is None else None
            if peer.ready and (best is None or best.work < tip.work):
                self._tell(peer, tip)

    def _tell(self, peer: Conversation, tip: HeaderRecord) -> None:
        assert self._full is not None  # light nodes have no tip to tell of
        chain = self._full.chain
        known = [each for each in (peer.best, peer.told) if each and chain.is_active(each)]
        start = max((each.height for each in known), default=0)
        if 0 < tip.height - start <= MAX_TOLD:
            records = (chain.active(height) for height in range(start + 1, tip.height + 1))
            peer.send(Headers(tuple(each.header.encode() for each in records if each)))
        else:
            peer.send(Inv(Item.BLOCK, (tip.hash,)))
        peer.told = tip

    # --- time ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Every second or so: who let us wait too long, who is to be asked again."""
        for peer in self.peers:
            self._tick(peer, now)
        self._relay.tick(now)
        if self._downloads:
            self._downloads.tick(now)
            self._downloads.fill(self.peers, now, steal=True)
        if self._proving:
            self._proving.tick(now)
        self.flush(now)

    def _tick(self, peer: Conversation, now: float) -> None:
        patience = self._patience
        if peer.phase is not Phase.READY:
            if peer.since + patience.handshake <= now:
                peer.close("peer-silent")
            return
        asked = peer.headers_asked
        if asked is not None and asked + patience.headers <= now:
            peer.close("peer-silent")
        elif peer.headers_at + patience.resync <= now and peer.offers(Service.FULL):
            self._ask_headers(peer, now)
        if peer.pinged is not None and peer.pinged[1] + patience.pong <= now:
            peer.close("peer-silent")
        elif peer.pinged is None and peer.ping_at <= now:
            peer.pinged = self._draw(), now
            peer.ping_at = now + patience.ping
            peer.send(Ping(peer.pinged[0]))
