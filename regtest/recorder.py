"""Writes down what happens in a run of the demo while it happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from channels.errors import OdaError
from channels.lightning import Lightning
from channels.units import Msat, Sat, UnixTime, msat
from client import sdk
from regtest import report
from regtest.record import (
    COMPLETE,
    LEFT,
    VERSION,
    Account,
    Answer,
    Balance,
    Caught,
    Gift,
    Line,
    Paid,
    Record,
    Score,
    Share,
    Step,
    held,
)
from sidechain.pages import assets

EVERY: Final = 1.0
"""Seconds between two looks at what everybody holds."""
PATIENCE: Final = 5.0
"""Seconds in which a node tells what it holds."""


class Recorder:
    """What one run adds up to."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._zero = clock()
        self._began = UnixTime(int(time.time()))
        self._stepped = asyncio.Event()
        self._steps: list[Step] = []
        self._balances: list[Balance] = []
        self._last: dict[str, Msat | None] = {}
        self._gifts: list[Gift] = []
        self._scores: list[Score] = []
        self._answers: list[Answer] = []
        self._caught: list[Caught] = []
        self._shares: list[Share] = []
        self._accounts: list[Account] = []

    def now(self) -> float:
        return round(self._clock() - self._zero, 3)

    @property
    def begun(self) -> bool:
        return bool(self._steps)

    # What is told --------------------------------------------------------------------------------

    def step(self, number: int, text: str) -> None:
        self._steps.append(Step(self.now(), number, text))
        self._stepped.set()

    def gives(self, party: str, coins: Sat) -> None:
        """The miners are about to give a party coins."""
        self._gifts.append(Gift(self.now(), party, msat(coins)))

    def score(self, score: Score) -> None:
        self._scores.append(score)

    def caught(self, who: str, reason: str, sentence: str = "") -> None:
        self._caught.append(Caught(self.now(), who, reason, sentence))

    def share(self, session: int, to: str, role: str, amount: Msat) -> None:
        self._shares.append(Share(self.now(), session, to, role, amount))

    def account(self, title: str, rows: Iterable[tuple[str, int, str]]) -> None:
        self._accounts.append(Account(title, tuple(Line(*row) for row in rows)))

    async def answer(
        self, client: sdk.Client, question: str, **given: Any
    ) -> AsyncGenerator[sdk.Event, None]:
        """`client.chat`, and when everything came. Raises what that raises."""
        named, listed = given.get("model"), (await client.models()).data
        model = next((each for each in listed if each.id == named), listed[0])
        weights = None if model.sidechain is None else model.sidechain.weights_root
        heard = _Heard(question, model.id, weights or model.infohash, self._clock, self.now())
        ended = LEFT
        try:
            async with aclosing(client.chat(question, **given)) as events:
                async for event in events:
                    heard.take(event)
                    yield event
            ended = COMPLETE
        except OdaError as error:
            ended = error.reason
            raise
        finally:
            self._answers.append(heard.answer(ended))

    # What is looked at ---------------------------------------------------------------------------

    @asynccontextmanager
    async def watching(self, nodes: Path) -> AsyncIterator[None]:
        """The run begins: look at what everybody holds who has a folder with a socket here."""
        self._zero, self._began = self._clock(), UnixTime(int(time.time()))
        async with AsyncExitStack() as stack:
            known: dict[str, Lightning] = {}
            watch = asyncio.create_task(self._watch(nodes, known, stack))
            try:
                yield
            finally:
                watch.cancel()
                await asyncio.wait([watch])
                await self._look(known)
            if not watch.cancelled():
                watch.result()  # it failed, and nothing may be left out in silence

    async def _watch(self, nodes: Path, known: dict[str, Lightning], stack: AsyncExitStack) -> None:
        while True:
            for path in await asyncio.to_thread(lambda: sorted(nodes.glob("*/lightning-rpc"))):
                if (name := path.parent.name) not in known:
                    known[name] = await stack.enter_async_context(Lightning(path, PATIENCE))
            await self._look(known)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stepped.wait(), EVERY)
            self._stepped.clear()

    async def _look(self, known: Mapping[str, Lightning]) -> None:
        found = await asyncio.gather(*(_held(node) for node in known.values()))
        for party, amount in zip(known, found, strict=True):
            self.balance(party, amount)

    def balance(self, party: str, amount: Msat | None) -> None:
        """None: its node does not answer."""
        if party not in self._last or self._last[party] != amount:
            self._last[party] = amount
            self._balances.append(Balance(self.now(), party, amount))

    def holding(self, party: str) -> Msat | None:
        """At the last look."""
        return self._last.get(party)

    # What is left --------------------------------------------------------------------------------

    def record(self, result: Mapping[str, Any], failure: str | None = None) -> Record:
        return Record(
            VERSION,
            self._began,
            self.now(),
            tuple(self._steps),
            tuple(self._balances),
            tuple(self._gifts),
            tuple(self._scores),
            tuple(self._answers),
            tuple(self._caught),
            tuple(self._shares),
            tuple(self._accounts),
            dict(result),
            failure,
        )


def save(record: Record, directory: Path) -> Path:
    """Write record.json and report.html; -> the latter."""
    directory.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(record), indent=1)
    (directory / "record.json").write_bytes(data)
    file = directory / "report.html"
    file.write_bytes(report.report(record, assets.read("style.css").decode()))
    return file


async def _held(node: Lightning) -> Msat | None:
    try:
        funds = await node.listfunds()
        return held(funds, await node.listcloses())
    except OdaError:  # it is down, or starts: nobody knows what it holds then
        return None


@dataclass
class _Heard:
    """An answer while it comes."""

    question: str
    model: str
    weights: str | None
    clock: Callable[[], float]
    at: float
    arrived: list[tuple[float, int]] = field(default_factory=list)
    topups: list[Paid] = field(default_factory=list)
    interrupted: list[float] = field(default_factory=list)
    cost: sdk.Cost | None = None

    def __post_init__(self) -> None:
        self.asked = self.clock()
        self.text: float | None = None

    def take(self, event: sdk.Event) -> None:
        after = round(self.clock() - self.asked, 4)
        match event:
            case sdk.Text():
                self.text = after
            case sdk.Cost():
                self.cost = event
                if self.text is not None:  # what came just before is what this counts
                    self.arrived.append((self.text, event.output_tokens))
                    self.text = None
            case sdk.TopUp(amount_msat=amount):
                self.topups.append(Paid(after, amount))
            case sdk.Interrupted():
                self.interrupted.append(after)
            case sdk.Done():
                self.cost = event.cost

    def answer(self, ended: str) -> Answer:
        cost = self.cost
        return Answer(
            self.at,
            self.question,
            self.model,
            self.weights,
            tuple(self.arrived),
            tuple(self.topups),
            tuple(self.interrupted),
            round(self.clock() - self.asked, 4),
            0 if cost is None else cost.input_tokens,
            0 if cost is None else cost.output_tokens,
            Msat(0) if cost is None else cost.spent_msat,
            ended,
        )
