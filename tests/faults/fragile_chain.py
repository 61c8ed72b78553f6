"""A sidechain node that lives through a story and can be killed at any commit of it.

`python -m tests.faults.fragile_chain DIR` plays the story once for each commit that it makes, and
kills itself there, as by SIGKILL: just before in DIR/N-before, just after in DIR/N-after.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sidechain.headers import HeaderRecord
from sidechain.node import ChainNode
from sidechain.primitives import AnyTransaction, Block
from sidechain.scores import Scored, ScoreRequest
from sidechain.store import KnownPeer, SqliteStore
from tests.sidechain.world import (
    ALICE,
    BOB,
    CAROL,
    COST,
    QUICK,
    World,
    add_model,
    commit,
    h,
    register,
    reveal,
)

NOW = QUICK.genesis_time + 1000 * QUICK.spacing

Turn = Callable[[ChainNode], None]


class FragileStore(SqliteStore):
    """Dies at its `fatal`-th commit, "before" or "after" it is made."""

    def __init__(self, path: Path, fatal: int = -1, when: str = "") -> None:
        self.commits = 0
        self._fatal = fatal
        self._when = when
        super().__init__(path)

    def commit(self) -> None:
        if not self._db.in_transaction:
            return
        self.commits += 1
        if (self.commits, "before") == (self._fatal, self._when):
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit()
        if (self.commits, "after") == (self._fatal, self._when):
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def node_on(store: SqliteStore) -> Iterator[ChainNode]:
    with store:
        yield ChainNode(QUICK, store, now=lambda: NOW)


# --- the story -----------------------------------------------------------------------------------


def _headers(blocks: list[Block]) -> Turn:
    def turn(node: ChainNode) -> None:
        node.accept_headers([block.header for block in blocks])

    return turn


def _blocks(blocks: list[Block]) -> Turn:
    def turn(node: ChainNode) -> None:
        with node.turn():
            for block in blocks:
                node.accept_block(block)

    return turn


def _transactions(*txs: AnyTransaction) -> Turn:
    def turn(node: ChainNode) -> None:
        with node.turn():
            for tx in txs:
                node.accept_transaction(tx)

    return turn


def _score(model: bytes, weights: str, score: int) -> Turn:
    request = ScoreRequest(model, h(weights), bytes(32))
    return lambda node: node.scored(request, Scored(score, COST))


def _peers(node: ChainNode) -> None:
    node.store.put_peer(KnownPeer("127.0.0.1", 9, 1))
    node.store.put_peer(KnownPeer("127.0.0.2", 9, 1, banned_until=2))
    node.store.commit()


def _since(world: World, start: HeaderRecord) -> list[Block]:
    blocks = []
    for record in world.chain.tip.chain():
        if record.hash == start.hash:
            break
        block = world.chain.block(record.hash)
        assert block is not None  # the world has mined it
        blocks.append(block)
    return blocks[::-1]


def story() -> list[Turn]:
    """Headers first, pending blocks, a reorg, a lie, transactions that come, go and come back."""
    world, rival = World(), World()
    genesis = world.chain.tip
    world.mine(register(QUICK, ALICE))
    model = world.model()
    world.committed(model, BOB, "better")
    common = _since(world, genesis)
    rival.truth, rival.now = world.truth, world.now
    for block in common:
        rival.submit(block)
    fork = world.chain.tip
    world.mine(register(QUICK, CAROL))
    short = _since(world, fork)
    world.truth.score(model, "better", 9_000)
    rival.mine(reveal(QUICK, model, BOB, "better", 9_000), extra=b"rival")
    rival.wait(2)
    long = _since(rival, fork)
    lie_tx = add_model(QUICK, CAROL, weights="lie", score=5_000)
    rival.truth.score(lie_tx.txid, "lie", 5_000)
    lie = rival.build(lie_tx)
    true = rival.mine(commit(QUICK, h("m"), ALICE, "x"))
    junk = add_model(QUICK, CAROL, weights="junk")
    return [
        _headers(common),
        _blocks(common),
        _transactions(register(QUICK, BOB), commit(QUICK, h("m"), ALICE, "x")),
        _score(model, "first", 10_000),
        _peers,
        _blocks(short),
        _blocks(long),
        _score(model, "better", 9_000),
        _blocks([lie]),
        _transactions(junk, register(QUICK, BOB, 2)),
        _score(lie_tx.txid, "lie", 4_999),
        _score(junk.txid, "junk", 1),
        _blocks([true]),
    ]


@dataclass(frozen=True)
class Picture:
    """All that a restart must not change."""

    tip: bytes
    root: bytes
    status: dict[bytes, str]
    waiting: set[bytes]
    scores: dict[object, object]
    wanted: set[object]
    peers: list[KnownPeer]


def picture(node: ChainNode) -> Picture:
    records = node.chain.headers.records
    return Picture(
        node.chain.tip.hash,
        node.chain.state.root,
        {each: node.chain.status(each).value for each in records},
        {tx.txid for tx in node.mempool},
        dict(node.store.scores()),
        set(node.wanted()),
        list(node.store.peers()),
    )


def main() -> None:
    folder, turns = Path(sys.argv[1]), story()
    for fatal in range(1, 100):
        for when in ("before", "after"):
            child = os.fork()
            if child == 0:
                store = FragileStore(folder / f"{fatal}-{when}" / "chain.sqlite", fatal, when)
                with node_on(store) as node:
                    for turn in turns:
                        turn(node)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if status == 0:
                return  # the story has fewer commits
            if os.WTERMSIG(status) != signal.SIGKILL:
                sys.exit(f"{fatal} {when}: it ended with {status}")
    sys.exit("the story never ends")


if __name__ == "__main__":
    main()
