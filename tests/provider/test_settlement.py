from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels import receipts
from channels.bolt import keys
from channels.errors import RemoteProtocolError
from channels.http.session import Provenance
from channels.units import Msat, UnixTime
from provider import shares
from provider.ledger import Answer, AnswerStatus, Ledger
from provider.settlement import Rules, Settlement
from provider.share_ledger import ShareLedger
from provider.shares import Batch, BatchStatus, Period
from sidechain.fees import Beneficiaries, Terms, split
from tests.provider.payees import PROVIDER, PayeeWorld, spend

SECRET = b"\x77" * 32
TERMS = Terms(50_000, 10_000)
MODEL = b"\x61" * 32
RULES = Rules("regtest", keys.public_key(PROVIDER), SECRET, seconds=600, smallest=Msat(1000))


def provenance(height: int) -> Provenance:
    return Provenance(height, height.to_bytes(32, "big"), MODEL, b"\x71" * 32)


def session(number: int) -> bytes:
    return bytes([0x51]) + number.to_bytes(31, "big")


class Till:
    """A provider's ledger and settlement, which can be killed and started again."""

    def __init__(self, path: Path, world: PayeeWorld, rules: Rules = RULES) -> None:
        self.path, self.world, self.rules = path, world, rules
        self.running: dict[int, Answer] = {}
        self._start()

    def _start(self) -> None:
        self.ledger = Ledger(self.path)
        self.shares = ShareLedger(self.ledger)
        self.settlement = Settlement(
            self.shares, self.world, self.world, self.world.ask, self.rules, self.world.clock
        )

    def kill(self) -> None:
        """What was not committed is gone."""
        self.ledger.close()
        self._start()

    def spend(
        self, number: int, amount: int, height: int = 1, who: tuple[int, int, int] = (0, 1, 2)
    ) -> Answer:
        people = [self.world.people[i].key for i in who]
        period = self.shares.begin(
            session(number), provenance(height), Beneficiaries(*people), TERMS
        )
        answer = spend(self.shares, session(number), period, Msat(amount))
        self.ledger.commit()
        return answer

    def go_on(self, number: int, amount: int) -> None:
        """An answer that is not at its end costs so much more; nothing but its row says so."""
        answer = self.running.get(number) or self.spend(number, 0)
        spent = Msat(answer.spent + amount)
        self.running[number] = replace(answer, status=AnswerStatus.RUNNING, spent=spent)
        self.ledger.save_answer(self.running[number])
        self.ledger.commit()

    def finish(self, number: int) -> None:
        if (answer := self.running.pop(number, None)) is not None:
            self.ledger.save_answer(replace(answer, status=AnswerStatus.FINISHED))
            self.ledger.commit()

    def check(self, spent: dict[int, int]) -> None:
        """spent = provider + in batches + carried, for every session."""
        for number, amount in spent.items():
            periods = self.shares.periods(session(number))
            assert sum(period.spent for period in periods) == amount
            provider = sum(split(p.spent, p.beneficiaries, p.terms).provider for p in periods)
            owed = shares.owed(periods)
            batched = self.shares.batched(session(number))
            left = shares.carried(owed, batched)
            assert provider + sum(batched.values()) + sum(left.values()) == amount


@pytest.fixture
def world() -> PayeeWorld:
    return PayeeWorld("trainer", "last", "accepting")


@pytest.fixture
def till(tmp_path: Path, world: PayeeWorld) -> Iterator[Till]:
    made = Till(tmp_path / "provider.sqlite", world)
    yield made
    made.ledger.close()


