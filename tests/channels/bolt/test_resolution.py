"""BOLT 5 over random channels: each output of each possible commitment has exactly one owner."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.bolt.channel import State
from channels.bolt.channel_state import Core, decode_state, encode_state
from channels.bolt.claims import Claim
from channels.bolt.commitment import ChannelType
from channels.bolt.htlcs import Stage
from channels.bolt.messages import Shutdown
from channels.bolt.onchain import (
    Closer,
    OutputKind,
    PastHtlc,
    identify,
    own_commitment,
)
from channels.bolt.resolution import Resolution, Spend, resolve
from channels.bolt.transactions import OutPoint, Transaction, TxOut, p2wpkh
from channels.errors import LocalProtocolError
from channels.units import BlockHeight, FeeratePerKw, Msat, Sat
from tests.channels.bolt.pair import Pair, Side, hash_of, preimage_of
from tests.script_vm import refusal

CLOSED = BlockHeight(200)
LATE = BlockHeight(600)
"""After every HTLC has expired."""

WALLET = p2wpkh(bytes(33))
ANCHORS = (OutputKind.ANCHOR_TO_US, OutputKind.ANCHOR_TO_THEM)
MIRROR = {
    OutputKind.OUTPUT_TO_US: OutputKind.OUTPUT_TO_THEM,
    OutputKind.DELAYED_OUTPUT_TO_US: OutputKind.DELAYED_OUTPUT_TO_THEM,
    OutputKind.OUR_HTLC: OutputKind.THEIR_HTLC,
    OutputKind.ANCHOR_TO_US: OutputKind.ANCHOR_TO_THEM,
}


class Life:
    """A channel that is led through a script of small steps, and what each side would remember."""

    def __init__(self, channel_type: ChannelType) -> None:
        self.pair = Pair(channel_type, feerate=FeeratePerKw(500)).confirm()
        self.past: dict[str, dict[tuple[bool, int], PastHtlc]] = {"alice": {}, "bob": {}}
        self.old: dict[str, list[bytes]] = {"alice": [], "bob": []}
        self.number = 0
        self.keep()

    def keep(self) -> None:
        for side in (self.pair.alice, self.pair.bob):
            state = side.machine.state
            self.old[side.name].append(encode_state(state))
            for h in state.log.htlcs:
                if h.added is not Stage.PROPOSED:
                    past = PastHtlc(h.ours, h.id, h.payment_hash, h.cltv_expiry)
                    self.past[side.name][h.ours, h.id] = past

    def step(self, kind: str, first: bool, amount: int) -> None:
        side = self.pair.alice if first else self.pair.bob
        if kind == "offer":
            # Every third has the hash of the one before: a payment in parts (BOLT 4).
            self.number += amount % 3 > 0
            try:
                self.pair.offer(side, self.number, Msat(amount), 400 + amount % 2)
            except LocalProtocolError:
                return
        elif kind in ("fulfill", "fail"):
            waiting = side.machine.unresolved()
            if waiting:
                self.resolve(side, waiting[amount % len(waiting)].id, kind == "fulfill")
        elif kind == "commit":
            side.commit()
        elif kind == "deliver" and side.outbox:
            self.pair.deliver(side)
        elif kind == "exchange":
            self.pair.exchange()
        self.keep()

    def resolve(self, side: Side, htlc_id: int, fulfill: bool) -> None:
        htlc = side.machine.state.log.find(False, htlc_id)
        assert htlc is not None
        for number in range(self.number + 1):
            preimage = preimage_of(number)
            if fulfill and htlc.payment_hash == hash_of(number):
                side.carry_out(side.machine.fulfill_htlc(htlc_id, preimage))
                return
        side.carry_out(side.machine.fail_htlc(htlc_id, b"no"))


KINDS = (*["offer"] * 4, *["exchange"] * 4, "fulfill", "fail", "commit", "deliver")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [*["offer"] * 4, *["exchange"] * 4, "fulfill", "fail", "commit", "deliver"]
        ),
        st.booleans(),
        st.integers(200_000, 60_000_000) | st.just(700_000),
    ),
    min_size=6,
    max_size=30,
)


def looked_at(
    core: Core,
    transaction: Transaction,
    past: Iterable[PastHtlc] = (),
    *more: tuple[OutPoint, Transaction],
    height: BlockHeight = LATE,
) -> Resolution:
    close = identify(core, transaction, lambda: past)
    spends = {core.state.funding: Spend(transaction, CLOSED)}
    spends |= {outpoint: Spend(tx, CLOSED) for outpoint, tx in more}
    return resolve(core, close, spends, height)


def check(claim: Claim, spent: TxOut) -> Transaction:
    """The claim as a transaction that relays; pycoin agrees."""
    if claim.output is not None:
        tx = claim.signed(claim.unsigned())
    else:
        tx = claim.sweep(WALLET, FeeratePerKw(min(253, claim.highest_feerate(WALLET))))
        assert tx.weight <= claim.weighed([TxOut(Sat(0), WALLET)])
    assert refusal(tx, [spent]) is None, claim.name
    return tx


def check_everything_claimed(owner: Side, other: Side) -> None:
    """`owner` broadcasts its commitment: each output is claimed by whom it belongs to."""
    transaction = own_commitment(owner.machine.core)
    assert transaction is not None
    ours, theirs = (looked_at(side.machine.core, transaction) for side in (owner, other))
    assert ours.close.closer is Closer.OURS
    assert theirs.close.closer in (Closer.THEIRS, Closer.THEIRS_PREVIOUS)
    assert len(ours.outputs) == len(theirs.outputs) == len(transaction.outputs)
    for mine, yours in zip(ours.outputs, theirs.outputs, strict=True):
        kinds = (mine.output.kind, yours.output.kind)
        assert MIRROR.get(kinds[0]) is kinds[1] or MIRROR.get(kinds[1]) is kinds[0]
        claims = {side: tracked.claim for side, tracked in ((0, mine), (1, yours))}
        spent = transaction.outputs[mine.output.outpoint.vout]
        assert (spent.value, mine.output.script or None) == (
            mine.output.value,
            yours.output.script or None,
        )
        if kinds[0] in ANCHORS:
            assert claims == {0: None, 1: None}
            continue
        for claim in filter(None, claims.values()):
            check(claim, spent)
        if mine.output.htlc is None:
            # to_local is the owner's and to_remote the other's, unless it is not worth a fee.
            assert claims[int(kinds[0] is OutputKind.OUTPUT_TO_THEM) ^ 1] is None
            continue
        offerer = 0 if kinds[0] is OutputKind.OUR_HTLC else 1
        assert claims[offerer] is not None
        receiver = (owner, other)[1 - offerer].machine.state
        live = receiver.log.find(False, mine.output.htlc.id)
        assert live is not None
        assert (claims[1 - offerer] is not None) is (live.payment_preimage is not None)
    check_second_stages(owner, transaction, ours)


def check_second_stages(owner: Side, transaction: Transaction, ours: Resolution) -> None:
    for tracked in ours.outputs:
        claim = tracked.claim
        if claim is None or claim.output is None:
            continue
        stage = check(claim, transaction.outputs[claim.outpoint.vout])
        then = looked_at(owner.machine.core, transaction, (), (claim.outpoint, stage))
        (output,) = [t for t in then.outputs if t.output.outpoint.txid == stage.txid]
        assert output.output.kind is OutputKind.DELAYED_OUTPUT_TO_US
        assert output.claim is not None
        assert output.claim.from_height == CLOSED + owner.machine.state.peer.to_self_delay - 1
        check(output.claim, stage.outputs[0])


def check_punished(life: Life, cheater: Side, victim: Side) -> None:
    """Every commitment that the cheater has revoked costs it all that the victim can take."""
    core = victim.machine.core
    seen: set[bytes] = set()
    for blob in life.old[cheater.name]:
        state = decode_state(blob)
        old = Core(state, cheater.machine.core.secrets, cheater.machine.core.policy)
        transaction = own_commitment(old)
        assert transaction is not None
        if transaction.txid in seen or state.local_number >= core.state.remote_revoked:
            continue
        seen.add(transaction.txid)
        past = list(life.past[victim.name].values())
        found = looked_at(core, transaction, past)
        assert found.close.closer is Closer.REVOKED
        assert len(found.outputs) == len(transaction.outputs)
        for tracked in found.outputs:
            if tracked.output.kind in ANCHORS:
                continue
            assert tracked.claim is not None
            check(tracked.claim, transaction.outputs[tracked.output.outpoint.vout])
        check_second_stages_punished(old, core, transaction, past)


def check_second_stages_punished(
    cheater: Core, victim: Core, transaction: Transaction, past: list[PastHtlc]
) -> None:
    """The cheater is faster with its HTLC transactions: what they pay is taken, too."""
    for tracked in looked_at(cheater, transaction).outputs:
        claim = tracked.claim
        if claim is None or claim.output is None:
            continue
        stage = claim.signed(claim.unsigned())
        found = looked_at(victim, transaction, past, (claim.outpoint, stage))
        (output,) = [t for t in found.outputs if t.output.outpoint.txid == stage.txid]
        assert output.output.kind is OutputKind.DELAYED_CHEAT_OUTPUT_TO_THEM
        assert output.claim is not None
        assert output.claim.deadline == CLOSED + victim.state.local.to_self_delay
        check(output.claim, stage.outputs[0])


@pytest.mark.parametrize("channel_type", list(ChannelType))
@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_every_output_has_one_owner(
    channel_type: ChannelType, steps: list[tuple[str, bool, int]]
) -> None:
    life = Life(channel_type)
    for step in steps:
        life.step(*step)
    alice, bob = life.pair.alice, life.pair.bob
    check_everything_claimed(alice, bob)
    check_everything_claimed(bob, alice)
    check_punished(life, alice, bob)
    check_punished(life, bob, alice)


# --- what spent the funding output ----------------------------------------------------------------


def test_a_mutual_close_leaves_nothing_to_do() -> None:
    pair = Pair().confirm()
    pair.alice.carry_out(pair.alice.machine.close(pair.script("alice"), FeeratePerKw(1000)))
    pair.exchange()
    assert pair.alice.closing is not None
    found = looked_at(pair.bob.machine.core, pair.alice.closing)
    assert (found.close.closer, found.outputs) == (Closer.MUTUAL, ())
    assert found.resolved == CLOSED


def test_a_shutdown_script_does_not_make_an_old_commitment_a_mutual_close() -> None:
    """bob names the script of an old to_local in its shutdown: all outputs pay to shutdowns."""
    pair = Pair(ChannelType.STATIC_REMOTEKEY, push=Msat(0)).confirm()
    alice, bob = pair.alice, pair.bob
    old = own_commitment(alice.machine.core)
    assert old is not None
    (to_local,) = old.outputs  # alice had everything
    pair.pay(alice, 1, Msat(50_000_000))
    channel_id = bob.machine.state.channel_id
    bob.carry_out(bob.machine.receive(Shutdown(channel_id, to_local.script)))
    found = looked_at(bob.machine.core, old)
    assert found.close.closer is Closer.REVOKED
    assert found.claims[0].name == "OUR_PENALTY_TX"


def test_a_commitment_newer_than_we_know_gives_back_our_part() -> None:
    """BOLT 5: data loss. The key of to_remote does not depend on what was lost."""
    pair = Pair().confirm()
    pair.pay(pair.alice, 1, Msat(50_000_000))
    lost = decode_state(encode_state(pair.bob.machine.state))
    for number in range(2, 5):
        pair.pay(pair.alice, number, Msat(50_000_000))
    core = Core(lost, pair.bob.machine.core.secrets, pair.bob.machine.core.policy)
    transaction = own_commitment(pair.alice.machine.core)
    assert transaction is not None
    found = looked_at(core, transaction)
    assert found.close.closer is Closer.FUTURE
    (claim,) = found.claims
    check(claim, transaction.outputs[claim.outpoint.vout])


def test_our_own_old_commitment_is_not_taken_for_one_of_theirs() -> None:
    pair = Pair().confirm()
    old = own_commitment(pair.alice.machine.core)
    assert old is not None
    for number in range(3):
        pair.pay(pair.alice, number, Msat(50_000_000))
    found = looked_at(pair.alice.machine.core, old)
    assert (found.close.closer, found.claims) == (Closer.UNKNOWN, [])


def test_an_outdated_commitment_is_never_broadcast() -> None:
    """BOLT 5: MUST NOT, once the peer has proved that our state is old."""
    pair = Pair().confirm()
    core = pair.alice.machine.core
    assert own_commitment(core) is not None
    core.state.failure = ("fell-behind", "")
    assert own_commitment(core) is None


# --- what becomes of HTLCs ------------------------------------------------------------------------


def committed(amount: Msat, cltv_expiry: int = 400) -> tuple[Pair, Transaction]:
    """alice offered an HTLC, and bob's commitment has it."""
    pair = Pair().confirm()
    pair.offer(pair.alice, 1, amount, cltv_expiry)
    pair.exchange()
    transaction = own_commitment(pair.bob.machine.core)
    assert transaction is not None
    return pair, transaction


