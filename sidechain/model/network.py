"""Any registered architecture as a torch module in floats: for training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sidechain.model.floats import Floats
from sidechain.model.registry import Architecture


class Network(nn.Module):
    """Its state_dict has the names and shapes of the architecture's weights.

    Fresh weights are drawn from torch's global generator.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self._weights: dict[str, nn.Parameter] = {}
        for name, shape in architecture.shapes().items():
            *path, last = name.split(".")
            owner: nn.Module = self
            for step in path:
                if step not in owner._modules:
                    owner.add_module(step, nn.Module())
                owner = owner.get_submodule(step)
            self._weights[name] = nn.Parameter(_fresh(last, shape))
            owner.register_parameter(last, self._weights[name])
        self._floats = Floats(self._weights)

    def on(self, device: str) -> None:
        """As to(), which gives a module other parameters where a device needs that."""
        self.to(device)
        self._weights.update(self.named_parameters())

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, *input_shape) -> (batch, *output_shape)"""
        return self.architecture.forward(self._floats, inputs)


def _fresh(last: str, shape: tuple[int, ...]) -> Tensor:
    if last == "bias":
        return torch.zeros(shape)
    if len(shape) == 1:  # the gain of a norm
        return torch.ones(shape)
    return torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
