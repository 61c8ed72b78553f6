"""What peers say to each other: msgpack arrays `[kind, …fields]`, one per WebSocket message.

Everything here is pure: bytes in, messages out, and tables that say what is allowed when and what
breaking a rule costs. Every length is bounded, and looked at before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sidechain.announcements import MAX_BYTES as MAX_ANNOUNCEMENT
from sidechain.light import EntryProof
from sidechain.params import Params
from sidechain.primitives import HEADER_BYTES, MAX_TRANSACTION, Hash, Uint, Uint32
from sidechain.reasons import REASONS, VERDICTS, Rejection

PROTOCOL: Final = 1
OLDEST: Final = 1
"""The lowest version that is still understood."""

MAX_HEADERS: Final = 2000
MAX_INVENTORY: Final = 500
MAX_ADDRESSES: Final = 250
MAX_LOCATOR: Final = 64
MAX_PROOFS: Final = 16

Port = Annotated[int, Meta(ge=0, le=0xFFFF)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`tag` is the kind; `MOST` in LIMITS is the most bytes that it may have."""

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)


class Service(IntEnum):
    """Bits of Version.services."""

    FULL = 1  # has blocks and checks them
    PROOFS = 2  # answers GetProofs


class Version(Message, frozen=True, tag=1):
    """First from both sides. `nonce` is drawn per node, to notice a connection to oneself."""

    protocol: Uint32
    network_id: Uint32
    genesis: Hash
    nonce: Uint
    height: Uint32
    port: Port  # 0: does not listen
    swarm_port: Port  # of its BitTorrent session; 0: has none
    services: Uint32
    agent: Annotated[str, Meta(max_length=64)]


class Verack(Message, frozen=True, tag=2):
    """The peer's Version was acceptable."""


class Ping(Message, frozen=True, tag=3):
    nonce: Uint


class Pong(Message, frozen=True, tag=4):
    nonce: Uint


class GetAddr(Message, frozen=True, tag=5):
    """Asks for other nodes; answered once per connection."""


