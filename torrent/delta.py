"""A training step's update: the difference between two weight files on the int16 grid, packed.

Training leaves no tensor as it was, but it moves each weight by little. Weights are multiples of
2^-14 within int16 (what consensus scores), so a difference is a small integer. Differences are
zigzagged, split into low and high bytes and packed with LZMA. Whatever is rebuilt is believed only
if its pieces root is the wanted one. Pure; the only importer of numpy in this package.
"""

from __future__ import annotations

import json
import lzma
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from channels.errors import LocalProtocolError, RemoteProtocolError, UserError
from torrent import merkle

SCALE: Final = 16384
MAX_INT16: Final = 32767

MAGIC: Final = b"ODA delta 1\n"
PREFIX: Final = len(MAGIC) + 2 * merkle.HASH
MAX_HEADER: Final = 1 << 20
"""Of a safetensors file: the names and shapes of its tensors."""

WIDTHS: Final = {"I16": 2, "F32": 4}

# No literal context: neighbouring bytes of a plane say little about each other.
FILTERS: Final = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0}]


@dataclass(frozen=True, slots=True)
class Roots:
    """Pieces roots (32 bytes each) of the file that a delta starts from and of what it gives."""

    base: bytes
    target: bytes


def make(base: bytes, target: bytes) -> bytes:
    """The delta from one safetensors file to another.

    Both hold the same tensors, int16 or float32, each value n/2^14 with |n| <= 32767.
    Raises UserError "bad-weights", "not-quantised" or "not-alike".
    """
    old, new = _split(base), _split(target)
    if old.kind != new.kind or old.numbers.size != new.numbers.size:
        raise UserError(
            "not-alike", "The two weight files hold different tensors; publish the new one whole."
        )
    difference = new.numbers - old.numbers  # wraps, and wraps back in `apply`
    zigzag = ((difference << 1) ^ (difference >> 15)).view(np.uint16)
    planes = zigzag.view(np.uint8).reshape(-1, 2).T.tobytes()
    # `apply` needs nothing but these to write the target's bytes again.
    plain = len(new.header).to_bytes(4, "big") + new.header + planes
    packed = lzma.compress(plain, format=lzma.FORMAT_RAW, filters=FILTERS)
    return MAGIC + file_root(base) + file_root(target) + packed


def roots(delta: bytes) -> Roots:
    """Which file it starts from; the first 76 bytes suffice. Raises RemoteProtocolError
    "bad-delta"."""
    if not delta.startswith(MAGIC) or len(delta) < PREFIX:
        raise _bad_delta("is not one")
    start = len(MAGIC)
    return Roots(delta[start : start + merkle.HASH], delta[start + merkle.HASH : PREFIX])


def apply(base: bytes, delta: bytes, target_root: bytes) -> bytes:
    """The file with pieces root `target_root`.

    Raises LocalProtocolError "wrong-base" if `base` is not what the delta starts from, UserError
    as `make` does for `base`, and RemoteProtocolError "bad-delta" if anything else comes out.
    """
    named = roots(delta)
    if file_root(base) != named.base:
        raise LocalProtocolError("wrong-base", "The delta starts from other weights than these.")
    if named.target != target_root:
        raise _bad_delta("leads to other weights than were wanted")
    old = _split(base)
    count = old.numbers.size
    # Never more than the base's size can ask for, whatever the delta claims.
    plain = _unpack(delta[PREFIX:], 4 + MAX_HEADER + 8 + 2 * count)
    length = int.from_bytes(plain[:4], "big")
    header, planes = plain[4 : 4 + length], plain[4 + length :]
    if len(planes) != 2 * count:
        raise _bad_delta("has not one difference for each weight")
    # `ascontiguousarray` because the planes lie apart and a view can't join them.
    joined = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(2, count).T)
    zigzag = joined.view("<u2").reshape(-1)
    difference = (zigzag >> 1).astype(np.int16) ^ -(zigzag & 1).astype(np.int16)
    numbers = old.numbers + difference
    rebuilt = header + _values(numbers, old.kind)
    if file_root(rebuilt) != target_root:
        raise _bad_delta("does not give the weights that it promises")
    return rebuilt


