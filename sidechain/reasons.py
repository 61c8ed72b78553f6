"""Every reason for which something of the chain is refused, in one table.

The words are Bitcoin Core's where Core has one. A reason is stable: programs, logs and
docs/sidechain.md rely on it, and a test compares that page with this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from channels.errors import RemoteProtocolError

REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        # Encoding
        "hdr-decode": "A header has 80 bytes; ask another peer for it.",
        "tx-decode": "The bytes are no transaction in its one canonical encoding; don't relay it.",
        "blk-decode": "The bytes are no block in its one canonical encoding; ask another peer.",
        "bad-blk-length": "The block is longer than the network allows; drop it.",
        # Headers
        "prev-blk-not-found": "The header's parent is not known; ask for the headers before it.",
        "bad-prevblk": "The header builds on a block that is invalid; drop it.",
        "duplicate-invalid": "The block is known and invalid; drop it.",
        "high-hash": "The header's hash is above the target that its bits state; drop it.",
        "bad-diffbits": "The header's bits are not what the retarget rule gives; drop it.",
        "time-too-old": "The header's time is not after the median of the 11 before; drop it.",
        "time-too-new": "The header's time is too far in the future; offer it again later.",
        # Blocks
        "bad-txnmrklroot": "The transactions are not those the header names; ask another peer.",
        "bad-producer-missing": "The first transaction of a block must be its Producer.",
        "bad-producer-multiple": "A block has one Producer, not more.",
        "bad-producer-height": "The Producer names another height than the block has.",
        "bad-state-root": "The state after the block is not the one that its Producer names.",
        "bad-txns-duplicate": "The block has the same transaction twice.",
        "bad-blk-cost": "Scoring the block would cost more than the network allows.",
        "too-many-openings": "The block opens more shards than the network allows in one block.",
        "model-twice-in-block": "A model is revealed or opened for at most once in a block.",
        # Any transaction
        "bad-network": "The transaction was made for another network.",
        "bad-stamp": "The stamp lacks work; search for another stamp_nonce.",
        "bad-signature": "The signature is not the key's over this transaction.",
        # RegisterPayee
        "bad-payee-endpoint": "An endpoint is printable ASCII without spaces.",
        "bad-payee-proof": "The signmessage is not the node's over the payee's text.",
        "stale-seq": "The payee is registered with this seq or a higher one; raise seq.",
        # AddModel
        "bad-shards": "Sealed shards and openers must come together, each of them once.",
        "model-too-costly": "Scoring the model costs more than a block may; it is refused for now.",
        "bad-score-cost": "The stated cost of scoring is not what the architecture gives.",
        "bad-architecture": "The architecture or objective is not in the registry as stated.",
        "bad-dataset": "The data with the stated root can't be used for the objective.",
        # AddModel and Reveal
        "root-known": "The weights were on the chain before; only new weights count.",
        "trainer-is-opener": "An opener of a model's shards can't hold its trainer's right.",
        "bad-weights": "The weights with the stated root are not the architecture's.",
        "bad-score": "The stated score is not the score that the weights have.",
        # Commit and Reveal
        "commit-known": "The same commit is open already.",
        "commit-missing": "There is no open commit to these weights by this trainer.",
        "commit-immature": "The commit is younger than reveal_delay blocks; reveal later.",
        "model-missing": "The model is not on the chain.",
        "no-gain": "The score is not better by the gain that the model requires now.",
        "provisional-pending": "The model has a provisional version; wait until it is decided.",
        "no-sealed-shard": "All shards of the model are open, so no update can be tested.",
        # OpenShard
        "shard-missing": "The model has no shard of this number.",
        "shard-open": "The shard is open already.",
        "bad-shard-key": "The key is not the one that the model's hash names.",
        "not-an-opener": "The signature is none of the openers'.",
        # Mempool
        "producer-not-relayed": "A Producer lives in its block alone and is not relayed.",
        "txn-already-in-mempool": "The transaction is in the mempool already.",
        "txn-mempool-conflict": "The mempool has a transaction that this one can't replace.",
        "mempool-full": "The mempool is full of transactions with better stamps.",
        "mempool-model-full": "The mempool holds as many reveals for this model as it may.",
        # Providers' announcements
        "announcement-expired": "The announcement is over, or promises more than a day.",
        "announcements-full": "As many announcements with better stamps are kept as may be.",
        # Peers
        "bad-message": "The bytes are no message of the protocol; disconnect.",
        "message-too-long": "The message is longer than its kind may be; disconnect.",
        "bad-handshake": "The message is not allowed at this point of the handshake; disconnect.",
        "wrong-network": "The peer is on another network; disconnect.",
        "version-too-old": "The peer speaks a version that is no longer understood; disconnect.",
        "self-connect": "The peer is this node itself; disconnect.",
        "not-requested": "The message answers nothing that was asked for; ask, or offer it first.",
        "too-many-requests": "More was asked for than a peer may at once; wait for the answers.",
        # Light clients
        "bad-proof": "The proof does not lead to the header; ask another peer.",
    }
)

VERDICTS: Final = frozenset({"bad-architecture", "bad-dataset", "bad-weights"})
"""What whoever scores may say of bytes that hash to the stated roots and still can't be used."""


class Rejection(RemoteProtocolError):
    """Something of the chain broke a rule; `reason` is a key of REASONS."""

    def __init__(self, reason: str, detail: str = "") -> None:
        sentence = REASONS[reason]
        super().__init__(reason, f"{sentence} ({detail})" if detail else sentence)
