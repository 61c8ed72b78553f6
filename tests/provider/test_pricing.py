import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import UserError
from channels.http.session import MAX_PRICE, PREFILL_STEP, Terms
from channels.units import Msat, Sat
from provider.pricing import Price, prefill_steps


def terms(output_msat: int, pace: int) -> Terms:
    return Terms("m", Msat(10), Msat(output_msat), pace)


def test_slow_streams_are_covered_by_64_tokens_and_fast_ones_by_2_seconds() -> None:
    assert terms(500, 10).exposure_limit == 64 * 500
    assert terms(500, 10).deposit == Sat(16)
    assert terms(500, 100).exposure_limit == 2 * 100 * 500
    assert terms(500, 100).deposit == Sat(50)


def test_the_cheapest_deposit_is_one_sat() -> None:
    assert terms(1, 0).deposit == Sat(1)
    assert terms(1, 0).exposure_limit == 2000


@given(st.integers(1, MAX_PRICE), st.integers(0, 100_000))
def test_the_limit_is_two_deposits_and_less_than_two_sats_above_the_price(
    output_msat: int, pace: int
) -> None:
    offered = terms(output_msat, pace)
    exact = max(64, 2 * pace) * output_msat
    assert offered.exposure_limit == 2000 * offered.deposit
    assert exact <= offered.exposure_limit < exact + 2000


@given(st.integers(0, 1 << 20))
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