def quantise(weights: bytes) -> bytes:
    """A float32 safetensors file with each value moved to the grid, ties to even, clamped.

    Raises UserError "bad-weights", also for a number that is not finite.
    """
    header, kind, data = _parse(weights)
    if kind != "F32":
        return weights
    values = np.frombuffer(data, "<f4")
    if not np.isfinite(values).all():
        raise UserError("bad-weights", "The weights hold numbers that are not finite.")
    numbers = np.clip(np.rint(values * np.float32(SCALE)), -MAX_INT16, MAX_INT16)
    return header + _values(numbers.astype(np.int16), kind)


def file_root(data: bytes) -> bytes:
    """The pieces root, which is the same whatever the piece length (BEP 52)."""
    hasher = merkle.FileHasher(1 << 20)
    hasher.update(data)
    return hasher.finish().root


@dataclass(frozen=True, slots=True)
class _Weights:
    header: bytes
    kind: str
    numbers: NDArray[np.int16]


def _split(weights: bytes) -> _Weights:
    header, kind, data = _parse(weights)
    if kind == "I16":
        return _Weights(header, kind, np.frombuffer(data, "<i2"))
    values = np.frombuffer(data, "<f4")
    scaled = values * np.float32(SCALE)
    with np.errstate(invalid="ignore"):  # not finite: caught by the comparison
        numbers = np.clip(np.rint(scaled), -MAX_INT16, MAX_INT16).astype(np.int16)
    # Bit by bit, because -0.0 equals 0.0 and would not come out again.
    if _values(numbers, kind) != data:
        raise UserError(
            "not-quantised", "The weights are not multiples of 1/16384; quantise them first."
        )
    return _Weights(header, kind, numbers)


def _values(numbers: NDArray[np.int16], kind: str) -> bytes:
    if kind == "I16":
        return numbers.astype("<i2").tobytes()
    return (numbers.astype("<f4") / np.float32(SCALE)).astype("<f4").tobytes()


def _parse(weights: bytes) -> tuple[bytes, str, bytes]:
    """Header with its length, the one dtype, and the tensors' bytes (safetensors format)."""
    length = int.from_bytes(weights[:8], "little")
    if len(weights) < 8 or not 0 < length <= MAX_HEADER or 8 + length > len(weights):
        raise _bad_weights()
    data = weights[8 + length :]
    try:
        entries = json.loads(weights[8 : 8 + length])
        entries.pop("__metadata__", None)
        kinds = {entry["dtype"] for entry in entries.values()}
        spans = sorted(_span(entry) for entry in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _bad_weights() from None
    edges = [0, *(end for _, end in spans)]
    if len(kinds) != 1 or [start for start, _ in spans] != edges[:-1] or edges[-1] != len(data):
        raise _bad_weights()
    return weights[: 8 + length], kinds.pop(), data


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    start, end = entry["data_offsets"]
    if end - start != math.prod(entry["shape"]) * WIDTHS[entry["dtype"]]:
        raise ValueError("a tensor is not as long as its shape")
    return start, end


def _unpack(packed: bytes, most: int) -> bytes:
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS)
    try:
        plain = unpacker.decompress(packed, max_length=most + 1)
    except lzma.LZMAError:
        raise _bad_delta("can't be unpacked") from None
    if not unpacker.eof or unpacker.unused_data:
        raise _bad_delta("is cut off or too long")
    return plain


def _bad_delta(what: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad-delta", f"The delta {what}; the whole weights are needed.")


def _bad_weights() -> UserError:
    return UserError(
        "bad-weights", "The weights are not a safetensors file of int16 or float32 tensors alone."
    )
