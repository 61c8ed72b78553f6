from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from channels.units import Msat
from client import judging
from client import session as paid_session
from client.answer import Cost, Done, Event, Text
from client.judge import FaultKind, Judge, Limits
from client.judging import BadAnswer, judged
from client.reputation import BEST, Record, fault, good_answer, ranked_price
from client.sdk import Client, connect
from client.settings import ClientSettings
from client.spot_check import Asked, OwnCopies
from client.store import Store
from sidechain.model import bundle, directory, sealed, weights
from sidechain.model.architecture import ByteTransformer
from sidechain.model.directory import Model
from sidechain.model.generate import Generation
from sidechain.model.objective import CrossEntropy
from sidechain.model.parts import Text as TextPart
from sidechain.model.prompt import render_chat
from tests.client.fakes import Shop, UserNode

COST = Cost(1, 0, Msat(0), Msat(0), Msat(0), Msat(0), Msat(0), 0)


# Watching ----------------------------------------------------------------------------------------


async def test_a_stall_ends_an_answer_and_waiting_for_us_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judging, "LOOK_EVERY", 0.001)
    now, waiting, looks = 0.0, True, 0

    async def silent() -> AsyncGenerator[Event, None]:
        yield Text("a")
        await asyncio.Event().wait()

    def clock() -> float:
        nonlocal now, waiting, looks
        looks += 1
        now += 1.0
        waiting = looks < 100
        return now

    events = judged(silent(), Judge(Limits(stall=20), 0), lambda: waiting, clock)
    assert await anext(events) == Text("a")
    with pytest.raises(BadAnswer) as caught:
        await anext(events)
    assert caught.value.reason == "answer-stall"
    assert looks >= 120


async def test_an_empty_answer_is_a_fault() -> None:
    async def empty() -> AsyncGenerator[Event, None]:
        yield Done("stop", COST)

    with pytest.raises(BadAnswer) as caught:
        async for _ in judged(empty(), Judge(Limits(), 0), lambda: False):
            pass
    assert caught.value.fault.kind is FaultKind.EMPTY


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    (tmp_path / "shop").mkdir()
    made = Shop(tmp_path / "shop")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paid_session, "REFUND_SECONDS", 2.0)


def client_of(shop: Shop, path: Path, **settings: Any) -> AbstractAsyncContextManager[Client]:
    return connect(
        shop.url,
        UserNode(shop.node),
        settings=ClientSettings(**settings),
        store=path / "client.sqlite",
    )


async def test_a_bad_answer_ends_the_session_with_its_refund_and_is_remembered(
    shop: Shop, tmp_path: Path
) -> None:
    shop.engine.stall_at = 5
    async with client_of(shop, tmp_path, stall_seconds=1) as client:
        with pytest.raises(BadAnswer) as caught:
            async for _ in client.chat("abc", max_tokens=50, seed=7):
                pass
    assert caught.value.fault.kind is FaultKind.STALL
    store = Store(tmp_path / "client.sqlite")
    [row] = store.sessions()
    assert row.value.phase == "closed"
    assert row.value.refund == row.value.paid - (3 * 50 + 5 * 250)
    record = store.reputation(shop.node_id.hex())
    assert record.faults == {"stall": 1}
    store.close()


async def test_good_answers_are_remembered_too(shop: Shop, tmp_path: Path) -> None:
    async with client_of(shop, tmp_path) as client:
        for _ in range(2):
            async for _ in client.chat("abc", max_tokens=5):
                pass
    store = Store(tmp_path / "client.sqlite")
    record = store.reputation(shop.node_id.hex())
    assert record.answers == 2
    assert record.latency_ms is not None
    store.close()


# Reputation --------------------------------------------------------------------------------------


def test_reputation() -> None:
    stranger = Record()
    assert stranger.score == BEST
    assert fault(stranger, FaultKind.REPETITION).score == 800
    assert fault(stranger, FaultKind.WRONG_MODEL).is_poor
    known = stranger
    for _ in range(100):
        known = good_answer(known, 40)
    assert known.latency_ms == 40
    once = fault(known, FaultKind.STALL)
    assert 950 < once.score < BEST
    assert not fault(known, FaultKind.WRONG_MODEL).is_poor
    assert good_answer(known, 80).latency_ms == 50
    assert ranked_price(100, BEST) == 100
    assert ranked_price(100, BEST // 2) == 200
    assert ranked_price(100, 0) == 100_000


# Spot checks -------------------------------------------------------------------------------------

ARCHITECTURE = ByteTransformer(width=32, blocks=1, heads=2, context=32)


def model(seed: int) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        floats = {n: 3 * w for n, w in ARCHITECTURE.build().state_dict().items()}
    dataset = sealed.seal(TextPart(bytes(range(200))), [], [])
    return Model(ARCHITECTURE, CrossEntropy(), weights.quantise(floats).weights, dataset)


def asked(served: Model, promised: Model, seed: int = 7, length: int = 60) -> Asked:
    module = bundle.with_weights(ARCHITECTURE, weights.dequantise(served.weights))
    generation = Generation(module, render_chat(["What?"]), 1.0, seed)
    text = bytes(generation.next() % 128 for _ in range(length)).decode()
    return Asked(promised.weights_root, ["What?"], text, 1.0, seed)


async def test_the_promised_weights_are_told_from_others(tmp_path: Path) -> None:
    promised, older = model(1), model(2)
    directory.write(tmp_path / "model", promised)
    copies = OwnCopies([tmp_path / "model"])
    assert await copies.check(replace(asked(promised, promised), answer="")) is None
    found = await copies.check(asked(older, promised))
    assert found is not None
    assert found.kind is FaultKind.WRONG_MODEL
    assert await copies.check(asked(older, older)) is None  # no copy of these


async def test_an_honest_answer_passes(tmp_path: Path) -> None:
    promised = model(1)
    directory.write(tmp_path / "model", promised)
    module = bundle.with_weights(ARCHITECTURE, weights.dequantise(promised.weights))
    text = ""
    seed = 0
    while not text:  # an answer whose first bytes are text
        seed += 1
        generation = Generation(module, render_chat(["What?"]), 1.0, seed)
        data = bytes(generation.next() for _ in range(40))
        text = data.decode(errors="replace").partition("�")[0]
    question = Asked(promised.weights_root, ["What?"], text + "�and more", 1.0, seed)
    assert await OwnCopies([tmp_path / "model"]).check(question) is None
