"""What everybody had, gave, got and has: double entry, to the msat. Integers only.

What passes between two parties is counted twice, by the one who gave it and by the one who got it;
what the miners got, by whose transactions they were and by the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from channels.units import Msat, Sat, msat

MINERS: Final = "miners"
HELD: Final = ("coins", "in channels", "closed channel")
"""Rows that say what somebody has; the others say what became of it."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a party has: coins of its wallet, its side of open channels, and outputs of closed
    channels that its keys alone can spend."""

    coins: Sat
    channels: Msat = Msat(0)
    unclaimed: Sat = Sat(0)

    @property
    def total(self) -> Msat:
        return Msat(msat(self.coins) + self.channels + msat(self.unclaimed))


@dataclass(frozen=True, slots=True)
class Transfer:
    """what: the row of the table. given, taken: the same amount, as each side has it."""

    what: str
    giver: str
    taker: str
    given: Msat
    taken: Msat


@dataclass(frozen=True, slots=True)
class Books:
    """before, after: by party, the same ones. miners: what all transactions of the time left them,
    by the blocks."""

    before: Mapping[str, Holdings]
    transfers: Sequence[Transfer]
    after: Mapping[str, Holdings]
    miners: Sat

    def change(self, party: str, what: str) -> Msat:
        """What a kind of transfer has brought a party, less what it has cost it."""
        rows = [each for each in self.transfers if each.what == what]
        got = sum(each.taken for each in rows if each.taker == party)
        return Msat(got - sum(each.given for each in rows if each.giver == party))

    @property
    def kinds(self) -> list[str]:
        """In the order in which they first come."""
        return list(dict.fromkeys(each.what for each in self.transfers))

    @property
    def conserved(self) -> bool:
        """Both sides of each transfer say the same, and explain all that anybody has."""
        return (
            self.before.keys() == self.after.keys()
            and all(each.given == each.taken for each in self.transfers)
            and all(
                self.before[party].total + sum(self.change(party, what) for what in self.kinds)
                == self.after[party].total
                for party in self.before
            )
            and sum(self.change(MINERS, what) for what in self.kinds) == msat(self.miners)
        )

    def rows(self) -> list[tuple[str, list[Msat]]]:
        """(what, msat by party): what each had, what became of it, what each has. What nobody had
        is left out."""
        changes = [(what, [self.change(who, what) for who in self.before]) for what in self.kinds]
        return [*_held(self.before), *changes, *_held(self.after)]

    def of(self, party: str) -> list[tuple[str, int, str]]:
        """(what, msat, with whom), as Accounts.rows(); of what it has, before and after."""
        moved = []
        for what in self.kinds:
            rows = [each for each in self.transfers if each.what == what]
            pairs = {(each.giver, each.taker) for each in rows if each.given or each.taken}
            others = {other for pair in pairs if party in pair for other in pair} - {party}
            if others:
                moved.append((what, int(self.change(party, what)), ", ".join(sorted(others))))
        return [
            *((f"{what} before", row[0], "") for what, row in _held({party: self.before[party]})),
            *moved,
            *((f"{what} after", row[0], "") for what, row in _held({party: self.after[party]})),
        ]


def _held(holdings: Mapping[str, Holdings]) -> list[tuple[str, list[Msat]]]:
    coins, channels, unclaimed = HELD
    each = list(holdings.values())
    rows = [
        (coins, [msat(one.coins) for one in each]),
        (channels, [one.channels for one in each]),
        (unclaimed, [msat(one.unclaimed) for one in each]),
    ]
    return [row for row in rows if any(row[1])]
