"""A session with shares, from the first challenge to the proof that everybody was paid."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from channels.errors import OdaError, RemoteProtocolError
from channels.receipts import Receipt
from client import session as paid_session
from client.provider import ProviderRefused
from client.sdk import Client, Text, connect
from client.settings import ClientSettings
from tests.client.fakes import Shop, UserNode
from tests.client.small_chain import SmallChain
from tests.provider.payees import SHARES, PayeeWorld


@pytest.fixture
def payees() -> PayeeWorld:
    return PayeeWorld("trainer", "last", "accepting")


@pytest.fixture
async def shop(tmp_path: Path, payees: PayeeWorld) -> AsyncIterator[Shop]:
    (tmp_path / "shop").mkdir()
    made = Shop(tmp_path / "shop")
    made.payees = payees
    await made.start()
    yield made
    await made.stop()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paid_session, "REFUND_SECONDS", 2.0)


@pytest.fixture
async def client(shop: Shop, payees: PayeeWorld, tmp_path: Path) -> AsyncIterator[Client]:
    settings = ClientSettings(
        min_trainer_ppm=SHARES.trainer_ppm, min_producers_ppm=SHARES.producers_ppm
    )
    store = tmp_path / "client.sqlite"
    made = connect(
        shop.url, UserNode(shop.node), settings=settings, store=store, chain=SmallChain(payees)
    )
    async with made as client:
        yield client


async def ask(client: Client, tokens: int = 100, **given: Any) -> None:
    async for _ in client.chat("abc", max_tokens=tokens, seed=7, **given):
        pass


async def settle(shop: Shop, payees: PayeeWorld) -> None:
    assert shop.provider.desk is not None
    payees.clock.ahead += 4000
    shop.clock.ahead += 4000
    await shop.provider.desk.settlement.tick()


async def test_everybody_is_paid_and_the_user_can_tell(
    shop: Shop, payees: PayeeWorld, client: Client
) -> None:
    for _ in range(3):
        await ask(client)
    [refund] = await client.close()
    spent = 3 * (3 * 50 + 100 * 250)
    assert refund.spent_msat == spent
    receipt = await client.receipt(refund.session)
    checked = await client.check_receipt(refund.session)
    owed = {name: -(-spent * part // 1000) for name, part in (("trainer", 50), ("both", 10))}
    assert checked.spent_msat == spent
    assert checked.provider_msat == spent - sum(owed.values())
    assert sum(checked.carried.values()) + sum(checked.paid.values()) == sum(owed.values())
    await settle(shop, payees)
    checked = await client.check_receipt(refund.session)
    trainer, last, accepting = (person.key.hex() for person in payees.people)
    assert checked.paid[trainer] == payees.people[0].received == owed["trainer"]
    # What is below the smallest payable amount is carried over.
    assert sum(checked.carried.values()) == owed["both"]
    assert set(checked.carried) == {last, accepting}
    assert (await client.receipt(refund.session)).statement == receipt.statement


async def test_an_open_session_has_no_receipt(shop: Shop, client: Client) -> None:
    await ask(client, 10)
    with pytest.raises(ProviderRefused) as caught:
        await client.receipt(1)
    assert caught.value.reason == "lightning/session-open"


async def test_a_receipt_is_for_whoever_has_the_secret(shop: Shop, client: Client) -> None:
    await ask(client, 10)
    await client.close()
    session = (await client.receipt(1)).statement.session
    for secret in (bytes(32), b"", b"\xff" * 31):
        path = f"/v1/receipts/{session}"
        headers = {"Authorization": f"Bearer {secret.hex()}"}
        async with shop.client.get(path, headers=headers) as response:
            assert response.status == 404
    async with shop.client.get("/v1/receipts/" + "00" * 32) as response:
        assert response.status == 404


async def test_the_provenance_may_change_between_answers(
    shop: Shop, payees: PayeeWorld, client: Client
) -> None:
    chain = client._chain
    assert isinstance(chain, SmallChain)
    await ask(client)
    payees.provenance = replace(payees.provenance, height=8, block=b"\x82" * 32)
    chain.recent.add(payees.provenance.block)
    await ask(client)
    await ask(client)
    await client.close()
    statement = (await client.receipt(1)).statement
    assert [period.height for period in statement.periods] == [7, 8]
    assert (await client.check_receipt(1)).spent_msat == statement.spent


async def test_a_tip_that_is_not_ours_is_not_paid_for(
    shop: Shop, payees: PayeeWorld, client: Client
) -> None:
    chain = client._chain
    assert isinstance(chain, SmallChain)
    chain.recent.clear()
    with pytest.raises(RemoteProtocolError) as caught:
        await ask(client)
    assert caught.value.reason == "stale-tip"
    assert shop.node.pay_index == 0


async def test_a_provider_that_was_killed_owes_the_same(
    shop: Shop, payees: PayeeWorld, client: Client, tmp_path: Path
) -> None:
    killed = False
    async with aclosing(client.chat("abc", max_tokens=200, seed=7)) as events:
        async for event in events:
            if isinstance(event, Text) and not killed:
                killed = True
                shop = await shop.kill(tmp_path / "killed")
                await shop.start()
    [refund] = await client.close()
    assert killed
    checked = await client.check_receipt(refund.session)
    assert checked.spent_msat == refund.spent_msat == 3 * 50 + 200 * 250
    await shop.stop()


Change = Callable[[Receipt], Receipt]


def owing_less(receipt: Receipt) -> Receipt:
    statement = receipt.statement
    fewer = tuple(msgspec.structs.replace(each, owed=()) for each in statement.periods)
    return msgspec.structs.replace(
        receipt, statement=msgspec.structs.replace(statement, periods=fewer)
    )


async def test_a_provider_that_signs_smaller_shares_is_found_out(
    shop: Shop, payees: PayeeWorld, client: Client
) -> None:
    await ask(client)
    await client.close()
    lie = owing_less(await client.receipt(1))
    signed = msgspec.structs.replace(lie, signature=await payees.signmessage(lie.statement.text))
    with pytest.raises(OdaError) as caught:
        await client.check_receipt(1, signed)
    assert caught.value.reason == "wrong-payee"


async def test_leaving_an_answer_leaves_a_receipt_that_holds(
    shop: Shop, payees: PayeeWorld, client: Client
) -> None:
    async with aclosing(client.chat("abc", max_tokens=2000, seed=7)) as events:
        pieces = 0
        async for event in events:
            pieces += isinstance(event, Text)
            if pieces == 20:
                break
    await asyncio.sleep(0.1)
    [refund] = await client.close()
    checked = await client.check_receipt(refund.session)
    assert checked.spent_msat == refund.spent_msat
