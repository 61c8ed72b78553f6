import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import UserError
from channels.units import Msat, Sat
from provider.pricing import MAX_PRICE, PREFILL_STEP, Price, prefill_steps

prices = st.builds(
    lambda i, o: Price(Msat(i), Msat(o)), st.integers(0, MAX_PRICE), st.integers(1, MAX_PRICE)
)
counts = st.integers(0, 1 << 20)


def test_costs_are_per_token() -> None:
    price = Price(Msat(10), Msat(50))
    assert price.input_cost(3) == 30
    assert price.output_cost(3) == 150
    assert price.cost(3, 4) == 230


def test_slow_streams_are_covered_by_64_tokens_and_fast_ones_by_2_seconds() -> None:
    price = Price(Msat(10), Msat(500))
    assert price.exposure_limit(10) == 64 * 500
    assert price.deposit(10) == Sat(16)
    assert price.exposure_limit(100) == 2 * 100 * 500
    assert price.deposit(100) == Sat(50)


def test_the_cheapest_deposit_is_one_sat() -> None:
    price = Price(Msat(0), Msat(1))
    assert price.deposit(0) == Sat(1)
    assert price.exposure_limit(0) == 2000


@given(prices, st.integers(0, 100_000))
def test_the_limit_is_two_deposits_and_less_than_two_sats_above_the_price(
    price: Price, pace: int
) -> None:
    exact = max(64, 2 * pace) * price.output_msat
    assert price.exposure_limit(pace) == 2000 * price.deposit(pace)
    assert exact <= price.exposure_limit(pace) < exact + 2000


@given(prices, st.integers(-(10**12), 10**15))
def test_affordable_output_is_the_most_that_is_covered(price: Price, credit: int) -> None:
    tokens = price.affordable_output(Msat(credit))
    assert price.output_cost(tokens) <= max(0, credit) < price.output_cost(tokens + 1)


@given(counts)
def test_prefill_steps_add_up(tokens: int) -> None:
    steps = prefill_steps(tokens)
    assert sum(steps) == tokens
    assert all(step == PREFILL_STEP for step in steps[:-1])
    assert all(0 < step <= PREFILL_STEP for step in steps)


@pytest.mark.parametrize(("i", "o"), [(-1, 1), (0, 0), (0, -1), (MAX_PRICE + 1, 1), (0, 10**10)])
def test_senseless_prices_are_refused(i: int, o: int) -> None:
    with pytest.raises(UserError) as caught:
        Price(Msat(i), Msat(o))
    assert caught.value.reason == "bad-price"


def test_negative_counts_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="-1 tokens"):
        Price(Msat(1), Msat(1)).cost(-1, 0)
