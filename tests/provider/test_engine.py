import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provider import models
from provider.api import Message
from provider.decoding import Token
from provider.engine import Engine, GenerateRequest, TorchEngine
from sidechain.model.architecture import ByteTransformer
from sidechain.model.generate import Generation
from sidechain.model.trainer import Budget

SMALL = ByteTransformer(width=16, blocks=1, heads=4, context=16)
FEW = Budget(steps=20)


def make(cache: Path) -> TorchEngine:
    return TorchEngine(models.load(models.first_model(cache, budget=FEW, architecture=SMALL)))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def engine(cache: Path) -> Iterator[TorchEngine]:
    made = make(cache)
    yield made
    made.close()


async def answer(
    engine: Engine, request: GenerateRequest, already: tuple[int, ...] = ()
) -> list[Token]:
    return [token async for token in engine.generate(request, already)]


def ask(**fields: object) -> GenerateRequest:
    defaults: dict[str, object] = {"prompt": b"What is", "max_tokens": 40, "seed": 3}
    return GenerateRequest(**{**defaults, **fields})  # type: ignore[arg-type]  # a test's shorthand


async def test_an_answer_ends_at_its_length(engine: TorchEngine) -> None:
    tokens = await answer(engine, ask())
    assert len(tokens) == 40
    assert [token.finish_reason for token in tokens] == [None] * 39 + ["length"]
    assert "".join(t.text for t in tokens) == bytes(t.id for t in tokens).decode("utf-8", "replace")


async def test_the_seed_and_the_temperature_decide(engine: TorchEngine) -> None:
    assert await answer(engine, ask()) == await answer(engine, ask())
    assert await answer(engine, ask()) != await answer(engine, ask(seed=4))
    greedy = await answer(engine, ask(temperature=0.0))
    assert greedy == await answer(engine, ask(temperature=0.0, seed=4))
    assert greedy == await answer(engine, ask(temperature=5e-324))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_an_answer_goes_on_from_any_prefix(engine: TorchEngine, data: st.DataObject) -> None:
    request = ask(
        prompt=data.draw(st.binary(max_size=40)),
        seed=data.draw(st.integers(-(1 << 63), (1 << 63) - 1)),
        temperature=data.draw(st.sampled_from([0.0, 0.7, 2.0])),
        stop=tuple(data.draw(st.lists(st.text("e t", min_size=1, max_size=2), max_size=2))),
    )

    async def check() -> None:
        whole = await answer(engine, request)
        ids = tuple(token.id for token in whole)
        cut = data.draw(st.integers(0, len(ids)))
        assert list(engine.replay(request, ids[:cut])) == whole[:cut]
        assert await answer(engine, request, ids[:cut]) == whole[cut:]

    asyncio.run(check())


async def test_a_stop_sequence_ends_an_answer(engine: TorchEngine) -> None:
    text = "".join(t.text for t in await answer(engine, ask()))
    stop = text[10:13]
    tokens = await answer(engine, ask(stop=(stop,)))
    assert tokens[-1].finish_reason == "stop"
    assert "".join(t.text for t in tokens) == text[: text.index(stop)]


def test_a_prefix_that_is_no_answer_is_refused(engine: TorchEngine) -> None:
    with pytest.raises(ValueError, match="finished"):
        engine.replay(ask(max_tokens=1), (97, 98))


async def test_answers_take_turns(engine: TorchEngine) -> None:
    order: list[int] = []

    async def run(number: int) -> None:
        async for _ in engine.generate(ask(prompt=b"a", seed=number)):
            order.append(number)  # noqa: PERF401  # the order of the appends is what is tested

    await asyncio.gather(run(0), run(1), run(2))
    for place in range(0, 120, 3):
        assert sorted(order[place : place + 3]) == [0, 1, 2]


async def test_leaving_an_answer_stops_the_work(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    step = Generation.step

    def counted(self: Generation) -> int | None:
        nonlocal steps
        steps += 1
        return step(self)

    monkeypatch.setattr(Generation, "step", counted)
    async with aclosing(engine.generate(ask(prompt=b"a"))) as tokens:
        async for _ in tokens:
            break
    # The queue is served in order: once this other answer is through, nothing is left before it.
    await answer(engine, ask(prompt=b"a", max_tokens=1))
    assert steps == 2


async def test_a_closed_engine_answers_with_an_error(cache: Path) -> None:
    closed = make(cache)
    closed.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        await answer(closed, ask())


def test_the_tokens_that_count_are_those_the_model_sees(engine: TorchEngine) -> None:
    assert engine.context_length == 16
    assert engine.count_tokens(b"") == 1
    assert engine.count_tokens("é".encode()) == 2
    assert engine.count_tokens(b"x" * 100) == 16


def test_a_conversation_becomes_paragraphs(engine: TorchEngine) -> None:
    messages = [Message("system", "Be brief."), Message("user", "What is é?")]
    assert engine.render_chat(messages) == "Be brief.\n\nWhat is é?\n\n".encode()
