"""BOLT 2, Channel Establishment v1: every demand of a peer that must be refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from channels.bolt import messages
from channels.bolt.channel import Channel, State
from channels.bolt.commitment import ChannelType
from channels.bolt.effects import FundingNeeded, Send
from channels.bolt.keys import ChannelSecrets, public_key
from channels.bolt.opening import MAX_FUNDING_SATOSHIS, on_open_channel, open_channel
from channels.errors import LocalProtocolError, RemoteProtocolError
from channels.units import FeeratePerKw, Msat, Sat
from tests.channels.bolt.pair import POLICY, Pair, secret

NO_POINT = b"\x02" + bytes(32)


def opener(**changes: Any) -> tuple[Channel, messages.OpenChannel]:
    asked: dict[str, Any] = {
        "index": 0,
        "peer_id": public_key(secret("bob")),
        "temporary_channel_id": secret("temporary"),
        "secrets": ChannelSecrets.derive(secret("alice seed"), 0),
        "policy": POLICY,
        "channel_type": ChannelType.ANCHORS,
        "funding_satoshis": Sat(1_000_000),
        "push_msat": Msat(0),
        "feerate_per_kw": FeeratePerKw(1000),
    }
    core, effects = open_channel(**(asked | changes))
    (sent,) = effects
    assert isinstance(sent, Send)
    assert isinstance(sent.message, messages.OpenChannel)
    return Channel.of(core, Pair.script("alice")), sent.message


def accept(message: messages.OpenChannel) -> messages.AcceptChannel:
    _, effects = on_open_channel(
        message,
        index=0,
        peer_id=public_key(secret("alice")),
        secrets=ChannelSecrets.derive(secret("bob seed"), 0),
        policy=POLICY,
    )
    (sent,) = effects
    assert isinstance(sent, Send)
    assert isinstance(sent.message, messages.AcceptChannel)
    return sent.message


SHARED: list[tuple[dict[str, Any], str]] = [
    ({"htlc_basepoint": NO_POINT}, "bad-point"),
    ({"funding_pubkey": NO_POINT}, "bad-point"),
    ({"first_per_commitment_point": NO_POINT}, "bad-point"),
    ({"to_self_delay": 2017}, "to-self-delay-too-long"),
    ({"max_accepted_htlcs": 484}, "bad-max-accepted-htlcs"),
    ({"max_accepted_htlcs": 0}, "bad-max-accepted-htlcs"),
    ({"dust_limit_satoshis": Sat(353)}, "dust-limit-too-small"),
    ({"dust_limit_satoshis": Sat(10_001)}, "dust-above-reserve"),
    (
        {"dust_limit_satoshis": Sat(10_001), "channel_reserve_satoshis": Sat(10_001)},
        "dust-limit-too-large",
    ),
    ({"channel_reserve_satoshis": Sat(200_001)}, "reserve-too-large"),
    ({"htlc_minimum_msat": Msat(1_000_001)}, "htlc-minimum-too-large"),
    ({"channel_type": None}, "channel-type"),
    ({"channel_type": b"\x01"}, "channel-type"),
]

OPEN: list[tuple[dict[str, Any], str]] = [
    ({"chain_hash": bytes(32)}, "unknown-chain"),
    ({"funding_satoshis": Sat(9_999)}, "bad-funding-amount"),
    ({"funding_satoshis": Sat(MAX_FUNDING_SATOSHIS + 1)}, "bad-funding-amount"),
    ({"push_msat": Msat(1_000_000_001)}, "push-too-large"),
    ({"push_msat": Msat(1_000_000_000)}, "opener-cannot-pay-fee"),
    ({"feerate_per_kw": FeeratePerKw(252)}, "bad-feerate"),
    ({"feerate_per_kw": FeeratePerKw(POLICY.max_feerate + 1)}, "bad-feerate"),
    ({"channel_reserve_satoshis": Sat(500), "dust_limit_satoshis": Sat(400)}, "reserve-below-dust"),
]


@pytest.mark.parametrize(("changes", "reason"), OPEN + SHARED)
def test_open_channels_that_are_refused(changes: dict[str, Any], reason: str) -> None:
    _, honest = opener()
    with pytest.raises(RemoteProtocolError) as refused:
        accept(dataclasses.replace(honest, **changes))
    assert reason in refused.value.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *SHARED,
        ({"minimum_depth": 145}, "minimum-depth-too-large"),
        ({"channel_type": ChannelType.STATIC_REMOTEKEY.bits}, "channel-type-changed"),
        (
            {"channel_reserve_satoshis": Sat(500), "dust_limit_satoshis": Sat(400)},
            "reserve-below-dust",
        ),
    ],
)
def test_accept_channels_that_are_refused(changes: dict[str, Any], reason: str) -> None:
    channel, message = opener()
    honest = accept(message)
    with pytest.raises(RemoteProtocolError) as refused:
        channel.receive(dataclasses.replace(honest, **changes))
    assert reason in refused.value.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"funding_satoshis": Sat(9_999)}, "bad-funding-amount"),
        ({"funding_satoshis": Sat(2**24)}, "bad-funding-amount"),
        ({"push_msat": Msat(1_000_000_001)}, "push-too-large"),
    ],
)
def test_what_we_do_not_even_ask(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(LocalProtocolError) as refused:
        opener(**changes)
    assert refused.value.reason == reason


def test_our_reserve_rises_to_the_dust_limit_of_the_opener() -> None:
    _, message = opener(funding_satoshis=Sat(60_000))
    larger = dataclasses.replace(
        message, dust_limit_satoshis=Sat(2_000), channel_reserve_satoshis=Sat(2_000)
    )
    assert accept(message).channel_reserve_satoshis == 600
    assert accept(larger).channel_reserve_satoshis == 2_000


def test_accept_channel_asks_for_the_funding_transaction_once() -> None:
    channel, message = opener()
    reply = accept(message)
    (needed,) = channel.receive(reply)
    assert isinstance(needed, FundingNeeded)
    assert needed.value == 1_000_000
    with pytest.raises(RemoteProtocolError) as refused:
        channel.receive(reply)
    assert refused.value.reason == "unexpected-message"


def test_a_first_signature_that_is_wrong_opens_nothing() -> None:
    pair = Pair()
    assert pair.bob.machine.state.state is State.AWAITING_LOCKIN
    _, message = opener()
    core, _ = on_open_channel(
        message,
        index=0,
        peer_id=public_key(secret("alice")),
        secrets=ChannelSecrets.derive(secret("bob seed"), 0),
        policy=POLICY,
    )
    channel = Channel.of(core, Pair.script("bob"))
    with pytest.raises(RemoteProtocolError) as refused:
        channel.receive(
            messages.FundingCreated(secret("temporary"), secret("funding"), 0, bytes(64))
        )
    assert refused.value.reason == "bad-commitment-signature"
    assert channel.state.state is State.OPENING
