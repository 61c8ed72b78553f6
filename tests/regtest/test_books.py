"""A msat too many or too few, in whichever figure, and the books are not conserved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Final

import pytest

from channels.units import Msat, Sat
from regtest.books import MINERS, Books, Holdings, Transfer


def moved(what: str, giver: str, taker: str, amount: int) -> Transfer:
    return Transfer(what, giver, taker, Msat(amount), Msat(amount))


# The user opens a channel, pays for 314,120 msat of inference, and closes alone; the provider
# passes on 20 sat through a hub of its own channel, which keeps 23 msat.
BOOKS: Final = Books(
    before={
        "user": Holdings(Sat(998_626)),
        "provider": Holdings(Sat(730), Msat(100_000_000), Sat(0)),
        "producer": Holdings(Sat(0)),
    },
    transfers=(
        moved("openings", "user", MINERS, 305_000),
        moved("reserves", "user", "provider", 546_000),
        moved("inference", "user", "provider", 350_000),
        moved("refunds", "provider", "user", 35_880),
        moved("shares", "provider", "producer", 20_000),
        moved("routing fees", "provider", "producer", 23),
        moved("closing", "user", MINERS, 803_880),
        moved("closing", "provider", MINERS, 120),
        moved("anchor", "user", "provider", 330_000),
    ),
    after={
        "user": Holdings(Sat(995_997), Msat(0), Sat(330)),
        "provider": Holdings(Sat(730), Msat(99_979_977), Sat(1190)),
        "producer": Holdings(Sat(0), Msat(20_023), Sat(0)),
    },
    miners=Sat(1109),
)


def altered_holdings(
    holdings: Mapping[str, Holdings], by: int
) -> Iterator[tuple[str, dict[str, Holdings]]]:
    for who, each in holdings.items():
        for field in fields(each):
            other = replace(each, **{field.name: getattr(each, field.name) + by})
            yield f"{who}'s {field.name}", {**holdings, who: other}


def altered(books: Books, by: int) -> Iterator[tuple[str, Books]]:
    """The books with one figure changed, for each of them."""
    for what, holdings in altered_holdings(books.before, by):
        yield f"{what} before", replace(books, before=holdings)
    for what, holdings in altered_holdings(books.after, by):
        yield f"{what} after", replace(books, after=holdings)
    for index, transfer in enumerate(books.transfers):
        for side in ("given", "taken"):
            rows = list(books.transfers)
            rows[index] = replace(transfer, **{side: getattr(transfer, side) + by})
            yield f"{transfer.what} {side}", replace(books, transfers=rows)
    yield "miners", replace(books, miners=Sat(books.miners + by))


def test_what_is_conserved() -> None:
    assert BOOKS.conserved


@pytest.mark.parametrize("by", [-1, 1])
def test_every_figure_counts(by: int) -> None:
    cases = list(altered(BOOKS, by))
    assert len(cases) == 2 * 3 * 3 + 2 * 9 + 1
    assert [what for what, books in cases if books.conserved] == []


def test_nobody_is_left_out() -> None:
    fewer = {who: held for who, held in BOOKS.after.items() if who != "producer"}
    assert not replace(BOOKS, after=fewer).conserved


def test_a_payment_to_another_one_is_seen() -> None:
    rows = [
        replace(each, taker="user") if each.what == "shares" else each for each in BOOKS.transfers
    ]
    assert not replace(BOOKS, transfers=rows).conserved


def test_the_rows_are_what_becomes_of_everybody() -> None:
    rows = BOOKS.rows()
    assert [what for what, _ in rows] == [
        *("coins", "in channels", "openings", "reserves", "inference", "refunds", "shares"),
        *("routing fees", "closing", "anchor", "coins", "in channels", "closed channel"),
    ]
    had, moves, has = rows[:2], rows[2:10], rows[10:]
    for column in range(3):
        before, change, after = (sum(row[column] for _, row in part) for part in (had, moves, has))
        assert before + change == after
    assert dict(moves)["closing"] == [-803_880, -120, 0]
    assert BOOKS.change(MINERS, "closing") == 804_000


def test_one_partys_account_names_the_others() -> None:
    assert BOOKS.of("provider") == [
        ("coins before", 730_000, ""),
        ("in channels before", 100_000_000, ""),
        ("reserves", 546_000, "user"),
        ("inference", 350_000, "user"),
        ("refunds", -35_880, "user"),
        ("shares", -20_000, "producer"),
        ("routing fees", -23, "producer"),
        ("closing", -120, "miners"),
        ("anchor", 330_000, "user"),
        ("coins after", 730_000, ""),
        ("in channels after", 99_979_977, ""),
        ("closed channel after", 1_190_000, ""),
    ]
