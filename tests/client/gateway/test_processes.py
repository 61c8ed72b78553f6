"""Programs: OpenAI's client and curl, the gateway, a provider with a torch model, real nodes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from channels.units import Sat
from provider.models import first_model
from regtest.daemon import free_port
from sidechain.model.architecture import ByteTransformer
from sidechain.model.trainer import Budget
from tests.conftest import Chain
from tests.nodes import LightningNode, balances, check_conserved, nodes_on, until
from tests.provider.test_processes import Programs, origin, told

PAGE = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text()
MESSAGES = [{"role": "user", "content": "What is a list?"}]
GIVEN: dict[str, Any] = {"seed": 5, "temperature": 0.9}

pytestmark = pytest.mark.timeout(400)  # a model is trained first, and every program loads torch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained enough for words: garbage would be left."""
    return first_model(
        tmp_path_factory.mktemp("model"),
        budget=Budget(steps=150),
        architecture=ByteTransformer(width=16, blocks=1, heads=4, context=16),
    )


class Street:
    """A provider and a user's gateway as programs, each with a node, and a channel between."""

    def __init__(self, programs: Programs, user: LightningNode, seller: LightningNode) -> None:
        self.programs = programs
        self.user = user
        self.seller = seller
        self.port = free_port({node.process.port for node in (user, seller)})
        self.model = ""
        self.before: list[int] = []

    async def provide(self, model: Path) -> subprocess.Popen[str]:
        name, port = "provider", str(self.port)
        rpc_file = str(self.seller.process.rpc_file)
        arguments = ("--rpc-file", rpc_file, "--port", port, "--model", str(model))
        process = self.programs.start(name, "provider", *arguments)
        said = await told(process)
        self.model, self.url = said["model"], origin(said)
        return process

    async def gateway(self, *arguments: str) -> tuple[subprocess.Popen[str], openai.AsyncOpenAI]:
        process = self.programs.start(
            *("user", "gateway", "--provider", self.url, "--port", "0", *arguments),
            ODA_LIGHTNING_RPC_FILE=str(self.user.process.rpc_file),
        )
        url = (await told(process))["url"]
        return process, openai.AsyncOpenAI(base_url=url, api_key="sk-any", max_retries=0)

    async def oda(self, *arguments: str) -> Any:
        """Its document; None where it failed."""
        process = self.programs.start(
            *("user", *arguments), ODA_LIGHTNING_RPC_FILE=str(self.user.process.rpc_file)
        )
        out, _ = await asyncio.to_thread(process.communicate)
        return json.loads(out) if process.returncode == 0 else None

    async def ask(self, client: openai.AsyncOpenAI, **given: Any) -> Any:
        create: Any = client.chat.completions.create
        return await create(model=self.model, messages=MESSAGES, **GIVEN | given)

    async def check_money(self) -> int:
        """Every session is closed, and nobody has a msat more or less. What was spent, in msat."""
        await check_conserved(self.user, self.seller, self.before)
        rows = await self.oda("sessions", "--all")
        assert {row["state"] for row in rows} == {"closed"}
        spent: int = sum(row["paid_msat"] - row["refund_msat"] for row in rows)
        ours, theirs = await balances(self.user, self.seller)
        assert [ours, theirs] == [self.before[0] - spent, self.before[1] + spent]
        return spent


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Programs(tmp_path) as made:
        yield made


@pytest.fixture
async def street(bitcoind: Chain, programs: Programs) -> AsyncIterator[Street]:
    # The nodes are stopped by an event loop of their own.
    context = nodes_on(bitcoind)
    nodes = await asyncio.to_thread(context.__enter__)
    try:
        user, seller = await nodes.start("user", "seller")
        await nodes.open(user, seller, Sat(200_000), push_msat=5_000_000)
        made = Street(programs, user, seller)
        made.before = await balances(user, seller)
        yield made
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


