"""Integers with names: amounts, heights and identifiers that must not be mixed up.

Every amount of money in ODA is one of these; there is no float anywhere near money.
"""

from __future__ import annotations

from typing import NewType

Msat = NewType("Msat", int)
"""Thousandths of a satoshi: what Lightning moves."""

Sat = NewType("Sat", int)
"""Satoshis: what Bitcoin moves."""

BlockHeight = NewType("BlockHeight", int)

FeeratePerKw = NewType("FeeratePerKw", int)
"""Satoshis per 1000 weight units, the unit of BOLT 2 and BOLT 3."""

UnixTime = NewType("UnixTime", int)
"""Seconds since 1970-01-01 UTC."""


def msat(amount: Sat) -> Msat:
    return Msat(amount * 1000)


def sat_floor(amount: Msat) -> Sat:
    """The whole satoshis in an amount; BOLT 3 rounds outputs down."""
    return Sat(amount // 1000)


def sat_ceil(amount: Msat) -> Sat:
    """The fewest whole satoshis that cover an amount."""
    return Sat(-(-amount // 1000))


class ShortChannelId(int):
    """Where a funding output is: block height, transaction index, output index (BOLT 7)."""

    @classmethod
    def of(cls, block: int, transaction: int, output: int) -> ShortChannelId:
        return cls(block << 40 | transaction << 16 | output)

    @classmethod
    def parse(cls, text: str) -> ShortChannelId:
        """Read "539268x845x1"; raises ValueError on anything else."""
        block, transaction, output = (int(part) for part in text.split("x"))
        if not (0 <= block < 1 << 24 and 0 <= transaction < 1 << 24 and 0 <= output < 1 << 16):
            raise ValueError(f"{text!r} is not a short channel id")
        return cls.of(block, transaction, output)

    @property
    def block(self) -> int:
        return self >> 40

    @property
    def transaction(self) -> int:
        return self >> 16 & 0xFFFFFF

    @property
    def output(self) -> int:
        return self & 0xFFFF

    def __str__(self) -> str:
        return f"{self.block}x{self.transaction}x{self.output}"
