"""A node without blocks: headers from every peer, and proofs of the few entries that it needs.

It believes work and proofs, never a peer. Where the header with the most work can't be proven by
anybody (its bodies may be withheld), it asks about the next best that a peer showed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from channels.errors import UserError
from sidechain import fees
from sidechain.announcements import Announcement, Announcements
from sidechain.events import AnnouncementAdded, Event, HeadersAdded
from sidechain.fees import Beneficiaries
from sidechain.headers import HeaderIndex, HeaderRecord
from sidechain.light import LightClient, ProvenView, Unproven, shares_keys
from sidechain.limits import PATIENCE, Patience
from sidechain.params import Params
from sidechain.primitives import Header
from sidechain.proving import Proving, Question
from sidechain.state import ChainState, Model, Payee, View, model_key, payee_key
from sidechain.store import SqliteStore

MAX_VIEWS: Final = 32
"""Blocks of which proven entries are kept."""

RETRY_SECONDS: Final = 0.5
"""Between two rounds of asking, while nobody who is connected proves anything."""

T = TypeVar("T")


class LightNode:
    """What `Peers` needs of a node, and answers for whoever wants to know who is owed.

    `patience` is how long an answer may take, in seconds.
    """

    def __init__(
        self,
        params: Params,
        store: SqliteStore,
        *,
        now: Callable[[], int],
        patience: float = 30.0,
        peers: Patience = PATIENCE,
    ) -> None:
        self.params = params
        self.store = store
        self.client = LightClient(params)
        self.announcements = Announcements(params)
        self.proving = Proving(peers)
        self._now = now
        self._patience = patience
        self._views: dict[bytes, ProvenView] = {}
        self._listeners: list[Callable[[Event], None]] = []
        self._events: list[Event] = []
        self._turning = False
        for data in store.headers():
            # They were checked when they came, also against the clock of that time.
            header = Header.decode(data)
            self.headers.accept(header, header.time)

    @property
    def headers(self) -> HeaderIndex:
        return self.client.headers

    # --- what comes in ---------------------------------------------------------------------------

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What comes in meanwhile shares one commit; listeners hear of it afterwards."""
        if self._turning:
            yield
            return
        self._turning = True
        try:
            yield
        finally:
            self._turning = False
            self.store.commit()
            events, self._events = self._events, []
            for event in events:
                for listener in list(self._listeners):
                    listener(event)

    def listen(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Be told of events; -> what ends it."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def accept_headers(self, headers: Sequence[Header]) -> HeaderRecord:
        """In the order of their heights; -> the last one's record. Raises Rejection for the first
        that breaks a rule; those before it are kept."""
        best, record = self.headers.best, self.headers.genesis
        with self.turn():
            try:
                for header in headers:
                    known = len(self.headers.records)
                    record = self.headers.accept(header, self._now())
                    if len(self.headers.records) > known:
                        self.store.add_header(record.hash, header.encode())
            finally:
                if self.headers.best is not best:
                    self._events.append(HeadersAdded(self.headers.best))
        return record

    def accept_announcement(self, announcement: Announcement) -> None:
        """Raises Rejection."""
        with self.turn():
            self.announcements.add(announcement, self._now())
            self._events.append(AnnouncementAdded(announcement))

    # --- what is known ---------------------------------------------------------------------------

    async def model(self, model_id: bytes) -> Model | None:
        """The model's versions `fee_depth` below the best header; None if it is not on the chain.

        Raises UserError("no-proof") where nobody proves it in time.
        """
        return await self._proven(lambda view: view.model(model_id), (model_key(model_id),))

    async def payee(self, key: bytes) -> Payee | None:
        """Where a key is paid; None if it is not registered. Raises UserError("no-proof")."""
        return await self._proven(lambda view: view.payee(key), (payee_key(key),))

    async def beneficiaries(
        self,
        model: bytes | None,
        weights_root: bytes | None,
        depth: int | None = None,
        at: HeaderRecord | None = None,
    ) -> Beneficiaries:
        """Who is owed for serving these weights, by the state `depth` blocks below the best
        header (`fee_depth` if None), or after the block `at`. Raises UserError("no-proof"), also
        for a block that lies deeper than peers prove (serving.PROOF_DEPTH)."""
        keys = shares_keys(model, weights_root) if model and weights_root else ()
        return await self._proven(
            lambda view: fees.beneficiaries(view, model, weights_root), keys, depth, at
        )

    async def _proven(
        self,
        read: Callable[[View], T],
        keys: tuple[bytes, ...],
        depth: int | None = None,
        at: HeaderRecord | None = None,
    ) -> T:
        depth = self.params.fee_depth if depth is None else depth
        try:
            async with asyncio.timeout(self._patience):
                while True:
                    for record in self._candidates(depth) if at is None else [at]:
                        if record.height == 0:
                            return read(ChainState())  # genesis is known by definition
                        view = self._view(record)
                        if await self._learn(view, read, keys):
                            return read(view)
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            raise UserError(
                "no-proof",
                "No peer proved what the chain says in time; connect to more full nodes.",
            ) from None

    def _candidates(self, depth: int) -> list[HeaderRecord]:
        """The blocks to ask about: below the best header, then below what peers showed."""
        tips = [self.headers.best, *self.proving.tips()]
        below = {tip.ancestor(max(0, tip.height - depth)): None for tip in tips}
        return sorted(below, key=lambda record: (-record.work, record.order))

    def _view(self, record: HeaderRecord) -> ProvenView:
        view = self._views.get(record.hash)
        if view is None:
            if len(self._views) >= MAX_VIEWS:
                del self._views[next(iter(self._views))]
            view = self._views[record.hash] = ProvenView(record)
        return view

    async def _learn(
        self, view: ProvenView, read: Callable[[View], object], keys: tuple[bytes, ...]
    ) -> bool:
        """Ask until `read` finds all it reads; False where nobody proves it. `keys` are asked for
        together, so that one question is enough as a rule."""
        while True:
            try:
                read(view)
            except Unproven as unproven:
                asked = keys if unproven.key in keys else (unproven.key,)
            else:
                return True
            if not await self._ask(view, asked):
                return False

    async def _ask(self, view: ProvenView, keys: tuple[bytes, ...]) -> bool:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def done(proven: bool) -> None:
            if not answer.done():
                answer.set_result(proven)

        question = Question(view, keys, done)
        self.proving.ask(question)
        try:
            return await answer
        finally:
            self.proving.withdraw(question)
