"""Was the answer given by the weights that were promised? Our own copy of them tells.

The copy is a registered model's directory (docs/torrent.md). It is told by its weights_root, which
the challenge named; an answer whose weights we don't have is not checked.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from channels.errors import UserError
from client.judge import Fault, FaultKind

if TYPE_CHECKING:
    from sidechain.model.architecture import ByteTransformerModule

POSITIONS: Final = 16
"""Bytes of an answer that are computed again."""
CONVICTING: Final = 1
"""So many that these weights would not have given: rounding explains none of them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its answer. messages: their texts; temperature and seed as they were sent.
    is_chat: False for a plain completion, whose one text stands for itself."""

    weights_root: bytes
    messages: Sequence[str]
    answer: str
    temperature: float
    seed: int
    is_chat: bool = True


class OwnCopies:
    """Directories of registered text models; read when they are first needed."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = directories
        self._read: dict[bytes, ByteTransformerModule] | None = None

    async def check(self, asked: Asked) -> Fault | None:
        """None where nothing is wrong, or where we have no copy."""
        return await asyncio.to_thread(self._check, asked)

    def _check(self, asked: Asked) -> Fault | None:
        # Here, because the base install has no torch, and without copies none is needed.
        from sidechain.model.prompt import render_chat
        from sidechain.model.spot_check import deviations

        prompt = render_chat(asked.messages) if asked.is_chat else "".join(asked.messages).encode()
        module = self._copies().get(asked.weights_root)
        # A character may have lost bytes; what stands before it is exact.
        answer = asked.answer.partition("�")[0].encode()
        if module is None or not answer:
            return None
        draw = secrets.SystemRandom()
        positions = sorted(draw.sample(range(len(answer)), min(POSITIONS, len(answer))))
        found = deviations(module, prompt, answer, asked.temperature, asked.seed, positions)
        if len(found) < CONVICTING:
            return None
        return Fault(
            FaultKind.WRONG_MODEL,
            f"The promised weights would not have given this answer ({len(found)} of "
            f"{len(positions)} sampled bytes differ): another model was served.",
        )

    def _copies(self) -> dict[bytes, ByteTransformerModule]:
        if self._read is None:
            from sidechain.model import bundle, directory, weights
            from sidechain.model.architecture import ByteTransformer

            self._read = {}
            for path in self._directories:
                model = directory.read(path)
                if not isinstance(model.architecture, ByteTransformer):
                    raise UserError(
                        "not-a-text-model",
                        f"{path} is no text model; take it out of client.models.",
                    )
                floats = weights.dequantise(model.weights)
                self._read[model.weights_root] = bundle.with_weights(model.architecture, floats)
        return self._read
