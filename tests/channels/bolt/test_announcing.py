"""What we say of ourselves: what we sign, another node's `Gossip` believes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from channels.bolt import features
from channels.bolt.address_descriptors import Address, ip_descriptor, read_addresses
from channels.bolt.announcing import (
    Endpoint,
    alias_field,
    alias_text,
    channel_update,
    complete,
    node_announcement,
    our_signatures,
)
from channels.bolt.gossip import DONT_FORWARD, FundingOutput, Gossip
from channels.bolt.gossip_signatures import check_update
from channels.bolt.graph import DISABLE
from channels.bolt.messages import ChannelUpdate
from channels.bolt.opening import funding_output_script
from channels.bolt.policy import Policy
from channels.errors import RemoteProtocolError
from channels.units import BlockHeight, Msat, UnixTime, msat
from tests.channels.bolt.networks import node
from tests.channels.bolt.pair import POLICY, SCID, Pair, Side, secret

NOW = UnixTime(1_700_000_000)
TERMS = Policy(
    fee_base_msat=Msat(1),
    fee_proportional_millionths=10,
    cltv_expiry_delta=6,
    htlc_minimum_msat=Msat(0),
    htlc_maximum_msat=Msat(0xFFFFFFFFFFFFFFFF),
)


@pytest.fixture
def pair() -> Pair:
    return Pair().confirm()


def end(side: Side) -> Endpoint:
    return Endpoint(POLICY.chain_hash, secret(side.name))


def update(side: Side, before: ChannelUpdate | None = None, **more: bool) -> ChannelUpdate | None:
    state = side.machine.state
    more = {"public": True, "disabled": False, **more}
    return channel_update(state, TERMS, end(side), now=NOW, before=before, **more)


def test_both_halves_make_what_a_stranger_believes(pair: Pair) -> None:
    sides = (pair.alice, pair.bob)
    halves = [
        our_signatures(side.machine.state, side.machine.core.secrets, end(side)) for side in sides
    ]
    whole = [
        complete(side.machine.state, side.machine.core.secrets, end(side), theirs)
        for side, theirs in zip(sides, reversed(halves), strict=True)
    ]
    assert whole[0] == whole[1]
    stranger = Gossip(POLICY.chain_hash, node("stranger"))
    stranger.height = BlockHeight(SCID.block + 5)
    core = pair.alice.machine.core
    output = FundingOutput(
        core.state.funding, funding_output_script(core), core.state.funding_satoshis
    )
    assert stranger.receive(b"", whole[0], NOW)
    stranger.funding(SCID, output, NOW)
    for side in sides:
        ours = update(side)
        assert ours is not None
        stranger.receive(b"", ours, NOW)
        about = node_announcement(
            end(side), alias=side.name, rgb_color=b"oda", addresses=b"", now=NOW, before=None
        )
        assert about is not None
        stranger.receive(b"", about, NOW)
    assert all(stranger.graph.channels[SCID].updates)
    assert len(stranger.graph.announcements) == 2


@pytest.mark.parametrize("field", ["node_signature", "bitcoin_signature", "short_channel_id"])
def test_a_half_that_is_wrong(pair: Pair, field: str) -> None:
    bob, alice = pair.bob.machine, pair.alice.machine
    theirs = our_signatures(bob.state, bob.core.secrets, end(pair.bob))
    if field == "short_channel_id":
        wrong = replace(theirs, short_channel_id=type(SCID)(SCID + 1))
    elif field == "node_signature":
        wrong = replace(theirs, node_signature=theirs.bitcoin_signature)
    else:
        wrong = replace(theirs, bitcoin_signature=theirs.node_signature)
    with pytest.raises(RemoteProtocolError) as raised:
        complete(alice.state, alice.core.secrets, end(pair.alice), wrong)
    expected = "announcement-other-channel" if field == "short_channel_id" else None
    assert raised.value.reason == (expected or "announcement-half-invalid")


def test_an_update_keeps_the_bounds_of_bolt_7(pair: Pair) -> None:
    state = pair.alice.machine.state
    ours = update(pair.alice)
    assert ours is not None
    check_update(ours, end(pair.alice).node_id)
    assert ours.htlc_maximum_msat <= msat(state.funding_satoshis)
    assert ours.htlc_maximum_msat <= state.peer.max_htlc_value_in_flight_msat
    assert ours.htlc_minimum_msat == state.peer.htlc_minimum_msat
    assert ours.message_flags == 1 and not ours.channel_flags & DISABLE
    theirs = update(pair.bob)
    assert theirs is not None
    assert {ours.channel_flags & 1, theirs.channel_flags & 1} == {0, 1}


def test_an_update_is_made_only_for_something_new(pair: Pair) -> None:
    first = update(pair.alice, public=False)
    assert first is not None and first.message_flags & DONT_FORWARD
    assert update(pair.alice, first, public=False) is None
    public = update(pair.alice, first)
    assert public is not None and not public.message_flags & DONT_FORWARD
    assert public.timestamp == NOW + 1, "BOLT 7: greater than any before"
    disabled = update(pair.alice, public, disabled=True)
    assert disabled is not None and disabled.channel_flags & DISABLE
    assert update(pair.alice, disabled, disabled=True) is None


def test_a_node_announcement_is_made_only_for_something_new(pair: Pair) -> None:
    def about(addresses: bytes, before: object) -> object:
        return node_announcement(
            end(pair.alice),
            alias="alice",
            rgb_color=b"oda",
            addresses=addresses,
            now=NOW,
            before=before,  # type: ignore[arg-type]  # what came out goes in again
        )

    first = about(b"", None)
    assert about(b"", first) is None
    assert getattr(about(ip_descriptor("127.0.0.1", 9735), first), "timestamp", 0) == NOW + 1
    assert features.decode_bits(getattr(first, "features", b"")) == features.OUR_NODE


def test_secrets_stay_out_of_repr(pair: Pair) -> None:
    assert secret("alice").hex() not in repr(end(pair.alice))
    assert repr(secret("alice"))[2:-1] not in repr(end(pair.alice))


@pytest.mark.parametrize("alias", ["", "oda", "é" * 17, "x" * 40, "🌊" * 9])
def test_an_alias_is_32_bytes_of_whole_characters(alias: str) -> None:
    field = alias_field(alias)
    assert len(field) == 32
    assert (alias.startswith(alias_text(field)) and field.rstrip(b"\0").decode()) or not alias


def test_a_strangers_alias_cannot_move_the_cursor() -> None:
    assert alias_text(b"\x1b[2Jok\n\xff".ljust(32, b"\0")) == "�[2Jok��"


def test_addresses() -> None:
    onion = bytes(range(35))
    field = (
        ip_descriptor("203.0.113.5", 9735)
        + ip_descriptor("2001:db8::1", 1)
        + b"\x01\x7f\0\0\x01\0\0"  # port 0: ignored
        + b"\x04"
        + onion
        + b"\x00\x02"
        + b"\x05\x0bexample.com\x26\x07"
        + b"\x63whatever comes later"
    )
    assert read_addresses(field) == (
        Address("ipv4", "203.0.113.5", 9735),
        Address("ipv6", "2001:db8::1", 1),
        Address("torv3", "aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypsaijc.onion", 2),
        Address("dns", "example.com", 9735),
    )
    assert read_addresses(b"") == ()
