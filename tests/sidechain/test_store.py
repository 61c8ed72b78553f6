from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlite_utils
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from channels.errors import UserError
from sidechain.chain import MemoryStore
from sidechain.scores import (
    Answer,
    PairedRequest,
    PairedSums,
    Request,
    Scored,
    ScoreRequest,
    Unusable,
)
from sidechain.state import Undo
from sidechain.store import KnownPeer, SqliteStore
from tests.sidechain.world import ALICE, BOB, QUICK, World, commit, h, register


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node" / "chain.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    with SqliteStore(path) as store:
        yield store


KEYS = st.sampled_from([b"T", *(bytes([n]) * 33 for n in range(6))])
CHANGES = st.dictionaries(KEYS, st.none() | st.binary(max_size=40), max_size=4)
REASONS = st.sampled_from(["bad-score", "no-gain"])


class TwoStores(RuleBasedStateMachine):
    """The same calls, in the order in which a chain makes them, on disk and in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "chain.sqlite"
        self.disk = SqliteStore(self.path)
        self.memory = MemoryStore()
        self.hashes: list[bytes] = []
        self.active: list[bytes] = []

    def teardown(self) -> None:
        self.disk.close()
        self.folder.cleanup()

    @rule(header=st.binary(min_size=80, max_size=80))
    def add_header(self, header: bytes) -> None:
        block_hash = h(header.hex())
        for store in (self.disk, self.memory):
            store.add_header(block_hash, header)
        if block_hash not in self.hashes:
            self.hashes.append(block_hash)

    @precondition(lambda self: self.hashes)
    @rule(data=st.data(), body=st.binary(max_size=100))
    def add_body(self, data: st.DataObject, body: bytes) -> None:
        block_hash = data.draw(st.sampled_from(self.hashes))
        for store in (self.disk, self.memory):
            store.add_body(block_hash, body)

    @precondition(lambda self: self.hashes)
    @rule(data=st.data(), reason=REASONS)
    def invalidate(self, data: st.DataObject, reason: str) -> None:
        block_hash = data.draw(st.sampled_from(self.hashes))
        for store in (self.disk, self.memory):
            store.invalidate(block_hash, reason)

    @precondition(lambda self: self.hashes)
    @rule(data=st.data(), changes=CHANGES)
    def connect(self, data: st.DataObject, changes: dict[bytes, bytes | None]) -> None:
        block_hash = data.draw(st.sampled_from(self.hashes))
        before = dict(self.memory.entries())
        undo: Undo = tuple((key, before.get(key)) for key in changes)
        for store in (self.disk, self.memory):
            store.connect(block_hash, changes, undo)
        self.active.append(block_hash)

    @precondition(lambda self: len(self.active) > 1 and len({*self.active}) == len(self.active))
    @rule()
    def disconnect(self) -> None:
        block_hash = self.active.pop()
        for store in (self.disk, self.memory):
            store.disconnect(block_hash, self.active[-1], store.undo(block_hash))

    @rule()
    def reopen(self) -> None:
        self.disk.commit()
        self.disk.close()
        self.disk = SqliteStore(self.path)

    @invariant()
    def they_agree(self) -> None:
        disk, memory = self.disk, self.memory
        assert [*disk.headers()] == [*memory.headers()]
        assert {*disk.bodies()} == {*memory.bodies()}
        assert dict(disk.invalid()) == dict(memory.invalid())
        assert dict(disk.entries()) == dict(memory.entries())
        assert disk.tip() == memory.tip()
        for block_hash in self.hashes:
            assert disk.body(block_hash) == memory.body(block_hash)
        for block_hash in self.active:
            assert disk.undo(block_hash) == memory.undo(block_hash)


TwoStores.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestTwoStores = TwoStores.TestCase


def test_what_was_not_committed_is_lost(path: Path) -> None:
    with SqliteStore(path) as store:
        store.add_header(h("a"), bytes(80))
        store.commit()
        store.add_header(h("b"), bytes(80))
        assert len([*store.headers()]) == 2
    with SqliteStore(path) as store:
        assert len([*store.headers()]) == 1
        with pytest.raises(KeyError):
            store.undo(h("a"))


def test_one_process_holds_the_file_which_is_its_owners(path: Path, store: SqliteStore) -> None:
    with pytest.raises(UserError) as caught:
        SqliteStore(path)
    assert caught.value.reason == "store-in-use"
    assert all(each.stat().st_mode & 0o077 == 0 for each in path.parent.iterdir())
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_file_of_a_later_version_is_left_alone(path: Path) -> None:
    SqliteStore(path).close()
    with closing(sqlite_utils.Database(path)) as db:
        row = {"migration_set": "oda-sidechain", "name": "m999_later", "applied_at": "now"}
        db.table("_sqlite_migrations").insert(row)
    for _ in range(2):  # the lock was let go
        with pytest.raises(UserError) as caught:
            SqliteStore(path)
        assert caught.value.reason == "store-too-new"


def test_transactions_wait_in_the_order_in_which_they_came(path: Path) -> None:
    world = World()
    first, second = register(QUICK, ALICE), commit(world.params, h("m"), BOB, "w")
    third = register(QUICK, BOB)
    with SqliteStore(path) as store:
        for tx in (first, second, first):
            store.add_transaction(tx)
        assert store.transactions() == [first, second]
        store.keep_transactions({tx.txid: tx for tx in (second, third)})
        store.commit()
    with SqliteStore(path) as store:
        assert store.transactions() == [second, third]


ANSWERS: dict[Request, Answer] = {
    ScoreRequest(h("m"), h("w"), b""): Scored(1 << 80, 7),
    ScoreRequest(h("m"), h("v"), b""): Unusable("bad-weights"),
    PairedRequest(h("m"), 3, h("k"), h("v"), h("w"), b"", b""): PairedSums(9, -(1 << 70), 1 << 90),
}


def test_scores_are_kept_to_the_last_digit(path: Path) -> None:
    with SqliteStore(path) as store:
        for request, answer in ANSWERS.items():
            store.add_score(request, answer)
            store.add_score(request, answer)
        store.commit()
    with SqliteStore(path) as store:
        assert dict(store.scores()) == ANSWERS


def test_peers(store: SqliteStore) -> None:
    old, new = KnownPeer("::1", 9, 10), KnownPeer("127.0.0.1", 9, 20)
    for peer in (old, new):
        store.put_peer(peer)
    assert list(store.peers()) == [new, old]
    banned = KnownPeer("::1", 9, 30, banned_until=99)
    store.put_peer(banned)
    store.remove_peer("127.0.0.1", 9)
    store.remove_peer("127.0.0.1", 9)
    assert list(store.peers()) == [banned]
