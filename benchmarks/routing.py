"""How long a route takes in a network of 10,000 channels, and how long that network takes to load.

Beside the route stands a plain Dijkstra over the same edges, with their base fee as the only weight
and nothing checked: what a route would cost if it did not have to be payable. Beside the loading
stands reading the same rows from the same file and doing nothing with them. Times are those of the
processor, so that other programs on the machine do not count.
"""

from __future__ import annotations

import gc
import hashlib
import random
import sqlite3
from contextlib import closing
from dataclasses import replace
from heapq import heappop, heappush
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time

from channels.bolt.gossip import Gossip
from channels.bolt.graph import Graph, GraphChannel
from channels.bolt.keys import public_key
from channels.bolt.messages import (
    ChannelAnnouncement,
    ChannelUpdate,
    NodeAnnouncement,
    encode,
)
from channels.bolt.route import Knowledge, NoRoute, find, find_parts
from channels.node.store import Store
from channels.units import Msat, Sat, ShortChannelId, UnixTime, msat

CHANNELS, NODES, ROUTES = 10_000, 2_500, 200
NOW = UnixTime(1_700_000_000)
AMOUNT = Msat(50_000_000)


def node_id(number: int) -> bytes:
    """Not a point: nothing here is signed."""
    return b"\x02" + hashlib.sha256(number.to_bytes(4, "big")).digest()


def network(seed: int) -> Graph:
    """A few hubs with hundreds of channels and many nodes with a handful, as on mainnet."""
    rng = random.Random(seed)  # noqa: S311  # a network to measure, nothing secret
    graph, ends = Graph(), [0, 1]
    for number in range(CHANNELS):
        one = number + 2 if number + 2 < NODES else rng.choice(ends)
        other = rng.choice(ends)
        while other == one:
            other = rng.randrange(min(NODES, number + 2))
        ends += [one, other]
        capacity = Sat(int(10 ** rng.uniform(5.0, 8.0)))
        nodes = sorted((node_id(one), node_id(other)))
        scid = ShortChannelId.of(500_000 + number, 1, 0)
        graph.add_channel(GraphChannel(scid, (nodes[0], nodes[1]), capacity))
        for direction in (0, 1):
            graph.update_channel(policy(rng, scid, direction, capacity))
    return graph


