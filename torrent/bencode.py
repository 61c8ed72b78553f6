"""Bencoding (BEP 3), strict: what decodes has exactly one encoding.

BEP 52 lets an infohash be computed from decoded metadata only if the decoder checks key order and
leading zeros; this one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from channels.errors import RemoteProtocolError

Value: TypeAlias = "int | bytes | list[Value] | dict[bytes, Value]"

MAX_DEPTH: Final = 64
"""Nesting beyond this is an attack on our stack: a file tree needs two levels per folder."""

MAX_DIGITS: Final = 19
"""Every length and count of ours fits in 63 bits."""


def encode(value: int | bytes | Sequence[object] | Mapping[bytes, object]) -> bytes:
    out: list[bytes] = []
    _encode(value, out)
    return b"".join(out)


def _encode(value: object, out: list[bytes]) -> None:
    match value:
        case bytes():
            out.append(b"%d:" % len(value))
            out.append(value)
        case int():
            out.append(b"i%de" % value)
        case Mapping():
            out.append(b"d")
            for key in sorted(value):
                _encode(key, out)
                _encode(value[key], out)
            out.append(b"e")
        case Sequence():
            out.append(b"l")
            for item in value:
                _encode(item, out)
            out.append(b"e")
        case _:
            raise TypeError(f"{type(value).__name__} can't be bencoded")


def decode(data: bytes) -> Value:
    """The one value that `data` is; raises RemoteProtocolError "bad-bencoding"."""
    value, end = _decode(data, 0, 0)
    if end != len(data):
        raise _bad("there are bytes after its end")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    if depth > MAX_DEPTH:
        raise _bad("it is nested too deeply")
    kind = data[at : at + 1]
    if kind == b"i":
        end = data.find(b"e", at, at + MAX_DIGITS + 3)
        return _number(data[at + 1 : end], signed=True) if end > 0 else _cut(), end + 1
    if kind == b"l":
        return _decode_list(data, at + 1, depth)
    if kind == b"d":
        return _decode_dict(data, at + 1, depth)
    return _decode_bytes(data, at)


def _decode_list(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    items: list[Value] = []
    while data[at : at + 1] != b"e":
        item, at = _decode(data, at, depth + 1)
        items.append(item)
    return items, at + 1


def _decode_dict(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    entries: dict[bytes, Value] = {}
    last: bytes | None = None
    while data[at : at + 1] != b"e":
        key, at = _decode_bytes(data, at)
        # BEP 3: keys appear in sorted order, as raw strings; so none can appear twice.
        if last is not None and key <= last:
            raise _bad("its keys are not in order")
        last = key
        entries[key], at = _decode(data, at, depth + 1)
    return entries, at + 1


def _decode_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    colon = data.find(b":", at, at + MAX_DIGITS + 1)
    if colon < 0:
        raise _bad("a string has no length")
    start = colon + 1
    end = start + _number(data[at:colon], signed=False)
    if end > len(data):
        _cut()
    return data[start:end], end


def _number(text: bytes, *, signed: bool) -> int:
    digits = text[1:] if signed and text.startswith(b"-") else text
    # BEP 3: no leading zeros, and "i-0e" is invalid.
    if not digits.isdigit() or (digits.startswith(b"0") and text != b"0"):
        raise _bad("a number is not written as numbers are")
    return int(text)


def _cut() -> int:
    raise _bad("it is cut off")


def _bad(what: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad-bencoding", f"The metadata can't be read: {what}.")
