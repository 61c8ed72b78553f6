"""Our client buys from a provider with an upstream: the client's count is the provider's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channels.errors import OdaError
from channels.http.session import Provenance
from channels.units import Sat
from client.answer import Chunk, Done, Event
from client.sdk import Client, connect
from client.settings import ClientSettings
from provider.share_book import Backing
from provider.upstream import UpstreamEngine
from sidechain.fees import Beneficiaries
from tests.client.fakes import Shop, UserNode
from tests.client.small_chain import SmallChain
from tests.client.test_sdk import client_of, done, text_of
from tests.provider import upstream_server
from tests.provider.fakes import MODEL
from tests.provider.payees import PayeeWorld
from tests.provider.upstream_server import DONE, OPENING, FakeUpstream, chunk, letters, usage_chunk


@pytest.fixture
def fake() -> FakeUpstream:
    return FakeUpstream()


@pytest.fixture
async def shop(tmp_path: Path, fake: FakeUpstream) -> AsyncIterator[Shop]:
    async with upstream_server.upstream_of(fake) as upstream:
        made = Shop(tmp_path / "shop")
        made.serving = UpstreamEngine(upstream, MODEL, 16_384)
        await made.start()
        yield made
        await made.stop()


@pytest.fixture
async def client(shop: Shop, tmp_path: Path) -> AsyncIterator[Client]:
    async with client_of(shop, UserNode(shop.node), tmp_path) as made:
        yield made


async def bought(client: Client, tokens: int = 200, prompt: str = "abc") -> list[Event]:
    return [event async for event in client.chat(prompt, max_tokens=tokens)]


@pytest.mark.parametrize(
    ("pieces", "size", "tokens"),
    [(60, 1, 60), (60, 1, 7), (4, 60, 170), (60, 1, 0)],
    ids=["a token each", "torn", "many in one", "nothing"],
)
async def test_both_count_the_same(
    client: Client, fake: FakeUpstream, pieces: int, size: int, tokens: int
) -> None:
    # Not letters over and over: an answer that says nothing is left.
    words = [chunk(content=f"{i:x}".rjust(size, "-")) for i in range(pieces)]
    fake.script = [OPENING, *words, chunk("stop"), usage_chunk(tokens), DONE]
    events = await bought(client)
    cost = done(events).cost
    assert cost.output_tokens == tokens
    assert cost.spent_msat == (7 * 50 + tokens * 250 if tokens else 0)
    assert cost.max_exposure_msat <= cost.exposure_limit_msat
    [refund] = await client.close()
    assert refund.spent_msat == cost.spent_msat
    assert refund.received_msat == refund.paid_msat - refund.spent_msat
    assert refund.unaccounted_msat == 0


@pytest.mark.parametrize(("tokens", "cap"), [(3_000, 1_000), (9_000, 1_000), (3_000, 100)])
async def test_long_questions(
    shop: Shop, fake: FakeUpstream, tmp_path: Path, tokens: int, cap: int
) -> None:
    """They are paid before they are read, as far as the user's cap allows."""
    fake.prompt_tokens = tokens
    fake.script = [OPENING, *letters(40), chunk("stop"), usage_chunk(40, tokens), DONE]
    node = UserNode(shop.node)
    async with client_of(shop, node, tmp_path, max_exposure_sat=Sat(cap)) as client:
        if cap < 1_000:
            with pytest.raises(OdaError) as refused:
                await bought(client, prompt="word " * tokens)
            assert refused.value.reason == "exposure-limit"
            assert not fake.answered
        else:
            events = await bought(client, prompt="word " * tokens)
            assert done(events).cost.spent_msat == tokens * 50 + 40 * 250
        [refund] = await client.close()
        assert refund.received_msat == refund.paid_msat - refund.spent_msat


async def test_a_call_of_a_tool(client: Client, fake: FakeUpstream) -> None:
    call = {"index": 0, "id": "c", "type": "function"}
    called = call | {"function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    fake.script = [OPENING, chunk(tool_calls=[called]), chunk("tool_calls"), usage_chunk(14), DONE]
    events = await bought(client)
    (brought,) = [e for e in events if isinstance(e, Chunk) and not e.is_silent]
    assert '"weather"' in brought.data
    assert isinstance(events[-1], Done)
    assert (events[-1].reason, events[-1].cost.output_tokens) == ("tool_calls", 14)


class Unregistered(PayeeWorld):
    """Nobody trained on the sidechain what an upstream has."""

    provenance = Provenance(7, b"\x81" * 32)

    def backing(self, model: bytes | None, weights_root: bytes | None) -> Backing | None:
        assert (model, weights_root) == (None, None)
        return Backing(self.provenance, Beneficiaries(None, self.people[0].key, None))


async def test_producers_alone_are_owed_and_a_receipt_says_so(
    fake: FakeUpstream, tmp_path: Path
) -> None:
    async with upstream_server.upstream_of(fake) as upstream:
        shop, payees = Shop(tmp_path / "shop"), Unregistered("producer")
        shop.serving, shop.payees = UpstreamEngine(upstream, MODEL, 4096), payees
        await shop.start()
        terms = ClientSettings(min_trainer_ppm=50_000, min_producers_ppm=10_000)
        made = connect(
            shop.url,
            UserNode(shop.node),
            settings=terms,
            store=tmp_path / "client.sqlite",
            chain=SmallChain(payees),
        )
        async with made as client:
            await bought(client, 60)
            words = [chunk(content=f"{i:x}") for i in range(40)]
            fake.script = [OPENING, *words, chunk("stop"), usage_chunk(9), DONE]
            await bought(client)
            [refund] = await client.close()
            checked = await client.check_receipt(refund.session)
        spent = 2 * 7 * 50 + (60 + 9) * 250
        assert refund.spent_msat == checked.spent_msat == spent
        assert checked.carried == {payees.people[0].key.hex(): -(-spent // 100)}
        assert checked.provider_msat == spent - -(-spent // 100)
        await shop.stop()


async def test_an_interrupted_answer(client: Client, fake: FakeUpstream) -> None:
    fake.script = [OPENING, *letters(20), "hang up"]
    events: list[Event] = []
    with pytest.raises(OdaError) as failed:
        async for event in client.chat("abc", max_tokens=200):
            events.append(event)  # noqa: PERF401  # what came before the error counts
    assert failed.value.reason == "engine-unavailable"
    cut = text_of(events)
    fake.script = None
    assert len(text_of(await bought(client, 30))) == 30
    [refund] = await client.close()
    assert refund.spent_msat == (1 + bool(cut)) * 7 * 50 + (len(cut) + 30) * 250
    assert refund.unaccounted_msat == 0
