"""What travels over the node's HTTP API, as types. Pure: openapi.py describes, views.py fills it.

Bytes are lower-case hexadecimal in the order in which they are hashed; only the hashes of blocks
are turned round, as block explorers show them. Scores are exact, in micro-units.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from sidechain.announcements import MAX_BYTES as MAX_ANNOUNCEMENT
from sidechain.primitives import MAX_TRANSACTION
from sidechain.protocol import MAX_PROOFS

MOST: Final = 100
"""Things on one page."""

MAX_HOLDERS: Final = 8
MAX_BODY: Final = 2 * MAX_TRANSACTION + 4096

Hex: Final = "^([0-9a-f]{2})*$"
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="32 bytes")]
BlockHash = Annotated[
    str,
    Meta(pattern="^[0-9a-f]{64}$", description="A block's hash, as people read it"),
]
Key = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="An x-only public key (BIP 340)")]
Bytes = Annotated[str, Meta(pattern=Hex)]
Height = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
Time = Annotated[int, Meta(ge=0, description="Seconds since 1970")]
Limit = Annotated[int, Meta(ge=1, le=MOST)]


# --- what is asked -------------------------------------------------------------------------------


class NoQuery(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class BlocksQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """The blocks at and below a height, from the tip on by default."""

    limit: Limit = 20
    at: Height | None = None


class PageQuery(Struct, frozen=True, forbid_unknown_fields=True):
    limit: Limit = 20
    offset: Annotated[int, Meta(ge=0, le=1 << 31)] = 0


class AnnouncementsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one model, or of all."""

    model: Hash | None = None
    limit: Limit = 20
    offset: Annotated[int, Meta(ge=0, le=1 << 31)] = 0


class ProofsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """keys: hexadecimal keys of the state, with commas between. block: of the last 32; the tip."""

    keys: Annotated[
        str, Meta(pattern="^([0-9a-f]{2}){1,64}(,([0-9a-f]{2}){1,64})*$", max_length=4096)
    ]
    block: BlockHash | None = None


class BeneficiariesQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """model and weights that are served; none for a model that is not on the chain."""

    model: Hash | None = None
    weights_root: Hash | None = None


class NewTransaction(Struct, frozen=True, forbid_unknown_fields=True):
    """holders: BitTorrent addresses ("host:port") of who has the bytes that it names."""

    transaction: Annotated[str, Meta(pattern=Hex, min_length=2, max_length=2 * MAX_TRANSACTION)]
    holders: Annotated[
        tuple[Annotated[str, Meta(max_length=300)], ...], Meta(max_length=MAX_HOLDERS)
    ] = ()


class NewAnnouncement(Struct, frozen=True, forbid_unknown_fields=True):
    announcement: Annotated[str, Meta(pattern=Hex, min_length=2, max_length=2 * MAX_ANNOUNCEMENT)]


# --- transactions --------------------------------------------------------------------------------


class _Tx(Struct, frozen=True, tag_field="type"):
    txid: Hash
    bytes: Annotated[int, Meta(ge=1)]


class _Stamped(_Tx, frozen=True):
    """stamp_hashes: how many hashes its stamp stands for."""

    stamp_hashes: str


class ProducerTx(_Tx, frozen=True, tag="producer"):
    height: Height
    payee: Key
    state_root: Hash
    extra: Bytes


class RegisterPayeeTx(_Stamped, frozen=True, tag="register-payee"):
    key: Key
    seq: int
    node_id: Bytes
    endpoint: str


class AddModelTx(_Stamped, frozen=True, tag="add-model"):
    infohash: Hash
    weights_root: Hash
    architecture: str
    objective: str
    dataset_root: Hash
    shards: tuple[Hash, ...]
    openers: tuple[Key, ...]
    min_gain: int
    score: int
    score_cost: int
    trainer: Key


class CommitTx(_Stamped, frozen=True, tag="commit"):
    commit: Hash


class RevealTx(_Stamped, frozen=True, tag="reveal"):
    model: Hash
    infohash: Hash
    weights_root: Hash
    score: int
    trainer: Key


class OpenShardTx(_Stamped, frozen=True, tag="open-shard"):
    model: Hash
    index: int
    key: Hash


Tx = ProducerTx | RegisterPayeeTx | AddModelTx | CommitTx | RevealTx | OpenShardTx