def test_a_preimage_is_read_from_the_chain_in_both_of_its_places() -> None:
    pair, theirs = committed(Msat(50_000_000))
    bob, alice = pair.bob, pair.alice
    bob.carry_out(bob.machine.fulfill_htlc(0, preimage_of(1)))
    ours = own_commitment(alice.machine.core)
    assert ours is not None
    for transaction in (theirs, ours):  # HTLC-success, and bob's direct claim
        (claim,) = [
            c
            for c in looked_at(bob.machine.core, transaction).claims
            if c.name in ("OUR_HTLC_SUCCESS_TX", "THEIR_HTLC_FULFILL_TO_US")
        ]
        spend = check(claim, transaction.outputs[claim.outpoint.vout])
        before = looked_at(alice.machine.core, transaction)
        assert before.fates == ()
        after = looked_at(alice.machine.core, transaction, (), (claim.outpoint, spend))
        (fate,) = after.fates
        assert (fate.htlc.id, fate.payment_preimage) == (0, preimage_of(1))


def test_an_htlc_is_ours_again_only_when_its_timeout_confirms() -> None:
    pair, transaction = committed(Msat(50_000_000))
    core = pair.alice.machine.core
    early = looked_at(core, transaction, height=BlockHeight(399))
    (claim,) = [c for c in early.claims if c.name == "OUR_HTLC_TIMEOUT_TO_US"]
    assert (claim.from_height, claim.locktime, early.fates) == (400, 400, ())
    spend = check(claim, transaction.outputs[claim.outpoint.vout])
    (fate,) = looked_at(core, transaction, (), (claim.outpoint, spend)).fates
    assert (fate.payment_preimage, fate.height) == (None, CLOSED)


