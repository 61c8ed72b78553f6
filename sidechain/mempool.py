"""Transactions that wait for a block: which are kept, which make room, which go into a block.

There are no fees in coin; what a transaction has spent is its stamp. So the order of preference is
hashes per byte: whoever floods the pool pays for every transaction that he pushes out with more
work than its owner spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from sidechain import merkle
from sidechain.headers import HeaderRecord
from sidechain.params import Params
from sidechain.primitives import (
    HEADER_BYTES,
    AddModel,
    AnyTransaction,
    Block,
    Commit,
    Header,
    OpenShard,
    Producer,
    RegisterPayee,
    Reveal,
    stamp_work,
)
from sidechain.reasons import VERDICTS, Rejection
from sidechain.scores import NO_SCORES, Request, Scores, ScoresMissing
from sidechain.state import ChainState
from sidechain.validation import BlockDraft, check_transaction

MAX_BYTES: Final = 4 << 20
REVEALS_PER_MODEL: Final = 8
"""Each of them may make us fetch and score a set of weights."""

REPLACEMENT: Final = 2
"""How many times the work of a transaction's stamp replaces it by one that says the same."""

MAX_WAIT: Final = 1000
"""Blocks after which a transaction is forgotten: a week on main, and more than any reorg, so that
what a reorg undid is still here when the new chain has caught up."""

NOBODY: Final = bytes(32)

FALSE: Final = VERDICTS | {"bad-score", "bad-score-cost"}
"""Reasons that only scores can show."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A transaction in the pool. `height` is the tip's when it came."""

    tx: AnyTransaction
    txid: bytes
    size: int
    work: int
    height: int

    @property
    def rate(self) -> tuple[int, bytes]:
        """What it is preferred by: hashes per byte, in millionths; the txid breaks ties."""
        return self.work * 1_000_000 // self.size, self.txid


def _claim(tx: AnyTransaction) -> tuple[str, bytes]:
    """What only one transaction in the pool can have."""
    if isinstance(tx, RegisterPayee):
        return "payee", tx.key
    if isinstance(tx, AddModel):
        return "model", tx.weights_root
    if isinstance(tx, Commit):
        return "commit", tx.commit
    if isinstance(tx, Reveal):
        return "reveal", tx.model + tx.weights_root
    if isinstance(tx, OpenShard):
        return "shard", tx.model + bytes([tx.index])
    raise Rejection("producer-not-relayed")


