"""What is asked of the process that scores, and how it is written down on the way.

One question or reply is four bytes of length and a msgpack struct. Integers of answers travel as
text, because the squares of a paired test outgrow msgpack's 64 bits.
"""

from __future__ import annotations

from typing import Final

import msgspec

from channels.errors import OdaError, UserError
from sidechain.params import Params
from sidechain.scores import Answer, PairedSums, Scored, Unusable
from sidechain.state import Definition

MOST: Final = 1 << 20
"""Bytes of a question or a reply."""


class Subject(msgspec.Struct, frozen=True):
    """The model that is asked about, and what its weights may weigh."""

    architecture: bytes
    objective: bytes
    dataset_root: bytes
    score_cost: int
    model_bytes: int

    @classmethod
    def of(cls, params: Params, definition: Definition) -> Subject:
        return cls(
            definition.architecture,
            definition.objective,
            definition.dataset_root,
            definition.score_cost,
            params.model_bytes,
        )


class Examine(msgspec.Struct, frozen=True, tag="examine"):
    """Whether the architecture and objective can be scored at all."""

    subject: Subject


class Score(msgspec.Struct, frozen=True, tag="score"):
    """ScoreRequest, of a model directory that may hold anything."""

    subject: Subject
    directory: str
    weights_root: bytes


class Compare(msgspec.Struct, frozen=True, tag="compare"):
    """PairedRequest; the data is taken from new_directory."""

    subject: Subject
    old_directory: str
    new_directory: str
    old_root: bytes
    new_root: bytes
    index: int
    key: bytes


Question = Examine | Score | Compare
Finding = Answer | None
"""None: nothing is wrong with what was examined."""


class _Reply(msgspec.Struct, frozen=True):
    """kind: "scored", "unusable", "paired", "fine" or "error"; what it has to say, as text."""

    kind: str
    says: tuple[str, ...]


def encode_reply(answer: Finding | OdaError) -> bytes:
    if isinstance(answer, Scored):
        reply = _Reply("scored", (str(answer.score), str(answer.score_cost)))
    elif isinstance(answer, PairedSums):
        sums = (answer.n, answer.total, answer.squares)
        reply = _Reply("paired", tuple(str(number) for number in sums))
    elif isinstance(answer, Unusable):
        reply = _Reply("unusable", (answer.reason,))
    elif answer is None:
        reply = _Reply("fine", ())
    else:
        reply = _Reply("error", (answer.reason, str(answer)))
    return msgspec.msgpack.encode(reply)


def decode_reply(data: bytes) -> Finding:
    """Raises UserError where there is no answer."""
    reply = msgspec.msgpack.decode(data, type=_Reply)
    match reply.kind, reply.says:
        case "scored", (score, cost):
            return Scored(int(score), int(cost))
        case "paired", (n, total, squares):
            return PairedSums(int(n), int(total), int(squares))
        case "unusable", (reason,):
            return Unusable(reason)
        case "fine", ():
            return None
        case "error", (reason, sentence):
            raise UserError(reason, sentence)
    raise ValueError(f"a reply of kind {reply.kind!r}")


def decode_question(data: bytes) -> Question:
    question: Question = msgspec.msgpack.decode(data, type=Question)
    return question
