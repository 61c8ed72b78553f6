"""What `/metrics` shows of a node: counts in base units, nothing about any one peer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sidechain.events import BlockRejected, Event, ScoreAdded, TipChanged
from sidechain.handlers import Around
from sidechain.light_node import LightNode
from sidechain.node import ChainNode

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry per node, so that two in a process don't share their figures."""

    def __init__(self, node: ChainNode | LightNode, around: Around) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Gauges(node, around))

        def counter(name: str, says: str, *labels: str) -> Counter:
            return Counter(f"oda_chain_{name}", says, labels, registry=self.registry)

        self.requests = counter("http_requests", "HTTP requests answered.", "status")
        self._connected = counter("blocks_connected", "Blocks that became part of the chain.")
        self._undone = counter("blocks_undone", "Blocks that a reorg left behind.")
        self._rejected = counter("blocks_rejected", "Blocks found to be invalid.", "reason")
        self._scored = counter("scores", "Answers of the scorer.", "answer")

    def hear(self, event: Event) -> None:
        if isinstance(event, TipChanged):
            self._connected.inc(len(event.advance.connected))
            self._undone.inc(len(event.advance.disconnected))
        elif isinstance(event, BlockRejected):
            self._rejected.labels(event.reason).inc()
        elif isinstance(event, ScoreAdded):
            self._scored.labels(type(event.answer).__name__.lower()).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Gauges(Collector):
    """Figures that are read when they are asked for."""

    def __init__(self, node: ChainNode | LightNode, around: Around) -> None:
        self._node = node
        self._around = around

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for name, says, value in self._figures():
            yield GaugeMetricFamily(f"oda_chain_{name}", says, value=value)

    def _figures(self) -> Iterable[tuple[str, str, float]]:
        node, around = self._node, self._around
        if isinstance(node, LightNode):
            yield "headers_height", "Of the best header.", node.headers.best.height
        else:
            yield "headers_height", "Of the best header.", node.chain.headers.best.height
            yield "height", "Of the tip.", node.chain.tip.height
            yield "pending_blocks", "Blocks that wait for scores.", len(node.chain.pending())
            yield "mempool_transactions", "Waiting transactions.", len(node.mempool)
            yield "mempool_bytes", "Their size.", node.mempool.size
        yield "announcements", "Providers that announce themselves.", len(node.announcements)
        yield "peers", "Connected peers.", len(around.peers.infos())
        if around.scorer is not None:
            yield "scoring_open", "Scores that are wanted.", len(around.scorer.jobs)
            yield "scoring_tries_failed", "Tries without an answer.", around.scorer.failed
        if around.miner is not None:
            yield "hash_rate", "Hashes per second.", around.miner.rate
