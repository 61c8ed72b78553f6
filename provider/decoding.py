"""From token ids to the text that a client is sent. PURE.

A token here is one byte, so a character may take several, and a stop sequence spans many. What is
sent with a token follows from the tokens before it and nothing else: an answer taken up again
after an interruption sends the same text at the same places.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass

from provider.api import FinishReason


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and the text that it completes, which may be none, or more than it.

    `finish_reason` is set on the last token of an answer and on no other.
    """

    id: int
    text: str
    finish_reason: FinishReason | None = None


class Decoding:
    """The text of one answer of at most `max_tokens` byte tokens.

    Text is held back while it could be the beginning of a stop sequence, and cut where one
    begins. Bytes that are no UTF-8 become U+FFFD, as the Unicode standard (3.9, "substitution of
    maximal subparts") recommends.
    """

    def __init__(self, max_tokens: int, stop: tuple[str, ...] = ()) -> None:
        if max_tokens < 1 or "" in stop:
            raise ValueError("an answer has at least one token, a stop sequence one character")
        self._left = max_tokens
        self._stop = stop
        self._held = ""
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self.finish_reason: FinishReason | None = None

    def feed(self, token_id: int) -> Token:
        """The next token; ValueError after the last or when `token_id` is no byte."""
        if self.finish_reason is not None:
            raise ValueError("the answer is finished")
        data = bytes([token_id])
        self._left -= 1
        self._held += self._utf8.decode(data, final=self._left == 0)
        cuts = [cut for stop in self._stop if (cut := self._held.find(stop)) >= 0]
        if cuts:
            self.finish_reason = "stop"
            send, self._held = self._held[: min(cuts)], ""
        elif self._left == 0:
            self.finish_reason = "length"
            send, self._held = self._held, ""
        else:
            keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
            send = self._held[: len(self._held) - keep]
            self._held = self._held[len(self._held) - keep :]
        return Token(token_id, send, self.finish_reason)

    def replay(self, token_ids: Iterable[int]) -> tuple[Token, ...]:
        """Feed tokens that were generated before; what they sent then."""
        return tuple(self.feed(token_id) for token_id in token_ids)


def _overlap(text: str, stop: str) -> int:
    """The most characters at the end of `text` that `stop` begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
