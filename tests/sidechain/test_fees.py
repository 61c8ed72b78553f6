from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import LocalProtocolError
from channels.units import Msat
from sidechain import fees
from sidechain.fees import Beneficiaries, Shares, Terms
from sidechain.params import MAIN, PPM
from tests.sidechain.world import (
    ALICE,
    BAD,
    BOB,
    CAROL,
    GOOD,
    MINER,
    QUICK,
    World,
    h,
    open_shard,
    reveal,
)

TERMS = Terms.default(MAIN)
ALL = Beneficiaries(ALICE.key, BOB.key, CAROL.key)
FRESH_CHAIN = Beneficiaries(None, None, None)

amounts = st.integers(0, 10**12).map(Msat)
someone = st.none() | st.sampled_from([ALICE.key, BOB.key, CAROL.key])
owed = st.builds(Beneficiaries, someone, someone, someone)
terms = st.tuples(st.integers(1, PPM), st.integers(1, PPM)).filter(lambda t: sum(t) <= PPM)


def test_the_defaults() -> None:
    shares = fees.split(Msat(1_000_000), ALL, TERMS)
    assert shares == Shares(Msat(940_000), Msat(50_000), Msat(5_000), Msat(5_000))


@given(amounts, owed, terms)
def test_the_parts_sum_to_what_was_spent(
    spent: Msat, who: Beneficiaries, parts: tuple[int, int]
) -> None:
    shares = fees.split(spent, who, Terms(*parts))
    assert shares.total == spent
    assert min(shares.provider, shares.trainer, shares.last_producer) >= 0
    assert shares.accepting_producer >= 0
    if spent >= 3 and who.trainer and parts[0] < PPM // 2 and parts[1] < PPM // 2:
        assert shares.trainer > 0
    assert bool(shares.trainer) <= bool(who.trainer)


@given(st.integers(3, 10**9).map(Msat))
def test_nobody_gets_nothing(spent: Msat) -> None:
    shares = fees.split(spent, ALL, TERMS)
    assert shares.trainer and shares.last_producer and shares.accepting_producer


def test_the_first_msats() -> None:
    parts = [fees.split(Msat(spent), ALL, TERMS) for spent in range(5)]
    rows = [(s.provider, s.trainer, s.last_producer, s.accepting_producer) for s in parts]
    assert rows == [(0, 0, 0, 0), (0, 1, 0, 0), (0, 1, 1, 0), (0, 1, 1, 1), (1, 1, 1, 1)]


@given(amounts, st.integers(0, 10**6), terms)
def test_shares_only_grow(spent: Msat, more: int, parts: tuple[int, int]) -> None:
    """The running total is split, so a top-up never takes a share back."""
    before = fees.split(spent, ALL, Terms(*parts))
    after = fees.split(Msat(spent + more), ALL, Terms(*parts))
    assert after.trainer >= before.trainer
    assert after.last_producer >= before.last_producer
    assert after.accepting_producer >= before.accepting_producer


def test_unregistered_models_pay_the_producer_only() -> None:
    world = World()
    world.mine()
    who = fees.beneficiaries(world.state, None, None)
    assert who == Beneficiaries(None, MINER.key, None)
    assert fees.beneficiaries(world.state, h("no model"), h("w")) == who
    shares = fees.split(Msat(1_000_000), who, TERMS)
    assert shares == Shares(Msat(990_000), Msat(0), Msat(10_000), Msat(0))
    assert fees.by_key(shares, who) == {MINER.key: 10_000}


def test_before_the_first_block_everything_is_the_providers() -> None:
    assert fees.beneficiaries(World().state, None, None) == FRESH_CHAIN
    assert fees.split(Msat(500), FRESH_CHAIN, TERMS).provider == 500


def test_whose_weights_are_served() -> None:
    world = World()
    model = world.model()  # by Alice
    first = fees.beneficiaries(world.state, model, h("first"))
    assert first == Beneficiaries(ALICE.key, MINER.key, MINER.key)
    world.wait(QUICK.tenure)
    world.committed(model, BOB, "second")
    world.truth.score(model, "second", 9_000)
    block = world.build(reveal(QUICK, model, BOB, "second", 9_000), producer=CAROL)
    world.submit(block)
    world.mine()
    second = fees.beneficiaries(world.state, model, h("second"))
    assert second == Beneficiaries(BOB.key, MINER.key, CAROL.key)
    # Who still serves the first weights owes Alice.
    assert fees.beneficiaries(world.state, model, h("first")) == first
    # Weights that the chain has never seen are as good as the confirmed ones.
    assert fees.beneficiaries(world.state, model, h("unheard of")) == second


@pytest.mark.parametrize(("sums", "trainer"), [(GOOD, BOB), (BAD, ALICE)])
def test_provisional_trainers_have_no_right_yet(sums: object, trainer: object) -> None:
    world = World()
    model = world.model(shards=("a",), openers=(CAROL,))
    world.wait(QUICK.tenure)
    world.update(model, BOB, "second", 9_000)
    assert fees.beneficiaries(world.state, model, h("second")).trainer == ALICE.key
    world.truth.pair(model, 0, "a", "first", "second", sums)  # type: ignore[arg-type] # parametrized
    world.mine(open_shard(QUICK, model, 0, "a", CAROL))
    after = fees.beneficiaries(world.state, model, h("second")).trainer
    assert after == trainer.key  # type: ignore[attr-defined] # parametrized


def test_another_models_weights_are_not_this_ones() -> None:
    world = World()
    one = world.model(weights="one")
    two = world.model(weights="two", trainer=BOB)
    assert fees.beneficiaries(world.state, one, h("two")).trainer == ALICE.key
    assert fees.beneficiaries(world.state, two, h("two")).trainer == BOB.key


def test_one_key_may_hold_several_parts() -> None:
    who = Beneficiaries(ALICE.key, ALICE.key, BOB.key)
    shares = fees.split(Msat(1_000_000), who, TERMS)
    assert fees.by_key(shares, who) == {ALICE.key: 55_000, BOB.key: 5_000}


@given(
    st.dictionaries(someone.filter(bool), amounts),
    st.dictionaries(someone.filter(bool), amounts),
    st.integers(1, 10**6),
)
def test_what_is_too_small_is_carried_over(
    carried: dict[bytes, Msat], new: dict[bytes, Msat], smallest: int
) -> None:
    settlement = fees.settle(carried, new, Msat(smallest))
    assert all(amount >= smallest for amount in settlement.payable.values())
    assert all(0 < amount < smallest for amount in settlement.carried.values())
    assert not settlement.payable.keys() & settlement.carried.keys()
    total = sum(settlement.payable.values()) + sum(settlement.carried.values())
    assert total == sum(carried.values()) + sum(new.values())


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((9_999, 10_000), "share-below-floor"),
        ((50_000, 999), "share-below-floor"),
        ((900_000, 100_001), "shares-above-whole"),
    ],
)
def test_terms_are_bounded(parts: tuple[int, int], reason: str) -> None:
    TERMS.check(MAIN)
    with pytest.raises(LocalProtocolError) as caught:
        Terms(*parts).check(MAIN)
    assert caught.value.reason == reason
