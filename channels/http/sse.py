"""Server-sent events, read as they come (WHATWG HTML, section 9.2.6). No input or output here."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Final

from channels.errors import RemoteProtocolError

MAX_EVENT: Final = 1 << 20
"""Characters of one event; what is longer is no token of an answer."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """name: "message" where the event has none; id: the last one that was given, or ""."""

    name: str
    data: str
    id: str


class EventParser:
    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        self._after_cr = False
        self._id = ""
        self._start()

    def _start(self) -> None:
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> list[ServerEvent]:
        """The events that are complete now. Raises RemoteProtocolError where one has no end."""
        text = self._text.decode(data)
        if self._after_cr and text.startswith("\n"):
            text = text[1:]  # the line ended with the "\r" of the last piece
            self._after_cr = False
        if text:
            self._after_cr = text.endswith("\r")
        lines = (self._line + text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
        self._line = lines.pop()
        events = [event for line in lines if (event := self._take(line)) is not None]
        if self._size + len(self._line) > MAX_EVENT:
            raise RemoteProtocolError("event-too-large", "The server sent an endless event.")
        return events

    def _take(self, line: str) -> ServerEvent | None:
        if not line:
            event = ServerEvent(self._name or "message", "\n".join(self._data), self._id)
            is_empty = not self._data
            self._start()
            return None if is_empty else event
        self._size += len(line)
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self._id = value
        return None
