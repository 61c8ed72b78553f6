"""One question, several providers: the next one is asked where one fails.

Nobody is paid twice for the same thing: a session that failed keeps or brings back its rest, and
while the outcome of a payment is not known, nobody else is paid.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Final

from channels.errors import OdaError, RemoteProtocolError, UserError
from client.answer import Event
from client.budget import CAPS
from client.discovery import Seller
from client.provider import ProviderUnreachable
from client.sdk import Client

Connect = Callable[[Seller], AbstractAsyncContextManager[Client]]
Ask = Callable[[Client, Seller], AsyncGenerator[Event, None]]
OpenChannel = Callable[[Seller], Awaitable[bool]]
"""Open a channel to a seller; False where there is one, or where that can't be done."""

FATAL: Final = CAPS | {"payment-unknown"}
"""Another provider would not mend these, or would be paid beside the first."""


MENDED_ELSEWHERE: Final = frozenset(
    {"payment-failed", "topup-timeout", "channel-refused", "peer-unreachable"}
)


@dataclass(frozen=True, slots=True)
class Switched:
    """The answer begins anew with another provider. url: of the next one."""

    url: str
    reason: str


async def ask_any(
    sellers: Sequence[Seller],
    connect: Connect,
    ask: Ask,
    open_channel: OpenChannel | None = None,
) -> AsyncGenerator[Event | Switched, None]:
    """The answer of the first seller that gives one.

    open_channel: is tried once where a seller can't be paid. Raises UserError `no-provider`, what
    is fatal, or the last seller's failure.
    """
    if not sellers:
        raise UserError(
            "no-provider", "No provider of this model answers; name one with --provider."
        )
    waiting = list(sellers)
    opened: set[str] = set()
    while True:
        seller = waiting[0]
        try:
            async with connect(seller) as client, aclosing(ask(client, seller)) as events:
                async for event in events:
                    yield event
            return
        except OdaError as error:
            if error.reason == "payment-failed" and open_channel and seller.url not in opened:
                opened.add(seller.url)
                if await open_channel(seller):
                    yield Switched(seller.url, "channel-opened")
                    continue
            if len(waiting) == 1 or not _may_ask_another(error):
                raise
            waiting.pop(0)
            yield Switched(waiting[0].url, error.reason)


def _may_ask_another(error: OdaError) -> bool:
    if error.reason in FATAL:
        return False
    if isinstance(error, ProviderUnreachable | RemoteProtocolError):
        return True
    return error.reason in MENDED_ELSEWHERE
