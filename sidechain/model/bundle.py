"""A model is a directory: architecture.json, weights.safetensors, manifest.json.

Nothing is unpickled. A directory may come from a stranger: every file's kind and size is looked at
before it is read, and every tensor's name, shape and type follow from the architecture alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Final, Literal

import msgspec
import torch
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load, save

from channels.errors import UserError
from sidechain.model import architecture as architectures
from sidechain.model.architecture import Architecture, ByteTransformerModule

ARCHITECTURE: Final = "architecture.json"
WEIGHTS: Final = "weights.safetensors"
MANIFEST: Final = "manifest.json"

MAX_JSON: Final = 4096
MAX_HEADER: Final = 1 << 16
"""The safetensors header names the tensors: far less than this for any architecture we know."""


class Manifest(Struct, frozen=True):
    """What is known of a model beyond its weights; unknown fields are ignored."""

    name: str
    tokenizer: Literal["bytes"]
    weights_sha256: str  # of the file, 64 hex digits
    holdout_nats_per_byte: float
    steps: int
    seed: int
    format: Literal[1] = 1


class Bundle(Struct, frozen=True):
    manifest: Manifest
    module: ByteTransformerModule

    @property
    def architecture(self) -> Architecture:
        return self.module.architecture


def write(
    directory: Path,
    module: ByteTransformerModule,
    *,
    name: str,
    holdout_nats_per_byte: float,
    steps: int,
    seed: int,
) -> Manifest:
    """Write a bundle so that `directory` is either whole or as it was before.

    What stood there before is replaced. Two writers at once must be kept apart by the caller.
    """
    weights = save({key: value.contiguous() for key, value in module.state_dict().items()})
    digest = hashlib.sha256(weights).hexdigest()
    manifest = Manifest(name, "bytes", digest, holdout_nats_per_byte, steps, seed)
    fresh = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for file, data in (
        (ARCHITECTURE, architectures.encode(module.architecture)),
        (WEIGHTS, weights),
        (MANIFEST, msgspec.json.encode(manifest)),
    ):
        with (fresh / file).open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
    if directory.exists():
        shutil.rmtree(directory)
    fresh.rename(directory)
    return manifest


def read(directory: Path) -> Bundle:
    """Raises UserError, its reason "missing-model" when there is nothing, else "bad-…"."""
    if not directory.is_dir():
        raise UserError("missing-model", f"There is no model in {directory}; train or fetch one.")
    architecture = architectures.decode(_read(directory / ARCHITECTURE, architectures.MAX_JSON))
    try:
        manifest = msgspec.json.decode(_read(directory / MANIFEST, MAX_JSON), type=Manifest)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise _bad("manifest", f"{MANIFEST} can't be read: {error}") from None
    data = _read(directory / WEIGHTS, 4 * architecture.parameters + MAX_HEADER)
    if hashlib.sha256(data).hexdigest() != manifest.weights_sha256:
        raise _bad("weights", f"{WEIGHTS} is not the file that {MANIFEST} names")
    return Bundle(manifest, _module(architecture, data))


def _module(architecture: Architecture, data: bytes) -> ByteTransformerModule:
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _bad("weights", f"{WEIGHTS} is not a safetensors file: {error}") from None
    shapes = architecture.shapes()
    if tensors.keys() != shapes.keys():
        odd = sorted(tensors.keys() ^ shapes.keys())[0]
        raise _bad("weights", f"{WEIGHTS} lacks or should not have the tensor {odd[:100]!r}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
            raise _bad("weights", f"the tensor {name} must be float32 of shape {shape}")
        if not bool(torch.isfinite(tensor).all()):
            raise _bad("weights", f"the tensor {name} holds numbers that are not finite")
    module = architecture.build()
    module.load_state_dict(tensors)  # copies into memory that torch has aligned
    return module.eval()


def _read(path: Path, most: int) -> bytes:
    """A plain file of at most `most` bytes; not a link to elsewhere, nor a pipe that blocks."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise _bad("file", f"{path.name} is not a plain file")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise _bad("file", f"{path.name} can't be read: {error.strerror}") from None
    if len(data) > most:
        raise _bad("file", f"{path.name} is longer than the {most} bytes it may have")
    return data


def _bad(what: str, sentence: str) -> UserError:
    return UserError(f"bad-{what}", f"The model can't be used: {sentence}; take another copy.")