def test_dust_is_lost_with_the_commitment() -> None:
    pair, transaction = committed(Msat(100_000))
    (fate,) = looked_at(pair.alice.machine.core, transaction).fates
    assert (fate.height, fate.payment_preimage) == (CLOSED, None)


def test_what_they_offered_and_we_cannot_claim_is_waited_for_until_it_expires() -> None:
    pair, transaction = committed(Msat(50_000_000))
    core = pair.bob.machine.core
    for height, resolved in ((399, None), (400, 400)):
        found = looked_at(core, transaction, height=BlockHeight(height))
        (htlc,) = [t for t in found.outputs if t.output.htlc is not None]
        assert (htlc.claim, htlc.resolved) == (None, resolved)


def test_an_htlc_fulfilled_after_the_channel_died_is_claimed() -> None:
    pair, transaction = committed(Msat(50_000_000))
    machine = pair.bob.machine
    machine.funding_spent(CLOSED, transaction)
    assert machine.state.state is State.ONCHAIN
    assert machine.unresolved() == []
    (waiting,) = machine.unresolved({hash_of(1)})
    assert waiting.id == 0
    machine.fulfill_htlc(0, preimage_of(1))
    names = [claim.name for claim in looked_at(machine.core, transaction).claims]
    assert "OUR_HTLC_SUCCESS_TX" in names
