"""One spelling in JSON for each value: hashes of it identify models."""

from __future__ import annotations

from typing import Any

import msgspec


def decode(data: bytes, kind: Any, longest: int) -> Any:
    """A `kind` (a Struct, or a union of them) as msgspec.json.encode() writes it.

    Raises ValueError for any other bytes, and for more than `longest` of them.
    """
    if len(data) > longest:
        raise ValueError(f"it is longer than {longest} bytes")
    try:
        value = msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if msgspec.json.encode(value) != data:
        raise ValueError("it is not written as encode() writes it")
    return value
