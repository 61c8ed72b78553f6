"""The graph on disk: what is saved comes back the same, and what is forgotten does not."""

from __future__ import annotations

from pathlib import Path

from channels.bolt.gossip import Gossip
from channels.bolt.graph import GraphChannel
from channels.bolt.messages import encode
from channels.node.store import Store
from channels.units import BlockHeight, UnixTime
from tests.channels.bolt.networks import REGTEST_CHAIN, node, scid
from tests.channels.bolt.signed_gossip import (
    announcement,
    channel_update,
    node_announcement,
    output,
)

NOW = UnixTime(1_700_000_000)
HERE = b""


def heard() -> Gossip:
    gossip = Gossip(REGTEST_CHAIN, node("me"))
    gossip.height = BlockHeight(1000)
    for number, (one, other) in enumerate((("A", "B"), ("B", "C"), ("C", "D")), start=1):
        features = b"\x02\x00" if number == 2 else b""
        gossip.receive(HERE, announcement(one, other, number, features=features), NOW)
        gossip.receive(HERE, channel_update(one, other, number, NOW, base=number), NOW)
        gossip.receive(HERE, node_announcement(one, NOW), NOW)
        gossip.funding(scid(number), output(one, other, number), NOW)
    gossip.receive(HERE, channel_update("B", "A", 1, NOW, disabled=1), NOW)
    gossip.block_connected(BlockHeight(1001), [output("C", "D", 3).outpoint])
    return gossip


def described(channel: GraphChannel) -> tuple[object, ...]:
    return (
        channel.nodes,
        channel.capacity_sat,
        channel.features,
        channel.announcement,
        channel.outpoint,
        channel.spent_height,
        [update and encode(update) for update in channel.updates],
    )


def test_a_graph_survives_a_restart(tmp_path: Path) -> None:
    before = heard()
    with Store(tmp_path / "node.sqlite") as store:
        for _ in range(2):  # writing again changes nothing
            store.save_gossip_channels(before.graph.channels.values())
            store.save_gossip_nodes(before.graph.announcements.values())
        store.commit()
    after = Gossip(REGTEST_CHAIN, node("me"))
    with Store(tmp_path / "node.sqlite") as store:
        after.restore(store.load_gossip_channels(), store.load_gossip_nodes())
    assert after.graph.announcements == before.graph.announcements
    assert after.outpoints == before.outpoints and len(after.outpoints) == 3
    assert after.graph.channels.keys() == before.graph.channels.keys()
    for number, channel in before.graph.channels.items():
        assert described(after.graph.channels[number]) == described(channel)
        for end in channel.nodes:
            assert dict(after.graph.incoming(end)) == dict(before.graph.incoming(end))


def test_what_is_forgotten_stays_so(tmp_path: Path) -> None:
    gossip = heard()
    with Store(tmp_path / "node.sqlite") as store:
        store.save_gossip_channels(gossip.graph.channels.values())
        store.save_gossip_nodes(gossip.graph.announcements.values())
        store.forget_gossip_channels([scid(1), scid(9)])
        store.forget_gossip_nodes([node("A")])
        assert {c.short_channel_id for c in store.load_gossip_channels()} == {scid(2), scid(3)}
        assert {n.node_id for n in store.load_gossip_nodes()} == {node("B"), node("C")}
