"""What the rules ask of whoever scores, and what is answered. Scoring itself is in sidechain/model.

An answer must follow from the bytes behind the stated roots alone. Bytes that are missing, or that
don't hash to the root, are no answer: the request stays open and the block pending.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, Self

from sidechain.reasons import VERDICTS
from sidechain.state import Definition


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Score these weights on the public part of the model's data.

    `infohash` says where the bytes may be found and is no part of the question.
    """

    model: bytes
    weights_root: bytes
    infohash: bytes = field(compare=False)


@dataclass(frozen=True, slots=True)
class PairedRequest:
    """Compare two sets of weights, sample by sample, on one shard, opened with `key`."""

    model: bytes
    index: int
    key: bytes
    old_root: bytes
    new_root: bytes
    old_infohash: bytes = field(compare=False)
    new_infohash: bytes = field(compare=False)


Request = ScoreRequest | PairedRequest


@dataclass(frozen=True, slots=True)
class Scored:
    """The exact score (lower is better) and the cost of computing it, from the architecture."""

    score: int
    score_cost: int


@dataclass(frozen=True, slots=True)
class Unusable:
    """The bytes have the right roots, but can't be scored: a reason of VERDICTS."""

    reason: str

    def __post_init__(self) -> None:
        if self.reason not in VERDICTS:
            raise ValueError(f"{self.reason!r} is no verdict on weights")


@dataclass(frozen=True, slots=True)
class PairedSums:
    """Over the samples of a shard: how many (n), the sum S and the sum of squares Q of
    d = old loss - new loss.

    A shard that can't be read, or has more samples than the public part (the block's score_cost
    counts two scorings of that size), has none: PairedSums(0, 0, 0). It is no verdict."""

    n: int
    total: int
    squares: int

    def passes(self, min_samples: int) -> bool:
        """z >= 2 in integers: S > 0 and n S^2 >= 4 (n Q - S^2), over enough samples."""
        n, s, q = self.n, self.total, self.squares
        return n >= min_samples and s > 0 and n * s * s >= 4 * (n * q - s * s)


Answer = Scored | Unusable | PairedSums


@dataclass(frozen=True, slots=True)
class Scores:
    """Answers by request. What is not in here is not known yet."""

    public: Mapping[ScoreRequest, Scored | Unusable] = field(default_factory=dict)
    paired: Mapping[PairedRequest, PairedSums] = field(default_factory=dict)

    @classmethod
    def of(cls, answers: Iterable[tuple[Request, Answer]]) -> Self:
        """Raises ValueError for an answer to another kind of question."""
        public: dict[ScoreRequest, Scored | Unusable] = {}
        paired: dict[PairedRequest, PairedSums] = {}
        for request, answer in answers:
            if isinstance(request, PairedRequest) and isinstance(answer, PairedSums):
                paired[request] = answer
            elif isinstance(request, ScoreRequest) and not isinstance(answer, PairedSums):
                public[request] = answer
            else:
                raise ValueError(f"{answer} does not answer {request}")
        return cls(public, paired)


NO_SCORES: Final = Scores()


class ScoresMissing(Exception):
    """The block can't be judged before these requests are answered. Never a verdict."""

    def __init__(self, requests: tuple[Request, ...]) -> None:
        super().__init__(f"{len(requests)} scores are not known yet")
        self.requests = requests


class Scorer(Protocol):
    """Whoever finds answers, at their own pace, and gives them to the node."""

    def want(self, wanted: Mapping[Request, Definition]) -> None:
        """All that is open now, most urgent first; what was wanted before and is not in here
        need not be answered any more."""
