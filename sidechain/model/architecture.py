"""Architectures are data: an id and hyper-parameters, never code from a stranger.

An architecture is a msgspec Struct that says which hyper-parameters there are and checks them.
This one, a transformer over bytes, is what is served and generated with. It is made of what
integers can reproduce exactly (linear maps without biases, RMS norm, ReLU, learned positions, a
head size whose root is a power of two), so that a score computed from its weights can be the same
on every machine. `registry.py` lists all that can be scored.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.nn import functional

from sidechain.model.arithmetic import MAX_PARAMETERS, Arithmetic, T
from sidechain.model.floats import NORM_EPSILON

VOCABULARY: Final = 256


class ByteTransformer(Struct, frozen=True, forbid_unknown_fields=True, tag="byte-transformer"):
    """Hyper-parameters: width, number of blocks and heads, and the bytes it can see at once."""

    width: int = 64
    blocks: int = 2
    heads: int = 4
    context: int = 128

    def __post_init__(self) -> None:
        # Each bound is checked before the product of them is believed to be harmless.
        if not (
            4 <= self.width <= 2048
            and 1 <= self.blocks <= 64
            and 1 <= self.heads <= 128
            and 2 <= self.context <= 8192
        ):
            raise ValueError("a hyper-parameter is out of bounds")
        if self.heads * self.head_size != self.width or self.head_size not in (4, 16, 64):
            # Scores are divided by the root of the head size: a shift, in integers.
            raise ValueError("width / heads must be 4, 16 or 64")
        if self.parameters > MAX_PARAMETERS:
            raise ValueError(f"{self.parameters} parameters are more than {MAX_PARAMETERS}")

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes().values())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the weights, by name, all float32."""
        width = self.width
        shapes: dict[str, tuple[int, ...]] = {
            "embed.weight": (VOCABULARY, width),
            "position.weight": (self.context, width),
        }
        for i in range(self.blocks):
            shapes |= {
                f"blocks.{i}.attention_norm": (width,),
                f"blocks.{i}.qkv.weight": (3 * width, width),
                f"blocks.{i}.out.weight": (width, width),
                f"blocks.{i}.feed_norm": (width,),
                f"blocks.{i}.up.weight": (4 * width, width),
                f"blocks.{i}.down.weight": (width, 4 * width),
            }
        return shapes | {"norm": (width,), "head.weight": (VOCABULARY, width)}

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.context,)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.context, VOCABULARY)

    @property
    def reads_text(self) -> bool:
        return True

    def forward(self, ops: Arithmetic[T], tokens: T) -> T:
        """(context,) bytes -> logits of each next byte (context, 256)"""
        x = ops.embed(tokens, "embed.weight", "position.weight")
        for i in range(self.blocks):
            block = f"blocks.{i}."
            qkv = ops.linear(ops.rms_norm(x, block + "attention_norm"), block + "qkv.weight")
            x = ops.add(x, ops.linear(ops.attention(qkv, self.heads), block + "out.weight"))
            up = ops.linear(ops.rms_norm(x, block + "feed_norm"), block + "up.weight")
            x = ops.add(x, ops.linear(ops.relu(up), block + "down.weight"))
        return ops.linear(ops.rms_norm(x, "norm"), "head.weight")

    def build(self) -> ByteTransformerModule:
        """A module with fresh weights, drawn from torch's global generator."""
        return ByteTransformerModule(self)


class Cache:
    """The keys and values of the bytes read so far, for one answer in the making."""

    def __init__(self, architecture: ByteTransformer) -> None:
        a = architecture
        shape = (a.blocks, 2, a.heads, a.context, a.head_size)
        self.tensors = [(kv[0], kv[1]) for kv in torch.zeros(shape)]


class Block(nn.Module):
    def __init__(self, architecture: ByteTransformer) -> None:
        super().__init__()
        width = architecture.width
        self.heads = architecture.heads
        self.scale = architecture.head_size**-0.5
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_norm = nn.Parameter(torch.ones(width))
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, bytes, width) -> the same"""
        batch, length, width = x.shape
        qkv = self.qkv(_rms(x, self.attention_norm))
        q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return self._feed(x)

    def step(self, x: Tensor, position: int, keys: Tensor, values: Tensor) -> Tensor:
        """(width,) -> the same, for one more byte; keys and values are (heads, context, size)."""
        q, k, v = self.qkv(_rms(x, self.attention_norm)).view(3, self.heads, -1)
        keys[:, position] = k
        values[:, position] = v
        scores = torch.bmm(keys[:, : position + 1], q.unsqueeze(2)) * self.scale
        seen = torch.bmm(scores.softmax(1).transpose(1, 2), values[:, : position + 1])
        return self._feed(x + self.out(seen.view(-1)))

    def _feed(self, x: Tensor) -> Tensor:
        fed: Tensor = self.down(functional.relu(self.up(_rms(x, self.feed_norm))))
        return x + fed


class ByteTransformerModule(nn.Module):
    def __init__(self, architecture: ByteTransformer) -> None:
        super().__init__()
        self.architecture = architecture
        self.embed = nn.Embedding(VOCABULARY, architecture.width)
        self.position = nn.Embedding(architecture.context, architecture.width)
        for table in (self.embed, self.position):
            nn.init.normal_(table.weight, std=0.1)
        self.blocks = nn.ModuleList(Block(architecture) for _ in range(architecture.blocks))
        self.norm = nn.Parameter(torch.ones(architecture.width))
        self.head = nn.Linear(architecture.width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, bytes ≤ context) -> logits of each next byte (batch, bytes, 256)"""
        x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(_rms(x, self.norm))
        return logits

    @torch.inference_mode()
    def step(self, token: int, position: int, cache: Cache) -> Tensor:
        """Read one byte at `position` of the window; -> the logits of the next (256,).

        Positions below must have been read into the cache. The work and its shapes depend on
        the position alone, so that the result is the same to the bit however one got there.
        """
        x = self.embed.weight[token] + self.position.weight[position]
        for block, (keys, values) in zip(self.blocks, cache.tensors, strict=True):
            assert isinstance(block, Block)
            x = block.step(x, position, keys, values)
        logits: Tensor = self.head(_rms(x, self.norm))
        return logits


def _rms(x: Tensor, gain: Tensor) -> Tensor:
    return functional.rms_norm(x, gain.shape, gain, NORM_EPSILON)
