"""Paid inference as an asynchronous library.

    async with connect("http://127.0.0.1:8402") as client:
        async for event in client.chat("What is a list?", max_tokens=100):
            if isinstance(event, Text):
                print(event.text, end="")
        print(await client.close())

An answer is paid while it comes. Leaving it (break, aclose(), a cancelled task) stops the paying
at once, and what is unspent stays in the session: for the next question, in this process or a
later one, until `close` brings it back.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from channels.errors import LocalProtocolError, OdaError, RemoteProtocolError, UserError
from channels.http.payer import Caps, ClientSession, Phase
from channels.http.session import Provenance
from channels.lightning import Lightning, LightningUnreachable
from channels.receipts import Receipt, Transcript
from channels.settings import Network, load_settings
from channels.units import UnixTime, msat
from client.answer import Answer, Chunk, Cost, Done, Event, Interrupted, Text, TopUp
from client.budget import Budget
from client.channel import USABLE
from client.check_table import CheckTable
from client.judge import FaultKind, Judge, Limits
from client.judging import BadAnswer, Watched
from client.known_chain import Chain, KnownChain
from client.provider import Catalogue, Provider, ProviderRefused
from client.question import CHAT, Question
from client.receipts import Checked, check, keep, transcript
from client.reputation import Record, fault, good_answer
from client.session import CLOSED, UNKNOWN_CHALLENGE, Node, PaidSession, Refund
from client.settings import (
    ClientSettings,
    lightning_rpc_file,
    load_client_settings,
    store_file,
)
from client.spot_check import OwnCopies
from client.store import SessionRow, Store

__all__ = [
    "Chunk",
    "Client",
    "Cost",
    "Done",
    "Event",
    "Interrupted",
    "Refund",
    "Text",
    "TopUp",
    "connect",
]

LEARN_SECONDS: Final = 5.0
"""How long a client that is left waits to hear who is owed for its sessions."""
RETURN_EXPIRY: Final = 30 * 24 * 3600
"""Seconds that a return invoice can be paid, as the draft recommends."""
NETWORKS: Final = {"bitcoin": Network.MAINNET}
"""lightningd's name for a network, where it is not ours."""

Message = dict[str, str]


@asynccontextmanager
async def connect(
    provider: str | None = None,
    lightning: Node | Path | None = None,
    *,
    network: Network | None = None,
    settings: ClientSettings | None = None,
    store: Path | None = None,
    chain: Chain | None = None,
    budget: Budget | None = None,
) -> AsyncIterator[Client]:
    """A client of one provider; what is not given comes from the settings.

    lightning: the node that pays, or its RPC socket. store: the file where sessions are kept.
    chain: the sidechain, to check whose work is served and who is paid for it.
    budget: by default that of the settings.
    Raises OdaError `provider-unreachable`, `lightning-unreachable`, `wrong-network`,
    `provider-changed`.
    """
    general = load_settings()
    settings = settings or load_client_settings()
    network = network or general.network
    async with AsyncExitStack() as stack:
        if lightning is None or isinstance(lightning, Path):
            rpc_file = lightning or lightning_rpc_file(general)
            lightning = await stack.enter_async_context(Lightning(rpc_file))
        http = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
        kept = Store(store or store_file(general))
        stack.callback(kept.close)
        seller = Provider(provider or settings.provider, http)
        client = Client(seller, lightning, kept, settings, chain, budget)
        await client.meet(network)
        stack.push_async_callback(client.release)
        yield client


