"""A node's HTTP API from outside: for commands, and whoever else is not in the node's process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TypeVar

import aiohttp
import msgspec

from channels.errors import OdaError, RemoteProtocolError, UserError
from channels.http_body import read_body
from sidechain import api
from sidechain.openapi import PREFIX
from sidechain.primitives import AnyTransaction

POLL: Final = 0.25
TIMEOUT: Final = 30.0
MOST: Final = 4 << 20

T = TypeVar("T")


class NodeClient:
    """Use it as an async context manager. All methods raise UserError("node-unreachable"), and
    what the node says is wrong: RemoteProtocolError for what it refuses, else UserError."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def get(self, path: str, kind: type[T]) -> T:
        """`path` begins after /api/v1."""
        return await self._ask("GET", path, kind, None)

    async def find(self, path: str, kind: type[T]) -> T | None:
        """As get(), but None for what is not there."""
        try:
            return await self.get(path, kind)
        except OdaError as error:
            if error.reason == "not-found":
                return None
            raise

    async def send(self, tx: AnyTransaction, holders: tuple[str, ...] = ()) -> bytes:
        """Offer a transaction; -> its txid. One that the node has already is no error: it forgets
        who has the bytes when it is restarted, and may be told again."""
        body = api.NewTransaction(tx.encode().hex(), holders)
        try:
            await self._ask("POST", "/transactions", api.Posted, body)
        except RemoteProtocolError as error:
            if error.reason != "txn-already-in-mempool":
                raise
        return tx.txid

    async def confirmed(
        self, tx: AnyTransaction, waiting: Callable[[float], None] = lambda seconds: None
    ) -> api.FoundTransaction:
        """Wait until the transaction is in a block. `waiting` is told for how long so far.

        Raises RemoteProtocolError with the reason for which the node has dropped it.
        """
        txid, begun = tx.txid.hex(), time.monotonic()
        while True:
            found = await self.find(f"/transactions/{txid}", api.FoundTransaction)
            if found is None:
                raise await self._dropped(txid)
            if found.height is not None:
                return found
            waiting(time.monotonic() - begun)
            await asyncio.sleep(POLL)

    async def _dropped(self, txid: str) -> OdaError:
        refused = await self.get("/rejections", api.Refusals)
        for each in refused.rejections:
            if each.hash == txid:
                return RemoteProtocolError(each.reason, each.sentence)
        return RemoteProtocolError(
            "dropped", "The node has let go of the transaction; make it anew and try again."
        )

    async def _ask(self, method: str, path: str, kind: type[T], body: msgspec.Struct | None) -> T:
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with self._session.request(
                method, self.url + PREFIX + path, data=data, headers=headers
            ) as response:
                text, status = await _bounded(response.content), response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UserError(
                "node-unreachable",
                f"No node answers at {self.url} ({error or 'it took too long'}); "
                "start one with: oda node",
            ) from None
        try:
            if status == 200:
                return msgspec.json.decode(text, type=kind)
            problem = msgspec.json.decode(text, type=api.Problem)
        except msgspec.DecodeError as error:
            raise UserError(
                "node-unreachable", f"What answers at {self.url} is no node: {error}."
            ) from None
        refused = RemoteProtocolError if status in (409, 422) else UserError
        raise refused(problem.reason, problem.detail)


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    found = await read_body(content, MOST)
    if len(found) > MOST:
        raise aiohttp.ClientPayloadError(f"more than {MOST} bytes")
    return found
