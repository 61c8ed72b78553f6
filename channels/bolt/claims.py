"""Spending the outputs of a commitment that are ours: witnesses, timelocks, fees (BOLT 3, BOLT 5).

A claim spends one output. Penalties are claims like the others: BOLT 5 warns of one transaction
for all, which the cheater can hold up by spending one of its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from channels.bolt import keys, scripts
from channels.bolt.channel_commitments import local_commitment
from channels.bolt.channel_state import Core
from channels.bolt.commitment import ChannelType, Htlc
from channels.bolt.onchain import Close, CloseOutput, Closer, OutputKind
from channels.bolt.transactions import (
    SIGHASH_ALL,
    OutPoint,
    Transaction,
    TxIn,
    TxOut,
    dust_limit,
    p2wpkh_script_code,
)
from channels.units import BlockHeight, FeeratePerKw, Msat, Sat, sat_floor

REPLACEABLE = 0xFFFFFFFD
"""BIP 125, and low enough for nLockTime to count (BIP 65)."""

TIMEOUT_PATIENCE = 18
"""Blocks in which a timed out HTLC should be ours again: the recipient may still take it, and the
HTLC that brought it to us, if it was forwarded, has to be failed before it expires (BOLT 2)."""

_SIGNATURE = bytes(72)  # DER of a low-s signature has at most 71 bytes, and one is the hash type


@dataclass(frozen=True, slots=True)
class Claim:
    """How to spend one output: the witness is `before`, our signature, `after`.

    It may enter the block after `from_height`, and should have before `deadline`. `output` is
    given where the peer's signature fixes it, in HTLC transactions of our own commitment.
    `name` is lightningd's for this kind of transaction.
    """

    name: str
    outpoint: OutPoint
    value: Sat
    secret: bytes = field(repr=False)
    script_code: bytes
    after: tuple[bytes, ...]
    from_height: BlockHeight
    before: tuple[bytes, ...] = ()
    sequence: int = REPLACEABLE
    locktime: int = 0
    deadline: BlockHeight | None = None
    output: TxOut | None = None

    @property
    def needs_fee(self) -> bool:
        """The transaction is fixed and pays nothing (anchors): coins must be added (BOLT 5)."""
        return self.output is not None and self.output.value == self.value

    @property
    def fixed(self) -> bool:
        """The fee was agreed long ago and can't be changed (HTLC transactions before anchors)."""
        return self.output is not None and not self.needs_fee

    def unsigned(self, outputs: Sequence[TxOut] = ()) -> Transaction:
        """Its input alone, with these outputs (default: those that are fixed)."""
        wanted = tuple(outputs) or (() if self.output is None else (self.output,))
        return Transaction(2, (TxIn(self.outpoint, self.sequence),), wanted, self.locktime)

    def weighed(self, outputs: Sequence[TxOut] = ()) -> int:
        """The most that it can weigh, signed."""
        return self.unsigned(outputs).with_witness(0, self._witness(_SIGNATURE)).weight

    def signed(self, transaction: Transaction) -> Transaction:
        """The transaction with the witness of its first input, which spends this output."""
        digest = transaction.segwit_digest(0, self.script_code, self.value)
        signature = keys.der(keys.sign(self.secret, digest)) + bytes((SIGHASH_ALL,))
        return transaction.with_witness(0, self._witness(signature))

    def _witness(self, signature: bytes) -> tuple[bytes, ...]:
        return (*self.before, signature, *self.after)

    def highest_feerate(self, script: bytes) -> FeeratePerKw:
        """What it can pay and still leave an output to `script` that is no dust."""
        spare = max(0, self.value - dust_limit(script))
        return FeeratePerKw(spare * 1000 // self.weighed([TxOut(self.value, script)]))

    def sweep(self, script: bytes, feerate: FeeratePerKw) -> Transaction:
        """The signed transaction that pays all but the fee to `script`."""
        weight = self.weighed([TxOut(self.value, script)])
        fee = -(-weight * feerate // 1000)
        return self.signed(self.unsigned([TxOut(Sat(self.value - fee), script)]))


def claim_of(
    core: Core, close: Close, output: CloseOutput, height: BlockHeight, preimage: bytes | None
) -> Claim | None:
    """How we spend an output, or None when it is not ours to spend.

    `height` is that of the block with the output; the preimage is that of an HTLC that the peer
    offered and that we mean to claim.
    """
    claim = None
    match output.kind:
        case OutputKind.OUTPUT_TO_US:
            claim = _to_remote(core, output, height)
        case OutputKind.DELAYED_OUTPUT_TO_US:
            claim = _delayed(core, close, output, height)
        case OutputKind.OUR_HTLC | OutputKind.THEIR_HTLC | OutputKind.DELAYED_CHEAT_OUTPUT_TO_THEM:
            if close.closer is Closer.REVOKED:
                claim = _penalty(core, close, output, height)
            elif close.owner_is_us:
                claim = _second_stage(core, close, output, height, preimage)
            else:
                claim = _direct(core, close, output, height, preimage)
        case _:
            pass  # anchors and what is theirs
    return claim


def _to_remote(core: Core, output: CloseOutput, height: BlockHeight) -> Claim:
    """`to_remote` of their commitment: BOLT 3, with anchors after one block."""
    pubkey = core.state.local.payment_basepoint
    anchors = output.script != b""
    return Claim(
        name="OUR_UNILATERAL_TO_US_RETURN_TO_WALLET",
        outpoint=output.outpoint,
        value=output.value,
        secret=core.secrets.payment_basepoint,
        script_code=output.script or p2wpkh_script_code(pubkey),
        after=(output.script,) if anchors else (pubkey,),
        sequence=1 if anchors else REPLACEABLE,
        from_height=height,
    )


def _delayed(core: Core, close: Close, output: CloseOutput, height: BlockHeight) -> Claim:
    """`to_local` of our commitment, and what our HTLC transactions pay: BOLT 3, `to_local`."""
    delay = core.state.peer.to_self_delay
    return Claim(
        name="OUR_DELAYED_RETURN_TO_WALLET",
        outpoint=output.outpoint,
        value=output.value,
        secret=keys.derive_privkey(core.secrets.delayed_payment_basepoint, _point(close)),
        script_code=output.script,
        after=(b"", output.script),
        sequence=delay,
        from_height=BlockHeight(height + delay - 1),
    )


def _penalty(core: Core, close: Close, output: CloseOutput, height: BlockHeight) -> Claim:
    """BOLT 5, Revoked Transaction Close Handling: their outputs with the revocation key."""
    assert close.secret is not None, "a revoked commitment's secret is known"
    secret = keys.derive_revocation_privkey(core.secrets.revocation_basepoint, close.secret)
    # BOLT 3: 1 chooses the branch of to_local; HTLCs ask for the revocation key itself.
    chosen = keys.public_key(secret) if output.htlc is not None else b"\x01"
    return Claim(
        name="OUR_PENALTY_TX",
        outpoint=output.outpoint,
        value=output.value,
        secret=secret,
        script_code=output.script,
        after=(chosen, output.script),
        from_height=height,
        deadline=BlockHeight(height + core.state.local.to_self_delay),
    )


def _direct(
    core: Core, close: Close, output: CloseOutput, height: BlockHeight, preimage: bytes | None
) -> Claim | None:
    """An HTLC in their commitment, which is spent without a second stage."""
    htlc = output.htlc
    assert htlc is not None, "only HTLC outputs come here"
    secret = keys.derive_privkey(core.secrets.htlc_basepoint, _point(close))
    anchors = core.state.channel_type is ChannelType.ANCHORS
    claim = Claim(
        name="THEIR_HTLC_FULFILL_TO_US",
        outpoint=output.outpoint,
        value=output.value,
        secret=secret,
        script_code=output.script,
        after=(preimage or b"", output.script),
        sequence=1 if anchors else REPLACEABLE,
        from_height=height,
        deadline=BlockHeight(htlc.cltv_expiry),
    )
    if htlc.offered:
        return claim if preimage is not None else None
    expiry = BlockHeight(max(height, htlc.cltv_expiry))
    return replace(
        claim,
        name="OUR_HTLC_TIMEOUT_TO_US",
        after=(b"", output.script),
        locktime=htlc.cltv_expiry,
        from_height=expiry,
        deadline=BlockHeight(expiry + TIMEOUT_PATIENCE),
    )


def _second_stage(
    core: Core, close: Close, output: CloseOutput, height: BlockHeight, preimage: bytes | None
) -> Claim | None:
    """HTLC-timeout or HTLC-success of our own commitment, which the peer has signed."""
    assert close.commitment is not None, "our own commitment is known"
    assert output.htlc is not None, "only HTLC outputs come here"
    if not output.htlc.offered and preimage is None:
        return None
    places = [stage.vout for stage in close.commitment.htlcs]
    index = places.index(output.outpoint.vout)
    unsigned = close.commitment.htlcs[index].second_stage
    signature = keys.der(core.state.remote_htlc_signatures[index])
    theirs = signature + bytes((close.commitment.htlc_sighash_type(for_remote_signature=True),))
    expiry = BlockHeight(output.htlc.cltv_expiry)
    timeout = output.htlc.offered
    begin = BlockHeight(max(height, expiry)) if timeout else height
    return Claim(
        name="OUR_HTLC_TIMEOUT_TX" if timeout else "OUR_HTLC_SUCCESS_TX",
        outpoint=output.outpoint,
        value=output.value,
        secret=keys.derive_privkey(core.secrets.htlc_basepoint, _point(close)),
        script_code=output.script,
        before=(b"", theirs),
        after=(b"" if timeout else preimage or b"", output.script),
        sequence=unsigned.inputs[0].sequence,
        locktime=unsigned.locktime,
        from_height=begin,
        deadline=BlockHeight(begin + TIMEOUT_PATIENCE) if timeout else expiry,
        output=unsigned.outputs[0],
    )


def _point(close: Close) -> bytes:
    assert close.keys is not None, "the per-commitment point of this commitment is known"
    return close.keys.per_commitment_point


def anchor_claim(core: Core, begin: BlockHeight) -> Claim | None:
    """Our anchor on our own commitment, to pay for it by a child (BOLT 5, Failing a Channel).

    None where there is no anchor of ours. `begin` is the height at which we gave up on the peer.
    """
    commitment = local_commitment(core)
    vout = commitment.local_anchor_vout
    if vout is None:
        return None
    script = scripts.anchor_script(core.state.local.funding_pubkey)
    return Claim(
        name="ANCHOR_CPFP",
        outpoint=OutPoint(commitment.tx.txid, vout),
        value=commitment.tx.outputs[vout].value,
        secret=core.secrets.funding,
        script_code=script,
        after=(script,),
        from_height=begin,
        deadline=_first_deadline(core, commitment.spec.htlcs, begin),
    )


def _first_deadline(core: Core, htlcs: Sequence[Htlc], begin: BlockHeight) -> BlockHeight | None:
    """When the first HTLC of our commitment should be claimed that we would lose money by."""
    heights = []
    for htlc in htlcs:
        if htlc.offered:
            heights.append(max(begin, htlc.cltv_expiry) + TIMEOUT_PATIENCE)
            continue
        live = core.state.log.find(False, htlc.id)
        if live is not None and live.payment_preimage is not None:
            heights.append(htlc.cltv_expiry)
    return BlockHeight(min(heights)) if heights else None


def at_stake(core: Core) -> Sat:
    """What our commitment holds for us, with HTLCs that are not decided."""
    spec = local_commitment(core).spec
    undecided = sum(htlc.amount_msat for htlc in spec.htlcs)
    return sat_floor(Msat(spec.to_owner_msat + undecided))
