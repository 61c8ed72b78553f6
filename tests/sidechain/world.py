"""A little world to test the chain in: keys, nodes, models with made-up scores, and a miner."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

from channels.bolt import keys, signmessage
from sidechain import payee, pow
from sidechain.chain import Chain, MemoryStore
from sidechain.headers import HeaderRecord
from sidechain.mempool import assemble
from sidechain.params import REGTEST, Params
from sidechain.primitives import (
    NO_SIGNATURE,
    AddModel,
    AnyTransaction,
    Block,
    Commit,
    Header,
    OpenShard,
    RegisterPayee,
    Reveal,
    T,
    commitment,
    shard_key_hash,
    signed,
    stamped,
    x_only,
)
from sidechain.reasons import Rejection
from sidechain.scores import (
    PairedRequest,
    PairedSums,
    Scored,
    ScoreRequest,
    Scores,
    Unusable,
)
from sidechain.state import ChainState
from sidechain.validation import check_block, state_transition

QUICK: Params = replace(REGTEST, stamp=4, model_stamp=4)
"""Regtest with stamps that cost nothing."""

COST = 1000


def h(name: str) -> bytes:
    """32 bytes that are always the same for a name."""
    return hashlib.sha256(name.encode()).digest()


@dataclass(frozen=True)
class Person:
    """Somebody with a key."""

    name: str

    @property
    def secret(self) -> bytes:
        return h(f"secret of {self.name}")

    @property
    def key(self) -> bytes:
        return x_only(self.secret)

    @property
    def node_secret(self) -> bytes:
        return h(f"node of {self.name}")

    @property
    def node_id(self) -> bytes:
        return keys.public_key(self.node_secret)


ALICE, BOB, CAROL, MINER = (Person(name) for name in ("alice", "bob", "carol", "miner"))


def finished(params: Params, tx: T, person: Person | None = None) -> T:
    """Stamped, and signed if somebody is named."""
    tx = stamped(tx, params.model_stamp if isinstance(tx, AddModel) else params.stamp)
    return tx if person is None else signed(tx, person.secret)


def register(params: Params, person: Person, seq: int = 1, endpoint: str = "") -> RegisterPayee:
    endpoint = endpoint or f"http://{person.name}.example"
    text = payee.payee_text(params.network_id, person.key, seq, person.node_id, endpoint)
    _, proof = signmessage.sign(person.node_secret, text)
    tx = RegisterPayee(
        params.network_id, 0, person.key, seq, person.node_id, endpoint, proof, NO_SIGNATURE
    )
    return finished(params, tx, person)


def add_model(
    params: Params,
    trainer: Person = ALICE,
    *,
    weights: str = "first",
    score: int = 10_000,
    shards: Sequence[str] = (),
    openers: Sequence[Person] = (),
    min_gain: int = 10,
    cost: int = COST,
) -> AddModel:
    tx = AddModel(
        params.network_id,
        0,
        h(f"infohash {weights}"),
        h(weights),
        b'{"type":"mlp"}',
        b"cross-entropy",
        h("dataset"),
        tuple(shard_key_hash(h(shard)) for shard in shards),
        tuple(opener.key for opener in openers),
        min_gain,
        score,
        cost,
        trainer.key,
        NO_SIGNATURE,
    )
    return finished(params, tx, trainer)


def commit(params: Params, model: bytes, trainer: Person, weights: str, salt: str = "") -> Commit:
    blind = commitment(h(weights), model, trainer.key, h(f"salt {salt}"))
    return finished(params, Commit(params.network_id, 0, blind))


def reveal(
    params: Params, model: bytes, trainer: Person, weights: str, score: int, salt: str = ""
) -> Reveal:
    tx = Reveal(
        params.network_id,
        0,
        model,
        h(f"infohash {weights}"),
        h(weights),
        score,
        trainer.key,
        h(f"salt {salt}"),
        NO_SIGNATURE,
    )
    return finished(params, tx, trainer)


def open_shard(params: Params, model: bytes, index: int, shard: str, opener: Person) -> OpenShard:
    tx = OpenShard(params.network_id, 0, model, index, h(shard), NO_SIGNATURE)
    return finished(params, tx, opener)


def solved(header: Header) -> Header:
    """The header with a nonce that meets its target."""
    while not pow.meets(header.hash, header.bits):
        header = msgspec.structs.replace(header, nonce=header.nonce + 1)
    return header


def sealed_block(block: Block) -> Block:
    """The block with its Merkle root and a nonce, after its transactions were changed."""
    header = msgspec.structs.replace(block.header, merkle_root=block.merkle_root(), nonce=0)
    return Block(solved(header), block.transactions)


@dataclass
class Truth:
    """What everybody's scorer would find, as far as the weights are to be had."""

    public: dict[ScoreRequest, Scored | Unusable] = field(default_factory=dict)
    paired: dict[PairedRequest, PairedSums] = field(default_factory=dict)

    @property
    def scores(self) -> Scores:
        return Scores(self.public, self.paired)

    def score(self, model: bytes, weights: str, score: int, cost: int = COST) -> None:
        self.public[ScoreRequest(model, h(weights), b"")] = Scored(score, cost)

    def unusable(self, model: bytes, weights: str, reason: str) -> None:
        self.public[ScoreRequest(model, h(weights), b"")] = Unusable(reason)

    def pair(self, model: bytes, i: int, shard: str, old: str, new: str, sums: PairedSums) -> None:
        self.paired[PairedRequest(model, i, h(shard), h(old), h(new), b"", b"")] = sums


