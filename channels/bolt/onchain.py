"""What a transaction that spent the funding output is, and what its outputs are (BOLT 5).

`identify` names it. `channels.bolt.resolution` follows its outputs from there, and
`channels.bolt.claims` spends those that are ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from channels.bolt import keys, mutual_close, scripts
from channels.bolt.channel_commitments import (
    local_commitment,
    newest_remote_commitment,
    previous_remote_commitment,
)
from channels.bolt.channel_state import Core
from channels.bolt.commitment import (
    ChannelType,
    Commitment,
    CommitmentKeys,
    Htlc,
    commitment_number,
    fully_signed,
    sign_commitment,
)
from channels.bolt.transactions import OutPoint, Transaction, p2wpkh, p2wsh
from channels.units import Sat, msat


class Closer(Enum):
    """What spent the funding output; the values are lightningd's words for it."""

    MUTUAL = "Tracking mutual close transaction"
    OURS = "Tracking our own unilateral close"
    THEIRS = "Tracking their unilateral close"
    THEIRS_PREVIOUS = "Tracking their unilateral close (old)"
    REVOKED = "Tracking their illegal close: taking all funds"
    FUTURE = "Tracking their unilateral close, newer than what we know: we lost data"
    UNKNOWN = "Unknown spend of the funding output: funds may be lost"


class OutputKind(Enum):
    """lightningd's names for what an output of a commitment transaction is."""

    OUTPUT_TO_US = "OUTPUT_TO_US"
    DELAYED_OUTPUT_TO_US = "DELAYED_OUTPUT_TO_US"
    OUTPUT_TO_THEM = "OUTPUT_TO_THEM"
    DELAYED_OUTPUT_TO_THEM = "DELAYED_OUTPUT_TO_THEM"
    DELAYED_CHEAT_OUTPUT_TO_THEM = "DELAYED_CHEAT_OUTPUT_TO_THEM"
    OUR_HTLC = "OUR_HTLC"
    THEIR_HTLC = "THEIR_HTLC"
    ANCHOR_TO_US = "ANCHOR_TO_US"
    ANCHOR_TO_THEM = "ANCHOR_TO_THEM"


@dataclass(frozen=True, slots=True)
class PastHtlc:
    """An HTLC that was in a commitment of the peer's at some time: what finds its output again."""

    ours: bool
    id: int
    payment_hash: bytes
    cltv_expiry: int


@dataclass(frozen=True, slots=True)
class CloseOutput:
    """An output that somebody must spend; `script` is its witness script, empty for p2wpkh.

    `htlc` is as the commitment's owner sees it.
    """

    outpoint: OutPoint
    value: Sat
    kind: OutputKind
    script: bytes
    htlc: Htlc | None = None


@dataclass(frozen=True)
class Close:
    """A transaction that spent the funding output.

    `keys` are those of the commitment when we know its per-commitment point, `commitment` is the
    whole of it when it is not revoked, and `secret` the per-commitment secret when it is.
    """

    closer: Closer
    transaction: Transaction
    outputs: tuple[CloseOutput, ...] = ()
    keys: CommitmentKeys | None = None
    commitment: Commitment | None = None
    to_local_script: bytes = b""
    secret: bytes | None = field(default=None, repr=False)

    @property
    def owner_is_us(self) -> bool:
        return self.closer is Closer.OURS


def own_commitment(core: Core) -> Transaction | None:
    """Our newest commitment, signed, or None where it must not or cannot be broadcast."""
    state = core.state
    # BOLT 5: MUST NOT broadcast a commitment that is known to be outdated.
    lost = state.failure is not None and state.failure[0] in ("fell-behind", "bad-funding-output")
    if lost or state.funding_txid is None or not state.remote_signature:
        return None
    commitment = local_commitment(core)
    ours = sign_commitment(commitment, core.secrets.funding)
    return fully_signed(commitment, ours, state.remote_signature)


def identify(core: Core, transaction: Transaction, past: Callable[[], Iterable[PastHtlc]]) -> Close:
    """What the transaction is that spent this channel's funding output.

    `past` is asked for every HTLC that the channel ever had, and only when the commitment is a
    revoked one.
    """
    state = core.state
    opener, accepter = (state.local, state.peer) if state.opener else (state.peer, state.local)
    number = commitment_number(transaction, opener.payment_basepoint, accepter.payment_basepoint)
    # The numbers first: a peer may have named the script of an old commitment in its shutdown.
    if number is None and mutual_close.is_agreed(core, transaction):
        return Close(Closer.MUTUAL, transaction)
    ours = local_commitment(core)
    if transaction.txid == ours.tx.txid:
        return _known(Closer.OURS, transaction, ours)
    newest = newest_remote_commitment(core)
    if transaction.txid == newest.tx.txid:
        return _known(Closer.THEIRS, transaction, newest)
    previous = previous_remote_commitment(core)
    if previous is not None and transaction.txid == previous.tx.txid:
        return _known(Closer.THEIRS_PREVIOUS, transaction, previous)
    if number is not None and number > state.remote_number:
        return Close(Closer.FUTURE, transaction, _to_us(core, transaction))
    if number is not None and number < state.remote_revoked:
        revoked = _revoked(core, transaction, number, past())
        if revoked is not None:
            return revoked
    return Close(Closer.UNKNOWN, transaction, _to_us(core, transaction))