class Address(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node that listens; `time` is when it was last connected to."""

    host: Annotated[str, Meta(min_length=1, max_length=255)]
    port: Annotated[int, Meta(ge=1, le=0xFFFF)]
    time: Uint


class Addr(Message, frozen=True, tag=6):
    addresses: Annotated[tuple[Address, ...], Meta(max_length=MAX_ADDRESSES)]


class GetHeaders(Message, frozen=True, tag=7):
    """Headers from the first hash of the locator on that the receiver has on its best chain.

    That one is sent too (unless it is genesis), though the asker has it: it shows how far the two
    agree, and that the receiver has it.
    """

    locator: Annotated[tuple[Hash, ...], Meta(min_length=1, max_length=MAX_LOCATOR)]
    stop: Hash  # zeros: as many as there are


class Headers(Message, frozen=True, tag=8):
    """In the order of heights. MAX_HEADERS of them mean that there are more."""

    headers: Annotated[
        tuple[Annotated[bytes, Meta(min_length=HEADER_BYTES, max_length=HEADER_BYTES)], ...],
        Meta(max_length=MAX_HEADERS),
    ]


class Item(IntEnum):
    """What a hash stands for: a txid, a block's hash, or that of an announcement."""

    TX = 0
    BLOCK = 1
    ANNOUNCEMENT = 2


Hashes = Annotated[tuple[Hash, ...], Meta(min_length=1, max_length=MAX_INVENTORY)]


class Inv(Message, frozen=True, tag=9):
    """What the sender has and checked."""

    item: Item
    hashes: Hashes


class GetData(Message, frozen=True, tag=10):
    item: Item
    hashes: Hashes


class NotFound(Message, frozen=True, tag=11):
    item: Item
    hashes: Hashes


class BlockData(Message, frozen=True, tag=12):
    """primitives.Block.encode()"""

    block: bytes


class Tx(Message, frozen=True, tag=13):
    """primitives.Transaction.encode()"""

    tx: bytes


class Reject(Message, frozen=True, tag=14):
    """Why something that the receiver sent was refused: a key of reasons.REASONS."""

    reason: Annotated[str, Meta(max_length=64)]
    hash: Hash


class GetProofs(Message, frozen=True, tag=15):
    """Entries of the state after a block of the best chain."""

    block: Hash
    keys: Annotated[
        tuple[Annotated[bytes, Meta(max_length=64)], ...],
        Meta(min_length=1, max_length=MAX_PROOFS),
    ]


class Proofs(Message, frozen=True, tag=16):
    """In the order of the keys that were asked for."""

    proofs: Annotated[tuple[EntryProof, ...], Meta(max_length=MAX_PROOFS)]


class Announce(Message, frozen=True, tag=17):
    """announcements.Announcement.encode()"""

    announcement: bytes


AnyMessage = (
    Version
    | Verack
    | Ping
    | Pong
    | GetAddr
    | Addr
    | GetHeaders
    | Headers
    | Inv
    | GetData
    | NotFound
    | BlockData
    | Tx
    | Reject
    | GetProofs
    | Proofs
    | Announce
)

_SMALL: Final = 1024
LIMITS: Final[Mapping[type[Message], int]] = MappingProxyType(
    {
        Version: _SMALL,
        Verack: _SMALL,
        Ping: _SMALL,
        Pong: _SMALL,
        GetAddr: _SMALL,
        Addr: 72 * 1024,
        GetHeaders: 4 * 1024,
        Headers: MAX_HEADERS * (HEADER_BYTES + 2) + 16,
        Inv: 20 * 1024,
        GetData: 20 * 1024,
        NotFound: 20 * 1024,
        BlockData: 64 * 1024 + 16,
        Tx: MAX_TRANSACTION + 16,
        Reject: _SMALL,
        GetProofs: 2 * 1024,
        Proofs: MAX_PROOFS * 28 * 1024,
        Announce: MAX_ANNOUNCEMENT + 16,
    }
)
"""The most bytes that a message of each kind may have."""

MAX_MESSAGE: Final = max(LIMITS.values())
"""What a WebSocket may take in before it knows the kind."""

_KINDS: Final = {kind.__struct_config__.tag: kind for kind in LIMITS}
_message = msgspec.msgpack.Decoder(AnyMessage)


def decode(data: bytes) -> AnyMessage:
    """Raises Rejection: "message-too-long", or "bad-message" for anything but a message in its one
    encoding."""
    # All kinds have fewer than 16 fields and a number below 128: one byte each.
    if len(data) < 2 or data[0] & 0xF0 != 0x90 or data[1] not in _KINDS:
        raise Rejection("bad-message", "no kind that is known")
    kind = _KINDS[data[1]]
    if len(data) > LIMITS[kind]:
        raise Rejection("message-too-long", f"{kind.__name__} of {len(data)} bytes")
    try:
        message: AnyMessage = _message.decode(data)
        again = message.encode()
    except (ValueError, RecursionError) as error:
        raise Rejection("bad-message", str(error)) from None
    if again != data:
        raise Rejection("bad-message", "not canonical")
    return message


# --- handshake -----------------------------------------------------------------------------------


class Phase(Enum):
    """How far the handshake is, seen from the side that receives."""

    NEW = "nothing was received"
    VERSION = "the peer's Version was received"
    READY = "the peer's Verack was received"


def next_phase(phase: Phase, message: Message) -> Phase:
    """The phase after a message. Raises Rejection("bad-handshake") where it is not allowed."""
    if phase is Phase.NEW and isinstance(message, Version):
        return Phase.VERSION
    if phase is Phase.VERSION and isinstance(message, Verack):
        return Phase.READY
    if phase is Phase.READY and not isinstance(message, Version | Verack):
        return Phase.READY
    raise Rejection("bad-handshake", f"{type(message).__name__} when {phase.value}")


def check_version(params: Params, genesis: bytes, nonce: int, theirs: Version) -> None:
    """Whether to speak with this peer; `nonce` is our own. Raises Rejection."""
    if theirs.network_id != params.network_id or theirs.genesis != genesis:
        raise Rejection("wrong-network")
    if theirs.protocol < OLDEST:
        raise Rejection("version-too-old")
    if theirs.nonce == nonce:
        raise Rejection("self-connect")


# --- misbehaviour --------------------------------------------------------------------------------

BAN: Final = 100
"""Points at which a peer is disconnected and banned."""

_HONEST: Final = frozenset(
    {
        # An honest peer may be ahead or behind, or have another mempool.
        "prev-blk-not-found",
        "time-too-new",
        "stale-seq",
        "root-known",
        "commit-known",
        "commit-missing",
        "commit-immature",
        "model-missing",
        "no-gain",
        "provisional-pending",
        "no-sealed-shard",
        "shard-open",
        "bad-blk-cost",
        "too-many-openings",
        "model-twice-in-block",
        "txn-already-in-mempool",
        "txn-mempool-conflict",
        "mempool-full",
        "mempool-model-full",
        "announcement-expired",
        "announcements-full",
    }
)

_CARELESS: Final = frozenset({"bad-score", "not-requested", "too-many-requests"})

PENALTIES: Final[Mapping[str, int]] = MappingProxyType(
    {reason: 0 if reason in _HONEST else 20 if reason in _CARELESS else BAN for reason in REASONS}
)
"""Points for a transaction or message that was refused. A false score in a transaction costs
little, because a peer may relay a Reveal whose weights it has not fetched yet; and an answer may
come after the asker gave up on it."""

NO_BAN: Final = frozenset({"wrong-network", "version-too-old", "self-connect"})
"""Reasons to disconnect from a peer that did no harm: it is somebody else's, or ourselves."""

_BY_WEIGHTS: Final = VERDICTS | _CARELESS | {"bad-score-cost", "bad-prevblk", "duplicate-invalid"}

BLOCK_PENALTIES: Final[Mapping[str, int]] = MappingProxyType(
    {
        reason: 0
        if reason in ("prev-blk-not-found", "time-too-new")
        else 20
        if reason in _BY_WEIGHTS
        else BAN
        for reason in REASONS
    }
)
"""Points for a block or header that was refused. What only weights can show costs less: a peer that
trusts deep blocks may not know it yet. A pending block is none of these and costs nothing."""
