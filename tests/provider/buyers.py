"""A payer over HTTP, as a client would be: ClientSession's effects carried out one by one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientResponse

from channels.http import scheme
from channels.http.payer import (
    AskForOffer,
    Caps,
    ClientSession,
    Effect,
    PayInvoice,
    SendCredential,
    Step,
)
from channels.http.scheme import Challenge, Credential
from channels.units import Msat
from tests.provider.fakes import MODEL, World

CHAT = "/v1/chat/completions"


def chat(**more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "seed": 1,
    } | more


@dataclass(frozen=True)
class Sse:
    name: str
    id: str
    data: str

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.data))


async def events(response: ClientResponse) -> AsyncIterator[Sse]:
    fields: dict[str, str] = {}
    async for line in response.content:
        text = line.decode().rstrip("\n")
        if text:
            name, _, value = text.partition(": ")
            fields[name] = value
        elif fields:
            yield Sse(fields.get("event", ""), fields.get("id", ""), fields.get("data", ""))
            fields = {}


async def all_events(response: ClientResponse) -> list[Sse]:
    return [event async for event in events(response)]


def plain(found: list[Sse]) -> list[tuple[str, str]]:
    """The events of the answer itself, without those of the payment."""
    return [(event.id, event.data) for event in found if not event.name]


def texts(found: list[Sse]) -> str:
    return "".join(
        event.document["choices"][0]["delta"].get("content") or ""
        for event in found
        if not event.name and event.data != "[DONE]" and event.document["choices"]
    )


def challenges(response: ClientResponse) -> tuple[Challenge, ...]:
    return scheme.parse_challenges(response.headers.getall("WWW-Authenticate", []))


def offer(response: ClientResponse, intent: str) -> Challenge:
    return next(c for c in challenges(response) if c.intent == intent)


def paying(challenge: Challenge, **payload: Any) -> dict[str, str]:
    return {"Authorization": Credential(challenge, payload).to_header()}


async def charged(world: World, body: Mapping[str, Any]) -> dict[str, str]:
    """Ask, pay the charge, and give the header that proves it."""
    asked = await world.client.post(CHAT, json=body)
    assert asked.status == 402, await asked.text()
    challenge = offer(asked, "charge")
    preimage = world.node.pay(challenge.request_object()["methodDetails"]["invoice"])
    return paying(challenge, preimage=preimage.hex())


@dataclass
class Buyer:
    """One session. `responses` are those to credentials, the newest last."""

    world: World
    number: int = 0
    body: dict[str, Any] = field(default_factory=lambda: chat(stream=True))
    pays: bool = True
    exposures: list[int] = field(default_factory=list)
    responses: list[ClientResponse] = field(default_factory=list)
    topups: int = 0
    counted: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        caps = Caps(
            "regtest",
            self.world.node_id,
            True,
            Msat(50),
            Msat(250),
            Msat(16_000),
            Msat(10**9),
        )
        secret = bytes([self.number + 1]) * 32
        self.session = ClientSession(caps, MODEL, self.world.return_invoice(self.number), secret)

    async def apply(self, step: Step) -> None:
        self.session, effects = step
        for effect in effects:
            await self.carry_out(effect)

    async def carry_out(self, effect: Effect) -> None:
        now = self.world.provider.cashier.now()
        if isinstance(effect, PayInvoice):
            preimage = self.world.node.pay(effect.invoice)
            await self.apply(self.session.payment_succeeded(effect.payment_hash, preimage))
        elif isinstance(effect, AskForOffer):
            asked = await self.world.client.get(CHAT)
            assert asked.status == 402
            self.session = self.session.offered(challenges(asked), now)
        elif isinstance(effect, SendCredential):
            await self.send(effect)

    async def send(self, effect: SendCredential) -> None:
        headers = {"Authorization": effect.credential.to_header()}
        if effect.action == "bearer":
            response = await self.world.client.post(CHAT, json=self.body, headers=headers)
        else:
            response = await self.world.client.get(CHAT, headers=headers)
        assert response.status == 200, await response.text()
        self.responses.append(response)
        if effect.payment_hash is not None:
            self.topups += effect.action == "topUp"
            await self.apply(self.session.claimed(effect.payment_hash))
        now = self.world.provider.cashier.now()
        self.session = self.session.offered(challenges(response), now)

    async def open(self) -> None:
        await self.carry_out(AskForOffer())
        await self.apply(self.session.open(self.world.provider.cashier.now()))

    async def ask(self, **more: Any) -> ClientResponse:
        """Send a request; the response is not read yet."""
        self.body = chat(stream=True) | more
        before = len(self.responses)
        while len(self.responses) == before:
            await self.apply(self.session.bearer())
        return self.responses[-1]

    async def read(self, response: ClientResponse, most: int | None = None) -> list[Sse]:
        """Read a stream to its end (or `most` events of it), topping up as it goes."""
        found: list[Sse] = []
        self.counted = (0, 0)
        async for event in events(response):
            found.append(event)
            if event.name == "payment-need-topup":
                await self._need_topup(event)
            elif event.id:
                await self._count(event)
            if len(found) == most:
                break
        return found

    async def _need_topup(self, event: Sse) -> None:
        if not self.pays:
            return
        now = self.world.provider.cashier.now()
        (offered,) = scheme.parse_challenges(event.document["challenge"])
        paid = {deposit.payable.payment_hash.hex() for deposit in self.session.deposits}
        if offered.request_object()["paymentHash"] in paid:
            return  # it was written before our top-up was there
        self.session = self.session.offered((offered,), now)
        await self.apply(self.session.need_topup(event.document["promptTokens"], now))

    async def _count(self, event: Sse) -> None:
        _, _, asked, answered = event.id.split(".")
        new = (int(asked), int(answered))
        step = (new[0] - self.counted[0], new[1] - self.counted[1])
        self.counted = new
        if step == (0, 0) or not self.pays:
            return
        now = self.world.provider.cashier.now()
        self.session, effects = self.session.received(*step, now)
        self.exposures.append(self.session.exposure)
        await self.apply((self.session, effects))

    async def close(self) -> dict[str, Any]:
        await self.apply(self.session.close())
        return dict(await self.responses[-1].json())
