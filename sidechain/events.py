"""What a node tells its listeners, after it is on disk."""

from __future__ import annotations

from dataclasses import dataclass

from sidechain.announcements import Announcement
from sidechain.chain import Advance
from sidechain.headers import HeaderRecord
from sidechain.primitives import AnyTransaction
from sidechain.scores import Answer, Request


@dataclass(frozen=True, slots=True)
class HeadersAdded:
    """There are new headers; `best` has the most work of all."""

    best: HeaderRecord


@dataclass(frozen=True, slots=True)
class TipChanged:
    """The tip is another; `advance` has the blocks that were undone and applied on the way."""

    advance: Advance


@dataclass(frozen=True, slots=True)
class TransactionAdded:
    tx: AnyTransaction


@dataclass(frozen=True, slots=True)
class AnnouncementAdded:
    announcement: Announcement


@dataclass(frozen=True, slots=True)
class BlockPending:
    """A block with more work than the tip's waits for these scores."""

    block_hash: bytes
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class BlockRejected:
    """A block that was kept turned out to be invalid when it was its turn, or when a score that
    was taken on trust came. What accept_block() refuses is told to its caller alone."""

    block_hash: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class ScoreAdded:
    """An answer came; what waited for it in the mempool can be mined now."""

    request: Request
    answer: Answer


Event = (
    HeadersAdded
    | TipChanged
    | TransactionAdded
    | AnnouncementAdded
    | BlockPending
    | BlockRejected
    | ScoreAdded
)
