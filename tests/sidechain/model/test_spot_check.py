from __future__ import annotations

import pytest
import torch

from sidechain.model.architecture import ByteTransformer, ByteTransformerModule
from sidechain.model.generate import Generation
from sidechain.model.spot_check import TOLERANCE, deviations

ARCHITECTURE = ByteTransformer(width=32, blocks=2, heads=2, context=32)


def made(seed: int) -> ByteTransformerModule:
    """Fresh weights, made bolder than training begins with, so that bytes differ in likelihood."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = ARCHITECTURE.build()
        with torch.no_grad():
            for weight in module.parameters():
                weight.mul_(3)
    return module


MODULE = made(1)
PROMPT = b"What is a list? " * 3


def answered(module: ByteTransformerModule, temperature: float, seed: int = 5) -> bytes:
    generation = Generation(module, PROMPT, temperature, seed)
    return bytes(generation.next() for _ in range(100))


@pytest.mark.parametrize("temperature", [0.0, 0.01, 0.7, 1.0, 2.0])
def test_the_own_answer_is_found_in_order(temperature: float) -> None:
    answer = answered(MODULE, temperature)
    assert deviations(MODULE, PROMPT, answer, temperature, 5, range(100)) == []


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_other_weights_are_found_out(temperature: float) -> None:
    answer = answered(made(2), temperature)
    found = deviations(MODULE, PROMPT, answer, temperature, 5, range(0, 100, 10))
    assert len(found) >= 3
    assert all(each.by > TOLERANCE for each in found)


def test_weights_that_are_a_little_older_are_found_out() -> None:
    older = made(1)
    with torch.no_grad():
        for weight in older.parameters():
            weight.add_(
                0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
            )
    answer = answered(older, 1.0)
    assert deviations(MODULE, PROMPT, answer, 1.0, 5, range(100))


def test_one_changed_byte_is_found_where_it_stands() -> None:
    answer = bytearray(answered(MODULE, 1.0))
    answer[40] ^= 0x55
    found = deviations(MODULE, PROMPT, bytes(answer), 1.0, 5, range(41))
    assert [each.position for each in found] == [40]


def test_another_seed_is_another_answer() -> None:
    answer = answered(MODULE, 1.0)
    assert deviations(MODULE, PROMPT, answer, 1.0, 6, range(100))


def test_positions_outside_of_the_answer() -> None:
    for position in (-1, 3):
        with pytest.raises(IndexError):
            deviations(MODULE, PROMPT, b"abc", 1.0, 5, [position])
