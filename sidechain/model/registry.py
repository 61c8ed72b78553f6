"""All architectures that can be scored. One more is one more class in the union.

What such a class needs is in `Scored`; its `forward` is its whole definition, from which scoring,
the proof that scoring is exact, its cost, training and the float comparison all follow.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from channels.errors import UserError
from sidechain.model import canonical
from sidechain.model.architecture import ByteTransformer
from sidechain.model.arithmetic import Arithmetic, T
from sidechain.model.classifiers import Cnn, Mlp

MAX_JSON: Final = 4096

Architecture = ByteTransformer | Mlp | Cnn
"""Told apart by `"type"` in their JSON: byte-transformer, mlp, cnn."""


class Scored(Protocol):
    """Hyper-parameters are fields, and are hashable; shapes are of one sample."""

    @property
    def parameters(self) -> int: ...

    @property
    def input_shape(self) -> tuple[int, ...]: ...

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Its last axis holds logits or values."""

    @property
    def reads_text(self) -> bool:
        """Whether inputs are bytes, each predicting the next; else they are rows of numbers."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the weights, by name."""

    def forward(self, ops: Arithmetic[T], x: T) -> T: ...


def encode(architecture: Architecture) -> bytes:
    """`{"type":"mlp","inputs":64,…}`: always the same bytes for the same values."""
    return msgspec.json.encode(architecture)


def decode(data: bytes) -> Architecture:
    """Raises UserError("bad-architecture") for anything that is not in the registry."""
    try:
        architecture: Architecture = canonical.decode(data, Architecture, MAX_JSON)
    except ValueError as error:
        raise UserError(
            "bad-architecture", f"The architecture can't be used: {error}; take another model."
        ) from None
    return architecture