class Client:
    """Sessions with one provider, one per model. Build it with `connect`."""

    def __init__(
        self,
        provider: Provider,
        node: Node,
        store: Store,
        settings: ClientSettings,
        chain: Chain | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._chain = chain
        self._budget = budget or settings.budget()
        self._known = KnownChain(chain, CheckTable(store))
        self._learning: set[asyncio.Task[None]] = set()
        self._copies = OwnCopies(settings.models)
        self._provider = provider
        self._node = node
        self._store = store
        self._settings = settings
        self._network = Network.REGTEST
        self._catalogue = Catalogue([])
        self._payee: str | None = None
        self._direct = False
        self._sessions: dict[str, PaidSession] = {}
        self._answering: set[int] = set()
        self._locks: dict[int, AsyncExitStack] = {}

    # Meeting -------------------------------------------------------------------------------------

    async def meet(self, network: Network) -> None:
        """Look at both ends before anything is paid."""
        self._network = network
        try:
            info = await self._node.getinfo()
        except LightningUnreachable as error:
            if error.reason != "lightning-unreachable":
                raise
            raise no_node(error) from error
        check_network(info.network, network)
        self._catalogue = await self._provider.models()
        node_id = self._catalogue.oda.node_id
        if node_id is not None:
            if not re.fullmatch("0[23][0-9a-f]{64}", node_id):
                raise RemoteProtocolError("bad-node-id", "The provider's node id is not one.")
            self._store.pin(self._provider.url, node_id, _now())
        self._payee = self._store.pinned(self._provider.url)
        if self._payee is not None:
            channels = await self._node.listpeerchannels(self._payee)
            self._direct = any(channel.state == USABLE for channel in channels)

    async def models(self) -> Catalogue:
        """What the provider serves, and at which price."""
        self._catalogue = await self._provider.models()
        return self._catalogue

    async def release(self) -> None:
        """Let other processes use the sessions; they stay open."""
        if self._learning:
            _, late = await asyncio.wait(self._learning, timeout=LEARN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for lock in self._locks.values():
            await lock.aclose()
        self._locks.clear()
        self._sessions.clear()

    # Asking --------------------------------------------------------------------------------------

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Ask, and pay while the answer comes. One answer at a time for each model.

        Raises OdaError; whatever happens, what was paid and not used stays in the session.
        """
        stops = stop if stop is None or isinstance(stop, str) else list(stop)
        given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": stops}
        named: dict[str, Any] = {"model": model, "messages": _messages(messages)}
        return self.ask({k: v for k, v in (named | given).items() if v is not None})

    async def ask(
        self, request: Mapping[str, Any], path: str = CHAT
    ) -> AsyncGenerator[Event, None]:
        """Ask with a whole request of the OpenAI API, whatever its fields are. Only those are set
        without which it could not be paid or checked. Raises as `chat` does."""
        question = self._question(request, path)
        for attempt in range(2):
            session = await self._session(question.model)
            if session.number in self._answering:
                raise LocalProtocolError(
                    "answer-running", "One answer at a time: finish or close the other one first."
                )
            self._answering.add(session.number)
            try:
                sent = await session.credential(question)
                answer = Answer(session, question, sent)
                watched = self._watched(answer, session)
                async with aclosing(watched.events()) as events:
                    async for event in events:
                        yield event
                if (latency := watched.latency_ms) is not None:
                    self._remember(lambda record: good_answer(record, latency))
                return
            except BadAnswer as bad:
                await self._leave(session, bad.fault.kind)
                raise
            except RemoteProtocolError as error:
                if error.reason == "overcharged":
                    self._remember(lambda record: fault(record, FaultKind.OVERCHARGE))
                if attempt or not isinstance(error, ProviderRefused):
                    raise
                await self._again(session, error)
            finally:
                self._answering.discard(session.number)
                if session.value.phase is Phase.NEW:
                    await self._let_go(session)
                    self._store.forget(session.number)

    async def _again(self, session: PaidSession, refusal: ProviderRefused) -> None:
        """Before its first event an answer may be asked for anew: nothing was charged. Raises what
        another try won't mend."""
        if refusal.reason == CLOSED:
            await session.was_closed()
            await self._let_go(session)
        elif refusal.reason == UNKNOWN_CHALLENGE:
            session.forget_challenge()
        else:
            raise refusal

    def _watched(self, answer: Answer, session: PaidSession) -> Watched:
        limits = Limits(self._settings.stall_seconds, answer.question.wants_json)
        judge = Judge(limits, time.monotonic())
        return Watched(answer, session, judge, self._copies, answer.question)

    async def _leave(self, session: PaidSession, kind: FaultKind) -> None:
        """The end of a session that a fault ended: what is unspent comes back."""
        self._remember(lambda record: fault(record, kind))
        # Whatever is not clear about the refund yet, `oda close` finds out.
        try:
            with suppress(OdaError):
                await session.close()
        finally:
            await self._let_go(session)

    def _remember(self, change: Callable[[Record], Record]) -> None:
        if self._payee is not None:
            self._store.remember(self._payee, change)

    def _question(self, request: Mapping[str, Any], path: str) -> Question:
        model = request.get("model") or self._default_model()
        # Only a stream can be paid while it comes; its usage is held against what was charged.
        given = request.get("stream_options")
        options = {**(given if isinstance(given, Mapping) else {}), "include_usage": True}
        needed = {"model": model, "stream": True, "stream_options": options}
        # With a seed of our own an answer can be checked: it follows from what was asked.
        seed = {} if request.get("seed") is not None else {"seed": secrets.randbits(31)}
        known = (entry.context_length for entry in self._catalogue.data if entry.id == model)
        return Question.of(path, {**request, **needed, **seed}, next(known, None))

    def _default_model(self) -> str:
        if not self._catalogue.data:
            raise UserError("no-models", f"The provider {self._provider.url} serves no model now.")
        return self._catalogue.data[0].id

    # Sessions ------------------------------------------------------------------------------------

    @property
    def held(self) -> tuple[PaidSession, ...]:
        """The sessions that are this client's alone, until `release`."""
        return tuple(self._sessions.values())

    async def close(self, number: int | None = None) -> list[Refund]:
        """Close a session, or all with this provider, and wait for the refunds."""
        if number is None:
            rows = self._store.sessions(self._provider.url, live=True)
        else:
            rows = [self._store.session(number)]
        refunds = []
        for row in rows:
            session = await self._take(row)
            if session is None:
                raise UserError(
                    "session-in-use", f"Session {row.number} is being used by another oda."
                )
            if session.number in self._answering:
                raise LocalProtocolError("answer-running", "Finish or close the answer first.")
            refunds.append(await session.close())
            await self._let_go(session)
        return refunds

    async def receipt(self, number: int) -> Receipt:
        """The receipt of a closed session as the provider has it now; it is kept.

        Raises ProviderRefused where the provider gives none, UserError `no-transcript`.
        """
        row = self._store.session(number)
        seen = self._transcript(row)
        receipt = await self._provider.receipt(seen.session, row.value.bearer_secret)
        keep(receipt, seen, number, self._store)
        return receipt

    async def check_receipt(self, number: int, receipt: Receipt | None = None) -> Checked:
        """Hold a receipt, by default a fresh one, against what we saw and what the chain says.

        Raises RemoteProtocolError with the reason of what does not hold.
        """
        receipt = receipt or await self.receipt(number)
        return await check(
            receipt, self._transcript(self._store.session(number)), number, self._known
        )

    def _transcript(self, row: SessionRow) -> Transcript:
        if self._payee is None:
            raise UserError("no-transcript", "The provider never said which node it is.")
        return transcript(row, self._store, self._payee)

    async def _session(self, model: str) -> PaidSession:
        """The session for a model: ours, one that an earlier process left, or a new one."""
        if model in self._sessions:
            return self._sessions[model]
        for row in self._store.sessions(self._provider.url, live=True):
            usable = row.value.phase in (Phase.OPENING, Phase.OPEN)
            if row.value.model == model and usable and (taken := await self._take(row)):
                self._sessions[model] = taken
                return taken
        secret = secrets.token_bytes(32)
        label = f"oda-return-{secrets.token_hex(8)}"
        made = await self._node.invoice(None, label, "ODA refund", expiry=RETURN_EXPIRY)
        value = ClientSession(self._caps(), model, made.bolt11, secret)
        taken = await self._take(self._store.add(self._provider.url, value, label, _now()))
        assert taken is not None  # nobody else knows of it yet
        self._sessions[model] = taken
        return taken

    async def _take(self, row: SessionRow) -> PaidSession | None:
        """A session for this process alone; None where another one has it."""
        known = next((s for s in self._sessions.values() if s.number == row.number), None)
        if known is not None:
            return known
        lock = AsyncExitStack()
        if not lock.enter_context(self._store.lock(row.number)):
            await lock.aclose()
            return None
        self._locks[row.number] = lock
        return PaidSession(
            self._store.session(row.number),
            self._store,
            self._node,
            self._provider,
            budget=self._budget,
            routing_fee_percent=self._settings.routing_fee_percent,
            check_tip=self._check_tip,
            patience=self._settings.patience_seconds,
        )

    def _check_tip(self, provenance: Provenance) -> None:
        if self._chain is None:
            return
        self._chain.check_tip(provenance)
        # Beside the answer, which does not wait for it. What fails is asked again (checking.py).
        task = asyncio.create_task(self._learn(provenance))
        self._learning.add(task)
        task.add_done_callback(self._learning.discard)

    async def _learn(self, provenance: Provenance) -> None:
        with suppress(OdaError):
            await self._known.learn(provenance)

    async def _let_go(self, session: PaidSession) -> None:
        self._sessions = {m: s for m, s in self._sessions.items() if s is not session}
        if (lock := self._locks.pop(session.number, None)) is not None:
            await lock.aclose()

    def _caps(self) -> Caps:
        settings, node_id = self._settings, self._payee
        return Caps(
            network=self._network,
            payee=None if node_id is None else bytes.fromhex(node_id),
            direct=self._direct,
            max_input_msat=settings.max_input_msat,
            max_output_msat=settings.max_output_msat,
            # A cap for one answer that is less than D could not be kept.
            max_exposure=min(msat(settings.max_exposure_sat), self._budget.max_request),
            max_session=msat(settings.max_session_sat),
            min_trainer_ppm=settings.min_trainer_ppm,
            min_producers_ppm=settings.min_producers_ppm,
        )


def check_network(named: str, wanted: Network) -> None:
    """Raises UserError `wrong-network`."""
    if NETWORKS.get(named, named) != wanted:
        raise UserError(
            "wrong-network",
            f"The Lightning node is on {named} and oda is set to {wanted}: choose one of them "
            "with --network.",
        )


def no_node(error: LightningUnreachable) -> LightningUnreachable:
    return LightningUnreachable(
        error.reason,
        f"{str(error).rstrip('?')}? Start a network with `oda regtest up`, or a node with "
        "`oda lightning start`.",
    )


def _messages(messages: str | Sequence[Message]) -> list[Message]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return list(messages)


def _now() -> UnixTime:
    return UnixTime(int(time.time()))
