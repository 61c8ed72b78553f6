"""How a file with rows of numbers is read; what reads it is in samples.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """How rows of numbers are read. divide_by: so that all inputs lie between -8 and 8.
    regression: targets are numbers and not classes. target: the CSV column with it, by its name or
    its number from 0; the last one if None."""

    divide_by: float = 1.0
    regression: bool = False
    target: str | None = None