def policy(
    rng: random.Random, scid: ShortChannelId, direction: int, capacity: Sat
) -> ChannelUpdate:
    return ChannelUpdate(
        signature=bytes(64),
        chain_hash=bytes(32),
        short_channel_id=scid,
        timestamp=NOW,
        message_flags=1,
        channel_flags=direction,
        cltv_expiry_delta=rng.choice([18, 34, 40, 80, 144]),
        htlc_minimum_msat=Msat(rng.choice([0, 1, 1000])),
        fee_base_msat=rng.choice([0, 0, 100, 1000]),
        fee_proportional_millionths=rng.choice([1, 10, 100, 500, 2000]),
        htlc_maximum_msat=Msat(msat(capacity) * 99 // 100),
    )


def bare(graph: Graph, source: bytes, destination: bytes) -> int | None:
    best, heap = {destination: 0}, [(0, destination)]
    while heap:
        cost, node = heappop(heap)
        if node == source:
            return cost
        if cost > best[node]:
            continue
        for edge in graph.incoming(node).values():
            total = cost + 1 + edge[2]
            known = best.get(edge[0])
            if known is None or total < known:
                best[edge[0]] = total
                heappush(heap, (total, edge[0]))
    return None


def taught(graph: Graph, rng: random.Random) -> Knowledge:
    """As after a day of payments: one channel in twenty was seen to fail."""
    learned = Knowledge()
    for short_channel_id in rng.sample(list(graph.channels), CHANNELS // 20):
        channel = graph.channels[short_channel_id]
        for target, edge in graph.outgoing(channel.nodes[0]):
            if edge.channel >> 1 == short_channel_id and target == channel.nodes[1]:
                learned.avoid_channel(edge.channel, NOW)
    return learned


def main() -> None:
    graph = network(7)
    gc.freeze()  # as the node does once it has loaded its graph
    rng = random.Random(8)  # noqa: S311  # which pairs are asked for
    nodes = sorted(graph.nodes)
    pairs = [rng.sample(nodes, 2) for _ in range(ROUTES)]
    knowledge = {"nothing learned": Knowledge(), "5 % of the channels seen": taught(graph, rng)}
    print(f"{CHANNELS} channels, {len(nodes)} nodes, {ROUTES} random pairs of nodes")
    bare_times = []
    for source, destination in pairs:
        start = process_time()
        bare(graph, source, destination)
        bare_times.append(process_time() - start)
    beside = median(bare_times)
    print(f"bare Dijkstra: median {beside * 1000:.1f} ms, worst {max(bare_times) * 1000:.1f} ms")
    for name, learned in knowledge.items():
        times, found = [], 0
        for source, destination in pairs:
            start = process_time()
            try:
                find(graph, source, destination, AMOUNT, 18, now=NOW, learned=learned)
                found += 1
            except NoRoute:
                continue
            finally:
                times.append(process_time() - start)
        times.sort()
        print(
            f"route.find, {name}: median {median(times) * 1000:.1f} ms, "
            f"95 % within {times[len(times) * 95 // 100] * 1000:.1f} ms, "
            f"worst {times[-1] * 1000:.1f} ms, {median(times) / beside:.1f} times the bare one; "
            f"{found} of {ROUTES} found"
        )
    split(graph, pairs)
    loading(graph)


def split(graph: Graph, pairs: list[list[bytes]]) -> None:
    start, parts = process_time(), 0
    for source, destination in pairs[:20]:
        try:
            parts += len(
                find_parts(
                    graph,
                    source,
                    destination,
                    Msat(20 * AMOUNT),
                    18,
                    max_parts=10,
                    now=NOW,
                    learned=Knowledge(),
                )
            )
        except NoRoute:
            continue
    spent = (process_time() - start) / 20 * 1000
    print(f"route.find_parts of 20 times as much: mean {spent:.0f} ms, {parts} parts for 20 pairs")


def loading(graph: Graph) -> None:
    """Announcements as long as real ones, written by the node's store and read at its start."""
    key = public_key(b"\x01" * 32)
    points = {node_id: public_key(node_id[1:]) for node_id in graph.nodes}
    with TemporaryDirectory() as directory:
        path = Path(directory) / "node.sqlite"
        with Store(path) as store:
            store.save_gossip_channels(
                replace(channel, announcement=encode(announcement(channel, points, key)))
                for channel in graph.channels.values()
            )
            store.save_gossip_nodes(node_announcement(point) for point in points.values())
            store.commit()
        with closing(sqlite3.connect(path)) as db:
            start = process_time()
            rows = len(db.execute("SELECT * FROM gossip_channels").fetchall())
            rows += len(db.execute("SELECT * FROM gossip_nodes").fetchall())
            beside = process_time() - start
        with Store(path) as store:
            gossip = Gossip(bytes(32), key)
            start = process_time()
            gossip.restore(store.load_gossip_channels(), store.load_gossip_nodes())
            spent = process_time() - start
    assert len(gossip.graph.channels) == CHANNELS
    print(
        f"loading the graph: {spent:.2f} s for {rows} rows, {spent / beside:.0f} times reading them"
    )


def announcement(
    channel: GraphChannel, points: dict[bytes, bytes], key: bytes
) -> ChannelAnnouncement:
    return ChannelAnnouncement(
        node_signature_1=bytes(64),
        node_signature_2=bytes(64),
        bitcoin_signature_1=bytes(64),
        bitcoin_signature_2=bytes(64),
        features=b"",
        chain_hash=bytes(32),
        short_channel_id=channel.short_channel_id,
        node_id_1=points[channel.nodes[0]],
        node_id_2=points[channel.nodes[1]],
        bitcoin_key_1=key,
        bitcoin_key_2=key,
    )


def node_announcement(point: bytes) -> NodeAnnouncement:
    return NodeAnnouncement(
        signature=bytes(64),
        features=bytes(8),
        timestamp=NOW,
        node_id=point,
        rgb_color=b"oda",
        alias=bytes(32),
        addresses=b"\x01\x7f\x00\x00\x01\x26\x07",
    )


if __name__ == "__main__":
    main()
