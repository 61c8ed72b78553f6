"""BOLT 2's channel machine: what happens in its life, and everything it must refuse."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from channels.bolt import messages
from channels.bolt.channel import LEGAL, Channel, State
from channels.bolt.commitment import ChannelType, commitment_fee
from channels.bolt.effects import HtlcFailed, Persist, Send
from channels.bolt.htlcs import Stage
from channels.errors import LocalProtocolError, RemoteProtocolError
from channels.units import BlockHeight, FeeratePerKw, Msat, Sat, ShortChannelId
from tests.channels.bolt.pair import Pair, hash_of, preimage_of
from tests.channels.bolt.test_channel_life import ChannelLife


@pytest.mark.parametrize("channel_type", list(ChannelType))
def test_a_life_from_opening_to_mutual_close(channel_type: ChannelType) -> None:
    pair = Pair(channel_type).confirm()
    pair.pay(pair.alice, 1, Msat(25_000_000))
    pair.pay(pair.bob, 2, Msat(1_500))
    assert pair.balances() == (675_001_500, 324_998_500)

    alice = pair.alice
    alice.carry_out(alice.machine.close(pair.script("alice"), FeeratePerKw(1000)))
    pair.exchange()

    assert alice.closing is not None
    assert alice.closing == pair.bob.closing
    paid = {output.script: output.value for output in alice.closing.outputs}
    assert paid[pair.script("bob")] == 324_998  # the opener pays the fee (BOLT 3)
    fee = 1_000_000 - sum(paid.values()) - 1  # a satoshi was lost to rounding down both sides
    assert alice.closing.weight < fee <= alice.closing.weight + 3


def test_the_provider_can_return_a_few_sats_of_a_new_channel() -> None:
    """With the reserve at the dust limit and pushed, the far side can refund 3 sat at once."""
    pair = Pair(push=Msat(546_000), reserve=Sat(546)).confirm()
    pair.pay(pair.alice, 1, Msat(4_000))
    pair.pay(pair.bob, 2, Msat(3_000))
    assert pair.balances()[1] == 547_000
    with pytest.raises(LocalProtocolError) as refused:
        pair.offer(pair.bob, 3, Msat(2_000))
    assert refused.value.reason == "insufficient-balance"


def test_an_empty_commitment_is_never_sent() -> None:
    pair = Pair().confirm()
    for side in (pair.alice, pair.bob):
        assert side.machine.commit() == []


def test_everything_sent_rests_on_a_state_written_before() -> None:
    """Each commitment_signed and revoke_and_ack directly follows a Persist."""
    pair = Pair().confirm()
    pair.pay(pair.alice, 1, Msat(5_000))
    pair.pay(pair.bob, 2, Msat(5_000))
    for side in (pair.alice, pair.bob):
        for before, effect in zip(side.effects, side.effects[1:], strict=False):
            if isinstance(effect, Send) and isinstance(
                effect.message, messages.CommitmentSigned | messages.RevokeAndAck
            ):
                assert isinstance(before, Persist)


@pytest.mark.parametrize("lost", range(9))
@pytest.mark.parametrize("restart", [False, True])
def test_a_connection_lost_at_any_message_of_a_payment(lost: int, restart: bool) -> None:
    pair = Pair().confirm()
    htlc_id = pair.offer(pair.alice, 1, Msat(7_000_000))
    delivered = 0

    def step() -> bool:
        nonlocal delivered
        if delivered == lost:
            delivered += 1
            pair.reconnect(restart=(pair.alice, pair.bob) if restart else ())
        for side in (pair.alice, pair.bob):
            side.commit()
        for side in (pair.alice, pair.bob):
            if side.outbox:
                pair.deliver(side)
                delivered += 1
                return True
        return False

    while step():
        if pair.bob.machine.unresolved():
            effects = pair.bob.machine.fulfill_htlc(htlc_id, preimage_of(1))
            pair.bob.carry_out(effects)
    if lost == 0:
        # Nothing was signed yet: it never left, and Alice knows before Bob is back.
        unsent = HtlcFailed(htlc_id, hash_of(1), b"", unsent=True)
        assert unsent in pair.alice.effects
        assert not pair.alice.machine.state.log.htlcs
        assert pair.balances()[1] == 300_000_000
        assert pair.offer(pair.alice, 2, Msat(7_000_000)) == htlc_id, "BOLT 2: ids without a gap"
        pair.exchange()
        assert pair.bob.received[htlc_id].payment_hash == hash_of(2)
        return
    assert delivered > lost or lost > 6
    assert pair.alice.fulfilled == {htlc_id: preimage_of(1)}
    assert pair.balances()[1] == 307_000_000


def test_shutdown_waits_for_htlcs_and_survives_a_reconnection() -> None:
    pair = Pair().confirm()
    htlc_id = pair.offer(pair.alice, 1, Msat(9_000_000))
    pair.exchange()
    pair.bob.carry_out(pair.bob.machine.close(pair.script("bob"), FeeratePerKw(500)))
    pair.exchange()
    assert pair.alice.machine.state.state is State.SHUTTING_DOWN
    with pytest.raises(LocalProtocolError) as refused:
        pair.offer(pair.alice, 2, Msat(1_000))
    assert refused.value.reason == "channel-not-usable"
    pair.reconnect(restart=(pair.alice,))
    pair.exchange()
    assert pair.alice.closing is None
    pair.bob.carry_out(pair.bob.machine.fulfill_htlc(htlc_id, preimage_of(1)))
    pair.exchange()
    assert pair.alice.closing is not None
    assert pair.alice.closing == pair.bob.closing


def test_closing_together_may_cost_what_closing_alone_would() -> None:
    """A peer that estimates feerates higher than we do closes with us all the same."""
    pair = Pair().confirm()
    pair.alice.carry_out(pair.alice.machine.close(pair.script("alice"), FeeratePerKw(253)))
    while pair.alice.machine.state.state is not State.NEGOTIATING:
        for side in (pair.alice, pair.bob):
            if side.outbox:
                pair.deliver(side)
    offer = messages.decode(pair.alice.outbox[0])
    assert isinstance(offer, messages.ClosingSigned)
    assert offer.fee_range is not None
    state = pair.alice.machine.state
    feerate = state.log.fees[0].feerate_per_kw
    alone = commitment_fee(state.channel_type, feerate, 0) + 660  # and two anchors (BOLT 3)
    assert offer.fee_range.max_fee_satoshis == alone
    assert 2 * offer.fee_range.min_fee_satoshis <= 2 * offer.fee_satoshis < alone


def test_closing_signed_lost_restarts_the_negotiation() -> None:
    pair = Pair().confirm()
    pair.alice.carry_out(pair.alice.machine.close(pair.script("alice"), FeeratePerKw(500)))
    while pair.alice.machine.state.state is not State.NEGOTIATING:
        for side in (pair.alice, pair.bob):
            side.commit()
            if side.outbox:
                pair.deliver(side)
    pair.reconnect(restart=(pair.alice, pair.bob))
    pair.exchange()
    assert pair.alice.closing is not None
    assert pair.alice.closing == pair.bob.closing


def test_a_node_restored_from_an_old_backup_does_not_broadcast() -> None:
    """BOLT 2: who fell behind says so and leaves the closing to the peer."""
    pair = Pair().confirm()
    old = pair.alice.disk
    pair.pay(pair.alice, 1, Msat(5_000))
    pair.pay(pair.alice, 2, Msat(5_000))
    pair.alice.disk = old
    pair.reconnect(restart=(pair.alice,))
    pair.deliver(pair.bob)
    assert [f.reason for f in pair.alice.failures] == ["fell-behind"]
    assert pair.alice.machine.state.state is State.FAILED


# --- what a peer may not do ----------------------------------------------------------------------


def _example(kind: type[messages.Message]) -> messages.Message:
    """Any well-formed message of a type, for the channel of a Pair."""
    pair = Pair().confirm()
    channel_id = pair.alice.machine.state.channel_id
    known: dict[str, Any] = {"channel_id": channel_id, "htlc_signature": (), "id": 0}
    values: dict[str, Any] = {}
    assert dataclasses.is_dataclass(kind)
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            continue
        default: Any = bytes(64) if "signature" in field.name else 0
        if any(word in field.name for word in ("hash", "secret", "preimage", "sha256", "txid")):
            default = bytes(32)
        if any(word in field.name for word in ("point", "pubkey")):
            default = pair.alice.machine.state.local.funding_pubkey
        if field.name in ("reason", "scriptpubkey", "onion_routing_packet"):
            default = bytes(1366)
        values[field.name] = known.get(field.name, default)
    return kind(**values)


_CHANNEL_MESSAGES = sorted(
    {kind for legal in LEGAL.values() for kind in legal}, key=lambda kind: kind.__name__
)
_ILLEGAL = [
    (state, kind)
    for state in (State.AWAITING_LOCKIN, State.NORMAL, State.SHUTTING_DOWN, State.NEGOTIATING)
    for kind in _CHANNEL_MESSAGES
    if kind not in LEGAL[state]
]


def _in(state: State) -> Pair:
    pair = Pair()
    if state is State.AWAITING_LOCKIN:
        return pair
    pair.confirm()
    if state is State.SHUTTING_DOWN:
        pair.offer(pair.alice, 1, Msat(1_000_000))
        pair.exchange()
    if state in (State.SHUTTING_DOWN, State.NEGOTIATING):
        pair.alice.carry_out(pair.alice.machine.close(pair.script("alice"), FeeratePerKw(500)))
        while pair.alice.machine.state.state is not state:
            for side in (pair.alice, pair.bob):
                side.commit()
                if side.outbox:
                    pair.deliver(side)
    return pair


@pytest.mark.parametrize(
    ("state", "kind"), _ILLEGAL, ids=[f"{s.value}-{k.__name__}" for s, k in _ILLEGAL]
)
def test_illegal_cells_of_the_state_table(state: State, kind: type[messages.Message]) -> None:
    pair = _in(state)
    assert pair.alice.machine.state.state is state
    with pytest.raises(RemoteProtocolError) as refused:
        pair.alice.machine.receive(_example(kind))
    assert refused.value.reason == "unexpected-message"


def _add(pair: Pair, **changes: Any) -> messages.UpdateAddHtlc:
    fields: dict[str, Any] = {
        "channel_id": pair.alice.machine.state.channel_id,
        "id": 0,
        "amount_msat": Msat(1_000),
        "payment_hash": hash_of(1),
        "cltv_expiry": 500,
        "onion_routing_packet": bytes(1366),
    }
    return messages.UpdateAddHtlc(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": 1}, "bad-htlc-id"),
        ({"amount_msat": Msat(0)}, "htlc-below-minimum"),
        ({"amount_msat": Msat(900_000_000)}, "unaffordable-htlc"),
        ({"amount_msat": Msat(2_000_000_000)}, "over-max-in-flight"),
        ({"cltv_expiry": 500_000_000}, "bad-cltv-expiry"),
    ],
)
def test_htlcs_that_break_the_rules(changes: dict[str, Any], reason: str) -> None:
    pair = Pair().confirm()
    with pytest.raises(RemoteProtocolError) as refused:
        pair.alice.machine.receive(_add(pair, **changes))
    assert refused.value.reason == reason


def test_more_htlcs_than_agreed() -> None:
    pair = Pair(push=Msat(600_000_000)).confirm()
    alice = pair.alice.machine
    for number in range(483):
        alice.receive(_add(pair, id=number))
    with pytest.raises(RemoteProtocolError) as refused:
        alice.receive(_add(pair, id=483))
    assert refused.value.reason == "over-max-accepted-htlcs"


def test_a_bad_commitment_signature_leaves_the_old_commitment_usable() -> None:
    pair = Pair().confirm()
    pair.pay(pair.bob, 1, Msat(5_000_000))
    pair.offer(pair.bob, 2, Msat(6_000_000))
    pair.deliver(pair.bob)
    pair.bob.commit()
    raw = bytearray(pair.bob.outbox[0])
    raw[40] ^= 1
    bad = messages.decode(bytes(raw))
    assert isinstance(bad, messages.CommitmentSigned)
    machine = pair.alice.machine
    before = machine.state.local_number
    with pytest.raises(RemoteProtocolError) as refused:
        machine.receive(bad)
    assert refused.value.reason == "bad-commitment-signature"
    assert machine.state.local_number == before
    ChannelLife.holds_a_signed_commitment(_holder(pair))


def _holder(pair: Pair) -> ChannelLife:
    life = ChannelLife.__new__(ChannelLife)
    life.pair = pair
    return life


def _after_commit() -> Pair:
    pair = Pair().confirm()
    pair.offer(pair.alice, 1, Msat(5_000_000))
    pair.alice.commit()
    return pair


def test_a_wrong_revocation_secret() -> None:
    pair = _after_commit()
    while pair.alice.outbox:
        pair.deliver(pair.alice)
    message = messages.decode(pair.bob.outbox[0])
    assert isinstance(message, messages.RevokeAndAck)
    for secret in (bytes(32), hash_of(9)):
        wrong = dataclasses.replace(message, per_commitment_secret=secret)
        with pytest.raises(RemoteProtocolError) as refused:
            pair.alice.machine.receive(wrong)
        assert refused.value.reason == "bad-per-commitment-secret"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (lambda c: messages.CommitmentSigned(c, bytes(64), ()), "empty-commitment"),
        (lambda c: messages.RevokeAndAck(c, bytes(32), bytes(33)), "unexpected-revocation"),
        (lambda c: messages.UpdateFulfillHtlc(c, 0, bytes(32)), "unknown-htlc"),
        (lambda c: messages.UpdateFailHtlc(c, 7, b""), "unknown-htlc"),
        (lambda c: messages.UpdateFee(c, FeeratePerKw(1000)), "fee-from-accepter"),
    ],
)
def test_messages_out_of_turn(message: Any, reason: str) -> None:
    pair = Pair().confirm()
    with pytest.raises(RemoteProtocolError) as refused:
        pair.alice.machine.receive(message(pair.alice.machine.state.channel_id))
    assert refused.value.reason == reason


@pytest.mark.parametrize("feerate", [1, 252, 50_001])
def test_fees_out_of_bounds(feerate: int) -> None:
    pair = Pair().confirm()
    bob = pair.bob.machine
    with pytest.raises(RemoteProtocolError) as refused:
        bob.receive(messages.UpdateFee(bob.state.channel_id, FeeratePerKw(feerate)))
    assert refused.value.reason == "bad-feerate"


def test_a_preimage_of_another_hash() -> None:
    pair = Pair().confirm()
    htlc_id = pair.offer(pair.alice, 1, Msat(5_000_000))
    pair.exchange()
    channel_id = pair.alice.machine.state.channel_id
    with pytest.raises(RemoteProtocolError) as refused:
        pair.alice.machine.receive(messages.UpdateFulfillHtlc(channel_id, htlc_id, preimage_of(2)))
    assert refused.value.reason == "bad-preimage"


def test_resolving_twice_is_refused_on_our_side() -> None:
    pair = Pair().confirm()
    htlc_id = pair.offer(pair.alice, 1, Msat(5_000_000))
    pair.exchange()
    pair.bob.machine.fulfill_htlc(htlc_id, preimage_of(1))
    with pytest.raises(LocalProtocolError) as refused:
        pair.bob.machine.fail_htlc(htlc_id, b"")
    assert refused.value.reason == "no-such-htlc"
    log = pair.bob.machine.state.log
    assert [h.removed for h in log.htlcs] == [Stage.PROPOSED]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"next_commitment_number": 0}, "bad-commitment-number"),
        ({"next_commitment_number": 9}, "bad-commitment-number"),
        ({"next_revocation_number": 9}, "bad-revocation-number"),
        ({"next_revocation_number": 0}, "bad-revocation-number"),
        ({"your_last_per_commitment_secret": bytes(32)}, "bad-last-secret"),
    ],
)
def test_reestablish_that_lies(changes: dict[str, Any], reason: str) -> None:
    pair = Pair().confirm()
    for number in range(3):
        pair.pay(pair.bob, number, Msat(5_000_000))
    pair.reconnect()
    honest = messages.decode(pair.bob.outbox[0])
    assert isinstance(honest, messages.ChannelReestablish)
    with pytest.raises(RemoteProtocolError) as refused:
        pair.alice.machine.receive(dataclasses.replace(honest, **changes))
    assert refused.value.reason == reason


def test_a_failed_channel_says_so_again_and_does_nothing_else() -> None:
    pair = Pair().confirm()
    machine = pair.alice.machine
    pair.alice.carry_out(machine.fail(RemoteProtocolError("bad-feerate", "The fee is silly.")))
    pair.reconnect(restart=(pair.alice,))
    assert not pair.alice.outbox
    # Bob has not heard of it, so he wants to go on.
    pair.deliver(pair.bob)
    assert pair.deliver(pair.alice) == messages.Error(
        machine.state.channel_id, b"The fee is silly."
    )
    assert pair.bob.machine.state.state is State.FAILED
    assert pair.alice.machine.receive(_add(pair)) == []
    # Now he knows: an error at every reconnection would make some peers disconnect again.
    pair.reconnect(restart=(pair.alice,))
    assert not pair.alice.outbox
    assert not pair.bob.outbox


def test_a_channel_confirmed_while_the_peer_was_away() -> None:
    pair = Pair()
    pair.reconnect(restart=(pair.alice, pair.bob))
    scid = ShortChannelId.of(101, 1, 0)
    for side in (pair.alice, pair.bob):
        side.carry_out(side.machine.disconnected())
        side.carry_out(side.machine.funding_confirmed(1, BlockHeight(101), scid))
        assert not [e for e in side.effects[-2:] if isinstance(e, Send)]
    pair.reconnect()
    pair.exchange()
    assert pair.alice.machine.usable
    pair.pay(pair.alice, 1, Msat(5_000))


def test_usable_says_when_payments_flow() -> None:
    pair = Pair()
    channel: Channel = pair.alice.machine
    assert not channel.usable
    pair.confirm()
    assert channel.usable
    channel.disconnected()
    assert not channel.usable


def test_a_last_closing_signed_that_was_lost_is_sent_again() -> None:
    pair = Pair().confirm()
    pair.alice.carry_out(pair.alice.machine.close(pair.script("alice"), FeeratePerKw(500)))
    while pair.bob.closing is None:
        pair.deliver(pair.alice if pair.alice.outbox else pair.bob)
    assert pair.alice.machine.state.state is State.NEGOTIATING
    pair.reconnect(restart=(pair.alice, pair.bob))
    pair.exchange()
    assert pair.alice.closing == pair.bob.closing
    pair.reconnect()
    pair.exchange()  # both have agreed: each says so once, and then both are quiet
    assert pair.bob.machine.state.state is State.CLOSING_AGREED


def test_a_mutual_close_that_the_peer_broadcast_is_recognized() -> None:
    pair = Pair().confirm()
    pair.alice.carry_out(pair.alice.machine.close(pair.script("alice"), FeeratePerKw(500)))
    while pair.bob.closing is None:
        pair.deliver(pair.alice if pair.alice.outbox else pair.bob)
    pair.alice.carry_out(pair.alice.machine.funding_spent(BlockHeight(110), pair.bob.closing))
    state = pair.alice.machine.state
    assert (state.state, state.spent_height) == (State.ONCHAIN, 110)
    assert state.closing.transaction == pair.bob.closing.serialize()
    # The peer has not seen the block yet and goes on as if nothing had happened.
    reestablish = messages.ChannelReestablish(state.channel_id, 1, 0, bytes(32), bytes(33))
    assert pair.alice.machine.receive(reestablish) == []


def test_an_opener_offers_no_closing_fee_that_it_cannot_pay() -> None:
    pair = Pair(push=Msat(985_000_000), feerate=FeeratePerKw(253)).confirm()
    pair.bob.carry_out(pair.bob.machine.close(pair.script("bob"), FeeratePerKw(50_000)))
    pair.alice.machine.state.closing.feerate_per_kw = FeeratePerKw(50_000)
    pair.exchange()
    assert pair.bob.closing is not None
    (output,) = pair.bob.closing.outputs
    assert (output.script, output.value) == (pair.script("bob"), 985_000)


def test_a_block_that_leaves_the_chain_unconfirms_the_funding() -> None:
    machine = Pair().confirm().alice.machine
    assert machine.block_undone(BlockHeight(102)) == []
    assert machine.block_undone(BlockHeight(101)) == [Persist()]
    assert machine.state.funding_height is None


def test_a_removal_that_the_peer_never_signs_frees_nothing() -> None:
    """A peer could otherwise make us sign a commitment that spends the same money twice."""
    pair = Pair().confirm()
    first = pair.offer(pair.alice, 1, Msat(450_000_000))
    pair.exchange()
    alice = pair.alice.machine
    alice.receive(messages.UpdateFailHtlc(alice.state.channel_id, first, b""))
    with pytest.raises(LocalProtocolError) as refused:
        pair.offer(pair.alice, 2, Msat(450_000_000))
    assert refused.value.reason == "insufficient-balance"


def test_a_peer_can_not_spend_what_we_gave_back_and_did_not_sign() -> None:
    pair = Pair().confirm()
    first = pair.offer(pair.bob, 1, Msat(250_000_000))
    pair.exchange()
    alice = pair.alice.machine
    pair.alice.carry_out(alice.fail_htlc(first, b""))
    with pytest.raises(RemoteProtocolError) as refused:
        alice.receive(_add(pair, id=1, amount_msat=Msat(250_000_000)))
    assert refused.value.reason == "unaffordable-htlc"


def test_closing_waits_for_the_peer_to_reestablish() -> None:
    pair = Pair().confirm()
    pair.offer(pair.bob, 1, Msat(5_000_000))
    pair.deliver(pair.bob)
    for side in (pair.alice, pair.bob):
        side.carry_out(side.machine.close(pair.script(side.name), FeeratePerKw(500)))
    pair.deliver(pair.alice)
    pair.reconnect(restart=(pair.alice,))
    pair.alice.commit()
    sent = [messages.decode(raw) for raw in pair.alice.outbox]
    assert [type(message) for message in sent] == [messages.ChannelReestablish]
    pair.exchange()
