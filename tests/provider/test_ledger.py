"""The ledger: what is committed stays, what is not is gone, and one process writes."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.errors import UserError
from channels.http.scheme import Challenge
from channels.http.session import Terms
from channels.units import Msat, Sat, UnixTime
from provider import sessions
from provider.ledger import Answer, AnswerStatus, Event, Ledger, Offer, Result
from provider.sessions import Deposit, DepositStatus, Kind, Phase, RefundStatus, Session

NOW = UnixTime(1_800_000_000)
TERMS = Terms("bytes-1", Msat(50), Msat(250), 10)
A, B = b"\x01" * 32, b"\x02" * 32
OFFER = Offer(A, "oda-01", "lnbcrt1offer", Sat(8), UnixTime(NOW + 600), TERMS)
CHALLENGE = Challenge.create(
    b"key", realm="oda", method="lightning", intent="session", request={"amount": "1"}
)
ANSWER = Answer("answer", A, "chat", b"{}", 7, NOW, 3)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "provider.sqlite")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    opened = Ledger(tmp_path_factory.mktemp("shared") / "provider.sqlite")
    yield opened
    opened.close()


def again(ledger: Ledger, path: Path) -> Ledger:
    """As after a crash: what was not committed is lost."""
    ledger.close()
    return Ledger(path / "provider.sqlite")


def test_durability_and_privacy(ledger: Ledger, tmp_path: Path) -> None:
    mode = (tmp_path / "provider.sqlite").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    ledger.set_mark("pay_index", 4)
    ledger.commit()
    ledger.set_mark("pay_index", 5)
    assert ledger.mark("pay_index") == 5
    reopened = again(ledger, tmp_path)
    assert reopened.mark("pay_index") == 4
    assert reopened._db.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert reopened._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    reopened.close()


def test_a_second_provider_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        Ledger(tmp_path / "provider.sqlite")
    assert refused.value.reason == "store-in-use"


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "newer.sqlite"
    Ledger(path).close()
    db = sqlite3.connect(path)
    db.execute("UPDATE _sqlite_migrations SET name = 'm999_later' WHERE name LIKE 'm001%'")
    db.commit()
    db.close()
    with pytest.raises(UserError) as refused:
        Ledger(path)
    assert refused.value.reason == "store-too-new"
    # The lock was let go of and the connection closed.
    with pytest.raises(UserError) as refused:
        Ledger(path)
    assert refused.value.reason == "store-too-new"


async def test_one_commit_serves_a_turn_of_the_loop(ledger: Ledger, tmp_path: Path) -> None:
    async def write(name: str) -> None:
        ledger.set_mark(name, 1)
        await ledger.committed()

    async with asyncio.TaskGroup() as tasks:
        for name in "abc":
            tasks.create_task(write(name))
    assert not ledger._db.in_transaction
    reopened = again(ledger, tmp_path)
    assert [reopened.mark(name) for name in "abcd"] == [1, 1, 1, 0]
    reopened.close()


async def test_a_cancelled_waiter_does_not_spoil_the_turn(ledger: Ledger) -> None:
    ledger.set_mark("a", 1)
    waiting = [asyncio.create_task(ledger.committed()) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await waiting[1]
    assert not ledger._db.in_transaction
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]


async def test_a_turn_that_cannot_be_stored_fails_all_who_wait(ledger: Ledger) -> None:
    """A full disk rolls back what others wrote before in the same turn."""
    ledger.set_mark("a", 1)
    first = asyncio.create_task(ledger.committed())
    await asyncio.sleep(0)
    ledger._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError):
        ledger.save_answer(replace(ANSWER, body=bytes(1 << 20)))
    with pytest.raises(sqlite3.OperationalError):
        ledger.set_mark("b", 1)
    with pytest.raises(sqlite3.OperationalError):
        await first
    ledger._db.execute("PRAGMA max_page_count = 1000000")
    assert (ledger.mark("a"), ledger.mark("b")) == (0, 0)
    ledger.set_mark("c", 1)
    await ledger.committed()
    assert ledger.mark("c") == 1


async def test_a_commit_that_fails_fails_all_who_wait(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(ledger, "commit", full)
    results = await asyncio.gather(ledger.committed(), ledger.committed(), return_exceptions=True)
    assert [type(result) for result in results] == [sqlite3.OperationalError] * 2


def test_issued(ledger: Ledger) -> None:
    assert ledger.issued(CHALLENGE.id) is None
    ledger.add_offer(OFFER, Deposit(A))
    ledger.add_challenge(CHALLENGE, A)
    issued = ledger.issued(CHALLENGE.id)
    assert issued is not None
    assert (issued.challenge, issued.payment_hash, issued.amount) == (CHALLENGE, A, 8)
    assert (issued.session, issued.settled) == (None, False)
    ledger.save_deposit(Deposit(A, B, DepositStatus.CREDITED, Msat(8_000)))
    topped = ledger.issued(CHALLENGE.id)
    assert topped is not None
    assert (topped.session, topped.settled) == (B, True)
    # The deposit that opened a session was offered to anybody.
    ledger.save_deposit(Deposit(A, A, DepositStatus.CREDITED, Msat(8_000)))
    opened = ledger.issued(CHALLENGE.id)
    assert opened is not None
    assert opened.session is None


def test_unpaid_offers_are_forgotten_and_paid_ones_never(ledger: Ledger) -> None:
    ledger.add_offer(OFFER, Deposit(A))
    ledger.add_challenge(CHALLENGE, A)
    assert ledger.expired_offers(NOW) == []
    assert ledger.expired_offers(UnixTime(NOW + 600)) == [OFFER]
    late = UnixTime(NOW + 10**6)
    ledger.forget(late)
    assert ledger.offer(A) == OFFER
    ledger.save_deposit(Deposit(A, None, DepositStatus.SETTLED, Msat(8_000)))
    ledger.forget(late)
    assert ledger.issued(CHALLENGE.id) is not None
    ledger.save_deposit(Deposit(A, None, DepositStatus.DELETED))
    ledger.forget(late)
    assert (ledger.offer(A), ledger.deposit(A), ledger.issued(CHALLENGE.id)) == (None, None, None)


def test_answers_and_their_events(ledger: Ledger) -> None:
    ledger.save_answer(ANSWER)
    done = replace(ANSWER, status=AnswerStatus.FINISHED, completion_tokens=3, events=2)
    first, second = Event(0, b'{"a":1}', (1, 2), 2), Event(1, b"[DONE]", (255,), 3)
    ledger.append_event(ANSWER, first)
    ledger.append_event(ANSWER, second)
    ledger.save_answer(done)
    assert ledger.answer("answer") == done
    assert ledger.events("answer") == [first, second]
    assert ledger.events("answer", 0) == [second]
    assert ledger.events("other") == []
    with pytest.raises(sqlite3.IntegrityError):
        ledger.append_event(ANSWER, first)
    ledger.save_answer(replace(done, held=Msat(5)))
    ledger.release_held()
    assert ledger.answer("answer") == done


def test_results_of_repeated_credentials(ledger: Ledger) -> None:
    assert ledger.result("id", "topUp") is None
    ledger.save_result("id", "topUp", Result(200, b"{}"))
    assert ledger.result("id", "topUp") == Result(200, b"{}")
    assert ledger.result("id", "close") is None


amounts = st.integers(0, 2**60).map(Msat)


@settings(max_examples=50)
@given(
    st.builds(
        Session,
        id=st.binary(min_size=32, max_size=32),
        kind=st.sampled_from(Kind),
        terms=st.just(TERMS),
        last_active=st.integers(0, 2**40).map(UnixTime),
        return_invoice=st.none() | st.text(st.characters(codec="utf-8")),
        return_hash=st.none() | st.binary(),
        return_expires=st.none() | st.just(NOW),
        bearer_hash=st.none() | st.binary(),
        phase=st.sampled_from(Phase),
        credited=amounts,
        spent=amounts,
        refund=amounts,
        refund_status=st.sampled_from(RefundStatus),
        outstanding=st.none() | st.binary(),
    )
)
def test_sessions_come_back_as_they_were(shared: Ledger, session: Session) -> None:
    shared.save_session(session)
    assert shared.session(session.id) == session
    open_ = session.kind is Kind.SESSION and session.phase is not Phase.CLOSED
    restless = open_ or session.refund_status in (
        RefundStatus.PENDING,
        RefundStatus.UNKNOWN,
        RefundStatus.FAILED,
    )
    assert (session in shared.restless_sessions()) is restless


def test_totals(ledger: Ledger) -> None:
    assert ledger.totals() == {"spent": 0, "refund": 0, "rest": 0}
    deposit = Deposit(A, None, DepositStatus.SETTLED, Msat(8_000))
    _, session = sessions.open_session(deposit, Kind.SESSION, TERMS, NOW)
    ledger.save_session(sessions.deliver(session, Msat(0), Msat(250), NOW))
    assert ledger.totals() == {"spent": 250, "refund": 0, "rest": 7_750}


KILLED = """
import os, signal, sys
from pathlib import Path
from provider.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
ledger.set_mark("charged", 1)
ledger.commit()
ledger.set_mark("charged", 2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_between_two_turns(tmp_path: Path) -> None:
    path = tmp_path / "killed.sqlite"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -9
    ledger = Ledger(path)
    assert ledger.mark("charged") == 1
    ledger.close()
