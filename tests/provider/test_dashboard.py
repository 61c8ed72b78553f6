"""What the provider's own eyes see: sums that are exact, no request of anybody, for nobody else."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels import lightning_answers as answers
from channels.errors import OdaError
from channels.http.session import Provenance
from channels.lightning import PaymentFailed
from channels.units import Msat
from provider import liquidity
from provider.dashboard import Dashboard
from provider.figures import Day, Spent, by_day, csv
from provider.liquidity import Channels
from provider.metrics import Pace
from provider.shares import Period
from sidechain.fees import Beneficiaries, Terms, split
from tests.provider.buyers import CHAT, Buyer, chat
from tests.provider.clock import Clock
from tests.provider.fakes import MODEL, World
from tests.provider.payees import PayeeWorld


def channel(peer: str, state: str = "CHANNELD_NORMAL", connected: bool = True) -> Any:
    return answers.PeerChannel(
        peer,
        connected,
        state,
        "local",
        short_channel_id="103x1x0",
        spendable_msat=Msat(7_000_000),
        receivable_msat=Msat(3_000_000),
    )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "before")
    made.payees = PayeeWorld("trainer", "last", "accepting")
    await made.start()
    yield made
    await made.stop()


async def look(world: World) -> Dashboard:
    """As it is now, not as it was a moment ago."""
    watch = world.provider.watch
    watch._last, watch._days_until = None, float("-inf")
    response = await world.client.get("/dashboard.json")
    assert response.status == 200, await response.text()
    assert response.headers["Cache-Control"] == "no-store"
    return msgspec.json.decode(await response.read(), type=Dashboard)


async def bought(world: World, number: int = 0, tokens: int = 60) -> Buyer:
    """Somebody who has a session open and read an answer."""
    buyer = Buyer(world, number)
    await buyer.open()
    await buyer.read(await buyer.ask(max_tokens=tokens))
    return buyer


async def test_an_empty_shop(world: World) -> None:
    found = await look(world)
    assert found.health.status == "ok" and found.health.chain is not None
    assert found.sessions.count == 0 and found.days == () and found.shares == ()
    assert found.earned.spent_msat == 0
    assert [each.id for each in found.models] == [MODEL]
    assert found.models[0].sidechain is not None


async def test_every_msat_that_was_spent_is_somewhere(world: World) -> None:
    for number in range(3):
        await bought(world, number, 20 + number)
    spent = 3 * 2 * 50 + (20 + 21 + 22) * 250
    found = await look(world)
    assert found.sessions.count == 3
    assert found.sessions.spent_msat == found.earned.spent_msat == spent
    assert found.sessions.rest_msat == found.earned.credit_msat
    assert sum(each.spent_msat for each in found.sessions.newest) == spent
    assert {each.roles for each in found.shares} == {("trainer",), ("producer",)}
    owed = sum(each.carried_msat for each in found.shares)
    assert found.earned.provider_msat + owed == spent and owed > spent * 6 // 100
    (day,) = found.days
    assert day == Day("2027-01-15", spent, found.earned.provider_msat, *_parts(day), 0)
    assert sum(_parts(day)) == owed
    assert found.work.output_tokens == 63 and found.work.tokens_per_second > 0


def _parts(day: Day) -> tuple[int, int]:
    return day.trainer_msat, day.producers_msat


async def test_shares_are_followed_until_they_are_paid(world: World) -> None:
    assert world.payees is not None and world.provider.desk is not None
    world.payees.people[0].down = True
    await bought(world, tokens=200)
    world.payees.clock.ahead += 700
    world.clock.ahead += 700
    await world.provider.desk.settlement.settle()
    await world.provider.desk.settlement.tick()
    trainer, *producers = (await look(world)).shares
    assert trainer.waiting_msat and trainer.attempts == 1 and not trainer.carried_msat
    for each in producers:
        assert each.paid_msat or each.carried_msat  # too little is carried over
    text = await (await world.client.get("/metrics")).text()
    assert f'oda_shares_batched_msat{{status="open"}} {float(trainer.waiting_msat)}' in text
    carried = sum(each.carried_msat for each in producers)
    assert f"oda_shares_carried_msat {float(carried)}" in text
    assert "oda_chain_followed 1.0" in text


async def test_a_refund_that_failed_is_shown_until_it_arrives(world: World) -> None:
    buyer = await bought(world)
    world.node.outcomes = [PaymentFailed("no route", 205)]
    await buyer.apply(buyer.session.close())
    await world.settled()
    found = await look(world)
    assert found.refunds.count == {"pending": 0, "unknown": 0, "failed": 1}
    (refund,) = found.refunds.list
    assert (refund.status, refund.attempts) == ("failed", 1)
    assert refund.amount_msat == found.refunds.amount_msat["failed"] == found.earned.credit_msat > 0
    assert found.sessions.count == 0


async def test_nothing_that_a_user_wrote_is_shown(world: World) -> None:
    buyer = Buyer(world)
    await buyer.open()
    secret = "the secret of my life"
    await buyer.read(await buyer.ask(messages=[{"role": "user", "content": secret}]))
    identity = buyer.session.id
    assert identity is not None
    for path in ("/", "/dashboard.json", "/earnings.csv", "/metrics"):
        text = await (await world.client.get(path)).text()
        assert secret not in text and identity.hex() not in text
        stored = world.ledger.session(identity)
        assert stored is not None and str(stored.return_invoice) not in text


async def test_liquidity_is_what_usable_channels_can(world: World) -> None:
    world.node.channels = [
        channel("02aa"),
        channel("02bb", connected=False),
        channel("02cc", "ONCHAIN"),
    ]
    found = (await look(world)).liquidity
    assert (found.spendable_msat, found.receivable_msat) == (7_000_000, 3_000_000)
    assert len(found.channels) == 3


# --- who may see it ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/dashboard.json", "/earnings.csv"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"X-Forwarded-For": "198.51.100.7"},
        {"Forwarded": "for=198.51.100.7"},
        {"Via": "1.1 proxy"},
    ],
)
async def test_it_is_private(world: World, path: str, headers: dict[str, str]) -> None:
    response = await world.client.get(path, headers=headers)
    assert response.status == 403
    assert (await response.json())["error"]["code"] == "dashboard_private"
    assert (await world.client.get(path)).status == 200


async def test_unless_the_settings_show_it(tmp_path: Path) -> None:
    world = World(tmp_path, public_dashboard=True)
    await world.start()
    for path in ("/", "/dashboard.json", "/earnings.csv"):
        response = await world.client.get(path, headers={"X-Forwarded-For": "198.51.100.7"})
        assert response.status == 200
    await world.stop()


# --- health --------------------------------------------------------------------------------------


async def test_health_says_what_does_not_work(world: World) -> None:
    async def health() -> tuple[int, Any]:
        response = await world.client.get("/health")
        return response.status, await response.json()

    chain = {"followed": True, "height": 7}
    fine = {"status": "ok", "models": [MODEL], "lightning": True, "chain": chain}
    assert await health() == (200, fine)
    assert world.payees is not None
    world.payees.trouble = "No peer answers."
    status, said = await health()
    assert (status, said["status"], said["chain"]["followed"]) == (200, "degraded", False)
    assert (await look(world)).trouble == ("No peer answers.",)
    world.node.down = True
    world.provider._channels._asked = float("-inf")
    status, said = await health()
    assert (status, said["status"], said["lightning"]) == (503, "unavailable", False)
    assert "No Lightning node answers." in (await look(world)).trouble


async def test_on_no_sidechain_there_is_none_to_follow(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.start()
    said = await (await world.client.get("/health")).json()
    assert said == {"status": "ok", "models": [MODEL], "lightning": True}
    assert "oda_shares" not in await (await world.client.get("/metrics")).text()
    await world.stop()


class SlowNode:
    def __init__(self) -> None:
        self.asked = 0
        self.answers = asyncio.Event()

    async def listpeerchannels(self, node_id: str | None = None) -> list[answers.PeerChannel]:
        self.asked += 1
        await self.answers.wait()
        return [channel("02aa")]


async def test_the_node_is_asked_once_however_many_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liquidity, "PATIENCE", 0.01)
    node, clock = SlowNode(), Clock()
    channels = Channels(node, clock)
    looks = await asyncio.gather(channels.look(), channels.look())
    assert [each.trouble for each in looks] == ["The Lightning node does not answer."] * 2
    assert node.asked == 1
    node.answers.set()
    assert (await channels.look()).spendable_msat == 7_000_000
    clock.ahead += 9
    assert (await channels.look()).trouble is None and node.asked == 1
    node.answers.clear()
    clock.ahead += 2
    late = await channels.look()
    assert late.trouble is not None and late.spendable_msat == 7_000_000
    assert node.asked == 2
    await channels.close()


async def test_a_node_that_can_not_be_asked() -> None:
    class Down:
        async def listpeerchannels(self, node_id: str | None = None) -> Any:
            raise OdaError("lightning-unreachable", "It is down.")

    assert (await Channels(Down()).look()).trouble == "It is down."


# --- earnings by day -----------------------------------------------------------------------------

KEYS = tuple(bytes([number]) * 32 for number in range(1, 4))


def period(session: bytes, trainer: bool, terms: Terms) -> Period:
    owed = Beneficiaries(KEYS[0] if trainer else None, KEYS[1], KEYS[2])
    return Period(session, Provenance(1, bytes(32), None, None), owed, terms)


amounts = st.lists(st.integers(0, 5000), min_size=1, max_size=4)


@given(
    st.lists(st.tuples(amounts, st.booleans(), st.integers(0, 10**6)), max_size=4),
    st.dictionaries(st.sampled_from(["2027-01-01", "2027-01-09"]), st.integers(0, 999)),
)
def test_days_come_to_what_the_periods_come_to(
    told: list[tuple[list[int], bool, int]], refunds: dict[str, int]
) -> None:
    spent, periods = [], {}
    sums: dict[str, int] = defaultdict(int)
    for number, (days, trainer, ppm) in enumerate(told):
        session = bytes([number]) * 32
        made = period(session, trainer, Terms(ppm, (10**6 - ppm) // 2))
        periods[session, 0] = made
        spent += [Spent(f"2027-01-0{i + 1}", session, 0, each) for i, each in enumerate(days)]
        shares = split(Msat(sum(days)), made.beneficiaries, made.terms)
        sums["provider"] += shares.provider
        sums["trainer"] += shares.trainer
        sums["producers"] += shares.last_producer + shares.accepting_producer
    spent.append(Spent("2027-01-02", b"none", None, 77))
    found = by_day(spent, periods, refunds)
    assert [each.day for each in found] == sorted({each.day for each in found})
    for each in found:
        parts = each.provider_msat + each.trainer_msat + each.producers_msat
        assert parts == each.spent_msat
    assert sum(each.provider_msat for each in found) == sums["provider"] + 77
    assert sum(each.trainer_msat for each in found) == sums["trainer"]
    assert sum(each.producers_msat for each in found) == sums["producers"]
    assert sum(each.refunds_msat for each in found) == sum(refunds.values())


async def test_earnings_as_csv_over_two_days(world: World) -> None:
    buyer = await bought(world)
    await buyer.apply(buyer.session.close())
    await world.settled()
    world.clock.ahead += 86_400
    await bought(world, 1)
    response = await world.client.get("/earnings.csv")
    assert response.content_type == "text/csv"
    head, *lines = (await response.text()).split("\r\n")[:-1]
    assert head == "day,spent_msat,provider_msat,trainer_msat,producers_msat,refunds_msat"
    rows = [line.split(",") for line in lines]
    assert [row[0] for row in rows] == ["2027-01-15", "2027-01-16"]
    totals = world.ledger.totals()
    assert sum(int(row[1]) for row in rows) == totals["spent"]
    assert [int(row[5]) for row in rows] == [totals["refund"], 0]
    assert csv(()) == head + "\r\n"


def test_the_pace_is_of_the_last_minute() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.per_second() == 0
    clock.ahead += 10
    pace.add(50)
    pace.add(50)
    assert pace.per_second() == 10
    clock.ahead += 50
    assert pace.per_second() == pytest.approx(100 / 60)
    clock.ahead += 10
    assert pace.per_second() == 0


async def test_posting_to_the_dashboard_does_nothing(world: World) -> None:
    assert (await world.client.post("/", json=chat())).status == 405
    assert (await world.client.post(CHAT, json=chat())).status == 402
