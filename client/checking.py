"""Looks at the receipts of closed sessions: is everybody paid who made the model?

What a look means is decided in checks.py, and stored before anybody hears of it, so a kill -9 in
between loses nothing: what was not looked at is looked at later, what was not told is told later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from typing import Any, Final

import aiohttp
from yarl import URL

from channels import receipts
from channels.errors import OdaError, RemoteProtocolError
from channels.receipts import Receipt, Transcript
from channels.units import UnixTime
from client import checks
from client.check_table import CheckTable
from client.checks import NEVER, Check, CheckState, Held, Look, NoReceipt, NotKnown, Refuted
from client.known_chain import Chain, KnownChain
from client.provider import Provider
from client.receipts import check, keep, transcript
from client.store import SessionRow, Store

AT_ONCE: Final = 50
"""Checks of one round."""
FETCH_SECONDS: Final = 10.0
REACH_SECONDS: Final = 3.0
LEARN_SECONDS: Final = 5.0
RECENT: Final = 8
"""Of a session's provenances, how many of the last may still be provable."""

Reach = Callable[[str], Awaitable[bool]]


async def answers(endpoint: str) -> bool:
    """Whether anybody listens where a payee says that it is paid. Nothing is sent."""
    try:
        url = URL(endpoint)
        host, port = url.host, url.port
        if host is None or port is None:
            return False
        async with asyncio.timeout(REACH_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, ValueError, TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


class Checking:
    """grace: seconds that a provider has to pay; reach: whether a payee's endpoint answers."""

    def __init__(
        self,
        store: Store,
        http: aiohttp.ClientSession,
        chain: Chain | None,
        grace: int,
        clock: Callable[[], float] = time.time,
        reach: Reach = answers,
    ) -> None:
        self.table = CheckTable(store)
        self._store = store
        self._http = http
        self._known = KnownChain(chain, self.table)
        self._grace = grace
        self._clock = clock
        self._reach = reach

    def _now(self) -> UnixTime:
        return UnixTime(int(self._clock()))

    async def due(self) -> None:
        """Look at what is due, and at whatever else the same providers owe: it adds up."""
        await self._learn()
        due = {each.session: each for each in self.table.due(self._now(), AT_ONCE)}
        for url in {self._store.session(number).provider for number in due}:
            due |= {each.session: each for each in self.table.of(url, CheckState.CARRIED, AT_ONCE)}
        await self.look(list(due.values()))

    async def session(self, number: int) -> Check | None:
        """Look at one session now; None where its challenges named nobody to pay."""
        found = self.table.get(number)
        if found is not None:
            await self.look([found])
        return self.table.get(number)

    async def look(self, due: Sequence[Check]) -> None:
        """Each provider by itself, so that a slow one keeps nobody waiting."""
        rows = [(self._store.session(each.session), each) for each in due]
        rows.sort(key=lambda pair: pair[0].provider)
        groups = groupby(rows, key=lambda pair: pair[0].provider)
        await asyncio.gather(*(self._look(url, list(group)) for url, group in groups))

    async def _learn(self) -> None:
        """What a kill kept us from asking when a challenge named it."""
        if self._known.chain is None:
            return
        with suppress(OdaError, TimeoutError):
            async with asyncio.timeout(LEARN_SECONDS):
                for row in self._store.sessions(live=True):
                    for provenance in row.value.provenances[-RECENT:]:
                        await self._known.learn(provenance)

    async def _look(self, url: str, group: Sequence[tuple[SessionRow, Check]]) -> None:
        now = self._now()
        node_id = self._store.pinned(url)
        away: NotKnown | None = None
        for row, before in group:
            if node_id is None:
                # Nobody could ever have signed a statement that we believe.
                after = replace(before, reason="no-transcript", next=NEVER)
                self.table.replace("", [(before, after)])
                continue
            found = away or await self._found(row, node_id)
            if isinstance(found, NotKnown) and found.reason == "provider-unreachable":
                away = found
            after = checks.looked(before, found, now, self._grace)
            self.table.replace(node_id, [(before, after)])
        if node_id is not None:
            late = [stored for row, _ in group if (stored := self.table.get(row.number))]
            blamed = {each.session: each for each in checks.blame(late, now, self._grace)}
            pairs = [(each, blamed[each.session]) for each in late if each.session in blamed]
            self.table.replace(node_id, pairs)

    async def _found(self, row: SessionRow, node_id: str) -> Look:
        seen = transcript(row, self._store, node_id)
        provider = Provider(row.provider, self._http)
        try:
            receipt = await self._fetched(provider, row, seen)
        except RemoteProtocolError as refusal:
            return await self._no_receipt(provider, node_id, str(refusal))
        except TimeoutError:
            return await self._no_receipt(provider, node_id, "It does not answer in time.")
        except OdaError as error:
            return NotKnown(error.reason, str(error))
        try:
            keep(receipt, seen, row.number, self._store)
            checked = await check(receipt, seen, row.number, self._known)
        except RemoteProtocolError as lie:
            return Refuted(lie.reason, str(lie))
        except OdaError as error:
            return NotKnown(error.reason, str(error))
        return Held(checked.carried, await self._reachable(checked.carried))

    async def _fetched(self, provider: Provider, row: SessionRow, seen: Transcript) -> Receipt:
        """A receipt that the provider signed. Raises OdaError and TimeoutError."""
        async with asyncio.timeout(FETCH_SECONDS):
            receipt = await provider.receipt(seen.session, row.value.bearer_secret)
        receipts.check_signature(receipt, seen)
        return receipt

    async def _no_receipt(self, provider: Provider, node_id: str, why: str) -> Look:
        """Whether it is the provider that gives none, or nobody that we know is there."""
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                there = (await provider.models()).oda.node_id
        except (OdaError, TimeoutError):
            there = None
        if there != node_id:
            return NotKnown("provider-unreachable", f"The provider {provider.url} is not there.")
        return NoReceipt(f"The provider gives no receipt: {why}")

    async def _reachable(self, keys: Iterable[str]) -> frozenset[str]:
        wanted = {bytes.fromhex(key): key for key in keys}
        if not wanted or self._known.chain is None:
            return frozenset()
        with suppress(OdaError):
            payees = await self._known.chain.payees(list(wanted))
            found = [(key, await self._reach(payee.endpoint)) for key, payee in payees.items()]
            return frozenset(wanted[key] for key, there in found if there)
        return frozenset()


def document(check: Check) -> dict[str, Any]:
    """For --json."""
    return {
        "session": check.session,
        "state": check.state,
        "reason": check.reason or None,
        "message": check.sentence or None,
        "owing_msat": {key: owing.msat for key, owing in check.owing.items()},
        "closed": check.closed,
        "look_again": None if check.next == NEVER else check.next,
    }


def sentence(check: Check, provider: str) -> str:
    """What the user is told of a check that is bad."""
    return f"Session {check.session} with {provider}: {check.sentence}"