GOOD = PairedSums(100, 1000, 12_000)
BAD = PairedSums(100, 10, 12_000)


class World:
    """One chain, one miner, and a clock that moves with the blocks."""

    def __init__(self, params: Params = QUICK, store: MemoryStore | None = None) -> None:
        self.params = params
        self.store = store or MemoryStore()
        self.chain = Chain(params, self.store)
        self.truth = Truth()
        self.now = max(params.genesis_time, self.chain.tip.header.time)

    @property
    def state(self) -> ChainState:
        return self.chain.state

    @property
    def height(self) -> int:
        return self.chain.tip.height

    def build(
        self,
        *txs: AnyTransaction,
        parent: HeaderRecord | None = None,
        state: ChainState | None = None,
        producer: Person = MINER,
        extra: bytes = b"",
        honest: bool = True,
    ) -> Block:
        """A block with a nonce. honest: only what is valid gets in, and the state root is right.
        Otherwise the transactions are put in as they are, with whatever root comes out."""
        parent = parent or self.chain.tip
        state = self.chain.state if state is None else state
        self.now = max(self.now, parent.header.time + self.params.spacing)
        block = assemble(
            self.params,
            parent,
            state,
            txs if honest else (),
            self.truth.scores,
            payee=producer.key,
            time=parent.header.time + self.params.spacing,
            bits=self.chain.headers.next_bits(parent),
            extra=extra,
        )
        if not honest:
            block = Block(block.header, (*block.transactions, *txs))
        return sealed_block(block)

    def submit(self, block: Block) -> None:
        """Give the chain a block and let it go on."""
        self.chain.accept_block(block, self.now)
        self.chain.advance(self.truth.scores)

    def mine(self, *txs: AnyTransaction, extra: bytes = b"") -> Block:
        """A block on the tip with exactly these transactions."""
        block = self.build(*txs, extra=extra)
        assert len(block.transactions) == 1 + len(txs), "a transaction did not get in"
        self.submit(block)
        assert self.chain.tip.hash == block.hash
        return block

    def wait(self, blocks: int) -> None:
        for _ in range(blocks):
            self.mine()

    # --- shortcuts through many blocks -----------------------------------------------------------

    def model(self, **options: object) -> bytes:
        """A model on the chain; -> its identity. Options are add_model()'s."""
        tx = add_model(self.params, **options)  # type: ignore[arg-type] # a test's shorthand
        weights = str(options.get("weights", "first"))
        self.truth.score(tx.txid, weights, tx.score, tx.score_cost)
        self.mine(tx)
        return tx.txid

    def committed(self, model: bytes, trainer: Person, weights: str, salt: str = "") -> None:
        """A commit that is old enough to be revealed in the next block."""
        self.mine(commit(self.params, model, trainer, weights, salt))
        self.wait(self.params.reveal_delay - 1)

    def update(self, model: bytes, trainer: Person, weights: str, score: int) -> Block:
        """Commit, wait and reveal honestly."""
        self.committed(model, trainer, weights)
        self.truth.score(model, weights, score)
        return self.mine(reveal(self.params, model, trainer, weights, score))

    def refused(self, *txs: AnyTransaction) -> str | None:
        """The reason for which a block with these transactions is refused on the tip; None if the
        rules have nothing against them. The chain stays where it is."""
        block = self.build(*txs, honest=False)
        try:
            check_block(self.params, block)
            state_transition(self.params, self.state, block, self.truth.scores)
        except Rejection as rejection:
            # The Producer of such a block states the root of an empty one.
            return None if rejection.reason == "bad-state-root" else rejection.reason
        return None


def rivals(chain: Chain, height: int) -> list[Block]:
    """Empty blocks on the one at this height, with more work than the tip has."""
    state, parent = chain.state_at(chain.tip.height - height), chain.active(height)
    assert parent is not None
    blocks: list[Block] = []
    while parent.height <= chain.tip.height:
        block = sealed_block(
            assemble(
                chain.params,
                parent,
                state,
                (),
                Scores(),
                payee=BOB.key,
                time=parent.median_time() + 1,
                bits=chain.headers.next_bits(parent),
            )
        )
        state = state_transition(chain.params, state, block).state
        parent = chain.accept_header(block.header, block.header.time)
        blocks.append(block)
    return blocks
