"""A model is a directory: architecture.json, weights.safetensors, manifest.json.

Nothing is unpickled. A directory may come from a stranger: every file's kind and size is looked at
before it is read, and every tensor's name, shape and type follow from the architecture alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec
import torch
from msgspec import Struct
from safetensors.torch import save

from channels.errors import UserError
from sidechain.model import registry, weights
from sidechain.model.architecture import ByteTransformer, ByteTransformerModule
from sidechain.model.files import read_plain

ARCHITECTURE: Final = "architecture.json"
WEIGHTS: Final = "weights.safetensors"
MANIFEST: Final = "manifest.json"

MAX_JSON: Final = 4096


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
    def architecture(self) -> ByteTransformer:
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
    tensors = save({key: value.contiguous() for key, value in module.state_dict().items()})
    digest = hashlib.sha256(tensors).hexdigest()
    manifest = Manifest(name, "bytes", digest, holdout_nats_per_byte, steps, seed)
    fresh = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for file, data in (
        (ARCHITECTURE, registry.encode(module.architecture)),
        (WEIGHTS, tensors),
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
    architecture = registry.decode(read_plain(directory / ARCHITECTURE, registry.MAX_JSON))
    if not isinstance(architecture, ByteTransformer):
        raise _bad("architecture", "it reads numbers and not text")
    try:
        manifest = msgspec.json.decode(read_plain(directory / MANIFEST, MAX_JSON), type=Manifest)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise _bad("manifest", f"{MANIFEST} can't be read: {error}") from None
    data = read_plain(directory / WEIGHTS, 4 * architecture.parameters + weights.MAX_HEADER)
    if hashlib.sha256(data).hexdigest() != manifest.weights_sha256:
        raise _bad("weights", f"{WEIGHTS} is not the file that {MANIFEST} names")
    return Bundle(manifest, _module(architecture, data))


def _module(architecture: ByteTransformer, data: bytes) -> ByteTransformerModule:
    """`data` holds float32 as write() wrote it, or int16 as the chain knows weights."""
    tensors = weights.parse(data)
    shapes = architecture.shapes()
    if all(tensor.dtype == torch.int16 for tensor in tensors.values()):
        weights.check_weights(shapes, tensors)
        tensors = weights.dequantise(tensors)
    else:
        weights.check_weights(shapes, tensors, torch.float32)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise _bad("weights", f"the tensor {name} holds numbers that are not finite")
    return with_weights(architecture, tensors)


def with_weights(
    architecture: ByteTransformer, tensors: Mapping[str, torch.Tensor]
) -> ByteTransformerModule:
    """A module ready to generate with; float32 tensors of the architecture's names and shapes."""
    module = architecture.build()
    module.load_state_dict(tensors)  # copies into memory that torch has aligned
    return module.eval()


def _bad(what: str, sentence: str) -> UserError:
    return UserError(f"bad-{what}", f"The model can't be used: {sentence}; take another copy.")