class FoundTransaction(Struct, frozen=True):
    """Where a transaction is. Null: it waits in the mempool."""

    transaction: Tx
    height: Height | None
    block: BlockHash | None
    confirmations: Annotated[int, Meta(ge=0)]


class Mempool(Struct, frozen=True):
    count: int
    bytes: int
    transactions: tuple[Tx, ...]


class Posted(Struct, frozen=True):
    """hash: the txid. It was taken, and is offered to peers."""

    hash: Hash


# --- blocks --------------------------------------------------------------------------------------


class BlockSummary(Struct, frozen=True):
    """status: "active" on the chain, "stale" beside it, "pending" for weights, "invalid", or no
    more than its "header" or "body" so far. producer and transactions: null without the body."""

    hash: BlockHash
    height: Height
    prev: BlockHash
    time: Time
    bits: Annotated[str, Meta(pattern="^[0-9a-f]{8}$")]
    nonce: int
    status: Literal["header", "body", "pending", "active", "stale", "invalid"]
    producer: Key | None
    transactions: int | None


class Blocks(Struct, frozen=True):
    """Highest first. next: `at` of the next page."""

    blocks: tuple[BlockSummary, ...]
    next: Height | None


class Block(Struct, frozen=True):
    summary: BlockSummary
    merkle_root: Hash
    work: Annotated[str, Meta(description="Hashes from genesis to here, expected; decimal")]
    confirmations: Annotated[int, Meta(ge=0)]
    invalid: str | None
    transactions: tuple[Tx, ...] | None


class PendingBlock(Struct, frozen=True):
    """A block with more work than the tip that waits for scores, and how often each was tried."""

    hash: BlockHash
    height: Height
    waits_for: tuple[Scoring, ...]


class Scoring(Struct, frozen=True):
    """weights_root: of the new weights. problem: why the last try gave no answer, if there was
    one."""

    model: Hash
    weights_root: Hash
    infohash: Hash
    shard: int | None
    tries: int
    problem: str


class Pending(Struct, frozen=True):
    """scoring: all that is open, for the mempool too. held: tips whose reorg needs the operator's
    word."""

    blocks: tuple[PendingBlock, ...]
    scoring: tuple[Scoring, ...]
    held: tuple[BlockHash, ...]


# --- models and payees ---------------------------------------------------------------------------


class Version(Struct, frozen=True):
    weights_root: Hash
    infohash: Hash
    score: int
    trainer: Key
    producer: Key
    height: Height


class PastVersion(Struct, frozen=True):
    """state: "confirmed", "provisional", or "withdrawn" because its shard did not confirm it."""

    version: Version
    state: Literal["confirmed", "provisional", "withdrawn"]
    txid: Hash


class ModelSummary(Struct, frozen=True):
    """current: what is served and has to be beaten; provisional: a shard has to confirm it."""

    model: Hash
    architecture: str
    objective: str
    current: Version
    provisional: bool
    shards: int
    opened: int
    versions: int


class Models(Struct, frozen=True):
    total: int
    models: tuple[ModelSummary, ...]


class Shard(Struct, frozen=True):
    """opened: the height of the block, null while it is sealed."""

    index: int
    key_hash: Hash
    opened: Height | None


class Model(Struct, frozen=True):
    """required_gain: what a Reveal in the next block has to gain. versions: oldest first, the last
    100."""

    model: Hash
    architecture: str
    objective: str
    dataset_root: Hash
    infohash: Hash
    openers: tuple[Key, ...]
    min_gain: int
    score_cost: int
    required_gain: int
    confirmed: Version
    provisional: Version | None
    shards: tuple[Shard, ...]
    versions: tuple[PastVersion, ...]


class ProvenModel(Struct, frozen=True):
    """What a light node knows of a model, `fee_depth` blocks below the best header."""

    model: Hash
    confirmed: Version
    provisional: Version | None
    opened: tuple[Height, ...]


class Weights(Struct, frozen=True):
    """Weights that have been on the chain."""

    weights_root: Hash
    model: Hash
    trainer: Key
    producer: Key
    height: Height
    revealed: bool
    confirmed: bool


class Commit(Struct, frozen=True):
    """An open commit: it can be revealed from `reveal` on, and is forgotten at `expires`."""

    commit: Hash
    height: Height
    reveal: Height
    expires: Height


