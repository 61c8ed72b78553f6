"""Generation: one byte after another, the same bytes from whatever prefix it is taken up again.

Two things make that so. What is drawn at a position depends on the seed and that position alone
(no generator carries state from byte to byte). And the logits do too, to the last bit: bytes are
read into the cache one at a time with operations whose shapes follow from the position, so it
does not matter which of them were read before an interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from sidechain.model.architecture import VOCABULARY, ByteTransformerModule, Cache

READ_AT_ONCE: Final = 16
"""Bytes read in one step, so that a long prompt does not make other answers wait."""

EMPTY_PROMPT: Final = b"\n"
"""What stands in for an empty prompt: a model can't continue nothing."""


def one_thread() -> None:
    """Make torch compute with one thread: call it where a worker begins.

    These models are so small that a second thread only costs; one also keeps every sum in the
    same order, on which resuming to the bit rests.
    """
    torch.set_num_threads(1)


def seen_prompt(prompt: bytes, context: int) -> bytes:
    """The part of a prompt that the model is shown: its last `context` bytes, never none."""
    return prompt[-context:] or EMPTY_PROMPT


def window_start(length: int, context: int) -> int:
    """Where the window over `length` bytes begins.

    Positions are learned, so a window that slides is a window read anew. It therefore slides by
    half its size at a time, and where it stands follows from the length alone.
    """
    stride = context // 2
    return -(-max(0, length - context) // stride) * stride


class Generation:
    """One answer in the making. Not for use by two threads at once.

    `already` are the tokens generated before an interruption, in order; ValueError if one of
    them is no byte. `temperature` 0 always takes the likeliest byte.
    """

    def __init__(
        self,
        module: ByteTransformerModule,
        prompt: bytes,
        temperature: float,
        seed: int,
        already: Sequence[int] = (),
    ) -> None:
        self._module = module
        self._context = module.architecture.context
        self._temperature = temperature
        self._seed = seed
        self._bytes = bytearray(seen_prompt(prompt, self._context)) + bytearray(already)
        self._generated = len(already)
        self._cache = Cache(module.architecture)
        self._start = 0
        self._read = 0  # bytes before this are in the cache, unless they are before the window

    def step(self) -> int | None:
        """Do a little work: the next token, or None when more is to be read before it."""
        start = window_start(len(self._bytes), self._context)
        if start != self._start:
            self._start = self._read = start
        end = min(len(self._bytes), self._read + READ_AT_ONCE)
        for i in range(self._read, end):
            logits = self._module.step(self._bytes[i], i - start, self._cache)
        self._read = end
        if end < len(self._bytes):
            return None
        token = _draw(logits, self._temperature, self._seed, self._generated)
        self._bytes.append(token)
        self._generated += 1
        return token

    def next(self) -> int:
        while (token := self.step()) is None:
            pass
        return token


@torch.inference_mode()
def _draw(logits: Tensor, temperature: float, seed: int, position: int) -> int:
    """Inverse transform sampling with a number that depends on (seed, position) alone."""
    if temperature == 0:
        return int(logits.argmax())
    # In float64 and with the maximum taken off first, the smallest temperature can't overflow.
    scaled = (logits.double() - logits.max().double()) / temperature
    summed = scaled.exp().cumsum(0)
    drawn = torch.searchsorted(summed, summed[-1:] * uniform(seed, position), right=True)
    return min(int(drawn), VOCABULARY - 1)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits; `seed` is any signed 64-bit integer."""
    message = b"oda sampling" + seed.to_bytes(8, "big", signed=True) + position.to_bytes(8, "big")
    return (int.from_bytes(hashlib.sha256(message).digest()[:8], "big") >> 11) / (1 << 53)
