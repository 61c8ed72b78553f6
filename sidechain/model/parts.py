"""One part of a dataset, the public one or a shard, as bytes and as samples.

    "oda-data", version 1, kind (1 byte each), then by kind, little-endian:
    0 text        the bytes
    1 labelled    u32 samples n, u32 inputs f: n·f int16 (in 2^-12), then n uint16 class numbers
    2 regression  u32 n, u32 f, u32 outputs m: n·f int16, then n·m int16 (both in 2^-12)

and nothing after it. There is one way to write a part, so its hash identifies its samples.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from channels.errors import UserError
from sidechain.model.arithmetic import ACTIVATION_BITS
from sidechain.model.objective import Noise, add_noise, replace_bytes

MAGIC: Final = b"oda-data\x01"
MAX_PART: Final = 64 << 20

Int16 = npt.NDArray[np.int16]
UInt16 = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Text:
    """A sample is a window of `context` bytes, side by side; each byte predicts the next."""

    data: bytes

    def samples(self, context: int) -> int:
        return max(0, (len(self.data) - 1) // context)

    def batch(self, size: int, noise: Noise | None, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Windows of `size`, those from `first` to before `end`: int64 (n, size) both"""
        drawn = np.frombuffer(self.data, np.uint8, (end - first) * size + 1, first * size)
        tokens = drawn.astype(np.int64)
        inputs = tokens[:-1].reshape(-1, size)
        if noise is not None:
            inputs = replace_bytes(noise, inputs, first)
        return torch.from_numpy(inputs), torch.from_numpy(tokens[1:].reshape(-1, size))


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """`inputs` (n, f) in 2^-12, `labels` (n,)"""

    inputs: Int16
    labels: UInt16

    def samples(self, size: int) -> int:
        return len(self.labels)

    def batch(self, size: int, noise: Noise | None, first: int, end: int) -> tuple[Tensor, Tensor]:
        """float64 holding integers (n, f), int64 (n,)"""
        rows = _rows(self.inputs, noise, first, end)
        return rows, torch.from_numpy(self.labels[first:end].astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Regression:
    """`inputs` (n, f) and `targets` (n, m), both in 2^-12"""

    inputs: Int16
    targets: Int16

    def samples(self, size: int) -> int:
        return len(self.targets)

    def batch(self, size: int, noise: Noise | None, first: int, end: int) -> tuple[Tensor, Tensor]:
        """float64 holding integers: (n, f), (n, m)"""
        rows = _rows(self.inputs, noise, first, end)
        return rows, torch.from_numpy(self.targets[first:end].astype(np.float64))


Part = Text | Labelled | Regression


def join(first: Part, second: Part) -> Part:
    """The samples of both; the window of a text that lies across the seam is one of them.

    Raises UserError("bad-dataset") for parts of two kinds or sizes.
    """
    if isinstance(first, Text) and isinstance(second, Text):
        return Text(first.data + second.data)
    if isinstance(first, Labelled) and isinstance(second, Labelled):
        return Labelled(
            _stacked(first.inputs, second.inputs), np.concatenate([first.labels, second.labels])
        )
    if isinstance(first, Regression) and isinstance(second, Regression):
        return Regression(
            _stacked(first.inputs, second.inputs), _stacked(first.targets, second.targets)
        )
    raise _bad("its parts are not all of one kind")


def _stacked(first: Int16, second: Int16) -> Int16:
    if first.shape[1] != second.shape[1]:
        raise _bad("its parts have rows of two lengths")
    return np.concatenate([first, second])


def fixed_point(values: npt.ArrayLike) -> Int16:
    """Real numbers of −8 … 8 to the nearest integers in 2^-12; UserError("bad-dataset")."""
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all() or (np.abs(array) >= 1 << (15 - ACTIVATION_BITS)).any():
        raise _bad("its numbers must lie between -8 and 8; scale them")
    return np.rint(array * (1 << ACTIVATION_BITS)).clip(-(1 << 15), (1 << 15) - 1).astype(np.int16)


def encode(part: Part) -> bytes:
    """Raises UserError("bad-dataset") for what decode() would refuse."""
    if isinstance(part, Text):
        data = MAGIC + b"\0" + part.data
    elif isinstance(part, Labelled):
        sizes = struct.pack("<II", *part.inputs.shape)
        arrays = part.inputs.astype("<i2").tobytes() + part.labels.astype("<u2").tobytes()
        data = MAGIC + b"\1" + sizes + arrays
    else:
        sizes = struct.pack("<III", *part.inputs.shape, part.targets.shape[1])
        arrays = part.inputs.astype("<i2").tobytes() + part.targets.astype("<i2").tobytes()
        data = MAGIC + b"\2" + sizes + arrays
    decode(data)
    return data


def decode(data: bytes) -> Part:
    """Copies nothing before lengths are checked; raises UserError("bad-dataset")."""
    if len(data) > MAX_PART:
        raise _bad(f"a part is longer than {MAX_PART} bytes")
    if not data.startswith(MAGIC) or len(data) <= len(MAGIC):
        raise _bad("it is not in the format of version 1")
    kind, body = data[len(MAGIC)], memoryview(data)[len(MAGIC) + 1 :]
    if kind == 0:
        return Text(bytes(body))
    if kind not in (1, 2):
        raise _bad(f"there is no kind {kind} of data")
    head = 4 * (kind + 1)
    if len(body) < head:
        raise _bad("its header is cut off")
    samples, inputs, *outputs = struct.unpack_from(f"<{kind + 1}I", body)
    per_target = outputs[0] if outputs else 1
    if samples == 0 or inputs == 0 or per_target == 0:
        raise _bad("it has no samples, no inputs or no targets")
    if len(body) != head + 2 * samples * (inputs + per_target):
        raise _bad("its length is not what its header says")
    rows = np.frombuffer(body, "<i2", samples * inputs, head).reshape(samples, inputs)
    rest = head + 2 * samples * inputs
    if kind == 1:
        return Labelled(
            rows.astype(np.int16), np.frombuffer(body, "<u2", -1, rest).astype(np.uint16)
        )
    targets = np.frombuffer(body, "<i2", -1, rest).reshape(samples, per_target)
    return Regression(rows.astype(np.int16), targets.astype(np.int16))


def _rows(inputs: Int16, noise: Noise | None, first: int, end: int) -> Tensor:
    rows = inputs[first:end].astype(np.int64)
    if noise is not None:
        rows = add_noise(noise, rows, first)
    return torch.from_numpy(rows.astype(np.float64))


def _bad(what: str) -> UserError:
    return UserError("bad-dataset", f"The dataset can't be used: {what}.")
