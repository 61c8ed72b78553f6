"""What is written down while the demo runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from channels.errors import OdaError
from channels.lightning import LightningUnreachable
from channels.lightning_answers import Close, Funds, FundsOutput
from channels.units import Msat, Sat
from client import sdk
from regtest import demo, recorder
from regtest.record import Record
from regtest.recorder import Recorder, save
from regtest.school import Demo
from tests.provider.clock import Clock


def cost(tokens: int) -> sdk.Cost:
    left = Msat(0)
    return sdk.Cost(3, tokens, Msat(250 * tokens), left, left, left, left, 0)


class FakeClient:
    """It says three pieces, tops up once, and ends as it is told to."""

    def __init__(self, clock: Clock, error: OdaError | None = None) -> None:
        self._clock = clock
        self._error = error

    async def models(self) -> Any:
        standing = SimpleNamespace(weights_root="ab" * 32)
        model = SimpleNamespace(id="oda-learnt", infohash=None, sidechain=standing)
        return SimpleNamespace(data=[model])

    async def chat(self, question: str, **given: Any) -> AsyncGenerator[sdk.Event, None]:
        assert given == {"seed": 1}
        yield cost(0)
        for tokens in (1, 2, 4):
            self._clock.ahead += 0.5
            yield sdk.Text("x")
            yield cost(tokens)
            if tokens == 2:
                yield sdk.TopUp(Msat(12_500), 1)
                yield sdk.Interrupted("it broke")
        if self._error is not None:
            raise self._error
        yield sdk.Done("stop", cost(5))


async def heard(error: OdaError | None = None, leave_after: int | None = None) -> Record:
    clock = Clock()
    made = Recorder(clock)
    answer = made.answer(cast(sdk.Client, FakeClient(clock, error)), "What?", seed=1)
    async with aclosing(answer) as events:
        count = 0
        async for _ in events:
            count += 1
            if count == leave_after:
                break
    return made.record({})


async def test_an_answer_and_when_each_part_of_it_came() -> None:
    (answer,) = (await heard()).answers
    assert answer.arrived == ((0.5, 1), (1.0, 2), (1.5, 4))
    assert [(each.after, each.msat) for each in answer.topups] == [(1.0, 12_500)]
    assert answer.interrupted == (1.0,)
    assert (answer.first, answer.gaps, answer.seconds) == (0.5, [0.5, 0.5], 1.5)
    assert (answer.input_tokens, answer.output_tokens, answer.spent_msat) == (3, 5, 1250)
    assert (answer.model, answer.weights, answer.ended) == ("oda-learnt", "ab" * 32, "complete")


async def test_an_answer_that_was_left() -> None:
    (answer,) = (await heard(leave_after=3)).answers
    assert (answer.ended, answer.output_tokens, answer.arrived) == ("left", 1, ((0.5, 1),))


async def test_an_answer_that_was_a_bad_one() -> None:
    clock = Clock()
    made = Recorder(clock)
    client = cast(sdk.Client, FakeClient(clock, OdaError("answer-wrong-model", "It lied.")))
    with pytest.raises(OdaError, match="It lied"):
        async for _ in made.answer(client, "What?", seed=1):
            pass
    (answer,) = made.record({}).answers
    assert (answer.ended, answer.spent_msat) == ("answer-wrong-model", 1000)


class FakeLightning:
    """Nodes by name: what each holds, None while it is down."""

    held: dict[str, int | None]
    looks: int

    def __init__(self, rpc_file: Path, timeout: float) -> None:
        self._name = rpc_file.parent.name

    async def __aenter__(self) -> FakeLightning:
        return self

    async def __aexit__(self, *exception: object) -> None:
        pass

    async def listfunds(self) -> Funds:
        FakeLightning.looks += 1
        if (amount := self.held[self._name]) is None:
            raise LightningUnreachable("lightning-unreachable", "It is down.")
        told = {"txid": "aa", "output": 0, "amount_msat": amount, "scriptpubkey": ""}
        coin = {**told, "status": "confirmed", "reserved": False}
        return Funds([msgspec.convert(coin, FundsOutput)], [])

    async def listcloses(self) -> list[Close]:
        return []


@pytest.fixture
async def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    monkeypatch.setattr(recorder, "Lightning", FakeLightning)
    monkeypatch.setattr(recorder, "EVERY", 0.01)
    FakeLightning.held, FakeLightning.looks = {}, 0
    yield tmp_path


def appears(nodes: Path, name: str, amount: int | None) -> None:
    FakeLightning.held[name] = amount
    (nodes / name).mkdir()
    (nodes / name / "lightning-rpc").touch()


async def seen(made: Recorder, party: str, amount: int | None) -> None:
    async with asyncio.timeout(20):
        while made.holding(party) != amount:  # noqa: ASYNC110  # the recorder tells nobody
            await asyncio.sleep(0.01)


async def test_what_everybody_holds_is_looked_at(nodes: Path) -> None:
    made = Recorder()
    async with made.watching(nodes):
        appears(nodes, "user", 5000)
        await seen(made, "user", 5000)
        appears(nodes, "provider", 7000)
        await seen(made, "provider", 7000)
        FakeLightning.held["provider"] = None
        await seen(made, "provider", None)
        FakeLightning.held["provider"] = 7100
        await seen(made, "provider", 7100)
        FakeLightning.held["user"] = 4900  # the last look sees it
    record = made.record({})
    told = [(each.party, each.msat) for each in record.balances]
    assert told == [
        *(("user", 5000), ("provider", 7000), ("provider", None)),
        *(("provider", 7100), ("user", 4900)),
    ]
    assert [each.at for each in record.balances] == sorted(each.at for each in record.balances)


async def test_a_look_that_fails_is_not_kept_silent(nodes: Path) -> None:
    appears(nodes, "user", 5)
    made = Recorder()
    with pytest.raises(KeyError):
        async with made.watching(nodes):
            del FakeLightning.held["user"]
            async with asyncio.timeout(20):
                while not FakeLightning.looks:  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.01)


async def test_a_record_beside_its_page(tmp_path: Path) -> None:
    clock = Clock()
    made = Recorder(clock)
    made.gives("user", Sat(1000))
    clock.ahead += 2
    made.step(1, "Begin")
    made.share(4, "rival", "trainer", Msat(77))
    made.caught("The thief", "root-known")
    made.account("All", [("coins", 5, "")])
    page = save(made.record({"conserved": True}), tmp_path)
    read = msgspec.json.decode((tmp_path / "record.json").read_bytes(), type=Record)
    assert read == made.record({"conserved": True})
    assert [(each.at, each.text) for each in read.steps] == [(2.0, "Begin")]
    assert page.parent == tmp_path and b"root-known" in page.read_bytes()


def test_a_run_that_fails_leaves_its_report_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Recorder()

    async def tell(_: Demo) -> dict[str, object]:
        made.step(1, "A network")
        raise OdaError("bitcoind-failed", "It did not start.")

    monkeypatch.setattr(demo, "recorder", made)
    monkeypatch.setattr(demo, "tell", tell)
    monkeypatch.setattr("sys.argv", ["demo"])
    monkeypatch.setenv("ODA_DATA", str(tmp_path))
    assert demo.main() != 0
    read = msgspec.json.decode((tmp_path / "demo" / "record.json").read_bytes(), type=Record)
    assert read.failure == "It did not start. (bitcoind-failed)"
    assert b"The run ended early" in (tmp_path / "demo" / "report.html").read_bytes()