def _known(closer: Closer, transaction: Transaction, commitment: Commitment) -> Close:
    """A commitment that we can build ourselves, so that we know each output."""
    ours = closer is Closer.OURS
    k, tx = commitment.spec.keys, commitment.tx
    found: list[CloseOutput] = []

    def add(vout: int | None, kind: OutputKind, script: bytes, htlc: Htlc | None = None) -> None:
        if vout is not None:
            value = tx.outputs[vout].value
            found.append(CloseOutput(OutPoint(tx.txid, vout), value, kind, script, htlc))

    kind = OutputKind.DELAYED_OUTPUT_TO_US if ours else OutputKind.DELAYED_OUTPUT_TO_THEM
    add(commitment.to_local_vout, kind, commitment.to_local_script)
    kind = OutputKind.OUTPUT_TO_THEM if ours else OutputKind.OUTPUT_TO_US
    script = _to_remote_script(commitment.spec.channel_type, k.remote_payment)
    add(commitment.to_remote_vout, kind, script)
    anchors = (OutputKind.ANCHOR_TO_US, OutputKind.ANCHOR_TO_THEM)
    local_anchor, remote_anchor = anchors if ours else anchors[::-1]
    add(commitment.local_anchor_vout, local_anchor, scripts.anchor_script(k.local_funding))
    add(commitment.remote_anchor_vout, remote_anchor, scripts.anchor_script(k.remote_funding))
    for output in commitment.htlcs:
        add(output.vout, _htlc_kind(output.htlc.offered == ours), output.script, output.htlc)
    found.sort(key=lambda output: output.outpoint.vout)
    return Close(closer, transaction, tuple(found), k, commitment, commitment.to_local_script)


def _htlc_kind(ours: bool) -> OutputKind:
    return OutputKind.OUR_HTLC if ours else OutputKind.THEIR_HTLC


def _to_remote_script(channel_type: ChannelType, payment_pubkey: bytes) -> bytes:
    """The witness script of `to_remote`; empty where it is a plain p2wpkh output (BOLT 3)."""
    anchors = channel_type is ChannelType.ANCHORS
    return scripts.to_remote_script(payment_pubkey) if anchors else b""


def _to_us(core: Core, transaction: Transaction) -> tuple[CloseOutput, ...]:
    """`to_remote` needs no per-commitment point: ours can be found in any commitment of theirs."""
    pubkey = core.state.local.payment_basepoint
    script = _to_remote_script(core.state.channel_type, pubkey)
    wanted = p2wsh(script) if script else p2wpkh(pubkey)
    return tuple(
        CloseOutput(OutPoint(transaction.txid, vout), output.value, OutputKind.OUTPUT_TO_US, script)
        for vout, output in enumerate(transaction.outputs)
        if output.script == wanted
    )


def _revoked(
    core: Core, transaction: Transaction, number: int, past: Iterable[PastHtlc]
) -> Close | None:
    """Their commitment of that number, each output found by its script; None if none is theirs."""
    state = core.state
    revealed = keys.RevokedSecrets.from_list(state.revoked_secrets)
    secret = revealed.secret(keys.FIRST_INDEX - number)
    if secret is None:
        return None
    k = CommitmentKeys.derive(
        state.peer.basepoints, state.local.basepoints, keys.public_key(secret)
    )
    to_local = scripts.to_local_script(k.revocation, state.local.to_self_delay, k.local_delayed)
    singles = {
        p2wsh(to_local): (OutputKind.DELAYED_CHEAT_OUTPUT_TO_THEM, to_local),
        p2wsh(anchor := scripts.anchor_script(k.local_funding)): (
            OutputKind.ANCHOR_TO_THEM,
            anchor,
        ),
        p2wsh(anchor := scripts.anchor_script(k.remote_funding)): (OutputKind.ANCHOR_TO_US, anchor),
    }
    found = list(_to_us(core, transaction))
    htlcs = _htlc_scripts(k, state.channel_type, past)
    for vout, output in enumerate(transaction.outputs):
        outpoint = OutPoint(transaction.txid, vout)
        if output.script in singles:
            kind, script = singles[output.script]
            found.append(CloseOutput(outpoint, output.value, kind, script))
        elif candidates := htlcs.get(output.script):
            # Several have the same script only when they have the same hash: any will do, but
            # each for one output.
            old, script = candidates.pop(0) if len(candidates) > 1 else candidates[0]
            amount = msat(output.value)
            htlc = Htlc(not old.ours, amount, old.payment_hash, old.cltv_expiry, old.id)
            kind = _htlc_kind(old.ours)
            found.append(CloseOutput(outpoint, output.value, kind, script, htlc))
    anchors = (OutputKind.ANCHOR_TO_US, OutputKind.ANCHOR_TO_THEM)
    if all(output.kind in anchors for output in found):
        return None  # no output that only theirs can have: it is an old one of ours
    found.sort(key=lambda output: output.outpoint.vout)
    return Close(
        Closer.REVOKED, transaction, tuple(found), k, to_local_script=to_local, secret=secret
    )


def _htlc_scripts(
    k: CommitmentKeys, channel_type: ChannelType, past: Iterable[PastHtlc]
) -> dict[bytes, list[tuple[PastHtlc, bytes]]]:
    """Every HTLC with its witness script in a commitment with those keys, by output script."""
    anchors = channel_type is ChannelType.ANCHORS
    found: dict[bytes, list[tuple[PastHtlc, bytes]]] = defaultdict(list)
    for htlc in past:
        if htlc.ours:  # so the owner of the commitment, the peer, received it
            script = scripts.received_htlc_script(
                *(k.revocation, k.local_htlc, k.remote_htlc, htlc.payment_hash, htlc.cltv_expiry),
                anchors=anchors,
            )
        else:
            script = scripts.offered_htlc_script(
                k.revocation, k.local_htlc, k.remote_htlc, htlc.payment_hash, anchors=anchors
            )
        found[p2wsh(script)].append((htlc, script))
    return found
