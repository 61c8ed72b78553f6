"""What `/metrics` shows: counts and sums in base units, nothing about any one user."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from provider.ledger import Ledger

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry per provider, so that two in a process don't share their figures."""

    def __init__(self, ledger: Ledger) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Balances(ledger))
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
