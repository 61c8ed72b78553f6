from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sidechain.node import (
    BlockPending,
    ChainNode,
    Event,
    HeadersAdded,
    ScoreAdded,
    TipChanged,
)
from sidechain.params import Params
from sidechain.scores import Request, Scored
from sidechain.state import Definition
from sidechain.store import SqliteStore
from tests.sidechain.world import (
    ALICE,
    COST,
    QUICK,
    World,
    register,
)


class AskedFor:
    """A scorer that only writes down what is wanted of it."""

    def __init__(self) -> None:
        self.wanted: dict[Request, Definition] = {}

    def want(self, wanted: Mapping[Request, Definition]) -> None:
        self.wanted = dict(wanted)


class Bench:
    """A node on a disk, everything it told, and a world that makes blocks for it."""

    def __init__(self, path: Path, params: Params = QUICK) -> None:
        self.path = path
        self.world = World(params)
        self.scorer = AskedFor()
        self.start()

    def start(self) -> None:
        store = SqliteStore(self.path)
        params = self.world.params
        self.node = ChainNode(params, store, now=lambda: self.world.now, scorer=self.scorer)
        self.events: list[Event] = []
        self.node.listen(self.events.append)

    def restart(self) -> None:
        self.node.store.close()
        self.start()

    def told(self, kind: type[Event]) -> list[Event]:
        found = [event for event in self.events if isinstance(event, kind)]
        self.events.clear()
        return found

    def feed(self) -> None:
        """All that the world's chain has and the node has not."""
        with self.node.turn():
            for record in list(self.world.chain.tip.chain())[-2::-1]:
                block = self.world.chain.block(record.hash)
                assert block is not None
                self.node.accept_block(block)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "chain.sqlite")
    yield bench
    bench.node.store.close()


def test_blocks_of_a_turn_are_one_step(bench: Bench) -> None:
    bench.world.mine(register(QUICK, ALICE))
    bench.world.wait(5)
    bench.feed()
    headers, moved = bench.events
    assert isinstance(headers, HeadersAdded) and headers.best is bench.node.chain.tip
    assert isinstance(moved, TipChanged) and len(moved.advance.connected) == 6
    assert bench.node.chain.state == bench.world.state
    bench.feed()
    assert len(bench.events) == 2
    bench.restart()
    assert bench.node.chain.tip.hash == bench.world.chain.tip.hash
    assert bench.node.chain.state == bench.world.state


def test_a_pending_block_waits_for_its_score(bench: Bench) -> None:
    model = bench.world.model()
    bench.feed()
    (request,) = bench.scorer.wanted
    assert bench.scorer.wanted[request] == bench.world.state.definition(model)
    assert bench.told(BlockPending) == [BlockPending(bench.world.chain.tip.hash, (request,))]
    bench.restart()
    assert bench.scorer.wanted.keys() == {request}
    bench.events.clear()
    answer = Scored(10_000, COST)
    bench.node.scored(request, answer)
    added, moved = bench.events
    assert added == ScoreAdded(request, answer) and isinstance(moved, TipChanged)
    assert bench.scorer.wanted == {}
    # Nothing is scored twice, not even after a restart.
    bench.restart()
    assert bench.scorer.wanted == {} and bench.node.chain.tip.height == 1
    assert bench.node.answer(request) == answer