class Mempool:
    """All entries passed every check that needs no weights, against the tip when they came."""

    def __init__(self, params: Params, max_bytes: int = MAX_BYTES) -> None:
        self._params = params
        self._max_bytes = max_bytes
        self._entries: dict[bytes, Entry] = {}
        self._claims: dict[tuple[str, bytes], bytes] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, txid: bytes) -> bool:
        return txid in self._entries

    def __iter__(self) -> Iterator[AnyTransaction]:
        """Best first."""
        return (entry.tx for entry in self._ordered())

    @property
    def size(self) -> int:
        """Bytes of all transactions."""
        return self._size

    def get(self, txid: bytes) -> AnyTransaction | None:
        entry = self._entries.get(txid)
        return None if entry is None else entry.tx

    def items(self) -> dict[bytes, AnyTransaction]:
        """All transactions by their txid."""
        return {txid: entry.tx for txid, entry in self._entries.items()}

    def add(self, tx: AnyTransaction, state: ChainState, scores: Scores = NO_SCORES) -> Entry:
        """Take a transaction that could be in the block after `state`, and whose score, where
        it is known, is what it states. Raises Rejection.

        A Reveal whose commit is too young is refused like any other; its owner offers it again.
        """
        claim = _claim(tx)
        data = tx.encode()
        txid = tx.txid
        if txid in self._entries:
            raise Rejection("txn-already-in-mempool")
        check_transaction(self._params, tx)
        height = _height(state)
        BlockDraft(self._params, state, height + 1, NOBODY, scores).apply(tx)
        entry = Entry(tx, txid, len(data), stamp_work(tx), height)
        going = self._replaced(entry, claim) + self._crowded_out(entry)
        going += self._pushed_out(entry, going)
        for each in going:
            self.remove(each.txid)
        self._entries[txid] = entry
        self._claims[claim] = txid
        self._size += entry.size
        return entry

    def _replaced(self, entry: Entry, claim: tuple[str, bytes]) -> list[Entry]:
        txid = self._claims.get(claim)
        if txid is None:
            return []
        old = self._entries[txid]
        if isinstance(entry.tx, RegisterPayee) and isinstance(old.tx, RegisterPayee):
            better = entry.tx.seq > old.tx.seq
        else:
            better = entry.work >= REPLACEMENT * old.work
        if not better:
            raise Rejection("txn-mempool-conflict")
        return [old]

    def _crowded_out(self, entry: Entry) -> list[Entry]:
        if not isinstance(entry.tx, Reveal):
            return []
        model = entry.tx.model
        rivals = [
            each
            for each in self._entries.values()
            if isinstance(each.tx, Reveal)
            and each.tx.model == model
            and each.tx.weights_root != entry.tx.weights_root
        ]
        if len(rivals) < REVEALS_PER_MODEL:
            return []
        worst = min(rivals, key=lambda each: each.rate)
        if worst.rate >= entry.rate:
            raise Rejection("mempool-model-full")
        return [worst]

    def _pushed_out(self, entry: Entry, going: list[Entry]) -> list[Entry]:
        room = self._max_bytes - self._size + sum(each.size for each in going)
        if entry.size <= room:
            return []
        pushed: list[Entry] = []
        leaving = {each.txid for each in going}
        for each in reversed(self._ordered()):
            if each.txid in leaving:
                continue
            if each.rate >= entry.rate:
                break
            pushed.append(each)
            room += each.size
            if entry.size <= room:
                return pushed
        raise Rejection("mempool-full")

    def remove(self, txid: bytes) -> None:
        """Forget a transaction, if it is there: it was mined, or its score turned out false."""
        entry = self._entries.pop(txid, None)
        if entry is None:
            return
        del self._claims[_claim(entry.tx)]
        self._size -= entry.size

    def moved(
        self,
        state: ChainState,
        connected: Iterable[Block] = (),
        disconnected: Iterable[Block] = (),
    ) -> None:
        """The tip moved: what was undone comes back, what was mined, expired or became invalid
        goes. What the blocks did not touch is not looked at again; assemble() leaves out what does
        not fit any more."""
        touched = set()
        for block in connected:
            for tx in block.transactions[1:]:
                touched.add(_claim(tx))
                self.remove(tx.txid)
        height = _height(state)
        for entry in list(self._entries.values()):
            old = entry.height + MAX_WAIT < height
            if old or (self._hangs(entry.tx, touched) and not self._fits(entry.tx, state)):
                self.remove(entry.txid)
        for block in disconnected:
            for tx in block.transactions[1:]:
                try:
                    self.add(tx, state)
                except Rejection:
                    continue  # the new chain or a better transaction has made it void

    @staticmethod
    def _hangs(tx: AnyTransaction, touched: set[tuple[str, bytes]]) -> bool:
        """Whether a move of the tip may have made a transaction invalid."""
        return isinstance(tx, Reveal | OpenShard) or _claim(tx) in touched

    def _fits(self, tx: AnyTransaction, state: ChainState) -> bool:
        try:
            BlockDraft(self._params, state, _height(state) + 1, NOBODY).apply(tx)
        except Rejection:
            return False
        return True

    def judge(self, state: ChainState, scores: Scores) -> list[tuple[AnyTransaction, str]]:
        """Forget what turns out to be false by these scores; -> it, and the reason."""
        false = []
        for tx in self._scorable():
            try:
                BlockDraft(self._params, state, _height(state) + 1, NOBODY, scores).apply(tx)
            except Rejection as rejection:
                if rejection.reason in FALSE:
                    self.remove(tx.txid)
                    false.append((tx, rejection.reason))
        return false

    def requests(self, state: ChainState) -> tuple[Request, ...]:
        """What must be scored before the waiting transactions can be mined, best first."""
        found: dict[Request, None] = {}
        for tx in self._scorable():
            drafted = BlockDraft(self._params, state, _height(state) + 1, NOBODY)
            try:
                drafted.apply(tx)
            except Rejection:
                continue  # not now: it waits for another transaction or a younger tip
            found.update(dict.fromkeys(drafted.missing))
        return tuple(found)

    def _scorable(self) -> list[AnyTransaction]:
        """What may need scores, best first. All else is not even sorted: it may be most of it."""
        kinds = (AddModel, Reveal, OpenShard)
        entries = [entry for entry in self._entries.values() if isinstance(entry.tx, kinds)]
        return [entry.tx for entry in sorted(entries, key=lambda each: each.rate, reverse=True)]

    def _ordered(self) -> list[Entry]:
        return sorted(self._entries.values(), key=lambda entry: entry.rate, reverse=True)


def _height(state: ChainState) -> int:
    tip = state.tip()
    return 0 if tip is None else tip.height


def assemble(
    params: Params,
    parent: HeaderRecord,
    state: ChainState,
    candidates: Iterable[AnyTransaction],
    scores: Scores,
    *,
    payee: bytes,
    time: int,
    bits: int,
    extra: bytes = b"",
) -> Block:
    """A block on `parent` (whose state is `state`) to search a nonce for.

    It takes the candidates in their order, as far as they are valid, scored and fit. `bits` is
    HeaderIndex.next_bits(parent).
    """
    height = parent.height + 1
    drafted = BlockDraft(params, state, height, payee, scores, strict=True)
    chosen: list[AnyTransaction] = []
    # The Producer's size hangs on the height and extra alone; five bytes hold the array's length.
    head = Producer(params.network_id, 0, height, payee, bytes(32), extra)
    room = params.block_bytes - HEADER_BYTES - 5 - len(head.encode()) - 8  # 8: a ground nonce
    for tx in candidates:
        size = len(tx.encode())
        if size > room or isinstance(tx, Producer):
            continue
        try:
            drafted.apply(tx)
        except (Rejection, ScoresMissing):
            continue  # not in this block: another took its place, or its weights aren't here yet
        chosen.append(tx)
        room -= size
    after, _ = state.applied(drafted.finish())
    producer = Producer(params.network_id, 0, height, payee, after.root, extra)
    transactions = (producer, *chosen)
    root = merkle.root([tx.txid for tx in transactions])
    header = Header(1, parent.hash, root, max(time, parent.median_time() + 1), bits, 0)
    return Block(header, transactions)
