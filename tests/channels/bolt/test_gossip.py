"""Gossip as received: believed, ignored with its reason, forgotten; floods stay small."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.bolt import gossip as gossip_module
from channels.bolt.gossip import (
    CHANGE_BURST,
    EARLY_BLOCKS,
    FORGET_BLOCKS,
    FUTURE_SECONDS,
    MAX_CANDIDATES,
    PEER_BURST,
    STALE_SECONDS,
    FundingOutput,
    Gossip,
    Ignored,
    LookUp,
)
from channels.bolt.gossip_signatures import digest, signed
from channels.bolt.graph import Graph, directed, direction_of
from channels.bolt.keys import sign
from channels.bolt.messages import (
    ChannelAnnouncement,
    ChannelUpdate,
    Message,
    NodeAnnouncement,
    encode,
)
from channels.errors import OdaError, RemoteProtocolError
from channels.units import BlockHeight, Sat, UnixTime
from tests.channels.bolt.networks import REGTEST_CHAIN, node, scid, secret
from tests.channels.bolt.signed_gossip import (
    announcement,
    bitcoin,
    channel_update,
    node_announcement,
    outpoint,
    output,
    resigned,
)

NOW = UnixTime(1_700_000_000)
PEER, OTHER = node("peer"), node("another peer")
OWN = node("me")


@pytest.fixture
def gossip() -> Gossip:
    made = Gossip(REGTEST_CHAIN, OWN)
    made.height = BlockHeight(1000)
    return made


def known(gossip: Gossip, one: str = "A", other: str = "B", number: int = 1) -> None:
    assert gossip.receive(PEER, announcement(one, other, number), NOW) == (LookUp(scid(number)),)
    assert gossip.funding(scid(number), output(one, other, number), NOW) == ()


def reason(gossip: Gossip, message: Message, now: int = NOW, peer: bytes = PEER) -> str:
    """Why it is refused; nothing may have changed."""
    before = snapshot(gossip.graph)
    with pytest.raises(OdaError) as raised:
        gossip.receive(peer, message, UnixTime(now))
    assert snapshot(gossip.graph) == before
    return raised.value.reason


def snapshot(graph: Graph) -> dict[object, object]:
    channels: dict[object, object] = {
        (scid, c.announcement): tuple(u and encode(u) for u in c.updates)
        for scid, c in graph.channels.items()
    }
    return {**channels, **{n: encode(a) for n, a in graph.announcements.items()}}


def test_a_channel_is_known_once_its_output_was_seen(gossip: Gossip) -> None:
    gossip.receive(PEER, announcement("A", "B", 1), NOW)
    assert scid(1) not in gossip.graph.channels and gossip.pending == 1
    gossip.funding(scid(1), output("A", "B", 1), NOW)
    channel = gossip.graph.channels[scid(1)]
    assert channel.capacity_sat == Sat(1_000_000) and channel.outpoint == outpoint(1)
    assert set(gossip.graph.nodes) == {node("A"), node("B")}
    gossip.receive(PEER, channel_update("A", "B", 1, NOW, base=7), NOW)
    edge = gossip.graph.edge(directed(scid(1), direction_of(node("A"), node("B"))))
    assert edge is not None and edge.fee_base_msat == 7
    gossip.receive(PEER, node_announcement("A", NOW), NOW)
    assert node("A") in gossip.graph.announcements


def test_what_follows_an_announcement_waits_for_the_chain_with_it(gossip: Gossip) -> None:
    gossip.receive(PEER, announcement("A", "B", 1), NOW)
    gossip.receive(PEER, channel_update("A", "B", 1, NOW), NOW)
    gossip.receive(PEER, node_announcement("B", NOW), NOW)
    assert gossip.funding(scid(1), output("A", "B", 1), NOW) == ()
    assert gossip.graph.channels[scid(1)].updates.count(None) == 1
    assert node("B") in gossip.graph.announcements
    assert set(gossip.news.channels) == {scid(1)} and set(gossip.news.nodes) == {node("B")}


def test_a_channel_is_passed_on_with_its_first_update(gossip: Gossip) -> None:
    known(gossip)
    assert not gossip.news, "BOLT 7: without an update it MUST NOT be sent"
    gossip.receive(PEER, channel_update("A", "B", 1, NOW), NOW)
    news = gossip.take_news()
    assert news.channels == {scid(1): PEER} and len(news.updates) == 1
    gossip.receive(PEER, channel_update("B", "A", 1, NOW), NOW)
    news = gossip.take_news()
    assert not news.channels and len(news.updates) == 1


# --- forged ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    ["node_signature_1", "node_signature_2", "bitcoin_signature_1", "bitcoin_signature_2"],
)
def test_each_of_the_four_signatures_counts(gossip: Gossip, field: str) -> None:
    other: dict[str, Any] = {field: announcement("A", "B", 2).node_signature_1}
    forged = replace(announcement("A", "B", 1), **other)
    with pytest.raises(RemoteProtocolError) as raised:
        gossip.receive(PEER, forged, NOW)
    assert raised.value.reason == "announcement-signature-invalid"
    assert gossip.pending == 0


def test_signatures_cover_what_follows_the_known_fields(gossip: Gossip) -> None:
    good = announcement("A", "B", 1)
    assert reason(gossip, replace(good, extension=b"x")) == "announcement-signature-invalid"
    first, second = sorted("AB", key=node)
    longer = resigned(replace(good, extension=b"x"), first, second, 1)
    assert gossip.receive(PEER, longer, NOW) == (LookUp(scid(1)),)


def test_forged_updates_and_nodes(gossip: Gossip) -> None:
    known(gossip)
    theirs = channel_update("A", "B", 1, NOW)
    assert reason(gossip, replace(theirs, fee_base_msat=9)) == "update-signature-invalid"
    assert reason(gossip, signed(theirs, secret("B"))) == "update-signature-invalid"
    nodes = node_announcement("A", NOW)
    assert reason(gossip, signed(nodes, secret("B"))) == "node-signature-invalid"


def test_an_output_that_pays_to_other_keys_proves_nothing(gossip: Gossip) -> None:
    gossip.receive(PEER, announcement("A", "B", 1), NOW)
    ((peer, error),) = gossip.funding(scid(1), output("C", "D", 1), NOW)
    assert peer == PEER and error.reason == "announcement-funding-script"
    assert scid(1) not in gossip.graph.channels


def test_a_squatter_does_not_keep_the_real_channel_out(gossip: Gossip) -> None:
    """Anybody can sign for an output that is not theirs; whoever holds it still gets in."""
    gossip.receive(OTHER, announcement("X", "Y", 1), NOW)
    assert gossip.receive(PEER, announcement("A", "B", 1), NOW) == (), "it is looked up already"
    assert reason(gossip, announcement("A", "B", 1)) == "announcement-pending"
    gossip.funding(scid(1), output("A", "B", 1), NOW)
    assert set(gossip.graph.nodes) == {node("A"), node("B")}
    assert reason(gossip, announcement("X", "Y", 1)) == "announcement-funding-script"


def test_a_missing_output_is_not_looked_up_again_and_again(gossip: Gossip) -> None:
    gossip.receive(PEER, announcement("A", "B", 1), NOW)
    gossip.funding(scid(1), None, NOW)
    assert reason(gossip, announcement("A", "B", 1)) == "announcement-refused-before"
    assert gossip.knows(scid(1), NOW) and not gossip.knows(scid(1), UnixTime(NOW + 3600))
    assert gossip.receive(PEER, announcement("A", "B", 1), UnixTime(NOW + 3600))


def test_an_unreachable_chain_refuses_nothing_for_good(gossip: Gossip) -> None:
    gossip.receive(PEER, announcement("A", "B", 1), NOW)
    gossip.unavailable(scid(1))
    known(gossip)


def test_a_contradiction_costs_both_pairs_of_nodes_their_place(gossip: Gossip) -> None:
    """BOLT 7: the same keys announce one output for other nodes, so keys have leaked."""
    known(gossip)
    known(gossip, "A", "C", 2)
    known(gossip, "C", "D", 3)
    first = announcement("A", "B", 1)
    holders = {first.bitcoin_key_1: "A", first.bitcoin_key_2: "B"}
    one, two = sorted("XY", key=node)
    keys = [bitcoin(holders[k], 1) for k in (first.bitcoin_key_1, first.bitcoin_key_2)]
    lie = replace(first, node_id_1=node(one), node_id_2=node(two))
    told = digest(lie)
    lie = replace(
        lie,
        node_signature_1=sign(secret(one), told),
        node_signature_2=sign(secret(two), told),
        bitcoin_signature_1=sign(secret(keys[0]), told),
        bitcoin_signature_2=sign(secret(keys[1]), told),
    )
    with pytest.raises(Ignored) as raised:
        gossip.receive(PEER, lie, NOW)
    assert raised.value.reason == "announcement-contradiction"
    assert set(gossip.graph.channels) == {scid(3)}
    assert reason(gossip, announcement("A", "E", 4)) == "announcement-node-blacklisted"


# --- stale, early, elsewhere -------------------------------------------------------------------


def test_reasons_for_ignoring_announcements(gossip: Gossip) -> None:
    known(gossip)
    good = announcement("A", "C", 2)
    swapped = replace(good, node_id_1=good.node_id_2, node_id_2=good.node_id_1)
    assert reason(gossip, announcement("A", "B", 1)) == "announcement-known"
    assert reason(gossip, replace(good, chain_hash=bytes(32))) == "announcement-wrong-chain"
    assert reason(gossip, swapped) == "announcement-node-order"
    too_early = 1000 + EARLY_BLOCKS + 1 - 5
    assert reason(gossip, announcement("A", "C", too_early)) == "announcement-too-early"


def test_an_announcement_a_few_blocks_early_waits_for_them(gossip: Gossip) -> None:
    number = 1000 - 4  # five confirmations
    assert gossip.receive(PEER, announcement("A", "B", number), NOW) == ()
    assert gossip.block_connected(BlockHeight(1001), ()) == (LookUp(scid(number)),)
    assert gossip.block_connected(BlockHeight(1002), ()) == ()


def test_reasons_for_ignoring_updates(gossip: Gossip) -> None:
    known(gossip)
    gossip.receive(PEER, channel_update("A", "B", 1, NOW), NOW)
    cases = {
        "update-stale": channel_update("A", "B", 1, NOW - 1),
        "update-duplicate": channel_update("A", "B", 1, NOW, base=5),
        "update-unknown-channel": channel_update("A", "B", 2, NOW),
        "update-too-old": channel_update("A", "B", 1, NOW - STALE_SECONDS - 1),
        "update-from-the-future": channel_update("A", "B", 1, NOW + FUTURE_SECONDS + 1),
        "update-wrong-chain": replace(channel_update("A", "B", 1, NOW), chain_hash=bytes(32)),
        "update-not-to-forward": replace(channel_update("A", "B", 1, NOW + 1), message_flags=3),
    }
    for expected, message in cases.items():
        assert reason(gossip, message) == expected
    gossip.receive(PEER, channel_update("A", "B", 1, NOW + FUTURE_SECONDS), NOW)


def test_reasons_for_ignoring_nodes(gossip: Gossip) -> None:
    known(gossip)
    gossip.receive(PEER, node_announcement("A", NOW), NOW)
    two_names = (b"\x05\x01a" + b"\x26\x07") * 2
    cases = {
        "node-stale": node_announcement("A", NOW),
        "node-unknown": node_announcement("C", NOW),
        "node-from-the-future": node_announcement("A", NOW + FUTURE_SECONDS + 1),
        "node-addresses-malformed": node_announcement("B", NOW, addresses=b"\x01\x7f\0\0\x01"),
        "node-two-hostnames": node_announcement("B", NOW, addresses=two_names),
    }
    for expected, message in cases.items():
        assert reason(gossip, message) == expected


def test_our_own_words_are_not_taken_from_others(gossip: Gossip) -> None:
    known(gossip, "me", "B", 1)
    assert reason(gossip, channel_update("me", "B", 1, NOW)) == "update-our-own"
    assert reason(gossip, node_announcement("me", NOW)) == "node-our-own"
    gossip.accept_update(channel_update("me", "B", 1, NOW))
    assert gossip.news.channels == {scid(1): b""}


def test_a_disabled_direction_is_no_edge_until_it_is_enabled(gossip: Gossip) -> None:
    known(gossip)
    key = directed(scid(1), direction_of(node("A"), node("B")))
    for time, disabled in ((0, 1), (1, 0), (2, 1)):
        gossip.receive(PEER, channel_update("A", "B", 1, NOW + time, disabled=disabled), NOW)
        assert (gossip.graph.edge(key) is None) == bool(disabled)


def test_a_channel_that_requires_the_unknown_is_known_but_not_used(gossip: Gossip) -> None:
    message = announcement("A", "B", 1, features=b"\x01" + bytes(20))
    gossip.receive(PEER, message, NOW)
    gossip.funding(scid(1), output("A", "B", 1), NOW)
    gossip.receive(PEER, channel_update("A", "B", 1, NOW), NOW)
    assert gossip.graph.edge(directed(scid(1), direction_of(node("A"), node("B")))) is None


# --- forgetting --------------------------------------------------------------------------------


def test_a_spent_channel_is_forgotten_72_blocks_later(gossip: Gossip) -> None:
    known(gossip)
    gossip.receive(PEER, channel_update("A", "B", 1, NOW), NOW)
    gossip.receive(PEER, node_announcement("A", NOW), NOW)
    gossip.block_connected(BlockHeight(1001), [outpoint(1)])
    assert reason(gossip, channel_update("A", "B", 1, NOW + 1)) == "update-spent-channel"
    gossip.receive(PEER, channel_update("A", "B", 1, NOW + 1, disabled=1), NOW)
    gossip.block_connected(BlockHeight(1000 + FORGET_BLOCKS), ())
    assert scid(1) in gossip.graph.channels
    gossip.block_connected(BlockHeight(1001 + FORGET_BLOCKS), ())
    assert not gossip.graph.channels and not gossip.graph.announcements and not gossip.outpoints
    assert gossip.changed.channels == {scid(1)}
    assert gossip.changed.nodes == {node("A"), node("B")}


def test_a_reorganization_can_undo_both_spending_and_funding(gossip: Gossip) -> None:
    known(gossip)
    known(gossip, "A", "C", 995)
    gossip.block_connected(BlockHeight(1001), [outpoint(1)])
    gossip.block_disconnected(BlockHeight(1001))
    assert gossip.graph.channels[scid(1)].spent_height is None
    for height in range(1000, 994, -1):
        gossip.block_disconnected(BlockHeight(height))
    assert gossip.graph.channels[scid(995)].spent_height == 995
    assert gossip.block_connected(BlockHeight(995), ()) == (LookUp(scid(995)),)
    gossip.funding(scid(995), output("A", "C", 995), NOW)
    assert gossip.graph.channels[scid(995)].spent_height is None


def test_pruning_after_two_weeks_of_one_sides_silence(gossip: Gossip) -> None:
    for number, (one, other) in enumerate((("A", "B"), ("A", "C"), ("me", "A")), start=1):
        known(gossip, one, other, number)
    for number, other in ((1, "B"), (2, "C")):
        gossip.receive(PEER, channel_update("A", other, number, NOW), NOW)
    week = STALE_SECONDS // 2
    later = UnixTime(NOW + 2 * week)
    gossip.receive(PEER, channel_update("B", "A", 1, NOW + week), UnixTime(NOW + week))
    gossip.receive(PEER, channel_update("A", "C", 2, NOW + week), UnixTime(NOW + week))
    gossip.accept_update(channel_update("me", "A", 3, NOW))
    assert gossip.prune(later) == 0
    assert gossip.prune(UnixTime(later + 1)) == 1
    assert set(gossip.graph.channels) == {scid(2), scid(3)}, "our own is in our hands"


# --- floods ------------------------------------------------------------------------------------


def test_a_direction_changes_only_so_often(gossip: Gossip) -> None:
    known(gossip)
    for time in range(CHANGE_BURST):
        gossip.receive(PEER, channel_update("A", "B", 1, NOW + time), NOW)
    late = channel_update("A", "B", 1, NOW + CHANGE_BURST)
    assert reason(gossip, late) == "update-rate"
    gossip.receive(PEER, channel_update("B", "A", 1, NOW), NOW)
    gossip.receive(PEER, late, UnixTime(NOW + 60))


def test_forged_updates_use_up_nobodys_changes(gossip: Gossip) -> None:
    known(gossip)
    for time in range(2 * CHANGE_BURST):
        forged = signed(channel_update("A", "B", 1, NOW + 100 + time), secret("X"))
        assert reason(gossip, forged) == "update-signature-invalid"
    gossip.receive(PEER, channel_update("A", "B", 1, NOW), NOW)


def test_a_node_changes_only_so_often(gossip: Gossip) -> None:
    known(gossip)
    for time in range(CHANGE_BURST):
        gossip.receive(PEER, node_announcement("A", NOW + time), NOW)
    assert reason(gossip, node_announcement("A", NOW + 99)) == "node-rate"


def test_a_peer_that_floods_is_no_longer_checked_but_what_we_asked_for_is(
    gossip: Gossip, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(gossip)
    checked: list[ChannelUpdate] = []
    monkeypatch.setattr(gossip_module, "check_update", lambda m, n: checked.append(m))
    monkeypatch.setattr(gossip, "_limit", lambda *_: None)
    update = channel_update("A", "B", 1, NOW)
    for time in range(PEER_BURST - 1):
        gossip.receive(PEER, replace(update, timestamp=NOW + time), NOW)
    late = replace(update, timestamp=NOW + PEER_BURST)
    assert reason(gossip, late) == "gossip-flood"
    assert len(checked) == PEER_BURST - 1
    gossip.receive(OTHER, late, NOW)
    gossip.asked(PEER, 1, NOW)
    gossip.receive(PEER, replace(late, timestamp=late.timestamp + 1), NOW)
    assert reason(gossip, replace(late, timestamp=late.timestamp + 2)) == "gossip-flood"


def test_waiting_announcements_are_bounded(gossip: Gossip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip_module, "MAX_PENDING", 2)
    for number in (1, 2):
        gossip.receive(PEER, announcement("A", "B", number), NOW)
    assert reason(gossip, announcement("A", "B", 3)) == "announcement-backlog"
    for other in "CDEFG"[: MAX_CANDIDATES - 1]:
        gossip.receive(PEER, announcement("A", other, 1), NOW)
    assert reason(gossip, announcement("A", "Z", 1)) == "announcement-candidates"
    update = channel_update("A", "B", 1, NOW)
    for _ in range(4 * MAX_CANDIDATES):
        gossip.receive(PEER, update, NOW)
    assert reason(gossip, update) == "gossip-too-soon"


# --- any order ---------------------------------------------------------------------------------

BOOLEANS: st.SearchStrategy[Any] = st.booleans()
LINKS = ((1, "A", "B"), (2, "B", "C"), (3, "A", "C"))
TRUTH: list[Message] = [
    *(announcement(one, other, number) for number, one, other in LINKS),
    *(
        channel_update(source, target, number, NOW + time, base=time)
        for number, one, other in LINKS
        for source, target in ((one, other), (other, one))
        for time in (0, 1)
    ),
    *(node_announcement(name, NOW + time) for name in "ABC" for time in (0, 1)),
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(range(len(TRUTH))), max_size=40),
    st.permutations(range(len(TRUTH))),
    st.data(),
)
def test_order_and_repetition_do_not_matter(
    noise: list[int], order: list[int], data: st.DataObject
) -> None:
    """Whatever comes first, late or twice: once all has come, the graph is the same."""
    gossip = Gossip(REGTEST_CHAIN, OWN)
    gossip.height = BlockHeight(1000)
    waiting: list[LookUp] = []
    outputs = {scid(number): output(one, other, number) for number, one, other in LINKS}

    def hear(message: Message, peer: bytes) -> None:
        with suppress(Ignored):
            waiting.extend(gossip.receive(peer, message, NOW))
        while waiting and data.draw(BOOLEANS, label="the chain answers"):
            where = waiting.pop(0).short_channel_id
            gossip.funding(where, outputs[where], NOW)

    for number in noise:
        hear(TRUTH[number], OTHER)
    for look_up in waiting:
        gossip.funding(look_up.short_channel_id, outputs[look_up.short_channel_id], NOW)
    waiting.clear()
    # In the end a peer that has everything is asked: channels first, as BOLT 7 has them sent.
    kinds = (ChannelAnnouncement, ChannelUpdate, NodeAnnouncement)
    for kind in kinds:
        for number in order:
            if isinstance(TRUTH[number], kind):
                hear(TRUTH[number], PEER)
        for look_up in waiting:
            found: FundingOutput = outputs[look_up.short_channel_id]
            gossip.funding(look_up.short_channel_id, found, NOW)
        waiting.clear()
    assert set(gossip.graph.channels) == set(outputs)
    for channel in gossip.graph.channels.values():
        assert [update and update.timestamp for update in channel.updates] == [NOW + 1] * 2
    assert {n.timestamp for n in gossip.graph.announcements.values()} == {NOW + 1}
    assert len(gossip.graph.announcements) == 3 and gossip.pending == 0
