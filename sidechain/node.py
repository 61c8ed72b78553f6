"""A full node without its wires: what comes in is checked, kept, committed, and then told.

All calls are synchronous and belong to one thread. Calls inside one `turn()` share one commit;
nobody hears of anything that is not on disk yet. Peers, miner, scorer and pages stand around it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from channels.errors import UserError
from sidechain.announcements import Announcement, Announcements
from sidechain.chain import Chain
from sidechain.events import (
    AnnouncementAdded,
    BlockPending,
    BlockRejected,
    Event,
    HeadersAdded,
    ScoreAdded,
    TipChanged,
    TransactionAdded,
)
from sidechain.headers import HeaderRecord
from sidechain.mempool import Mempool, assemble
from sidechain.params import Params
from sidechain.primitives import AddModel, AnyTransaction, Block, Header, OpenShard, Reveal
from sidechain.reasons import Rejection
from sidechain.scores import (
    Answer,
    PairedRequest,
    PairedSums,
    Request,
    Scored,
    Scorer,
    ScoreRequest,
    Scores,
    Unusable,
)
from sidechain.state import Definition
from sidechain.store import SqliteStore

__all__ = [
    "AnnouncementAdded",
    "BlockPending",
    "BlockRejected",
    "ChainNode",
    "Event",
    "HeadersAdded",
    "Refusal",
    "ScoreAdded",
    "TipChanged",
    "TransactionAdded",
]

MAX_REFUSALS: Final = 256

_EVERYDAY: Final = frozenset({"prev-blk-not-found", "txn-already-in-mempool"})
"""What honest peers cause all the time, and nobody wants to read."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was refused. `what`: header, block, transaction or announcement; `hash` is its hash or
    txid (an announcement's key), `time` is seconds since 1970."""

    time: int
    what: str
    hash: bytes
    reason: str


class ChainNode:
    """`now` gives seconds since 1970. Without a scorer, answers come through scored() alone."""

    def __init__(
        self,
        params: Params,
        store: SqliteStore,
        *,
        now: Callable[[], int],
        scorer: Scorer | None = None,
    ) -> None:
        """Takes up what the store has."""
        self.params = params
        self.store = store
        self.scorer = scorer
        self.chain = Chain(params, store)
        self.mempool = Mempool(params)
        self.announcements = Announcements(params)
        self.rejections: deque[Refusal] = deque(maxlen=MAX_REFUSALS)
        self.held: tuple[bytes, ...] = ()
        """Tips with more work that wait for allow_reorg()."""
        self._now = now
        self._public: dict[ScoreRequest, Scored | Unusable] = {}
        self._paired: dict[PairedRequest, PairedSums] = {}
        self._scores = Scores(self._public, self._paired)
        self._headers = len(self.chain.headers.records)
        self._pending: dict[bytes, tuple[Request, ...]] = {}
        self._definitions: dict[bytes, Definition] = {}
        self._listeners: list[Callable[[Event], None]] = []
        self._events: deque[Event] = deque()
        self._telling = False
        self._in_turn = False
        self._must_advance = False
        self._must_ask = False
        self._failure: BaseException | None = None
        self._load()

    def _load(self) -> None:
        for request, answer in self.store.scores():
            self._know(request, answer)
        with self._intake():
            for request in self.chain.unverified():
                known = self._public.get(request)
                if known is not None:
                    self._verify(request, known)
            self._must_advance = self._must_ask = True
        for tx in self.store.transactions():
            try:
                self.mempool.add(tx, self.chain.state, self._scores)
            except Rejection:
                continue  # the chain has gone on without it
        with self._intake():
            self.store.keep_transactions(self.mempool.items())
            self._must_ask = True

    # --- turns and listeners ---------------------------------------------------------------------

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What comes in inside shares one commit; the chain goes on at the end of it.

        A turn inside another is part of it. After a failure (of the disk, say) whatever comes in
        raises UserError("node-stopped").
        """
        if self._in_turn:
            yield
            return
        self._in_turn = True
        try:
            yield
        finally:
            try:
                self._end_turn()
            finally:
                self._in_turn = False
            self._tell()

    @contextmanager
    def _intake(self) -> Iterator[None]:
        """One call of a turn. What is no Rejection may have left half of a change: then nothing
        of the turn is kept, and nothing more is taken in."""
        if self._failure is not None:
            raise UserError(
                "node-stopped", "The node could not go on after an error; restart it."
            ) from self._failure
        with self.turn():
            try:
                yield
            except Rejection:
                raise
            except BaseException as error:
                self._failure = error
                raise

    def _end_turn(self) -> None:
        if self._failure is not None:
            return
        try:
            if len(self.chain.headers.records) > self._headers:
                self._headers = len(self.chain.headers.records)
                self._events.append(HeadersAdded(self.chain.headers.best))
                # They may bury a pending block so deep that it is trusted.
                self._must_advance |= bool(self._pending)
            if self._must_advance:
                self._advance()
            self.store.commit()
        except BaseException as error:
            self._failure = error
            raise

    def _tell(self) -> None:
        """In the order of what happened, also when a listener makes something happen."""
        if self._failure is not None or self._telling:
            return
        self._telling = True
        try:
            if self._must_ask:
                self._must_ask = False
                if self.scorer is not None:
                    self.scorer.want(self.wanted())
            while self._events:
                event = self._events.popleft()
                for callback in tuple(self._listeners):
                    callback(event)
        finally:
            self._telling = False

    def listen(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Call back with each event once it is on disk; it must not raise. Returns what ends it."""
        self._listeners.append(callback)

        def unlisten() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return unlisten

    # --- what comes in ---------------------------------------------------------------------------

    def accept_headers(self, headers: Sequence[Header]) -> HeaderRecord:
        """Take at least one header, each after its parent; -> the last one's record.

        Raises Rejection for the first that is refused; those before it are kept.
        """
        if not headers:
            raise ValueError("there is no last header")
        now = self._now()
        with self._intake():
            for header in headers:
                with self._refusing("header", header.hash):
                    record = self.chain.accept_header(header, now)
        return record

    def accept_block(self, block: Block) -> HeaderRecord:
        """Keep a block, and go on to it at the end of the turn if that is the way. Raises
        Rejection; a block that is found invalid only then is told as BlockRejected."""
        with self._intake():
            with self._refusing("block", block.hash):
                record = self.chain.accept_block(block, self._now())
            self._must_advance = True
        return record

    def accept_transaction(self, tx: AnyTransaction) -> None:
        """Take a transaction into the mempool. Raises Rejection."""
        with self._intake():
            with self._refusing("transaction", tx.txid):
                self.mempool.add(tx, self.chain.state, self._scores)
            self.store.add_transaction(tx)
            self._must_ask |= isinstance(tx, AddModel | Reveal | OpenShard)
            self._events.append(TransactionAdded(tx))

    def accept_announcement(self, announcement: Announcement) -> None:
        """Take a provider's announcement. Raises Rejection."""
        now = self._now()
        with self._intake():
            self.announcements.expire(now)
            with self._refusing("announcement", announcement.key):
                self.announcements.add(announcement, now)
            self._events.append(AnnouncementAdded(announcement))

    def scored(self, request: Request, answer: Answer) -> None:
        """An answer, which must follow from the bytes behind the request's roots alone.

        Raises ValueError for one to another kind of question.
        """
        if self.answer(request) is not None:
            return
        self._know(request, answer)
        with self._intake():
            self.store.add_score(request, answer)
            self._events.append(ScoreAdded(request, answer))
            self._verify(request, answer)
            for tx, reason in self.mempool.judge(self.chain.state, self._scores):
                self._refuse("transaction", tx.txid, reason)
            self._must_advance = self._must_ask = True

    def allow_reorg(self, block_hash: bytes) -> None:
        """The operator's word for a reorg deeper than max_reorg to this block."""
        with self._intake():
            self.chain.allow_reorg(block_hash)
            self._must_advance = True

    # --- what is known ---------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer | None:
        """What was answered, if anything was."""
        if isinstance(request, PairedRequest):
            return self._paired.get(request)
        return self._public.get(request)

    def wanted(self) -> dict[Request, Definition]:
        """What is to be scored, and the models it is of: what the tip rests on, then pending
        blocks, those with the most work first, then the mempool."""
        pending = self.chain.pending()
        requests: list[Request] = [*self.chain.unverified()]
        for waiting in pending.values():
            requests += waiting
        requests += self.mempool.requests(self.chain.state)
        open_ones = dict.fromkeys(each for each in requests if self.answer(each) is None)
        found = {each: self._definition(each.model, pending) for each in open_ones}
        self._definitions = {request.model: found[request] for request in found}
        return found

    def _definition(self, model: bytes, pending: Iterable[HeaderRecord]) -> Definition:
        known = self.chain.state.definition(model) or self._definitions.get(model)
        if known is not None:
            return known
        tx = self.mempool.get(model)
        if isinstance(tx, AddModel):
            return Definition.of(tx)
        for record in pending:
            for each in record.chain():
                if self.chain.is_active(each):
                    break
                block = self.chain.block(each.hash)
                assert block is not None  # pending blocks and their ancestors are here
                for tx in block.transactions:
                    if isinstance(tx, AddModel) and tx.txid == model:
                        return Definition.of(tx)
        raise KeyError(model)

    def template(self, producer: bytes, extra: bytes = b"") -> Block:
        """A block on the tip to search a nonce for, from the mempool. `producer` is an x-only key.

        Raises UserError: "tip-unverified" while a score that the tip rests on is not known (who
        builds on a lie works for nothing), "chain-ahead" while the block would be too new.
        """
        if self.chain.unverified():
            raise UserError(
                "tip-unverified",
                "Scores of current models are not known yet; wait until their weights arrive.",
            )
        tip, now = self.chain.tip, self._now()
        if tip.median_time() + 1 > now + self.params.future_limit:
            raise UserError("chain-ahead", "The chain's time is ahead of the clock; mine slower.")
        return assemble(
            self.params,
            tip,
            self.chain.state,
            self.mempool,
            self._scores,
            payee=producer,
            time=now,
            bits=self.chain.headers.next_bits(tip),
            extra=extra,
        )

    # --- what follows ----------------------------------------------------------------------------

    def _advance(self) -> None:
        self._must_advance = False
        done = self.chain.advance(self._scores)
        for block_hash, reason in done.rejected:
            self._reject(block_hash, reason)
        self.held = tuple(done.held)
        if done.moved:
            self.mempool.moved(self.chain.state, done.connected, done.disconnected)
            self.store.keep_transactions(self.mempool.items())
            self._events.append(TipChanged(done))
            self._must_ask = True
        pending = {each.hash: waiting for each, waiting in self.chain.pending().items()}
        for block_hash, waiting in pending.items():
            if self._pending.get(block_hash) != waiting:
                self._events.append(BlockPending(block_hash, waiting))
        self._must_ask |= pending != self._pending
        self._pending = pending

    def _know(self, request: Request, answer: Answer) -> None:
        scores = Scores.of([(request, answer)])
        self._public.update(scores.public)
        self._paired.update(scores.paired)

    def _verify(self, request: Request, answer: Answer) -> None:
        wrong = self.chain.verify(request, answer)
        if wrong is not None:
            assert wrong.invalid is not None  # that is what verify() found
            self._reject(wrong.hash, wrong.invalid)

    def _reject(self, block_hash: bytes, reason: str) -> None:
        self._refuse("block", block_hash, reason)
        self._events.append(BlockRejected(block_hash, reason))

    @contextmanager
    def _refusing(self, what: str, identity: bytes) -> Iterator[None]:
        """Write down what is refused, and let the caller know too."""
        try:
            yield
        except Rejection as rejection:
            if rejection.reason not in _EVERYDAY:
                self._refuse(what, identity, rejection.reason)
            raise

    def _refuse(self, what: str, identity: bytes, reason: str) -> None:
        self.rejections.append(Refusal(self._now(), what, identity, reason))
