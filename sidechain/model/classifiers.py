"""Architectures over rows of numbers: a multi-layer perceptron and a convolutional network."""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

from sidechain.model.arithmetic import MAX_PARAMETERS, Arithmetic, T

MAX_SIZE: Final = 1 << 18
"""Of a layer. Whether its sums stay exact is for bounds.py to say."""

MAX_LAYERS: Final = 16


class Mlp(Struct, frozen=True, forbid_unknown_fields=True, tag="mlp"):
    """Linear layers with biases and ReLU between them; `outputs` logits or values."""

    inputs: int
    hidden: tuple[int, ...]
    outputs: int

    def __post_init__(self) -> None:
        _check_sizes(len(self.hidden) <= MAX_LAYERS, self.inputs, *self.hidden, self.outputs)
        _check_parameters(self.parameters)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.inputs,)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.outputs,)

    @property
    def reads_text(self) -> bool:
        return False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        sizes = (self.inputs, *self.hidden, self.outputs)
        shapes: dict[str, tuple[int, ...]] = {}
        for i in range(len(sizes) - 1):
            shapes[f"layers.{i}.weight"] = (sizes[i + 1], sizes[i])
            shapes[f"layers.{i}.bias"] = (sizes[i + 1],)
        return shapes

    def forward(self, ops: Arithmetic[T], x: T) -> T:
        """(inputs,) -> (outputs,)"""
        for i in range(len(self.hidden)):
            x = ops.relu(ops.linear(x, f"layers.{i}.weight", f"layers.{i}.bias"))
        last = len(self.hidden)
        return ops.linear(x, f"layers.{last}.weight", f"layers.{last}.bias")


class Cnn(Struct, frozen=True, forbid_unknown_fields=True, tag="cnn"):
    """Convolutions with ReLU, each followed by 2 × 2 max pooling, then one linear layer.

    Its inputs are images of (channels, height, width), row by row. `filters` are the channels
    that each convolution makes; `kernel` is the side of its odd square window.
    """

    height: int
    width: int
    filters: tuple[int, ...]
    outputs: int
    channels: int = 1
    kernel: int = 3

    def __post_init__(self) -> None:
        few = 1 <= len(self.filters) <= MAX_LAYERS and self.kernel in (1, 3, 5, 7)
        _check_sizes(few, self.height, self.width, self.channels, *self.filters, self.outputs)
        if min(self.height, self.width) >> len(self.filters) == 0:
            raise ValueError("nothing would be left of the image after so many poolings")
        _check_sizes(few, self.channels * self.height * self.width)
        _check_parameters(self.parameters)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes().values())

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.channels * self.height * self.width,)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.outputs,)

    @property
    def reads_text(self) -> bool:
        return False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        inputs = self.channels
        for i, outputs in enumerate(self.filters):
            shapes[f"filters.{i}.weight"] = (outputs, inputs, self.kernel, self.kernel)
            shapes[f"filters.{i}.bias"] = (outputs,)
            inputs = outputs
        left = inputs * (self.height >> len(self.filters)) * (self.width >> len(self.filters))
        return shapes | {"head.weight": (self.outputs, left), "head.bias": (self.outputs,)}

    def forward(self, ops: Arithmetic[T], x: T) -> T:
        """(channels · height · width,) -> (outputs,)"""
        x = ops.image(x, self.channels, self.height, self.width)
        for i in range(len(self.filters)):
            convolved = ops.convolve(x, f"filters.{i}.weight", f"filters.{i}.bias")
            x = ops.max_pool(ops.relu(convolved))
        return ops.linear(ops.flatten(x), "head.weight", "head.bias")


def _check_sizes(few: bool, *sizes: int) -> None:
    # Each bound is checked before the product of them is believed to be harmless.
    if not few or not all(1 <= size <= MAX_SIZE for size in sizes):
        raise ValueError("a hyper-parameter is out of bounds")


def _check_parameters(parameters: int) -> None:
    if parameters > MAX_PARAMETERS:
        raise ValueError(f"{parameters} parameters are more than {MAX_PARAMETERS}")
