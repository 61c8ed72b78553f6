"""What `/metrics` shows: counts and sums in base units, nothing about any one user."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from provider.ledger import Ledger
from provider.share_desk import ShareDesk
from provider.shares import BatchStatus

MINUTE: Final = 60.0
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Pace:
    """Tokens of the last minute. clock: goes forward, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._seconds: deque[tuple[int, int]] = deque()

    def add(self, tokens: int) -> None:
        second = int(self._clock())
        if self._seconds and self._seconds[-1][0] == second:
            tokens += self._seconds.pop()[1]
        self._seconds.append((second, tokens))
        self._forget()

    def per_second(self) -> float:
        self._forget()
        over = min(MINUTE, max(1.0, self._clock() - self._began))
        return sum(tokens for _, tokens in self._seconds) / over

    def _forget(self) -> None:
        while self._seconds and self._seconds[0][0] <= self._clock() - MINUTE:
            self._seconds.popleft()


class Metrics:
    """One registry per provider, so that two in a process don't share their figures."""

    def __init__(self, ledger: Ledger, desk: ShareDesk | None = None) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Balances(ledger))
        if desk is not None:
            self.registry.register(_Shares(desk))
        self.pace = Pace()
        self.requests = Counter(
            "oda_requests", "HTTP requests answered.", ["status"], registry=self.registry
        )
        self.offers = Counter(
            "oda_offers", "Unpaid requests answered with offers.", registry=self.registry
        )
        self.input_tokens = Counter(
            "oda_input_tokens", "Tokens of prompts that were charged.", registry=self.registry
        )
        self.output_tokens = Counter(
            "oda_output_tokens", "Tokens that were delivered.", registry=self.registry
        )
        self.topup_waits = Counter(
            "oda_topup_waits", "Times a stream waited for a top-up.", registry=self.registry
        )
        self.failures = Counter(
            "oda_answer_failures", "Answers that ended with an error.", registry=self.registry
        )
        self.running = Gauge(
            "oda_answers_running", "Answers being generated.", registry=self.registry
        )

    def delivered(self, tokens: int) -> None:
        self.output_tokens.inc(tokens)
        self.pace.add(tokens)

    def count(self, name: str) -> int:
        """Of one of the above, which has no labels."""
        return int(self.registry.get_sample_value(name) or 0)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Balances(Collector):
    """Sums of the ledger, taken when they are asked for."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterable[GaugeMetricFamily]:
        totals = self._ledger.totals()
        yield GaugeMetricFamily("oda_spent_msat", "Earned.", value=totals["spent"])
        yield GaugeMetricFamily("oda_refund_msat", "Refunded or set aside.", value=totals["refund"])
        yield GaugeMetricFamily("oda_credit_msat", "Unspent, owed.", value=totals["rest"])


class _Shares(Collector):
    """What is owed to payees and what was paid, taken when it is asked for."""

    def __init__(self, desk: ShareDesk) -> None:
        self._desk = desk

    def collect(self) -> Iterable[GaugeMetricFamily]:
        carried = self._desk.carried()
        sums = dict.fromkeys(BatchStatus, 0)
        for by_status in self._desk.shares.totals().values():
            for status, amount in by_status.items():
                sums[BatchStatus(status)] += amount
        yield GaugeMetricFamily(
            "oda_shares_carried_msat", "Owed, in no batch yet.", value=sum(carried.values())
        )
        yield GaugeMetricFamily(
            "oda_shares_payees", "Keys that something is carried for.", value=len(carried)
        )
        batched = GaugeMetricFamily(
            "oda_shares_batched_msat", "In batches, by what became of them.", labels=["status"]
        )
        for status, amount in sums.items():
            batched.add_metric([status], amount)
        yield batched
        following = self._desk.following()
        yield GaugeMetricFamily(
            "oda_chain_followed",
            "Whether the sidechain is followed.",
            value=int(following.trouble is None),
        )