class Payee(Struct, frozen=True):
    key: Key
    seq: int
    node_id: Bytes
    endpoint: str


class Payees(Struct, frozen=True):
    total: int
    payees: tuple[Payee, ...]


class Beneficiaries(Struct, frozen=True):
    """Who is owed, by the state after this block, which is `fee_depth` below the best."""

    height: Height
    trainer: Key | None
    last_producer: Key | None
    accepting_producer: Key | None


class Announcement(Struct, frozen=True):
    key: Key
    seq: int
    expires: Time
    url: str
    certificate: Hash
    node_id: Bytes
    models: tuple[Hash, ...]


class Announcements(Struct, frozen=True):
    total: int
    announcements: tuple[Announcement, ...]


class Proof(Struct, frozen=True):
    """light.EntryProof: `key` is another than was asked for where that has no value."""

    block: BlockHash
    producer: Bytes
    transactions: int
    branch: tuple[Hash, ...]
    key: Bytes
    value_hash: Hash
    value: Bytes
    path: tuple[tuple[int, Hash], ...]


class Proofs(Struct, frozen=True):
    proofs: Annotated[tuple[Proof, ...], Meta(max_length=MAX_PROOFS)]


# --- the node ------------------------------------------------------------------------------------


class Mining(Struct, frozen=True):
    hash_rate: float
    blocks: int


class Status(Struct, frozen=True):
    """headers: the height of the best header; the node is synced when the tip has it. light: this
    node has headers only, and `tip` is the best of them. swarm: where its BitTorrent session
    listens. mining: null where it doesn't."""

    network: str
    network_id: int
    genesis: BlockHash
    agent: str
    light: bool
    key: Key | None
    height: Height
    tip: BlockHash
    tip_time: Time
    state_root: Hash | None
    headers: Height
    synced: bool
    peers: int
    mempool: int
    pending: int
    models: int
    payees: int
    swarm: str | None
    mining: Mining | None
    time: Time


class Peer(Struct, frozen=True):
    host: str
    port: int
    inbound: bool
    height: Height
    agent: str
    light: bool
    swarm_port: int
    points: int
    connected_since: Time
    latency: float | None


class Peers(Struct, frozen=True):
    peers: tuple[Peer, ...]
    banned: tuple[Banned, ...]


class Banned(Struct, frozen=True):
    host: str
    until: Time


class Refusal(Struct, frozen=True):
    """what: header, block, transaction or announcement."""

    time: Time
    what: str
    hash: Hash
    reason: str
    sentence: str


class Refusals(Struct, frozen=True):
    """The newest first."""

    rejections: tuple[Refusal, ...]


class Health(Struct, frozen=True):
    status: Literal["ok", "syncing"]


class Problem(Struct, frozen=True):
    """RFC 9457. reason: stable, for programs; docs/sidechain.md lists the rules'."""

    type: str
    title: str
    status: int
    detail: str
    reason: str


# --- events --------------------------------------------------------------------------------------


class TipEvent(Struct, frozen=True, tag_field="event", tag="tip"):
    """The tip is another. undone: how many blocks were left behind."""

    block: BlockSummary
    connected: int
    undone: int


class HeadersEvent(Struct, frozen=True, tag_field="event", tag="headers"):
    height: Height
    hash: BlockHash


class TransactionEvent(Struct, frozen=True, tag_field="event", tag="transaction"):
    transaction: Tx


class PendingEvent(Struct, frozen=True, tag_field="event", tag="pending"):
    hash: BlockHash
    waits_for: int


class RejectedEvent(Struct, frozen=True, tag_field="event", tag="rejected"):
    hash: BlockHash
    reason: str


class AnnouncementEvent(Struct, frozen=True, tag_field="event", tag="announcement"):
    announcement: Announcement


class ScoreEvent(Struct, frozen=True, tag_field="event", tag="score"):
    """answer: "scored", "unusable" or "paired"."""

    model: Hash
    weights_root: Hash
    answer: Literal["scored", "unusable", "paired"]


Event = (
    TipEvent
    | HeadersEvent
    | TransactionEvent
    | PendingEvent
    | RejectedEvent
    | AnnouncementEvent
    | ScoreEvent
)
"""What GET /events tells; `event` is also the name of the server-sent event."""
