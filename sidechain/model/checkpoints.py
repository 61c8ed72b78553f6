"""An attempt at better weights on disk: weights and Adam's moments as safetensors, no pickles."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from channels.errors import UserError
from sidechain.model.files import read_plain
from sidechain.model.improve import Improving
from sidechain.model.weights import file_limit

_MOMENTS: Final = ("exp_avg", "exp_avg_sq")
_STEPS: Final = "steps"


def write(path: Path, attempt: Improving, base: bytes) -> None:
    """base: the weights_root that the attempt began with. The file is whole or not there."""
    tensors: dict[str, Tensor] = {_STEPS: torch.tensor([attempt.steps], dtype=torch.int64)}
    tensors["base"] = torch.frombuffer(bytearray(base), dtype=torch.uint8)
    state = attempt.optimizer.state
    for name, weight in attempt.network.named_parameters():
        tensors[f"weight.{name}"] = weight.detach().cpu().contiguous()
        for moment in _MOMENTS:
            if weight in state:
                tensors[f"{moment}.{name}"] = state[weight][moment].cpu().contiguous()
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(save(tensors))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def read(path: Path, attempt: Improving, base: bytes) -> bool:
    """Take up what was saved of an attempt that began with the same weights; False, and nothing
    is changed, where there is none. A file that can't be used is as good as none."""
    if not path.exists():
        return False
    shapes = {name: tuple(w.shape) for name, w in attempt.network.named_parameters()}
    try:
        tensors = load(read_plain(path, 16 * file_limit(shapes) + (1 << 20)))
        if bytes(tensors["base"].tolist()) != base:
            return False
        steps = int(tensors[_STEPS].item())
        found = [
            (tensors[f"{part}.{name}"], shape)
            for part in ("weight", *_MOMENTS)
            for name, shape in shapes.items()
        ]
        if steps < 1 or any(t.shape != shape or not t.isfinite().all() for t, shape in found):
            return False
    except (SafetensorError, KeyError, ValueError, UserError):
        with contextlib.suppress(OSError):
            path.unlink()
        return False
    with torch.no_grad():
        for name, weight in attempt.network.named_parameters():
            weight.copy_(tensors[f"weight.{name}"])
            attempt.optimizer.state[weight] = {
                "step": torch.tensor(float(steps), device=weight.device),
                **{m: tensors[f"{m}.{name}"].to(weight.device) for m in _MOMENTS},
            }
    attempt.steps = steps
    return True