async def test_a_thousand_shares_are_three_payments(till: Till, world: PayeeWorld) -> None:
    for number in range(1000):
        till.spend(number, 10_000 + number)
    world.clock.ahead += 601
    await till.settlement.tick()
    assert world.attempts == 3
    received = {person.name: person.received for person in world.people}
    total = sum(10_000 + number for number in range(1000))
    assert received["trainer"] == sum(-(-(10_000 + n) * 5 // 100) for n in range(1000))
    assert received["last"] + received["accepting"] == sum(
        -(-(10_000 + n) // 100) for n in range(1000)
    )
    assert total > sum(received.values()) > total * 6 // 100
    assert till.settlement.carried() == {}
    await till.settlement.tick()
    assert world.attempts == 3


async def test_too_little_is_carried_over(till: Till, world: PayeeWorld) -> None:
    till.spend(1, 10_000)  # 500 to the trainer, 50 to each producer
    world.clock.ahead += 601
    await till.settlement.tick()
    assert world.asked == 0
    till.spend(2, 10_000)
    world.clock.ahead += 601
    await till.settlement.tick()
    assert [person.received for person in world.people] == [1000, 0, 0]
    till.check({1: 10_000, 2: 10_000})


async def test_an_answer_goes_on_after_its_share_was_settled(till: Till, world: PayeeWorld) -> None:
    trainer = world.people[0]
    till.go_on(1, 1_000_000)
    world.clock.ahead += 601
    await till.settlement.tick()
    assert trainer.received == 50_000
    till.go_on(1, 1_000_000)
    world.clock.ahead += 601
    await till.settlement.tick()
    assert trainer.received == 100_000
    # While it may go on it is looked at, and no longer.
    assert till.shares.unsettled() == [session(1)]
    till.finish(1)
    world.clock.ahead += 601
    await till.settlement.tick()
    assert till.shares.unsettled() == []
    till.spend(1, 1_000_000)
    assert till.shares.unsettled() == [session(1)]


async def test_much_is_paid_at_once(till: Till, world: PayeeWorld) -> None:
    till.spend(1, 19_000_000)
    world.clock.ahead += 11
    await till.settlement.tick()
    assert world.asked == 0
    till.spend(1, 1_000_000)
    world.clock.ahead += 11
    await till.settlement.tick()
    assert world.people[0].received == 1_000_000


async def test_an_unreachable_payee_is_carried_over_and_paid_once(
    till: Till, world: PayeeWorld
) -> None:
    trainer = world.people[0]
    trainer.down = True
    till.spend(1, 100_000)
    world.clock.ahead += 601
    await till.settlement.tick()
    till.spend(2, 100_000)
    world.clock.ahead += 601
    await till.settlement.tick()
    assert trainer.received == 0
    assert len(till.shares.batches(BatchStatus.OPEN)) == 1
    trainer.down = False
    for _ in range(5):
        world.clock.ahead += 3600
        await till.settlement.tick()
    assert trainer.received == 10_000
    till.check({1: 100_000, 2: 100_000})


@pytest.mark.parametrize("outcome", ["failed", "unknown", "arrived"])
async def test_outcomes(till: Till, world: PayeeWorld, outcome: str) -> None:
    world.outcomes = [outcome] * 3
    till.spend(1, 1_000_000)
    world.clock.ahead += 601
    await till.settlement.tick()
    expected = BatchStatus.OPEN if outcome == "failed" else BatchStatus.INVOICED
    assert {b.status for b in till.shares.batches(*BatchStatus)} == {expected}
    till.kill()
    world.clock.ahead += 60
    await till.settlement.tick()
    assert {b.status for b in till.shares.batches(*BatchStatus)} == {BatchStatus.PAID}
    assert [person.received for person in world.people] == [50_000, 5000, 5000]


async def test_the_own_key_is_not_paid(tmp_path: Path) -> None:
    world = PayeeWorld("self", "last", "accepting")
    till = Till(tmp_path / "provider.sqlite", world)
    till.spend(1, 1_000_000)
    world.clock.ahead += 601
    await till.settlement.tick()
    assert [person.received for person in world.people] == [0, 5000, 5000]
    assert till.shares.totals()[world.people[0].key] == {BatchStatus.OWN: 50_000}
    till.ledger.close()


async def test_a_key_without_a_node_waits(till: Till, world: PayeeWorld) -> None:
    world.people[0].registered = False
    till.spend(1, 1_000_000)
    world.clock.ahead += 601
    await till.settlement.tick()
    assert world.people[0].received == 0
    world.people[0].registered = True
    world.clock.ahead += 601
    await till.settlement.tick()
    assert world.people[0].received == 50_000


async def test_an_invoice_is_not_taken_for_two_batches(till: Till, world: PayeeWorld) -> None:
    till.spend(1, 100_000, who=(0, 0, 0))
    world.clock.ahead += 601
    await till.settlement.tick()
    first = next(iter(world.paid))
    till.spend(2, 100_000, who=(0, 0, 0))
    world.clock.ahead += 601

    async def again(endpoint: str, amount: Msat, root: bytes) -> str:
        return first

    world.ask = again  # type: ignore[method-assign]  # a payee that answers falsely
    till.kill()
    world.clock.ahead += 601
    await till.settlement.tick()
    assert world.people[0].received == 6000
    assert len(till.shares.batches(BatchStatus.OPEN)) == 1


def batch(world: PayeeWorld) -> Batch:
    amounts = {session(1): Msat(6000), session(2): Msat(4000)}
    made = shares.gather(SECRET, 1, world.people[0].key, amounts, Msat(1))
    assert made is not None
    return made[0]


def test_bad_invoices(world: PayeeWorld) -> None:
    trainer, other = world.people[:2]
    wanted = batch(world)
    pay_to = trainer.pay_to
    assert pay_to is not None
    now = world.clock

    def refused(text: str, later: int = 0) -> str:
        with pytest.raises(RemoteProtocolError) as caught:
            receipts.check_invoice(
                text, "regtest", pay_to.node_id, wanted.total, UnixTime(int(now()) + later)
            )
        return caught.value.reason

    good = trainer.invoice(wanted.amount, wanted.root)
    receipts.check_invoice(good, "regtest", pay_to.node_id, wanted.total, UnixTime(int(now())))
    assert refused(trainer.invoice(wanted.amount, wanted.root, secret=other.secret)) == (
        "wrong-payee"
    )
    assert refused(trainer.invoice(Msat(wanted.amount + 1), wanted.root)) == "wrong-amount"
    assert refused(trainer.invoice(wanted.amount, bytes(32))) == "wrong-root"
    assert refused(trainer.invoice(wanted.amount, wanted.root, text="thanks")) == "wrong-root"
    assert refused(good, later=7200) == "invoice-expired"
    assert refused("lnbcrt1") == "bad-invoice"


@given(
    st.lists(st.integers(0, 10**7), min_size=1, max_size=12),
    st.tuples(st.integers(0, 1_000_000), st.integers(0, 1_000_000)).filter(
        lambda parts: sum(parts) <= 1_000_000
    ),
)
def test_what_is_owed_is_batched_or_carried(amounts: list[int], ppm: tuple[int, int]) -> None:
    """However a session's sum grows, and whenever it is settled in between."""
    who = Beneficiaries(b"a" * 32, b"b" * 32, b"c" * 32)
    batched: dict[bytes, Msat] = {}
    spent = 0
    for amount in amounts:
        spent += amount
        period = Period(session(1), provenance(1), who, Terms(*ppm), Msat(spent))
        for key, more in shares.carried(period.owed, batched).items():
            batched[key] = Msat(batched.get(key, 0) + more)
        # Never more than 1 msat per key ahead of what is owed.
        assert all(batched[key] - period.owed.get(key, 0) in (0, 1) for key in batched)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("spend"), st.integers(0, 3), st.integers(1, 10**6), st.integers(1, 3)),
        st.tuples(st.just("go on"), st.integers(0, 3), st.integers(1, 10**6)),
        st.tuples(st.just("finish"), st.integers(0, 3)),
        st.tuples(st.just("time"), st.sampled_from([1, 11, 601, 4000])),
        st.tuples(st.just("tick")),
        st.tuples(st.just("kill")),
        st.tuples(st.just("down"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("outcome"), st.sampled_from(["failed", "unknown", "arrived"])),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_every_msat_is_somewhere(
    steps: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("till")
    world = PayeeWorld("trainer", "last", "accepting")
    till = Till(directory / "provider.sqlite", world)
    spent: dict[int, int] = {}

    async def play() -> None:
        for step in steps:
            match step:
                case ("spend", number, amount, height):
                    till.spend(number, amount, height)
                    spent[number] = spent.get(number, 0) + amount
                case ("go on", number, amount):
                    till.go_on(number, amount)
                    spent[number] = spent.get(number, 0) + amount
                case ("finish", number):
                    till.finish(number)
                case ("time", seconds):
                    world.clock.ahead += seconds
                case ("tick",):
                    await till.settlement.tick()
                case ("kill",):
                    till.kill()
                case ("down", index, down):
                    world.people[index].down = down
                case ("outcome", outcome):
                    world.outcomes.append(outcome)
            till.check(spent)
        for person in world.people:
            person.down = False
        world.outcomes.clear()
        for _ in range(4):
            world.clock.ahead += 3601
            await till.settlement.tick()

    asyncio.run(play())
    till.check(spent)
    carried = till.settlement.carried()
    for person in world.people:
        in_batches = sum(b.amount for b in till.shares.batches(*BatchStatus) if b.key == person.key)
        assert person.received == in_batches
        assert sum(carried.get(person.key, {}).values()) < RULES.smallest
    till.ledger.close()
    shutil.rmtree(directory)
