"""Random lives of a channel: payments, fees, lost connections and kill -9, in any order."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from channels.bolt.channel_commitments import local_commitment
from channels.bolt.commitment import check_signatures
from channels.errors import LocalProtocolError
from channels.units import FeeratePerKw, Msat
from tests.channels.bolt.pair import Pair, Side, preimage_of


class ChannelLife(RuleBasedStateMachine):
    """Payments both ways, fees, lost connections and kill -9, in any order.

    Whatever happens, once both sides have talked to the end they agree, no sat is made or lost, and
    what each holds of its own commitment is signed by the other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair().confirm()
        self.number = 0
        self.offered: dict[tuple[str, int], tuple[int, int]] = {}
        self.claimed: set[tuple[str, int]] = set()

    def side(self, first: bool) -> Side:
        return self.pair.alice if first else self.pair.bob

    @rule(first=st.booleans(), amount=st.integers(1, 60_000_000))
    def offer(self, first: bool, amount: int) -> None:
        side = self.side(first)
        self.number += 1
        try:
            htlc_id = self.pair.offer(side, self.number, Msat(amount))
        except LocalProtocolError:
            return
        self.offered[side.name, htlc_id] = (self.number, amount)

    @rule(first=st.booleans(), fulfill=st.booleans(), pick=st.integers(0, 50))
    def resolve(self, first: bool, fulfill: bool, pick: int) -> None:
        side = self.side(first)
        waiting = side.machine.unresolved()
        if not waiting:
            return
        htlc = waiting[pick % len(waiting)]
        offerer = self.pair.other(side).name
        number, _ = self.offered[offerer, htlc.id]
        if fulfill:
            side.carry_out(side.machine.fulfill_htlc(htlc.id, preimage_of(number)))
            self.claimed.add((offerer, htlc.id))
        elif (offerer, htlc.id) not in self.claimed:
            side.carry_out(side.machine.fail_htlc(htlc.id, b"no"))

    @rule(feerate=st.integers(253, 3000))
    def change_fee(self, feerate: int) -> None:
        try:
            effects = self.pair.alice.machine.propose_fee(FeeratePerKw(feerate))
        except LocalProtocolError:
            return
        self.pair.alice.carry_out(effects)

    @rule(first=st.booleans())
    def commit(self, first: bool) -> None:
        self.side(first).commit()

    @precondition(lambda self: self.pair.alice.outbox)
    @rule()
    def deliver_from_alice(self) -> None:
        self.pair.deliver(self.pair.alice)

    @precondition(lambda self: self.pair.bob.outbox)
    @rule()
    def deliver_from_bob(self) -> None:
        self.pair.deliver(self.pair.bob)

    @rule(restart_alice=st.booleans(), restart_bob=st.booleans())
    def reconnect(self, restart_alice: bool, restart_bob: bool) -> None:
        chosen = ((self.pair.alice, restart_alice), (self.pair.bob, restart_bob))
        self.pair.reconnect(restart=tuple(side for side, again in chosen if again))

    @invariant()
    def nobody_failed(self) -> None:
        assert not self.pair.alice.failures
        assert not self.pair.bob.failures

    @invariant()
    def holds_a_signed_commitment(self) -> None:
        for side in (self.pair.alice, self.pair.bob):
            core = side.machine.core
            commitment = local_commitment(core)
            check_signatures(
                commitment,
                core.state.peer.funding_pubkey,
                core.state.remote_signature,
                commitment.spec.keys.remote_htlc,
                core.state.remote_htlc_signatures,
            )

    def teardown(self) -> None:
        pair = self.pair
        pair.exchange()
        for side in (pair.alice, pair.bob):
            for htlc in side.machine.unresolved():
                number, _ = self.offered[pair.other(side).name, htlc.id]
                side.carry_out(side.machine.fulfill_htlc(htlc.id, preimage_of(number)))
        pair.exchange()
        balances = pair.balances()
        assert sum(balances) == 1_000_000_000
        expected = 700_000_000
        for side, sign in ((pair.alice, -1), (pair.bob, 1)):
            assert not side.machine.state.log.htlcs
            for htlc_id in side.fulfilled:
                assert htlc_id not in side.failed
                expected += sign * self.offered[side.name, htlc_id][1]
        assert balances[0] == expected


TestChannelLife = ChannelLife.TestCase
TestChannelLife.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
