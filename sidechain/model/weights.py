"""Weights as consensus knows them: int16 in 2^-14, in safetensors, named by their root.

A file may come from a stranger. Its size follows from the architecture and is checked before it
is parsed; every tensor's name, type and shape must be what the architecture says; nothing is
unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import load, save
from torch import Tensor

from channels.errors import UserError
from sidechain.model import roots
from sidechain.model.arithmetic import WEIGHT_BITS, WEIGHT_LIMIT

DTYPE: Final = "I16"
MAX_HEADER: Final = 1 << 16
"""The safetensors header names the tensors: far less than this for any architecture we know."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Quantised:
    """`clamped`: how many weights lay outside ±2 and were moved to the edge."""

    weights: dict[str, Tensor]
    clamped: int


def quantise(floats: Mapping[str, Tensor]) -> Quantised:
    """To the nearest 2^-14, ties to even; UserError("bad-weights") for what is not finite."""
    weights: dict[str, Tensor] = {}
    clamped = 0
    for name, tensor in floats.items():
        if not bool(torch.isfinite(tensor).all()):
            raise _bad(f"the tensor {name[:100]} holds numbers that are not finite")
        # Not every device has float64.
        scaled = torch.round(tensor.detach().cpu().double() * 2.0**WEIGHT_BITS)
        inside = scaled.clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT - 1)
        clamped += int((inside != scaled).sum())
        weights[name] = inside.short().contiguous()
    return Quantised(weights, clamped)


def dequantise(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """int16 -> the float32 numbers they stand for, without loss"""
    return {name: weight.float() * 2.0**-WEIGHT_BITS for name, weight in weights.items()}


def check_weights(
    shapes: Shapes, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.int16
) -> None:
    """Raises UserError("bad-weights") unless they are tensors of these names, shapes and type."""
    if weights.keys() != shapes.keys():
        odd = sorted(weights.keys() ^ shapes.keys())[0]
        raise _bad(f"the tensor {odd[:100]!r} is missing or should not be there")
    for name, shape in shapes.items():
        if weights[name].dtype != dtype or tuple(weights[name].shape) != shape:
            raise _bad(f"the tensor {name} must be {dtype} of shape {shape}")


def encode(weights: Mapping[str, Tensor]) -> bytes:
    """A safetensors file without metadata."""
    return save({name: weights[name].contiguous() for name in sorted(weights)})


def file_limit(shapes: Shapes) -> int:
    """No file of weights of these shapes is longer."""
    return sum(2 * torch.Size(shape).numel() for shape in shapes.values()) + MAX_HEADER


def decode(data: bytes, shapes: Shapes) -> dict[str, Tensor]:
    """Raises UserError("bad-weights"); its cost is bounded by file_limit(shapes)."""
    if len(data) > file_limit(shapes):
        raise _bad("the file is longer than weights of this architecture are")
    weights = parse(data)
    check_weights(shapes, weights)
    return {name: weights[name].clone() for name in shapes}  # memory that torch has aligned


def parse(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, views of `data`, whatever they are.

    Raises UserError("bad-weights"). The caller has bounded the length of `data`; the header, each
    entry of which may become a tensor, is bounded here.
    """
    if int.from_bytes(data[:8], "little") > MAX_HEADER:
        raise _bad(f"its header is longer than {MAX_HEADER} bytes")
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _bad(f"it is not a safetensors file: {str(error)[:200]}") from None


def of_root(data: bytes, root: bytes, shapes: Shapes) -> dict[str, Tensor]:
    """The tensors of a file that has this weights_root, whatever its header looks like.

    Raises UserError: "wrong-root" when the file has another root, or none because it can't be
    read; "bad-weights" when it has the root and its tensors are not the architecture's: that says
    something about the root, and all files that have it. The caller has bounded `data`.
    """
    raw = _raw(data)
    try:
        found = roots.weights_root(
            roots.TensorRoot(name, dtype, shape, roots.bep52_root(tensor))
            for name, (dtype, shape, tensor) in raw.items()
        )
    except ValueError:  # no tensors, or an empty one
        found = b""
    if found != root:
        raise _wrong_root()
    stated = {name: shape for name, (dtype, shape, _) in raw.items() if dtype == DTYPE}
    if len(stated) != len(raw) or stated != dict(shapes):
        raise _bad("its tensors are not those of the architecture")
    return {
        name: torch.frombuffer(bytearray(raw[name][2]), dtype=torch.int16).reshape(shape).clone()
        for name, shape in shapes.items()
    }


def _raw(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Tensors by name: element type, shape, bytes."""
    if int.from_bytes(data[:8], "little") > MAX_HEADER:
        raise _wrong_root()
    try:
        return {
            name: (str(tensor["dtype"]), tuple(tensor["shape"]), bytes(tensor["data"]))
            for name, tensor in deserialize(data)  # type: ignore[no-untyped-call] # not annotated
        }
    except (SafetensorError, ValueError, KeyError, RuntimeError):
        raise _wrong_root() from None


def weights_root(weights: Mapping[str, Tensor]) -> bytes:
    """roots.weights_root of int16 tensors."""
    return roots.weights_root(
        roots.TensorRoot(name, DTYPE, tuple(weight.shape), roots.bep52_root(_bytes(weight)))
        for name, weight in weights.items()
    )


def _bytes(weight: Tensor) -> bytes:
    return bytes(weight.contiguous().numpy().astype("<i2").tobytes())


def _wrong_root() -> UserError:
    return UserError("wrong-root", "The weights are not those with the root; take another copy.")


def _bad(what: str) -> UserError:
    return UserError("bad-weights", f"The weights can't be used: {what}; take another copy.")