async def text_of(stream: Any) -> str:
    return "".join(
        [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
    )


async def test_programs_ask_and_the_gateway_pays(street: Street, model: Path) -> None:
    await street.provide(model)
    gateway, client = await street.gateway()
    async with client:
        assert [each.id for each in (await client.models.list()).data] == [street.model]
        whole = await street.ask(client, max_tokens=120)
        said = whole.choices[0].message.content
        assert len(set(said)) > 5
        assert await text_of(await street.ask(client, max_tokens=120, stream=True)) == said
        both = await asyncio.gather(*(street.ask(client, max_tokens=60) for _ in range(2)))
        assert [each.choices[0].message.content for each in both] == [said[:60]] * 2
        plain = await client.completions.create(
            model=street.model, prompt="What is a list?\n\n", max_tokens=60, **GIVEN
        )
        # The model's template makes paragraphs of messages: the same prompt, the same answer.
        assert plain.choices[0].text == said[:60]
        printed = await as_the_page_says(str(client.base_url).rstrip("/"), street.model)
        assert all(len(text) > 100 for text in printed)
    records = [await told(gateway) for _ in range(7)]
    assert [record["status"] for record in records] == [200] * 7
    gateway.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(gateway.wait) == 0
    assert await street.check_money() == sum(record["spent_msat"] for record in records) > 0


async def as_the_page_says(url: str, model: str) -> tuple[str, str]:
    """What curl and Python print when they are run as docs/gateway.md shows them."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not on PATH")
    shell = re.search(r"\$ (curl .*?)```", PAGE, re.DOTALL)
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert shell is not None and code is not None and "oda-pydoc" in shell[1]
    there = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "any-text"}
    programs = (("sh", "-c", shell[1]), (sys.executable, "-c", code[1]))
    running = [
        await asyncio.create_subprocess_exec(*each, env=there, stdout=asyncio.subprocess.PIPE)
        for each in programs
    ]
    raw, printed = [(await each.communicate())[0].decode() for each in running]
    events = raw.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    return "".join(delta.get("content", "") for delta in deltas), printed


async def test_a_provider_that_is_killed_goes_on_and_a_budget_ends_it(
    street: Street, model: Path
) -> None:
    provider = await street.provide(model)
    gateway, client = await street.gateway("--max-total-sat", "120")
    async with client:
        said, pieces = "", 0
        async for chunk in await street.ask(client, max_tokens=200, stream=True):
            said += chunk.choices[0].delta.content or ""
            pieces += 1
            if pieces == 40:
                provider.kill()
                provider.wait()
                await street.provide(model)
        assert (await street.ask(client, max_tokens=200)).choices[0].message.content == said
        with pytest.raises(openai.RateLimitError) as refused:
            await street.ask(client, max_tokens=400)
        assert refused.value.code == "insufficient_quota"
    records = [await told(gateway) for _ in range(3)]
    assert [record["reason"] for record in records] == [None, None, "total-cap-reached"]
    gateway.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(gateway.wait) == 0
    spent = await street.check_money()
    assert sum(record["spent_msat"] for record in records) == spent <= 120_000


async def test_nothing_is_lost_when_the_gateway_is_killed(street: Street, model: Path) -> None:
    await street.provide(model)
    gateway, client = await street.gateway()
    async with client:
        streams = [await street.ask(client, max_tokens=400, stream=True) for _ in range(2)]
        for stream in streams:
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
        gateway.kill()
        gateway.wait()
    rows = await street.oda("sessions")
    assert {row["state"] for row in rows} <= {"opening", "open"} and len(rows) == 2
    # Another one goes on with what the first one left.
    gateway, client = await street.gateway()
    async with client:
        await street.ask(client, max_tokens=20)
    gateway.kill()
    gateway.wait()
    assert len(await street.oda("sessions", "--all")) == 2
    # Until the provider has noticed that its readers are gone, it may say no.
    closed = await until(lambda: street.oda("close", "--all"), "both are closed", within=60)
    assert len(closed["refunds"]) == 2
    assert all(refund["received_msat"] > 0 for refund in closed["refunds"])
    spent = await street.check_money()
    assert spent == sum(refund["spent_msat"] for refund in closed["refunds"])
