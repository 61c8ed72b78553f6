"""Receipts of closed sessions are looked at, and who does not pay is remembered for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest

from channels.errors import UserError
from channels.receipts import Receipt
from client import session as paid_session
from client.check_table import CheckTable
from client.checking import Checking, answers
from client.checks import Check, CheckState
from client.discovery import survey
from client.judge import FaultKind
from client.known_chain import KnownChain
from client.sdk import connect
from client.settings import ClientSettings
from client.store import Store
from provider import statements
from tests.client.fakes import Shop, UserNode
from tests.client.small_chain import SmallChain
from tests.provider.payees import PayeeWorld

GRACE = 1200


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paid_session, "REFUND_SECONDS", 2.0)


class Customer:
    """A shop, its payees, and a user who bought there; the clocks of all are one."""

    def __init__(self, path: Path, shop: Shop, payees: PayeeWorld, http: aiohttp.ClientSession):
        self.shop = shop
        self.payees = payees
        self.chain: SmallChain | None = SmallChain(payees)
        self.store = Store(path)
        self.table = CheckTable(self.store)
        self.http = http
        self.path = path
        self.ahead = 0

    def clock(self) -> float:
        return paid_session.PaidSession.now() + self.ahead

    async def reach(self, endpoint: str) -> bool:
        name = endpoint.removeprefix("http://").partition("/")[0]
        return not next(each for each in self.payees.people if each.name == name).down

    @property
    def checking(self) -> Checking:
        return Checking(self.store, self.http, self.chain, GRACE, self.clock, self.reach)

    async def buy(self, tokens: int = 100) -> int:
        """-> the closed session."""
        node, settings = UserNode(self.shop.node), ClientSettings()
        async with connect(
            self.shop.url, node, settings=settings, store=self.path, chain=self.chain
        ) as client:
            async for _ in client.chat("abc", max_tokens=tokens, seed=7):
                pass
            [refund] = await client.close()
        return refund.session

    async def later(self, seconds: int) -> None:
        self.ahead += seconds
        await self.checking.due()

    async def settle(self) -> None:
        assert self.shop.provider.desk is not None
        self.shop.clock.ahead += 4000
        self.payees.clock.ahead += 4000
        await self.shop.provider.desk.settlement.tick()

    def check(self, session: int) -> Check:
        found = self.table.get(session)
        assert found is not None
        return found

    @property
    def faults(self) -> dict[str, int]:
        return dict(self.store.reputation(self.shop.node_id.hex()).faults)


@asynccontextmanager
async def customer_of(path: Path, payees: PayeeWorld) -> AsyncIterator[Customer]:
    (path / "shop").mkdir()
    shop = Shop(path / "shop")
    shop.payees = payees
    await shop.start()
    async with aiohttp.ClientSession() as http:
        made = Customer(path / "client.sqlite", shop, payees, http)
        yield made
        made.store.close()
    await shop.stop()


@pytest.fixture
async def customer(tmp_path: Path) -> AsyncIterator[Customer]:
    async with customer_of(tmp_path, PayeeWorld("trainer", "last", "accepting")) as made:
        yield made


async def test_a_provider_that_pays(customer: Customer) -> None:
    session = await customer.buy(1000)
    await customer.checking.due()
    before = customer.check(session)
    assert before.state is CheckState.CARRIED
    assert sum(each.msat for each in before.owing.values()) > 0
    await customer.settle()
    await customer.later(GRACE)
    assert customer.check(session).state is CheckState.PAID
    assert customer.faults == {}
    # It is never asked again.
    assert customer.table.due(1 << 61, 10) == []  # type: ignore[arg-type]  # far in the future


async def test_a_provider_that_does_not_pay_and_pays_after_all(customer: Customer) -> None:
    session = await customer.buy()
    await customer.checking.due()
    await customer.later(GRACE)
    bad = customer.check(session)
    assert (bad.state, bad.reason) == (CheckState.UNPAID, "shares-unpaid")
    assert "not paid to those who made the model" in bad.sentence
    assert customer.faults == {FaultKind.UNPAID_SHARES: 1}
    assert [each.session for each in customer.table.untold()] == [session]
    # It is asked last, and once is enough.
    found = await survey([customer.shop.url], customer.http, customer.store)
    assert [each.owes for each in found.sellers] == [True]
    await customer.later(GRACE)
    assert customer.faults == {FaultKind.UNPAID_SHARES: 1}

    await customer.settle()
    await customer.later(24 * 3600)
    # 500 msat were too little for the trainer's two colleagues: they are carried over.
    assert customer.check(session).state is CheckState.CARRIED
    assert customer.faults == {}
    found = await survey([customer.shop.url], customer.http, customer.store)
    assert [each.owes for each in found.sellers] == [False]


async def test_small_sums_add_up(customer: Customer) -> None:
    """A session that owes nobody a satoshi is not overlooked with nine others."""
    sessions = [await customer.buy(20) for _ in range(5)]
    await customer.checking.due()
    states = {customer.check(each).state for each in sessions}
    assert states == {CheckState.CARRIED}
    await customer.later(GRACE)
    assert {customer.check(each).state for each in sessions} == {CheckState.UNPAID}
    assert customer.faults == {FaultKind.UNPAID_SHARES: 1}


async def test_a_payee_that_cannot_be_reached_is_not_the_providers_fault(
    customer: Customer,
) -> None:
    for person in customer.payees.people:
        person.down = True
    session = await customer.buy()
    await customer.settle()
    for _ in range(4):
        await customer.later(GRACE * 8)
    check = customer.check(session)
    assert check.state is CheckState.CARRIED
    assert "can't be reached" in check.sentence
    assert customer.faults == {}


async def lying(customer: Customer, monkeypatch: pytest.MonkeyPatch, lie: Lie) -> Check:
    honest = statements.Statements.receipt

    async def receipt(self: statements.Statements, session: object) -> Receipt | None:
        told = await honest(self, session)  # type: ignore[arg-type]  # as it was given
        if told is None:
            return None
        changed = lie(told)
        signature = await customer.payees.signmessage(changed.statement.text)
        return msgspec.structs.replace(changed, signature=signature)

    monkeypatch.setattr(statements.Statements, "receipt", receipt)
    session = await customer.buy()
    await customer.settle()
    await customer.checking.due()
    return customer.check(session)


Lie = Callable[[Receipt], Receipt]


def owing_nobody(receipt: Receipt) -> Receipt:
    statement = receipt.statement
    periods = tuple(msgspec.structs.replace(each, owed=()) for each in statement.periods)
    return msgspec.structs.replace(
        receipt, statement=msgspec.structs.replace(statement, periods=periods)
    )


def paid_twice(receipt: Receipt) -> Receipt:
    return msgspec.structs.replace(receipt, proofs=receipt.proofs * 2)


def unpaid_after_all(receipt: Receipt) -> Receipt:
    proofs = tuple(msgspec.structs.replace(each, preimage="00" * 32) for each in receipt.proofs)
    return msgspec.structs.replace(receipt, proofs=proofs)


def costlier(receipt: Receipt) -> Receipt:
    statement = receipt.statement
    answers = tuple(
        msgspec.structs.replace(each, completion_tokens=each.completion_tokens + 1)
        for each in statement.answers
    )
    return msgspec.structs.replace(
        receipt, statement=msgspec.structs.replace(statement, answers=answers)
    )


@pytest.mark.parametrize(
    ("lie", "reason", "kind"),
    [
        (owing_nobody, "wrong-payee", FaultKind.FALSE_RECEIPT),
        (paid_twice, "batch-twice", FaultKind.FALSE_RECEIPT),
        (unpaid_after_all, "bad-preimage", FaultKind.FALSE_RECEIPT),
        (costlier, "truncated", FaultKind.OVERCHARGE),
    ],
)
async def test_a_provider_that_lies(
    customer: Customer, monkeypatch: pytest.MonkeyPatch, lie: Lie, reason: str, kind: FaultKind
) -> None:
    check = await lying(customer, monkeypatch, lie)
    assert (check.state, check.reason) == (CheckState.FALSE, reason)
    assert customer.faults == {kind: 1}
    assert customer.store.reputation(customer.shop.node_id.hex()).is_poor


async def test_a_second_statement_of_one_session(
    customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await customer.buy()
    await customer.checking.due()

    def newer(receipt: Receipt) -> Receipt:
        statement = msgspec.structs.replace(receipt.statement, closed=1)
        return msgspec.structs.replace(receipt, statement=statement)

    await lying(customer, monkeypatch, newer)
    await customer.later(GRACE)
    check = customer.check(session)
    assert (check.state, check.reason) == (CheckState.FALSE, "statement-changed")


async def test_a_provider_that_gives_no_receipt(
    customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(*_: object) -> None:
        return None

    monkeypatch.setattr(statements.Statements, "receipt", none)
    session = await customer.buy()
    await customer.checking.due()
    assert customer.check(session).state is CheckState.UNCHECKED
    await customer.later(GRACE)
    check = customer.check(session)
    assert (check.state, check.reason) == (CheckState.UNPAID, "no-receipt")


async def test_a_provider_that_is_away(customer: Customer) -> None:
    session = await customer.buy()
    await customer.shop.client.close()
    for _ in range(3):
        await customer.later(24 * 3600)
    check = customer.check(session)
    assert (check.state, check.reason) == (CheckState.UNCHECKED, "provider-unreachable")
    assert customer.faults == {}


async def test_without_the_chain_nothing_is_claimed(customer: Customer) -> None:
    customer.chain = None
    session = await customer.buy()
    for _ in range(3):
        await customer.later(24 * 3600)
    check = customer.check(session)
    assert (check.state, check.reason) == (CheckState.UNCHECKED, "no-chain")
    assert "client.chain" in check.sentence
    assert customer.faults == {}
    # The signed statement is kept all the same: the provider can't take it back.
    assert customer.store.receipt(session) is not None
    customer.chain = SmallChain(customer.payees)
    assert await customer.checking.session(session) == customer.check(session)
    assert customer.check(session).state is CheckState.CARRIED


async def test_what_the_chain_said_of_a_challenge_is_kept(customer: Customer) -> None:
    """Nobody proves the challenge's block any more when the receipt is checked."""
    session = await customer.buy(1000)
    chain = customer.chain
    assert chain is not None
    assert chain.asked == 1
    chain.deep = True
    await customer.settle()
    await customer.later(30 * GRACE)
    assert customer.check(session).state is CheckState.PAID
    # Neither is anybody asked whom a receipt's file can do without.
    known = KnownChain(None, customer.table)
    assert await known.nodes([customer.payees.people[0].key])
    with pytest.raises(UserError) as caught:
        await known.nodes([bytes(32)])
    assert caught.value.reason == "no-chain"


