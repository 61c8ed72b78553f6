"""Everything about shares in one place: counted, settled, and told to the users who spent."""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from aiohttp import hdrs, web

from channels.background import background
from channels.http.scheme import Problem
from channels.units import Msat
from provider.api import Standing
from provider.ledger import Ledger
from provider.serving import Models, Served
from provider.settlement import Ask, Payees, Payer, Rules, Settlement
from provider.share_book import Backing, Lineage, ShareBook
from provider.share_ledger import ShareLedger
from provider.statements import Signer, Statements


class Node(Payer, Signer, Protocol):
    """What is used of channels.lightning.Lightning."""


@dataclass(frozen=True, slots=True)
class Following:
    """height: of the block by which shares are counted now, where one is known. trouble: why the
    chain can't be followed."""

    height: int | None
    trouble: str | None


class ShareDesk:
    def __init__(
        self,
        ledger: Ledger,
        models: Models,
        lineage: Lineage,
        payees: Payees,
        node: Node,
        ask: Ask,
        rules: Rules,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._models = models
        self._lineage = lineage
        self.shares = ShareLedger(ledger)
        self.book = ShareBook(self.shares, lineage)
        self.settlement = Settlement(self.shares, node, payees, ask, rules, clock)
        self._statements = Statements(self.shares, node, rules.network, rules.node_id, rules.secret)

    def backing(self, model: str) -> Backing | None:
        """What the sidechain says now of the model of a name."""
        served = self._models.current.get(model)
        return None if served is None else self.book.current(served)

    def standing(self, served: Served) -> Standing | None:
        """What a served model is on the sidechain, for /v1/models; None for one that is not."""
        if served.model is None or served.weights_root is None:
            return None
        newest = self._lineage.version(served.model)
        is_newest = newest is not None and newest.weights_root == served.weights_root
        version = newest if is_newest else None
        return Standing(
            served.model.hex(),
            served.weights_root.hex(),
            None if version is None else version.score,
            None if version is None else version.trainer.hex(),
            None if version is None else version.height,
        )

    def following(self) -> Following:
        backings = [self.book.current(served) for served in self._models.current.values()]
        heights = [each.provenance.height for each in backings if each is not None]
        return Following(max(heights, default=None), self._lineage.trouble)

    def sent(self, session: bytes, backing: Backing) -> None:
        """A challenge that says so goes to a session."""
        self.book.sent(session, backing)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Settles while the block runs. What is left is settled after the next start."""
        async with background(self.settlement.run()):
            yield

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/receipts/{session:[0-9a-f]{64}}", self._receipt)]

    async def _receipt(self, request: web.Request) -> web.Response:
        """For whoever has the session's secret: what it bought is nobody else's business."""
        session = self._ledger.session(bytes.fromhex(request.match_info["session"]))
        secret = request.headers.get(hdrs.AUTHORIZATION, "").removeprefix("Bearer ")
        if session is None or not _is_secret(secret, session.known.secret_hash):
            raise Problem("lightning/session-not-found", "There is no such session of yours.", 404)
        receipt = await self._statements.receipt(session)
        if receipt is None:
            raise Problem(
                "lightning/session-open", "A receipt is given when the session is closed.", 409
            )
        return web.Response(body=receipt.encode(), content_type="application/json")

    def carried(self) -> dict[bytes, Msat]:
        """By key, what is owed and in no batch yet."""
        return {key: Msat(sum(owed.values())) for key, owed in self.settlement.carried().items()}


def _is_secret(text: str, expected: bytes) -> bool:
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        return False
    return hmac.compare_digest(sha256(secret).digest(), expected)
