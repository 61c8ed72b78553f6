"""What the chain knows after a block: payees, models, commits, roots, shards and the producer.

A ChainState is a value: applying a block gives another one, and the undo record that leads back.
Its root (`state_root`) stands in the next Producer, so each entry can be proven to somebody who has
the headers only. The state must not depend on the hash of the block that made it, because that
hash depends on the state's root; blocks are named by their height.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeVar

import msgspec

from sidechain import state_tree
from sidechain.primitives import AddModel
from sidechain.state_tree import Node, StateProof

Undo = tuple[tuple[bytes, bytes | None], ...]
"""Entries as they were before a block; None where there was none."""

Changes = Mapping[bytes, bytes | None]
"""Entries as they are after a block; None where one is gone."""


class _Value(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class Tip(_Value, frozen=True):
    """The last block: its height and its producer's key."""

    height: int
    producer: bytes


class Payee(_Value, frozen=True):
    """Where a key is paid."""

    seq: int
    node_id: bytes
    endpoint: str


class Definition(_Value, frozen=True):
    """What makes a model this model; it never changes."""

    architecture: bytes
    objective: bytes
    dataset_root: bytes
    infohash: bytes
    shards: tuple[bytes, ...]
    openers: tuple[bytes, ...]
    min_gain: int
    score_cost: int

    @classmethod
    def of(cls, tx: AddModel) -> Definition:
        return cls(
            tx.architecture,
            tx.objective,
            tx.dataset_root,
            tx.infohash,
            tx.shards,
            tx.openers,
            tx.min_gain,
            tx.score_cost,
        )


class Version(_Value, frozen=True):
    """One set of weights of a model. `height` and `producer` are of the block that took it."""

    weights_root: bytes
    infohash: bytes
    score: int
    trainer: bytes
    height: int
    producer: bytes


class Model(_Value, frozen=True):
    """Which weights a model has. `opened` has the height at which each shard opened, 0 if sealed.

    With a provisional version there is exactly one: who comes next is measured after it is
    decided, so that nobody's work rests on weights that are taken back.
    """

    confirmed: Version
    provisional: Version | None
    opened: tuple[int, ...]

    @property
    def current(self) -> Version:
        """What the next update has to beat, and what is served."""
        return self.provisional or self.confirmed


class Root(_Value, frozen=True):
    """Weights that have been on the chain. `revealed`: by a Reveal, not only by an AddModel."""

    height: int
    revealed: bool
    confirmed: bool
    model: bytes
    trainer: bytes
    producer: bytes


V = TypeVar("V")


def _decoder(kind: type[V]) -> msgspec.msgpack.Decoder[V]:
    return msgspec.msgpack.Decoder(kind)


_tip = _decoder(Tip)
_payee = _decoder(Payee)
_definition = _decoder(Definition)
_model = _decoder(Model)
_root = _decoder(Root)
_integer = _decoder(int)
_hashes = _decoder(tuple[bytes, ...])

TIP_KEY: Final = b"T"


def payee_key(key: bytes) -> bytes:
    return b"P" + key


def definition_key(model: bytes) -> bytes:
    return b"D" + model


def model_key(model: bytes) -> bytes:
    return b"M" + model


def commit_key(commit: bytes) -> bytes:
    return b"C" + commit


def root_key(weights_root: bytes) -> bytes:
    return b"R" + weights_root


def expiry_key(height: int) -> bytes:
    """The commits that are forgotten at the start of this block."""
    return b"E" + height.to_bytes(4, "big")


def timeout_key(height: int) -> bytes:
    """The models whose provisional version is given up at the start of this block."""
    return b"O" + height.to_bytes(4, "big")


class View:
    """Reads entries; where they come from is `get`'s matter."""

    __slots__ = ()

    def get(self, key: bytes) -> bytes | None:
        raise NotImplementedError

    def _read(self, key: bytes, decoder: msgspec.msgpack.Decoder[V]) -> V | None:
        value = self.get(key)
        return None if value is None else decoder.decode(value)

    def tip(self) -> Tip | None:
        """None before the first block after genesis."""
        return self._read(TIP_KEY, _tip)

    def payee(self, key: bytes) -> Payee | None:
        return self._read(payee_key(key), _payee)

    def definition(self, model: bytes) -> Definition | None:
        return self._read(definition_key(model), _definition)

    def model(self, model: bytes) -> Model | None:
        return self._read(model_key(model), _model)

    def commit(self, commit: bytes) -> int | None:
        """The height of an open commit."""
        return self._read(commit_key(commit), _integer)

    def root_of(self, weights_root: bytes) -> Root | None:
        return self._read(root_key(weights_root), _root)

    def expiring(self, height: int) -> tuple[bytes, ...]:
        return self._read(expiry_key(height), _hashes) or ()

    def timing_out(self, height: int) -> tuple[bytes, ...]:
        return self._read(timeout_key(height), _hashes) or ()


class ChainState(View):
    """The state after one block; immutable."""

    __slots__ = ("_tree",)

    def __init__(self, tree: Node | None = None) -> None:
        self._tree = tree

    @classmethod
    def load(cls, entries: Iterable[tuple[bytes, bytes]]) -> ChainState:
        """A state from the entries that a store kept."""
        tree: Node | None = None
        for key, value in entries:
            tree = state_tree.put(tree, key, value)
        return cls(tree)

    def get(self, key: bytes) -> bytes | None:
        return state_tree.get(self._tree, key)

    @property
    def root(self) -> bytes:
        """What the Producer of the block that led here says."""
        return state_tree.root(self._tree)

    def applied(self, changes: Changes) -> tuple[ChainState, Undo]:
        """The state after the changes, and what leads back."""
        tree = self._tree
        undo = []
        for key, value in sorted(changes.items()):
            before = state_tree.get(tree, key)
            if before == value:
                continue
            undo.append((key, before))
            if value is None:
                tree = state_tree.remove(tree, key)
            else:
                tree = state_tree.put(tree, key, value)
        return ChainState(tree), tuple(undo)

    def undone(self, undo: Undo) -> ChainState:
        """The state before the block that the record belongs to."""
        return self.applied(dict(undo))[0]

    def prove(self, key: bytes) -> StateProof | None:
        """state_tree.prove(): that a key has its value, or that it has none."""
        return state_tree.prove(self._tree, key)

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        return state_tree.items(self._tree)

    def models(self) -> Iterator[bytes]:
        """The identities of all models."""
        return (key[1:] for key, _ in self.entries() if key[:1] == b"M")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChainState) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)


class Draft(View):
    """A state in the making: what a block has changed so far, over the state before it."""

    __slots__ = ("_base", "changes")

    def __init__(self, base: View) -> None:
        self._base = base
        self.changes: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.changes[key] if key in self.changes else self._base.get(key)

    def put(self, key: bytes, value: _Value | int | tuple[bytes, ...]) -> None:
        self.changes[key] = msgspec.msgpack.encode(value)

    def remove(self, key: bytes) -> None:
        self.changes[key] = None
