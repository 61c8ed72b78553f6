"""What the user must not forget, and who may use it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from channels.errors import UserError
from channels.http.payer import ClientSession, Phase
from channels.units import Msat, UnixTime
from client.budget import DAY, Budget, Cap, midnight
from client.store import AnswerRow, Store
from tests.channels.http.payees import NOW
from tests.channels.http.test_payer import NEW, an_offer


def day_cap(now: UnixTime) -> tuple[Cap, ...]:
    return Budget(Msat(1 << 40), Msat(1 << 40), max_day=Msat(8_000)).caps(now)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "client.sqlite")
    yield made
    made.close()


def paying(number: int) -> ClientSession:
    return NEW.offered([an_offer(number)], NOW).open(NOW)[0]


def test_a_session_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    row = store.add("http://p", NEW, "label", NOW)
    store.save(row.number, paying(0), NOW, answer=AnswerRow("a", "Payment x", b"{}", "a.1.2.3"))
    again = Store(tmp_path / "client.sqlite")
    assert again.session(row.number).value == paying(0)
    assert again.uncounted(row.number)
    assert not again.uncounted(row.number, "a")
    again.close()
    assert stat.S_IMODE((tmp_path / "client.sqlite").stat().st_mode) == 0o600


def test_the_cap_of_a_day_counts_what_may_have_been_paid(store: Store) -> None:
    one, two = (store.add("http://p", NEW, "label", NOW) for _ in range(2))
    store.save(one.number, paying(0), NOW, caps=day_cap(NOW))
    with pytest.raises(UserError) as capped:
        store.save(two.number, paying(1), NOW, caps=day_cap(NOW))
    assert capped.value.reason == "day-cap-reached"
    assert store.session(two.number).value == NEW
    assert store.spent_since(midnight(NOW)) == 8_000
    # The next day it is free again, and what was stored before may always be stored again.
    store.save(two.number, paying(1), UnixTime(NOW + DAY), caps=day_cap(UnixTime(NOW + DAY)))
    store.save(one.number, paying(0), NOW, caps=day_cap(NOW))


def test_the_caps_of_an_hour_and_of_a_run(store: Store) -> None:
    much = Msat(1 << 40)
    budget = Budget(much, Msat(8_000), much, max_total=Msat(16_000), started=NOW)
    rows = [store.add("http://p", NEW, "label", NOW) for _ in range(4)]

    def pay(number: int, minutes: int) -> str:
        now = UnixTime(NOW + 60 * minutes)
        try:
            store.save(rows[number].number, paying(number), now, caps=budget.caps(now))
        except UserError as capped:
            return capped.reason
        return "paid"

    assert pay(0, 0) == "paid"
    assert pay(1, 59) == "hour-cap-reached"
    assert pay(1, 61) == "paid"
    assert pay(2, 122) == "total-cap-reached"
    # What was stored before may always be stored again.
    assert pay(1, 122) == "paid"
    assert store.spent_since(NOW) == 16_000


def test_failed_deposits_and_refunds_do_not_count(store: Store) -> None:
    one, two = (store.add("http://p", NEW, "label", NOW) for _ in range(2))
    value = paying(0)
    failed, _ = value.payment_failed(value.deposits[0].payable.payment_hash)
    store.save(one.number, failed, NOW)
    assert store.spent_since(midnight(NOW)) == 0
    refunded = replace(paying(1), phase=Phase.CLOSED, refund=Msat(7_000))
    store.save(two.number, refunded, NOW)
    assert store.spent_since(midnight(NOW)) == 1_000
    assert [row.number for row in store.sessions(live=True)] == [one.number]


def test_only_unpaid_sessions_are_forgotten(store: Store) -> None:
    one, two = (store.add("http://p", NEW, "label", NOW) for _ in range(2))
    store.save(one.number, paying(0), NOW)
    store.forget(one.number)
    store.forget(two.number)
    assert [row.number for row in store.sessions()] == [one.number]


def test_one_process_at_a_time(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "client.sqlite")
    with store.lock(1) as mine, other.lock(1) as theirs, other.lock(2) as another:
        assert (mine, theirs, another) == (True, False, True)
    with other.lock(1) as theirs:
        assert theirs
    other.close()


def test_a_store_of_the_future(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    store._db.execute("UPDATE _sqlite_migrations SET name = 'm999_later' WHERE name LIKE 'm001%'")
    store._db.commit()
    store.close()
    with pytest.raises(UserError) as newer:
        Store(tmp_path / "s")
    assert newer.value.reason == "store-too-new"
