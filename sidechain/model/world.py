"""The processes that train together: one, or as many as torchrun started.

Process 0 talks to the chain, judges and decides; the others follow. What is decided travels as
numbers and as tensors whose shapes everybody knows, never as pickled objects.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
from torch import Tensor, distributed

PATIENCE: Final = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class World:
    """rank: which process this is, of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def agree(self, number: int) -> int:
        """The number that process 0 has; all must ask at the same place."""
        if self.size == 1:
            return number
        told = torch.tensor([number], dtype=torch.int64)
        distributed.broadcast(told, 0)
        return int(told.item())

    def tell(self, data: bytes) -> bytes:
        """The bytes that process 0 has; all must ask at the same place."""
        if self.size == 1:
            return data
        told = torch.zeros(self.agree(len(data)), dtype=torch.uint8)
        if self.leads and data:
            told = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        distributed.broadcast(told, 0)
        return told.numpy().tobytes()

    def same(self, number: int) -> bool:
        """Whether all processes have the same number; all must ask at the same place."""
        if self.size == 1:
            return True
        least, most = (torch.tensor([number], dtype=torch.int64) for _ in range(2))
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        return int(least.item()) == int(most.item())

    def share(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights (int16) that process 0 has; the others give tensors of the same shapes."""
        if self.size == 1:
            return dict(weights)
        shared = {}
        for name in sorted(weights):
            told = weights[name].int()
            distributed.broadcast(told, 0)
            shared[name] = told.short()
        return shared


ALONE: Final = World()


@contextmanager
def join() -> Iterator[World]:
    """The world that torchrun set up in the environment, or one process alone."""
    if "WORLD_SIZE" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    # gloo moves CPU tensors; what is trained here is small beside what NCCL is made for.
    # Whoever follows waits for as long as process 0 has nothing to train; when it dies, they do.
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
