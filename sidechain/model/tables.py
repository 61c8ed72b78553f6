"""The two tables of exact scoring, as data: tables.bin, whose hash is checked when it is read.

    EXP[i] = 2^24 · e^(−i / 1024)             for i = 0 … 18432 (the last one is 0)
    LOG[i] = 64 · 10^6 · ln(1 + i / 4096)     for i = 0 … 4096

each rounded to the nearest integer and written as little-endian uint32, EXP first. `generate`
computes them with decimal, whose exp and ln are correctly rounded on every machine, and a test
compares. Consensus rests on the file, not on anybody's exp().

EXP(d) of an activation d ≥ 0 (2^-12) is EXP[min(⌊d / 4 + 1/2⌋, 18432)].

LOG(n) of an integer n ≥ 1, in 1/64 micro-nats: with n = 2^e · (1 + f), i = ⌊4096·f⌋ and
t = 4096·f − i it is e · LN2 + LOG[i] + ⌊(LOG[i + 1] − LOG[i]) · t⌋.
"""

from __future__ import annotations

import hashlib
from decimal import Context, Decimal, localcontext
from pathlib import Path
from typing import Final

import numpy as np
import torch

from channels.errors import OdaError

EXP_BITS: Final = 24
EXP_STEPS: Final = 1024  # in one nat
EXP_END: Final = 18 * EXP_STEPS
LOG_STEPS: Final = 4096
LOG_UNIT: Final = 64 * 1_000_000  # in one nat

SHA256: Final = "a9d027c954c025edc60afee2cea8883d725658798749e25ed0aacf3ed69e9dce"


def generate() -> bytes:
    """What tables.bin holds, computed anew (about a second)."""
    with localcontext(Context(prec=60)):
        exp = [(Decimal(-i) / EXP_STEPS).exp() * 2**EXP_BITS for i in range(EXP_END + 1)]
        log = [(1 + Decimal(i) / LOG_STEPS).ln() * LOG_UNIT for i in range(LOG_STEPS + 1)]
        return b"".join(int(value.to_integral_value()).to_bytes(4, "little") for value in exp + log)


def _load() -> tuple[torch.Tensor, torch.Tensor]:
    data = Path(__file__).with_name("tables.bin").read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise OdaError(
            "bad-tables", "tables.bin was changed, so no score would be right: reinstall."
        )
    numbers = torch.from_numpy(np.frombuffer(data, "<u4").astype(np.float64))
    return numbers[: EXP_END + 1], numbers[EXP_END + 1 :]


EXP, LOG = _load()
"""float64, read only."""

LN2: Final = int(LOG[LOG_STEPS])
