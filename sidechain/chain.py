"""The chain of one node: the tip with the most work among blocks that were checked.

Headers come first, bodies later, scores last. A block whose weights are missing is pending: it is
not built on and never held against anybody, and is tried again whenever a score arrives. Work
decides between valid chains, and what was seen first between equals.

There is no IO here but calls to a BlockStore, in an order that a store can put into one commit per
turn. `now` and scores are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from sidechain.headers import HeaderIndex, HeaderRecord, fork_point
from sidechain.params import Params
from sidechain.primitives import Block, Header, display
from sidechain.reasons import Rejection
from sidechain.scores import (
    NO_SCORES,
    Answer,
    Request,
    ScoreRequest,
    Scores,
    ScoresMissing,
)
from sidechain.state import ChainState, Changes, Undo
from sidechain.validation import Transition, check_block, state_transition

_STRIDE: Final = 256
"""Blocks that are applied before they are kept, so that a long sync needs little memory."""


class BlockStore(Protocol):
    """Where a chain is kept. Calls between two turns of the node belong into one commit."""

    def add_header(self, block_hash: bytes, header: bytes) -> None:
        """Headers are added after their parents and are never removed."""

    def add_body(self, block_hash: bytes, block: bytes) -> None: ...

    def body(self, block_hash: bytes) -> bytes | None:
        """The encoded block."""

    def invalidate(self, block_hash: bytes, reason: str) -> None: ...

    def connect(self, block_hash: bytes, changes: Changes, undo: Undo) -> None:
        """The block is the tip now; its changes are made to the entries of the state."""

    def disconnect(self, block_hash: bytes, parent: bytes, undo: Undo) -> None:
        """The parent is the tip again; the undo record is made to the entries."""

    def undo(self, block_hash: bytes) -> Undo:
        """The record of a block that was connected."""

    def headers(self) -> Iterable[bytes]:
        """All headers, in the order in which they were added."""

    def bodies(self) -> Iterable[bytes]:
        """The hashes of all blocks whose body is kept."""

    def invalid(self) -> Iterable[tuple[bytes, str]]: ...

    def entries(self) -> Iterable[tuple[bytes, bytes]]:
        """The state at the tip."""

    def tip(self) -> bytes | None: ...


class MemoryStore:
    """A BlockStore for tests and simulations."""

    def __init__(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._bodies: dict[bytes, bytes] = {}
        self._invalid: dict[bytes, str] = {}
        self._undo: dict[bytes, Undo] = {}
        self._entries: dict[bytes, bytes] = {}
        self._tip: bytes | None = None

    def add_header(self, block_hash: bytes, header: bytes) -> None:
        self._headers[block_hash] = header

    def add_body(self, block_hash: bytes, block: bytes) -> None:
        self._bodies[block_hash] = block

    def body(self, block_hash: bytes) -> bytes | None:
        return self._bodies.get(block_hash)

    def invalidate(self, block_hash: bytes, reason: str) -> None:
        self._invalid[block_hash] = reason

    def connect(self, block_hash: bytes, changes: Changes, undo: Undo) -> None:
        self._undo[block_hash] = undo
        self._tip = block_hash
        self._change(changes.items())

    def disconnect(self, block_hash: bytes, parent: bytes, undo: Undo) -> None:
        self._tip = parent
        self._change(undo)

    def _change(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        for key, value in changes:
            if value is None:
                self._entries.pop(key, None)
            else:
                self._entries[key] = value

    def undo(self, block_hash: bytes) -> Undo:
        return self._undo[block_hash]

    def headers(self) -> Iterable[bytes]:
        return self._headers.values()

    def bodies(self) -> Iterable[bytes]:
        return self._bodies

    def invalid(self) -> Iterable[tuple[bytes, str]]:
        return self._invalid.items()

    def entries(self) -> Iterable[tuple[bytes, bytes]]:
        return self._entries.items()

    def tip(self) -> bytes | None:
        return self._tip


class Status(Enum):
    """How far a block has come."""

    UNKNOWN = "unknown"
    HEADER = "header"
    BODY = "body"
    PENDING = "pending"
    ACTIVE = "active"
    STALE = "stale"
    INVALID = "invalid"


@dataclass(slots=True)
class Advance:
    """What advance() did. Blocks are in the order in which they were undone and applied."""

    disconnected: list[Block] = field(default_factory=list)
    connected: list[Block] = field(default_factory=list)
    rejected: list[tuple[bytes, str]] = field(default_factory=list)
    """Blocks found to be invalid, with their reason."""
    missing: list[Request] = field(default_factory=list)
    """What would have to be scored for chains with more work."""
    held: list[bytes] = field(default_factory=list)
    """Tips with more work whose reorg is deeper than max_reorg: the operator's word is needed."""

    @property
    def moved(self) -> bool:
        return bool(self.connected or self.disconnected)


