"""From token ids to the text that a client is sent. PURE.

A token here is one byte, so a character may take several, and a stop sequence spans many. What is
sent with a token follows from the tokens before it and nothing else: an answer taken up again
after an interruption sends the same text at the same places.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from provider.api import FinishReason


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and the text that it completes, which may be none, or more than it.

    `finish_reason` is set on the last token of an answer and on no other. The rest is for engines
    that speak the OpenAI API themselves: how many tokens it stands for; what it brings besides
    text, as in a `delta` (calls of tools, reasoning); logprobs; and on the last one, how many
    tokens the whole answer took, where that is known better than by counting.
    """

    id: int
    text: str
    finish_reason: FinishReason | None = None
    count: int = 1
    delta: Mapping[str, object] | None = None
    logprobs: object = None
    total: int | None = None

    @property
    def brings(self) -> bool:
        """Whether there is anything to send."""
        return bool(self.text or self.delta)


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


def merged(old: object, new: object) -> object:
    """What two deltas come to: texts and lists grow, parts of one list go by their `index`."""
    if isinstance(old, str) and isinstance(new, str):
        return old + new
    if isinstance(old, list) and isinstance(new, list):
        return _merged_lists(old, new)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return merged_objects(old, new)
    return old if new is None else new


def merged_objects(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, object]:
    """`merged` for two objects."""
    both = dict(old)
    for name, value in new.items():
        if name in _NAMES and both.get(name) is not None:
            continue
        both[name] = merged(both.get(name), value)
    return both


def _merged_lists(old: list[object], new: list[object]) -> list[object]:
    both = list(old)
    for part in new:
        index = _index(part)
        known = [i for i, each in enumerate(both) if _index(each) == index]
        if index is not None and known:
            both[known[0]] = merged(both[known[0]], part)
        else:
            both.append(part)
    return both


def _index(part: object) -> object:
    return part.get("index") if isinstance(part, Mapping) else None


_NAMES: Final = frozenset({"index", "id", "type", "name", "role", "finish_reason"})
"""Members that say which thing it is, or how it ended; engines repeat them."""


def _overlap(text: str, stop: str) -> int:
    """The most characters at the end of `text` that `stop` begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
