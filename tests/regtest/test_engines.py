"""Which engine of the machine the demo finds, and what it says of one that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from channels.errors import RemoteProtocolError
from channels.units import Msat
from client import sdk
from client.receipts import Checked
from regtest import engines
from regtest.daemon import free_port
from regtest.earning import Sale
from regtest.engines import TOKENS, USUAL, VARIABLE, Engine, look, places, second_engine
from regtest.school import Demo
from tests.provider.upstream_server import FakeUpstream, serving


@asynccontextmanager
async def page(body: str, pause: asyncio.Event | None = None) -> AsyncIterator[str]:
    """Some other server, which says the same to everybody; -> the URL of its /v1."""

    async def handle(request: web.Request) -> web.Response:
        if pause is not None:
            await pause.wait()
        return web.Response(text=body)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    async with TestServer(app) as server:
        yield str(server.make_url("/v1"))
        if pause is not None:
            pause.set()


async def test_the_first_that_has_a_model() -> None:
    first, second = FakeUpstream(), FakeUpstream()
    first.names, second.names = ["not a name", "qwen2.5:7b"], ["letters"]
    async with serving(first) as one, serving(second) as two, page("<html>") as other:
        nobody = f"http://127.0.0.1:{free_port()}/v1"
        assert await look([nobody, other, one, two]) == Engine(one, "qwen2.5:7b")
        assert await look([two, one]) == Engine(two, "letters")
        assert (first.listed, second.listed, first.asked + second.asked) == (2, 2, [])


async def test_nobody_is_there() -> None:
    empty = FakeUpstream()
    empty.names = []
    async with serving(empty) as none, page('{"data": [{"id": 7}]}') as odd:
        assert await look([f"http://127.0.0.1:{free_port()}/v1", none, odd]) is None
    assert await look([]) is None


async def test_nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PATIENCE", 0.1)
    async with page("late", asyncio.Event()) as slow:
        assert await look([slow]) is None


def test_where_it_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert places() == USUAL
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:8080/v1,http://127.0.0.1:1/v1")
    assert places() == ("http://127.0.0.1:8080/v1", "http://127.0.0.1:1/v1")
    monkeypatch.setenv(VARIABLE, "")
    assert places() == ()


class Buyer:
    """In the place of sdk.Client."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.asked: list[dict[str, Any]] = []
        self.closed = 0

    async def models(self) -> Any:
        return SimpleNamespace(data=[SimpleNamespace(id="first", sidechain=None, infohash=None)])

    async def chat(self, question: str, **given: Any) -> AsyncGenerator[sdk.Event, None]:
        self.asked.append(given)
        yield sdk.Text("ab")
        if self.failure is not None:
            raise self.failure

    async def close(self) -> Sequence[Any]:
        self.closed += 1
        return [SimpleNamespace(session=4)]

    async def check_receipt(self, number: int) -> Checked:
        return Checked(number, Msat(2000), Msat(1980), {"07" * 32: Msat(20)}, {}, {}, False)


def market(directory: Path, buyer: Buyer) -> Sale:
    @asynccontextmanager
    async def client() -> AsyncIterator[Buyer]:
        yield buyer

    school = Demo(directory, directory, 1).school
    return cast("Sale", SimpleNamespace(school=school, client=client))


async def test_one_short_answer_is_bought(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    buyer = Buyer()
    sale = market(tmp_path, buyer)
    await second_engine(sale, Engine("http://127.0.0.1:1/v1", "letters"))
    assert [(each["model"], each["max_tokens"]) for each in buyer.asked] == [("letters", TOKENS)]
    assert buyer.closed == 1
    assert (sale.school.learned.receipts_verified, sale.school.learned.shares_conserved) == (
        1,
        True,
    )
    said = capsys.readouterr().out
    assert "letters of http://127.0.0.1:1/v1 is sold as well" in said
    assert "ab" in said and "2,000" in said


async def test_an_engine_that_fails_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    buyer = Buyer(RemoteProtocolError("upstream-failed", "Out of memory."))
    sale = market(tmp_path, buyer)
    await second_engine(sale, Engine("http://127.0.0.1:1/v1", "letters"))
    assert "It did not answer (upstream-failed): Out of memory." in capsys.readouterr().out
    assert (buyer.closed, sale.school.learned.receipts_verified) == (1, 0)


async def test_where_there_is_none_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    buyer = Buyer()
    await second_engine(market(tmp_path, buyer), None)
    (line,) = capsys.readouterr().out.splitlines()
    assert "No Ollama and no vLLM" in line
    assert not buyer.asked