@dataclass(slots=True)
class _Attempt:
    """A way to another tip, as far as it could be walked."""

    fork: HeaderRecord
    steps: list[tuple[HeaderRecord, Block, Transition]] = field(default_factory=list)


class Chain:
    def __init__(self, params: Params, store: BlockStore) -> None:
        """Takes up what the store has."""
        self.params = params
        self._store = store
        self.headers = HeaderIndex(params)
        self.tip = self.headers.genesis
        self.state = ChainState()
        self._active: list[HeaderRecord] = [self.tip]
        self._linked: set[bytes] = {self.tip.hash}
        """Blocks whose body and whose ancestors' bodies are here."""
        self._bodies: set[bytes] = {self.tip.hash}
        self._candidates: dict[bytes, HeaderRecord] = {}
        """Linked blocks with more work than the tip, not known to be invalid."""
        self._pending: dict[bytes, tuple[Request, ...]] = {}
        self._assumed: dict[Request, HeaderRecord] = {}
        self._allowed: set[bytes] = set()
        self._load()

    def _load(self) -> None:
        for data in self._store.headers():
            # They were checked when they came, also against the clock of that time.
            header = Header.decode(data)
            self.headers.accept(header, header.time)
        self._bodies.update(self._store.bodies())
        for block_hash, reason in self._store.invalid():
            self.headers.invalidate(self.headers.records[block_hash], reason)
        tip = self._store.tip()
        if tip is not None:
            self.tip = self.headers.records[tip]
            self.state = ChainState.load(self._store.entries())
            self._active = [*self.tip.chain()][::-1]
            self._distrust()
        for child in list(self.headers.genesis.children):
            self._link(child)

    def _distrust(self) -> None:
        """What was taken on trust before a restart is not known any more: ask for all again."""
        for identity in self.state.models() if self.params.assume_scored_depth else ():
            model = self.state.model(identity)
            assert model is not None  # models() lists it
            record = self._active[model.current.height]
            if self._trusted(record):
                version = model.current
                request = ScoreRequest(identity, version.weights_root, version.infohash)
                self._assumed[request] = record

    # --- what is known ---------------------------------------------------------------------------

    def active(self, height: int) -> HeaderRecord | None:
        """The block at a height of the chain that ends at the tip."""
        return self._active[height] if 0 <= height < len(self._active) else None

    def is_active(self, record: HeaderRecord) -> bool:
        return self.active(record.height) is record

    def status(self, block_hash: bytes) -> Status:
        record = self.headers.get(block_hash)
        if record is None:
            return Status.UNKNOWN
        if record.invalid is not None:
            return Status.INVALID
        if self.is_active(record):
            return Status.ACTIVE
        if block_hash in self._pending:
            return Status.PENDING
        if block_hash not in self._bodies:
            return Status.HEADER
        return Status.STALE if record.work <= self.tip.work else Status.BODY

    def block(self, block_hash: bytes) -> Block | None:
        """A block whose body is here; genesis has none."""
        data = self.body(block_hash)
        return None if data is None else Block.decode(data, self.params.block_bytes)

    def body(self, block_hash: bytes) -> bytes | None:
        """The encoded block, if its body is here."""
        return self._store.body(block_hash)

    def state_at(self, depth: int) -> ChainState:
        """The state so many blocks below the tip, or that of genesis if the chain is shorter."""
        state = self.state
        for record in self.tip.chain():
            if depth == 0 or record.parent is None:
                break
            state = state.undone(self._store.undo(record.hash))
            depth -= 1
        return state

    def pending(self) -> dict[HeaderRecord, tuple[Request, ...]]:
        """Pending blocks that more work than the tip's is built on, and what they wait for; those
        with the most work first. The others would change nothing now."""
        promises = {}
        for block_hash in self._pending:
            record = self.headers.records[block_hash]
            works = (each.work for each in record.family() if each.hash in self._candidates)
            promises[record] = max(works, default=0)
        ranked = sorted(promises, key=lambda each: (-promises[each], each.order))
        return {each: self._pending[each.hash] for each in ranked if promises[each]}

    def wanted(self, toward: HeaderRecord | None = None, most: int = 16) -> list[HeaderRecord]:
        """The next blocks to download on the way to a header, by default the best; lowest first.

        Ask each peer for what leads to the headers that it sent: work whose bodies are withheld
        would else keep a node from the chain that the others are on.
        """
        missing: list[HeaderRecord] = []
        for record in (toward or self.headers.best).chain():
            if record.hash in self._linked:
                break
            if record.hash not in self._bodies:
                missing.append(record)
        return missing[: -most - 1 : -1]

    def unverified(self) -> tuple[ScoreRequest, ...]:
        """Current versions of models whose score was taken on trust, because their block was deep.

        Until they are answered through verify(), the tip should not be relied on.
        """
        requests = []
        for request in self._assumed:
            if isinstance(request, ScoreRequest):
                model = self.state.model(request.model)
                if model is not None and model.current.weights_root == request.weights_root:
                    requests.append(request)
        return tuple(requests)

    # --- what comes in ---------------------------------------------------------------------------

    def accept_header(self, header: Header, now: int) -> HeaderRecord:
        """Raises Rejection (headers.HeaderIndex.accept)."""
        before = len(self.headers.records)
        record = self.headers.accept(header, now)
        if len(self.headers.records) > before:
            self._store.add_header(record.hash, header.encode())
        return record

    def accept_block(self, block: Block, now: int) -> HeaderRecord:
        """Keep a block that advance() will try. Raises Rejection.

        A body that is not the header's says nothing of the block; any other rejection is final
        for the block, whoever sends it.
        """
        record = self.accept_header(block.header, now)
        if record.hash in self._bodies:
            return record
        try:
            check_block(self.params, block)
        except Rejection as rejection:
            if rejection.reason != "bad-txnmrklroot":
                self._invalidate(record, rejection.reason)
            raise
        self._bodies.add(record.hash)
        self._store.add_body(record.hash, block.encode())
        self._link(record)
        return record

    def _link(self, record: HeaderRecord) -> None:
        """Note that a block, and what waited for it, can be tried."""
        waiting = [record]
        while waiting:
            each = waiting.pop()
            parent = each.parent
            if parent is None or parent.hash not in self._linked or each.hash not in self._bodies:
                continue
            self._linked.add(each.hash)
            if each.invalid is None and each.work > self.tip.work:
                self._candidates[each.hash] = each
            waiting += each.children

    def allow_reorg(self, block_hash: bytes) -> None:
        """The operator's word for a reorg deeper than max_reorg to this block."""
        self._allowed.add(block_hash)

    def verify(self, request: Request, answer: Answer) -> HeaderRecord | None:
        """An answer for what was taken on trust; if it is another, the block, which is returned,
        is invalid after all, and advance() will leave it."""
        record = self._assumed.pop(request, None)
        if record is None or not self.is_active(record):
            return None
        scores = Scores.of([(request, answer)])
        block = self.block(record.hash)
        assert block is not None and record.parent is not None  # it was connected
        before = self.state
        for each in self.tip.chain():
            before = before.undone(self._store.undo(each.hash))
            if each is record:
                break
        try:
            state_transition(self.params, before, block, scores, assume_scored=True)
        except Rejection as rejection:
            self._invalidate(record, rejection.reason)
            return record
        return None

    def _invalidate(self, record: HeaderRecord, reason: str) -> None:
        for each in self.headers.invalidate(record, reason):
            self._candidates.pop(each.hash, None)
            self._pending.pop(each.hash, None)
        # What builds on it is found again through it when the store is loaded.
        self._store.invalidate(record.hash, reason)

    # --- which way to go -------------------------------------------------------------------------

    def advance(self, scores: Scores = NO_SCORES) -> Advance:
        """Go to the best block that can be reached with these scores.

        scores must hold everything known so far: what is forgotten is asked for again.
        """
        done = Advance()
        if self.tip.invalid is not None:
            self._retreat(done)
        stuck: set[bytes] = set()
        while True:
            target = self._best(stuck)
            if target is None:
                return done
            fork = fork_point(self.tip, target)
            if fork is self.tip:
                target = target.ancestor(min(target.height, fork.height + _STRIDE))
            if self._too_deep(fork, target):
                done.held.append(target.hash)
                stuck.update(each.hash for each in _between(fork, target))
                continue
            attempt = self._attempt(fork, target, scores, stuck, done)
            if attempt.steps and attempt.steps[-1][0].work > self.tip.work:
                self._switch(attempt, done)

    def _best(self, stuck: set[bytes]) -> HeaderRecord | None:
        candidates = [each for each in self._candidates.values() if each.hash not in stuck]
        return max(candidates, key=lambda each: (each.work, -each.order), default=None)

    def _too_deep(self, fork: HeaderRecord, target: HeaderRecord) -> bool:
        deepest = self.params.max_reorg
        if deepest is None or self.tip.height - fork.height <= deepest:
            return False
        return not any(each.hash in self._allowed for each in _between(fork, target))

    def _attempt(
        self,
        fork: HeaderRecord,
        target: HeaderRecord,
        scores: Scores,
        stuck: set[bytes],
        done: Advance,
    ) -> _Attempt:
        """Walk from the fork towards the target; marks what is invalid and notes what is stuck."""
        attempt = _Attempt(fork)
        state = self._state_of(fork)
        for record in [*_between(fork, target)][::-1]:
            block = self.block(record.hash)
            assert block is not None  # candidates are linked
            trusted = self._trusted(record)
            try:
                step = state_transition(self.params, state, block, scores, assume_scored=trusted)
            except Rejection as rejection:
                self._invalidate(record, rejection.reason)
                done.rejected.append((record.hash, rejection.reason))
                return attempt
            except ScoresMissing as missing:
                self._pending[record.hash] = missing.requests
                done.missing += (r for r in missing.requests if r not in done.missing)
                # All that was built on it is stuck with it: each block is looked at once.
                stuck.update(each.hash for each in record.family())
                break
            self._pending.pop(record.hash, None)
            state = step.state
            attempt.steps.append((record, block, step))
        return attempt

    def _state_of(self, fork: HeaderRecord) -> ChainState:
        state = self.state
        for record in _between(fork, self.tip):
            state = state.undone(self._store.undo(record.hash))
        return state

    def _trusted(self, record: HeaderRecord) -> bool:
        """Whether so much work is on top of the block that its stated scores are taken as true."""
        depth = self.params.assume_scored_depth
        best = self.headers.best
        if depth is None or best.height - record.height < depth:
            return False
        return best.ancestor(record.height) is record

    def _switch(self, attempt: _Attempt, done: Advance) -> None:
        self._disconnect_to(attempt.fork, done)
        for record, block, step in attempt.steps:
            self._store.connect(record.hash, step.changes, step.undo)
            self._active.append(record)
            self.tip, self.state = record, step.state
            done.connected.append(block)
            for request in step.assumed:
                self._assumed[request] = record
        self._candidates = {
            key: each for key, each in self._candidates.items() if each.work > self.tip.work
        }

    def _disconnect_to(self, fork: HeaderRecord, done: Advance) -> None:
        for record in [*_between(fork, self.tip)]:
            block = self.block(record.hash)
            assert block is not None and record.parent is not None  # it was connected
            undo = self._store.undo(record.hash)
            self._store.disconnect(record.hash, record.parent.hash, undo)
            self.state = self.state.undone(undo)
            self.tip = record.parent
            self._active.pop()
            done.disconnected.append(block)

    def _retreat(self, done: Advance) -> None:
        """Leave blocks that turned out to be invalid after they were connected."""
        valid = next(each for each in self.tip.chain() if each.invalid is None)
        self._disconnect_to(valid, done)
        for record in self.headers.records.values():
            if (
                record.hash in self._linked
                and record.invalid is None
                and record.work > self.tip.work
            ):
                self._candidates[record.hash] = record

    def __repr__(self) -> str:
        return f"<{self.params.name} {self.tip.height} {display(self.tip.hash)[:16]}>"


def _between(fork: HeaderRecord, record: HeaderRecord) -> Iterator[HeaderRecord]:
    """From the record down to, but without, the fork."""
    while record is not fork:
        yield record
        assert record.parent is not None  # the fork is an ancestor
        record = record.parent
