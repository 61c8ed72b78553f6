"""A msat too many or too few, in whichever figure, and the accounts are not conserved."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Final

import pytest

from channels.units import Msat, Sat
from regtest.accounts import Accounts

# A channel of 200,000 sat out of a million; 184,550 msat of inference; everybody's output exists.
ACCOUNTS: Final = Accounts(
    user_before=Sat(1_000_000),
    provider_before=Sat(0),
    channel=Sat(200_000),
    opening_fee=Sat(305),
    push=Msat(546_000),
    paid=Msat(200_000),
    refunded=Msat(15_450),
    user_channel=Msat(199_269_450),
    provider_channel=Msat(730_550),
    closing_outputs=Sat(199_661),
    user_after=Sat(998_626),
    provider_after=Sat(730),
)


def test_what_is_conserved() -> None:
    assert ACCOUNTS.conserved
    assert ACCOUNTS.inference == 184_550
    assert ACCOUNTS.onchain_fees == 644
    assert ACCOUNTS.closing_fee == 338_000
    assert ACCOUNTS.dust == 0


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("name", [field.name for field in fields(Accounts)])
def test_every_figure_counts(name: str, by: int) -> None:
    changed: Accounts = replace(ACCOUNTS, **{name: getattr(ACCOUNTS, name) + by})
    assert not changed.conserved


def test_an_output_too_small_to_exist_is_dust() -> None:
    """The provider sold nothing, and has less than the dust limit."""
    accounts = replace(
        ACCOUNTS,
        push=Msat(200_000),
        paid=Msat(0),
        refunded=Msat(0),
        user_channel=Msat(199_800_000),
        provider_channel=Msat(200_000),
        closing_outputs=Sat(199_462),
        user_after=Sat(999_157),
        provider_after=Sat(0),
    )
    assert accounts.dust == 200_000
    assert accounts.conserved


def test_the_rows_add_up() -> None:
    rows = ACCOUNTS.rows()
    ends = [index for index, (_, _, whom) in enumerate(rows) if not whom]
    first, user_end, provider_begins, last = ends
    assert sum(amount for _, amount, _ in rows[first:user_end]) == rows[user_end][1]
    assert sum(amount for _, amount, _ in rows[provider_begins:last]) == rows[last][1]
