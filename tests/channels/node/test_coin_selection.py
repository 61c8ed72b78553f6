"""Coin selection: nothing is lost, the feerate is what was asked, the reserve stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt.transactions import OutPoint, Transaction, TxIn, TxOut
from channels.errors import UserError
from channels.node.coin_selection import (
    CHANGE_DUST,
    INPUT_WEIGHT,
    P2WPKH_SIZE,
    economic,
    fee_for,
    select,
    sweep,
    weight,
)
from channels.units import FeeratePerKw, Sat

Coins = list[tuple[int, Sat]]

coins_ = st.lists(st.integers(1, 10**9), max_size=12).map(
    lambda values: [(number, Sat(value)) for number, value in enumerate(values)]
)
outputs_ = st.lists(
    st.builds(
        TxOut,
        st.integers(330, 10**9).map(Sat),
        st.sampled_from([22, 34]).map(lambda size: b"\x00" * size),
    ),
    min_size=1,
    max_size=4,
)
feerates = st.integers(253, 50_000).map(FeeratePerKw)
keeps = st.sampled_from([0, 25_000]).map(Sat)


@given(inputs=st.integers(1, 300), sizes=st.lists(st.sampled_from([22, 34]), max_size=300))
def test_weight_is_that_of_a_real_transaction(inputs: int, sizes: list[int]) -> None:
    witness = (b"s" * 72, b"p" * 33)
    transaction = Transaction(
        2,
        tuple(TxIn(OutPoint(bytes(32), n), witness=witness) for n in range(inputs)),
        tuple(TxOut(Sat(1), bytes(size)) for size in sizes),
        0,
    )
    assert weight(inputs, sizes) == transaction.weight


@given(coins=coins_, outputs=outputs_, feerate=feerates, keep=keeps)
def test_conservation_feerate_and_reserve(
    coins: Coins, outputs: list[TxOut], feerate: FeeratePerKw, keep: Sat
) -> None:
    paid = sum(output.value for output in outputs)
    usable = economic(coins, feerate)
    have = sum(value for _, value in usable)
    sizes = [len(output.script) for output in outputs]
    try:
        selection = select(coins, outputs, feerate, keep)
    except UserError as refused:
        assert refused.reason == "not-enough-funds"
        # Refused only when even all coins at once would not do.
        everything = fee_for(weight(len(usable), [*sizes, P2WPKH_SIZE]), feerate)
        assert have < paid + everything + max(keep, CHANGE_DUST)
        return
    assert len(set(selection.coins)) == len(selection.coins)
    total = sum(coins[number][1] for number in selection.coins)
    assert total == paid + selection.change + selection.fee
    assert selection.change == 0 or selection.change >= CHANGE_DUST
    assert have - paid - selection.fee >= keep

    if selection.change:
        sizes.append(P2WPKH_SIZE)
    least = fee_for(weight(len(selection.coins), sizes), feerate)
    assert selection.fee >= least
    if 5 * selection.fee > 6 * least:
        # Given away only where change was impossible: below dust after paying for itself.
        assert selection.change == 0
        cost = fee_for(weight(len(selection.coins), [*sizes, P2WPKH_SIZE]), feerate)
        assert total - paid < cost + CHANGE_DUST
    assert select(coins, outputs, feerate, keep) == selection


@given(coins=coins_, feerate=feerates, keep=keeps)
def test_sweep(coins: Coins, feerate: FeeratePerKw, keep: Sat) -> None:
    try:
        selection, value = sweep(coins, bytes(34), feerate, keep)
    except UserError as refused:
        assert refused.reason == "not-enough-funds"
        return
    total = sum(coins[number][1] for number in selection.coins)
    assert total == value + selection.change + selection.fee
    assert selection.change == keep
    sizes = [34, P2WPKH_SIZE] if keep else [34]
    assert selection.fee == fee_for(weight(len(selection.coins), sizes), feerate)
    left = [value for number, value in coins if number not in selection.coins]
    assert all(value <= fee_for(INPUT_WEIGHT, feerate) for value in left)


def test_the_error_says_have_and_need() -> None:
    with pytest.raises(UserError) as refused:
        select([(0, Sat(50_000))], [TxOut(Sat(40_000), bytes(34))], FeeratePerKw(253), Sat(25_000))
    assert "can spend 50000 sat" in str(refused.value)
    assert "65" in str(refused.value)
    assert "25000 sat stay" in str(refused.value)


def test_largest_first() -> None:
    coins = [(n, Sat(value)) for n, value in enumerate([10_000, 90_000, 50_000, 90_000])]
    outputs = [TxOut(Sat(80_000), bytes(34))]
    assert select(coins, outputs, FeeratePerKw(253), Sat(0)).coins == (1,)
    outputs = [TxOut(Sat(100_000), bytes(34))]
    assert select(coins, outputs, FeeratePerKw(253), Sat(0)).coins == (1, 3)
