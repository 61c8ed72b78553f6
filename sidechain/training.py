"""What a trainer and an opener do next, from the chain's state alone. PURE.

Nothing is remembered but pledges, so a reorg needs no case of its own: what it undid is due again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from sidechain.params import Params
from sidechain.primitives import (
    NO_SIGNATURE,
    Commit,
    OpenShard,
    Reveal,
    commitment,
)
from sidechain.reasons import REASONS
from sidechain.state import ChainState, Definition, Model
from sidechain.validation import required_gain

if TYPE_CHECKING:
    from sidechain.pledges import Pledge

WAITING: Final = {
    "syncing": "The node does not have the newest blocks yet.",
    "model-missing": REASONS["model-missing"],
    "provisional-pending": REASONS["provisional-pending"],
    "no-sealed-shard": REASONS["no-sealed-shard"],
    "commit-immature": "The commit has to be older before the weights may be revealed.",
    "provisional": "The weights are on the chain; a sealed shard has to open and decide.",
}
"""Why nothing is to be done now."""


class Do(Enum):
    TRAIN = "train"
    WAIT = "wait"
    COMMIT = "commit"
    REVEAL = "reveal"
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    """The shard that opened said no, or none did in time."""
    OVERTAKEN = "overtaken"
    """The model is better now than the weights are."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Step:
    """why: a key of WAITING, or a reason of the rules. height: of the block with the weights."""

    do: Do
    why: str = ""
    height: int = 0


def gain_required(params: Params, model: Model, definition: Definition, height: int) -> int:
    """For a Reveal in the block of this height."""
    return required_gain(params, definition.min_gain, height - model.confirmed.height)


def is_known(state: ChainState, weights_root: bytes) -> bool:
    """Whether weights have been on the chain: whoever checks all of it needs their bytes."""
    return state.root_of(weights_root) is not None


def pin(identity: bytes) -> str:
    """Who needs a trainer's torrents (torrent.library.Record.pins)."""
    return f"trainer of {identity.hex()}"


def begin(state: ChainState, identity: bytes) -> Step:
    """Whether it is time to look for better weights."""
    model, definition = state.model(identity), state.definition(identity)
    if model is None or definition is None:
        return Step(Do.WAIT, "model-missing")
    if definition.shards and all(model.opened):
        return Step(Do.WAIT, "no-sealed-shard")
    if model.provisional is not None:
        return Step(Do.WAIT, "provisional-pending")
    return Step(Do.TRAIN)


def proceed(
    params: Params, state: ChainState, identity: bytes, trainer: bytes, pledge: Pledge
) -> Step:
    """What becomes of weights that are pledged."""
    model, definition, tip = state.model(identity), state.definition(identity), state.tip()
    if model is None or definition is None or tip is None:
        return Step(Do.WAIT, "model-missing")
    root = state.root_of(pledge.weights_root)
    if root is not None and root.revealed:
        if (root.model, root.trainer) != (identity, trainer):
            return Step(Do.REFUSED, "root-known", root.height)
        version = model.provisional
        if version is not None and version.weights_root == pledge.weights_root:
            return Step(Do.WAIT, "provisional", root.height)
        return Step(Do.CONFIRMED if root.confirmed else Do.REFUTED, "", root.height)
    height = tip.height + 1
    if model.confirmed.score - pledge.score < gain_required(params, model, definition, height):
        return Step(Do.OVERTAKEN)
    blind = commitment(pledge.weights_root, identity, trainer, pledge.salt)
    committed = state.commit(blind)
    if committed is None:
        return Step(Do.COMMIT)
    if height - committed < params.reveal_delay:
        return Step(Do.WAIT, "commit-immature")
    if definition.shards and all(model.opened):
        return Step(Do.WAIT, "no-sealed-shard")
    if model.provisional is not None:
        return Step(Do.WAIT, "provisional-pending")
    return Step(Do.REVEAL)


def next_sealed(state: ChainState, identity: bytes) -> int | None:
    """The shard to open: the first sealed one, while a provisional version waits."""
    model = state.model(identity)
    if model is None or model.provisional is None or all(model.opened):
        return None
    return model.opened.index(0)


# --- transactions, neither stamped nor signed ----------------------------------------------------


def commit_of(params: Params, identity: bytes, trainer: bytes, pledge: Pledge) -> Commit:
    blind = commitment(pledge.weights_root, identity, trainer, pledge.salt)
    return Commit(params.network_id, 0, blind)


def reveal_of(params: Params, identity: bytes, trainer: bytes, pledge: Pledge) -> Reveal:
    return Reveal(
        params.network_id,
        0,
        identity,
        pledge.infohash,
        pledge.weights_root,
        pledge.score,
        trainer,
        pledge.salt,
        NO_SIGNATURE,
    )


def opening_of(params: Params, identity: bytes, index: int, key: bytes) -> OpenShard:
    return OpenShard(params.network_id, 0, identity, index, key, NO_SIGNATURE)