async def test_a_kill_between_challenge_and_proof(customer: Customer) -> None:
    """What was not asked in time is asked with the next look."""
    chain = customer.chain
    assert chain is not None
    node, settings = UserNode(customer.shop.node), ClientSettings()
    chain.deep = True  # nobody answers before the kill
    async with connect(
        customer.shop.url, node, settings=settings, store=customer.path, chain=chain
    ) as client:
        async for _ in client.chat("abc", max_tokens=20, seed=7):
            pass
    provenance = customer.payees.provenance
    assert customer.table.beneficiaries(provenance) is None
    chain.deep = False
    await customer.checking.due()
    assert customer.table.beneficiaries(provenance) is not None


async def test_another_process_looked_meanwhile(customer: Customer) -> None:
    session = await customer.buy()
    await customer.checking.due()
    before = customer.check(session)
    customer.ahead += GRACE
    await asyncio.gather(customer.checking.due(), customer.checking.due())
    assert customer.check(session).attempts == before.attempts + 1
    assert customer.faults == {FaultKind.UNPAID_SHARES: 1}


async def test_a_payees_place_is_looked_at_without_a_word() -> None:
    heard: list[bytes] = []
    done = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.close()
        done.set()

    server = await asyncio.start_server(listen, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    assert await answers(f"http://127.0.0.1:{port}/payee/invoice")
    await done.wait()
    assert heard == [b""]
    server.close()
    await server.wait_closed()
    assert not await answers(f"http://127.0.0.1:{port}/payee/invoice")
    assert not await answers("nonsense")
    assert not await answers("unix:/nothing")
