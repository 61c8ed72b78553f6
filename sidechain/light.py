"""A client that has the headers only, and proofs for whatever else it needs to know.

It follows the work, and reads single entries of the state from whoever gives a proof: the block's
Producer is the first leaf under the header's Merkle root, and its state_root is the root over all
entries. A peer can withhold a proof but can't make one up, so one honest peer among many is enough.
What a light client does not check is that blocks are valid: it stays `fee_depth` blocks behind the
work, and invalid blocks with work on top cost an attacker what valid ones do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sidechain import merkle, state_tree
from sidechain.headers import HeaderIndex, HeaderRecord
from sidechain.params import Params
from sidechain.primitives import Block, Hash, Header, Producer, Uint32, decode_transaction
from sidechain.reasons import Rejection
from sidechain.state import (
    TIP_KEY,
    ChainState,
    View,
    definition_key,
    model_key,
    payee_key,
    root_key,
)

_PROVABLE = (payee_key, definition_key, model_key, root_key)


class EntryProof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """That a search for an entry of the state after a block ends at `key` and `value`.

    `producer` is the block's first transaction; `branch` leads from it to the header's Merkle
    root, `path` from the entry to the Producer's state_root (state_tree.StateProof).
    """

    block: Hash
    producer: Annotated[bytes, Meta(max_length=512)]
    transactions: Uint32
    branch: Annotated[tuple[Hash, ...], Meta(max_length=32)]
    key: Annotated[bytes, Meta(max_length=64)]
    value_hash: Hash
    value: Annotated[bytes, Meta(max_length=16 * 1024)]
    """Empty where the search ended at another key: then there is nothing to show."""
    path: Annotated[
        tuple[tuple[Annotated[int, Meta(ge=0, le=255)], Hash], ...], Meta(max_length=256)
    ]


PROVABLE: Final = frozenset({TIP_KEY[:1], *(f(b"")[:1] for f in _PROVABLE)})
"""How keys begin whose values are asked for; others are the rules' own notes and may be long."""


class Prover:
    """The entries of the state after one block, by a full node; a block's tree is built once."""

    def __init__(self, block: Block, state: ChainState) -> None:
        self._hash = block.hash
        self._state = state
        self._producer = block.transactions[0].encode()
        self._inclusion = merkle.prove(block.txids(), 0)

    def prove(self, key: bytes) -> EntryProof:
        """Raises Rejection("bad-proof") for a key that nobody needs proven."""
        if key[:1] not in PROVABLE:
            raise Rejection("bad-proof", "no such kind of entry")
        found = self._state.prove(key)
        assert found is not None  # the state after a block has its tip at least
        return EntryProof(
            self._hash,
            self._producer,
            self._inclusion.count,
            self._inclusion.path,
            found.key,
            found.value_hash,
            (self._state.get(key) or b"") if found.key == key else b"",
            found.path,
        )


class Unproven(KeyError):
    """The view was asked for an entry that nobody has proven yet; `key` is the entry's key."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.key = key


class ProvenView(View):
    """What is proven of the state after one block. fees.beneficiaries() reads it like a state."""

    __slots__ = ("_entries", "record")

    def __init__(self, record: HeaderRecord) -> None:
        self.record = record
        self._entries: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """Raises Unproven."""
        try:
            return self._entries[key]
        except KeyError:
            raise Unproven(key) from None

    def learn(self, key: bytes, proof: EntryProof) -> None:
        """Take up a peer's proof about the key. Raises Rejection("bad-proof")."""
        if proof.block != self.record.hash:
            raise Rejection("bad-proof", "another block")
        inclusion = merkle.MerkleProof(0, proof.transactions, proof.branch)
        producer = decode_transaction(proof.producer)
        if not isinstance(producer, Producer):
            raise Rejection("bad-proof", "no Producer")
        if not merkle.verify(self.record.header.merkle_root, producer.txid, inclusion):
            raise Rejection("bad-proof", "the Producer is not the block's first transaction")
        found = state_tree.StateProof(proof.key, proof.value_hash, proof.path)
        if not state_tree.verify(producer.state_root, key, found):
            raise Rejection("bad-proof", "the entry is not in the state")
        if proof.key != key:
            self._entries[key] = None
            return
        if state_tree.value_hash(proof.value) != proof.value_hash:
            raise Rejection("bad-proof", "the value is another")
        self._entries[key] = proof.value


class LightClient:
    """Headers from any number of peers; the most work wins."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.headers = HeaderIndex(params)

    def accept(self, headers: Iterable[Header], now: int) -> HeaderRecord:
        """Headers in the order of their heights, as one peer sent them; -> the best known.

        Raises Rejection for the first that breaks a rule; those before it are kept.
        """
        for header in headers:
            self.headers.accept(header, now)
        return self.headers.best

    def pinned(self) -> HeaderRecord:
        """The block whose state counts for shares: `fee_depth` below the best one."""
        best = self.headers.best
        return best.ancestor(max(0, best.height - self.params.fee_depth))

    def is_recent(self, height: int, block_hash: bytes, most: int = 2) -> bool:
        """Whether a tip that a provider names is on the best chain and at most so many blocks
        behind the pinned one."""
        best = self.headers.best
        if not max(0, self.pinned().height - most) <= height <= best.height:
            return False
        return best.ancestor(height).hash == block_hash

    def view(self, record: HeaderRecord | None = None) -> ProvenView:
        """An empty view of the state after a block, of the pinned one by default."""
        return ProvenView(record or self.pinned())


def shares_keys(model: bytes, weights_root: bytes) -> tuple[bytes, ...]:
    """The entries to ask for in order to know who is owed for serving these weights."""
    return TIP_KEY, model_key(model), root_key(weights_root)


def payee_keys(keys: Iterable[bytes]) -> tuple[bytes, ...]:
    """The entries to ask for in order to know where keys are paid."""
    return tuple(payee_key(key) for key in keys)
