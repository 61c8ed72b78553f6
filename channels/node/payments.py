"""Paying: routes are tried until the payee has it all, and each attempt teaches the next ones.

A payment is pending, complete or failed in the store; a caller that stops waiting changes nothing.
It is pending as long as an attempt is, or is to come: the end of one and the beginning of the next
share a turn, unless it waits a little for something to pass. After a restart nobody waits, so
nothing new is tried, and what is under way ends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from channels.bolt.effects import HtlcFailed, HtlcFulfilled
from channels.bolt.features import Feature, offers
from channels.bolt.invoice import Invoice, check_payable
from channels.bolt.invoice_fields import RouteHop
from channels.bolt.onion import FailureCode
from channels.bolt.retrying import Patience, may_pass
from channels.bolt.route import Hop, Knowledge, NoRoute, directed_channels, find_parts
from channels.errors import LocalProtocolError, UserError
from channels.node.attempts import Fault, ForPayee, decode_route, encode_route, offer, read_fault
from channels.node.routing import local_channels
from channels.node.rpc_params import RpcErrorCode, RpcMethodError
from channels.node.store import AttemptRow, PaymentRow
from channels.units import Msat, UnixTime

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)

CLTV_SLACK = 3
"""Blocks that may be found while an HTLC is on its way."""

MAX_PARTS = 16
"""HTLCs of one payment at a time: each costs a place in every channel that it crosses."""

MAX_ATTEMPTS = 100

DEFAULT_RETRY_SECONDS = 60

MAX_ERRORONION = 4096
"""Bytes of an error that are kept (BOLT 4's have about 300): any hop may send 65,000."""

AVOID_SECONDS = 600
"""A peer that could not read our onion is left alone so long."""

MIN_MAXFEE, MAXFEE_DIVISOR = Msat(5_000), 100
"""Core Lightning's default: 1 % of the amount, and 5 sat at least."""


@dataclass(frozen=True, slots=True)
class Paid:
    payment_preimage: bytes = field(repr=False)
    amount_msat: Msat
    amount_sent_msat: Msat
    successful_parts: int
    failed_parts: int


@dataclass(slots=True)
class Goal:
    """What a payment is to achieve, and what it may cost; kept in memory while a caller may wait.

    `give_up` is the reason to try nothing more. `passing` are the failures that may have passed at
    the next look, as routes and hops that spoke, and `timer` is when that is.
    """

    payee: bytes
    for_payee: ForPayee
    bolt11: str
    final_cltv: int
    hints: Sequence[Sequence[RouteHop]]
    maxfee: Msat
    max_parts: int
    patience: Patience
    groupid: int | None = None
    next_partid: int = 0
    unfit: set[int] = field(default_factory=set)
    passing: set[tuple[tuple[Hop, ...], int]] = field(default_factory=set)
    timer: asyncio.TimerHandle | None = None
    give_up: RpcMethodError | None = None
    last_fault: str = ""

    def stop(self) -> None:
        """Look no more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def default_maxfee(amount: Msat) -> Msat:
    return Msat(max(MIN_MAXFEE, amount // MAXFEE_DIVISOR))


class Payments:
    """Outgoing payments and the callers that wait for them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._waiting: dict[bytes, list[asyncio.Future[PaymentRow]]] = {}
        self._goals: dict[bytes, Goal] = {}
        self._changed = asyncio.Event()
        self.learned = Knowledge()

    def start(self) -> None:
        """What waited to be tried again when the node ended has failed: nothing of it is left."""
        store = self._node.store
        for row in store.list_payments("pending"):
            if not store.attempts(row.payment_hash, "pending"):
                code, why = RpcErrorCode.PAY_STOPPED_RETRYING, "The node was restarted meanwhile"
                store.fail_payment(row.payment_hash, int(code), why, self._node.now())
                self._node.turn.begin()

    def stop(self) -> None:
        for goal in self._goals.values():
            goal.stop()

    async def pay(
        self,
        text: str,
        invoice: Invoice,
        amount: Msat,
        *,
        maxfee: Msat | None = None,
        retry_for: int = DEFAULT_RETRY_SECONDS,
    ) -> Paid:
        """Pay and wait for the outcome. Raises RpcMethodError with lightningd's codes."""
        self._check(invoice)
        assert invoice.payment_secret is not None, "check_payable refuses an invoice without"
        split = offers(invoice.features, Feature.BASIC_MPP)
        # BOLT 11: nothing is tried any more once the invoice has expired.
        seconds = min(retry_for, invoice.timestamp + invoice.expiry - self._node.now())
        goal = Goal(
            payee=invoice.payee,
            for_payee=ForPayee(
                payment_hash=invoice.payment_hash,
                payment_secret=invoice.payment_secret,
                total_msat=amount,
                payment_metadata=invoice.payment_metadata,
            ),
            bolt11=text,
            final_cltv=invoice.min_final_cltv_expiry + CLTV_SLACK,
            hints=invoice.routes,
            maxfee=default_maxfee(amount) if maxfee is None else maxfee,
            max_parts=MAX_PARTS if split else 1,
            patience=Patience(asyncio.get_running_loop().time() + seconds),
        )
        return await self.reach(goal)

    async def reach(self, goal: Goal) -> Paid:
        """Pay toward a goal, or wait for the payment of its hash that is under way already."""
        node, payment_hash = self._node, goal.for_payee.payment_hash
        existing = node.store.payment(payment_hash)
        if existing is not None and existing.status == "complete":
            raise RpcMethodError(
                RpcErrorCode.PAY_ALREADY_PAID, "This invoice has already been paid"
            )
        if existing is None or existing.status == "failed":
            self._begin(goal)
        row = await self._outcome(payment_hash)
        if row.status == "failed" or row.preimage is None:
            code = row.failure_code or RpcErrorCode.PAY_UNSPECIFIED_ERROR
            raise RpcMethodError(RpcErrorCode(code), row.failure_message or "Payment failed")
        attempts = node.store.attempts(payment_hash)
        group = [a for a in attempts if a.groupid == attempts[-1].groupid]
        failed = sum(a.status == "failed" for a in group)
        return Paid(
            row.preimage, row.amount_msat, row.amount_sent_msat, len(group) - failed, failed
        )

    def _check(self, invoice: Invoice) -> None:
        node = self._node
        try:
            check_payable(invoice, node.params.invoice_currency, node.now())
        except UserError as error:
            expired = error.reason == "invoice-expired"
            code = RpcErrorCode.PAY_INVOICE_EXPIRED if expired else RpcErrorCode.INVALID_PARAMS
            raise RpcMethodError(code, str(error)) from error
        if invoice.payee == node.node_id:
            raise RpcMethodError(
                RpcErrorCode.PAY_ROUTE_NOT_FOUND, "This is an invoice of this very node"
            )

    def send(
        self, route: tuple[Hop, ...], for_payee: ForPayee, bolt11: str, groupid: int, partid: int
    ) -> AttemptRow:
        """Send one part over a route that the caller has chosen; nothing is tried after it.

        Raises LocalProtocolError: "payment-exists" for what is paid already, "payment-under-way"
        when it would pay more than the total.
        """
        node, store, payment_hash = self._node, self._node.store, for_payee.payment_hash
        row = store.payment(payment_hash)
        under_way = sum(a.amount_msat for a in store.attempts(payment_hash, "pending"))
        if row is not None and row.status == "complete":
            raise LocalProtocolError("payment-exists", "This payment has succeeded already.")
        if under_way + route[-1].amount_msat > for_payee.total_msat:
            raise LocalProtocolError(
                "payment-under-way", "That would pay more than the whole amount."
            )
        offered = offer(node, route, for_payee)
        if row is None or row.status == "failed":
            self._begin_row(for_payee, bolt11, route[-1].node_id)
        attempt = store.add_attempt(
            payment_hash=payment_hash,
            amount_msat=route[-1].amount_msat,
            amount_sent_msat=route[0].amount_msat,
            session_key=offered.session_key,
            hops=encode_route(route),
            channel_index=offered.channel.state.index,
            htlc_id=offered.htlc_id,
            groupid=groupid,
            partid=partid,
            now=node.now(),
        )
        self.learned.reserve(node.node_id, route)
        return attempt

    async def changed(self, within: float | None) -> bool:
        """Wait until some attempt has ended; False when `within` seconds pass without one."""
        try:
            async with asyncio.timeout(within):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- attempts ------------------------------------------------------------------------------

    def _begin_row(self, for_payee: ForPayee, bolt11: str, destination: bytes) -> None:
        self._node.store.begin_payment(
            payment_hash=for_payee.payment_hash,
            bolt11=bolt11,
            destination=destination,
            amount_msat=for_payee.total_msat,
            now=self._node.now(),
        )

    def _begin(self, goal: Goal) -> None:
        try:
            self._send(goal, [])
        except RpcMethodError as error:
            if goal.groupid is None:
                raise  # nothing has left: this payment never was
            goal.give_up = error
        self._goals[goal.for_payee.payment_hash] = goal

    def _send(self, goal: Goal, pending: list[AttemptRow]) -> None:
        """Offer what is not under way yet. Raises RpcMethodError when there is no way for it.

        Parts of it may be under way then all the same; `pending` names them too.
        """
        total = goal.for_payee.total_msat
        while (missing := total - sum(attempt.amount_msat for attempt in pending)) > 0:
            budget = goal.maxfee - sum(a.amount_sent_msat - a.amount_msat for a in pending)
            routes = self._routes(goal, Msat(missing), Msat(budget), goal.max_parts - len(pending))
            for route in routes:
                attempt = self._offer(goal, route)
                if attempt is None:
                    break  # its first channel does not fit after all: look for other routes
                pending.append(attempt)

    def _routes(
        self, goal: Goal, amount: Msat, maxfee: Msat, max_parts: int
    ) -> tuple[tuple[Hop, ...], ...]:
        node = self._node
        local = [c for c in local_channels(node) if c.short_channel_id not in goal.unfit]
        if max_parts < 1:
            raise RpcMethodError(RpcErrorCode.PAY_ROUTE_NOT_FOUND, "Too many parts are under way")
        try:
            return find_parts(
                node.gossip.graph,
                node.node_id,
                goal.payee,
                amount,
                goal.final_cltv,
                max_parts=max_parts,
                now=node.now(),
                learned=self.learned,
                hints=goal.hints,
                local=local,
                maxfee=maxfee,
            )
        except NoRoute as error:
            code = RpcErrorCode.PAY_ROUTE_NOT_FOUND
            if error.reason == "route-too-expensive":
                code = RpcErrorCode.PAY_ROUTE_TOO_EXPENSIVE
            before = f" Before that: {goal.last_fault}." if goal.last_fault else ""
            raise RpcMethodError(code, f"{error}{before}") from error

    def _offer(self, goal: Goal, route: tuple[Hop, ...]) -> AttemptRow | None:
        """An attempt that is in the store, or None when the first channel refuses."""
        node, store = self._node, self._node.store
        try:
            offered = offer(node, route, goal.for_payee)
        except LocalProtocolError as error:
            log.info("channel %s takes no HTLC now: %s", route[0].short_channel_id, error)
            goal.unfit.add(route[0].short_channel_id)
            goal.last_fault = str(error).rstrip(".")
            return None
        if goal.groupid is None:
            self._begin_row(goal.for_payee, goal.bolt11, goal.payee)
        attempt = store.add_attempt(
            payment_hash=goal.for_payee.payment_hash,
            amount_msat=route[-1].amount_msat,
            amount_sent_msat=route[0].amount_msat,
            session_key=offered.session_key,
            hops=encode_route(route),
            channel_index=offered.channel.state.index,
            htlc_id=offered.htlc_id,
            groupid=goal.groupid,
            partid=goal.next_partid,
            now=node.now(),
        )
        goal.groupid, goal.next_partid = attempt.groupid, goal.next_partid + 1
        self.learned.reserve(node.node_id, route)
        return attempt

    async def _outcome(self, payment_hash: bytes) -> PaymentRow:
        row = self._node.store.payment(payment_hash)
        if row is not None and row.status != "pending":
            return row
        future: asyncio.Future[PaymentRow] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(payment_hash, []).append(future)
        return await future

    # --- what the channels report ---------------------------------------------------------------

    def fulfilled(self, attempt: AttemptRow, effect: HtlcFulfilled) -> None:
        if attempt.status != "pending":
            return  # told again after a reconnection, or with a block
        node = self._node
        self.learned.succeeded(node.node_id, decode_route(attempt.hops), node.now())
        node.store.finish_attempt(
            attempt.id, "complete", now=node.now(), preimage=effect.payment_preimage
        )
        node.store.complete_payment(effect.payment_hash, effect.payment_preimage, node.now())
        node.turn.after(self._wake)
        node.turn.after(lambda: self._tell(effect.payment_hash))

    def failed(self, attempt: AttemptRow, effect: HtlcFailed) -> None:
        if attempt.status != "pending":
            return
        node, fault = self._node, read_fault(attempt, effect)
        code = RpcErrorCode.PAY_TRY_OTHER_ROUTE
        if fault.failure is None and effect.reason:
            code = RpcErrorCode.PAY_UNPARSEABLE_ONION
        elif fault.failure is not None and fault.failure.is_permanent and _is_final(attempt, fault):
            code = RpcErrorCode.PAY_DESTINATION_PERM_FAIL
        node.store.finish_attempt(
            attempt.id,
            "failed",
            now=node.now(),
            erroronion=effect.reason if 0 < len(effect.reason) <= MAX_ERRORONION else None,
            failure_code=int(code),
            failure_message=fault.sentence,
        )
        node.turn.after(self._wake)
        if effect.unsent:
            node.store.free_attempt_htlc(attempt.id)
        self._learn(attempt, fault, effect)
        self._go_on(attempt, fault, RpcMethodError(code, fault.sentence), effect)

    def _learn(self, attempt: AttemptRow, fault: Fault, effect: HtlcFailed) -> None:
        node, now = self._node, self._node.now()
        route = decode_route(attempt.hops)
        if effect.unsent or attempt.payment_hash not in self._goals:
            # A route of the caller's own may be wrong by itself: it says nothing about the hops.
            self.learned.release(node.node_id, route)
        elif effect.malformed is not None or effect.on_chain:
            # Our own peer: no hop of the route has said anything.
            self.learned.release(node.node_id, route)
            first = next(directed_channels(node.node_id, route))
            self.learned.avoid_channel(first, UnixTime(now + AVOID_SECONDS))
        else:
            self.learned.failed(node.node_id, route, fault.at, fault.failure, now)

    def _go_on(
        self, attempt: AttemptRow, fault: Fault, error: RpcMethodError, effect: HtlcFailed
    ) -> None:
        """Try again, wait for the other parts, or say that the payment has failed."""
        node, payment_hash = self._node, attempt.payment_hash
        row = node.store.payment(payment_hash)
        if row is None or row.status != "pending":
            return
        goal = self._goals.get(payment_hash)
        pending = node.store.attempts(payment_hash, "pending")
        if goal is not None and goal.give_up is None:
            goal.last_fault = fault.sentence
            if effect.on_chain or not self._may_retry(goal, attempt, fault, effect):
                goal.give_up = error
            else:
                if effect.unsent or (may_pass(fault.failure) and fault.at is not None):
                    at = -1 if fault.at is None else fault.at
                    goal.passing.add((decode_route(attempt.hops), at))
                self._try(goal, pending)
        self._conclude(payment_hash, pending, error)

    def _try(self, goal: Goal, pending: list[AttemptRow]) -> None:
        """Offer what is not under way yet; without a way for it, wait for one or give up."""
        if goal.timer is not None:
            return
        try:
            self._send(goal, pending)
        except RpcMethodError as refused:
            loop = asyncio.get_running_loop()
            seconds = goal.patience.wait(loop.time()) if goal.passing else None
            if seconds is None:
                goal.give_up = refused
            else:
                log.info("payment %s waits: %s", goal.for_payee.payment_hash.hex(), refused)
                goal.timer = loop.call_later(seconds, self._look_again, goal)

    def _look_again(self, goal: Goal) -> None:
        """What failed may have passed by now."""
        node, payment_hash = self._node, goal.for_payee.payment_hash
        goal.timer = None
        row = node.store.payment(payment_hash)
        if self._goals.get(payment_hash) is not goal or row is None or row.status != "pending":
            return
        for route, at in goal.passing:
            self.learned.forgive(node.node_id, route, at)
        goal.unfit.clear()
        pending = node.store.attempts(payment_hash, "pending")
        if goal.give_up is None:
            self._try(goal, pending)
        self._conclude(payment_hash, pending, goal.give_up)

    def _conclude(
        self, payment_hash: bytes, pending: list[AttemptRow], error: RpcMethodError | None
    ) -> None:
        """Say that the payment has failed, if nothing is under way any more, nor will be."""
        goal = self._goals.get(payment_hash)
        if goal is not None and goal.give_up is not None:
            goal.stop()
        if pending or (goal is not None and goal.timer is not None):
            return
        why = error if goal is None or goal.give_up is None else goal.give_up
        assert why is not None, "what has nothing under way has been given up"
        node = self._node
        node.store.fail_payment(payment_hash, int(why.code), str(why), node.now())
        node.turn.after(lambda: self._tell(payment_hash))

    def _may_retry(self, goal: Goal, attempt: AttemptRow, fault: Fault, effect: HtlcFailed) -> bool:
        over = asyncio.get_running_loop().time() > goal.patience.deadline
        if over or goal.next_partid >= MAX_ATTEMPTS:
            return False
        if fault.failure is None and effect.reason:
            # An error that nobody can read teaches nothing about a channel with the payee itself.
            return len(decode_route(attempt.hops)) > 1
        # The payee is asked once, unless it lacked parts that failed on their way.
        timed_out = fault.failure is not None and fault.failure.code == FailureCode.MPP_TIMEOUT
        return timed_out or not _is_final(attempt, fault)

    def _tell(self, payment_hash: bytes) -> None:
        row = self._node.store.payment(payment_hash)
        assert row is not None, "a payment that ended is in the store"
        if row.status == "pending":
            return  # begun again by a caller that was told before
        goal = self._goals.pop(payment_hash, None)
        if goal is not None:
            goal.stop()
        for future in self._waiting.pop(payment_hash, []):
            if not future.done():
                future.set_result(row)


def _is_final(attempt: AttemptRow, fault: Fault) -> bool:
    """Whether the payee itself has spoken."""
    return fault.at == len(decode_route(attempt.hops)) - 1
