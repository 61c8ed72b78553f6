"""What a provider says it owes for a session, and the proof that it was paid. PURE.

At close the user gets a *statement*, signed by the provider's Lightning node: what was delivered,
spent and owed, and by which block of the sidechain. Shares are paid in batches: one fixed-amount
invoice of the payee, whose description (BOLT 11 `h`) commits to a Merkle-sum tree over what each
session owes. The user's *proof* is its own leaf, the path, the invoice, which the payee's node
signed, and the preimage: the payee acknowledges to have been paid for this session, and a leaf
names its session, so the same payment can't be shown to two users.

What it does not prove: that payer and payee are strangers. Shares that a provider owes to itself
are therefore told apart. Who should be owed is not known here; it comes from the sidechain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from channels.bolt import invoice as bolt11
from channels.bolt import signmessage
from channels.errors import RemoteProtocolError, UserError
from channels.http.method import CURRENCIES
from channels.http.scheme import canonical_json
from channels.sum_tree import MAX_DEPTH, Leaf, Sibling, Sum, root_of
from channels.units import Msat, UnixTime

MAX_ANSWERS: Final = 10_000
MAX_PERIODS: Final = 10_000
MAX_OWED: Final = 3
MAX_PROOFS: Final = 1000
MAX_BYTES: Final = 8 << 20

Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
NodeId = Annotated[str, Meta(pattern="^0[23][0-9a-f]{64}$")]
MAX_MSAT: Final = (1 << 53) - 1
"""What canonical JSON (RFC 8785) can tell apart: above it, integers are doubles."""

Amount = Annotated[int, Meta(ge=0, le=MAX_MSAT)]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Ppm = Annotated[int, Meta(ge=0, le=1_000_000)]
Text = Annotated[str, Meta(max_length=256)]


class Owed(Struct, frozen=True, forbid_unknown_fields=True):
    """A key of the sidechain (BIP 340) and its part, in msat."""

    key: Hex32
    msat: Annotated[int, Meta(ge=1, le=MAX_MSAT)]


class Period(Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a session in which the same weights were served under the same tip.

    model and weights_root are None for models that are not on the sidechain; height and block are
    of the tip that the challenge named, None where none was.
    """

    height: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] | None
    block: Hex32 | None
    model: Hex32 | None
    weights_root: Hex32 | None
    spent_msat: Amount
    owed: Annotated[tuple[Owed, ...], Meta(max_length=MAX_OWED)]


class AnswerEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """One answer as it was charged. digest: of its events, by `digest`."""

    id: Text
    prompt_tokens: Count
    completion_tokens: Count
    digest: Hex32


class Statement(Struct, frozen=True, forbid_unknown_fields=True):
    """One session at its end. Prices and ppm are those of the challenge that opened it."""

    network: Text
    provider: NodeId
    session: Hex32
    model: Text
    input_msat: Amount
    output_msat: Amount
    trainer_ppm: Ppm
    producers_ppm: Ppm
    closed: Count
    answers: Annotated[tuple[AnswerEntry, ...], Meta(max_length=MAX_ANSWERS)]
    periods: Annotated[tuple[Period, ...], Meta(max_length=MAX_PERIODS)]

    @property
    def spent(self) -> Msat:
        return Msat(sum(period.spent_msat for period in self.periods))

    @property
    def owed(self) -> dict[str, Msat]:
        """By key, over all periods."""
        amounts: dict[str, Msat] = {}
        for period in self.periods:
            for each in period.owed:
                amounts[each.key] = Msat(amounts.get(each.key, 0) + each.msat)
        return amounts

    @property
    def text(self) -> str:
        """What the provider's node signs: the hash of the canonical JSON (RFC 8785)."""
        digest = hashlib.sha256(canonical_json(msgspec.to_builtins(self))).hexdigest()
        return f"ODA statement {digest}"


class Step(Struct, frozen=True, forbid_unknown_fields=True):
    """A sum_tree.Sibling as it travels."""

    left: bool
    hash: Hex32
    msat: Amount


class Proof(Struct, frozen=True, forbid_unknown_fields=True):
    """That a batch in which this session had `msat` was paid to the payee behind `key`."""

    key: Hex32
    msat: Amount
    salt: Hex32
    path: Annotated[tuple[Step, ...], Meta(max_length=MAX_DEPTH)]
    invoice: Annotated[str, Meta(max_length=4096)]
    preimage: Hex32

    @classmethod
    def of(
        cls, key: bytes, leaf: Leaf, path: Sequence[Sibling], invoice: str, preimage: bytes
    ) -> Proof:
        steps = tuple(Step(each.left, each.node.hash.hex(), each.node.amount) for each in path)
        return cls(key.hex(), leaf.amount, leaf.salt.hex(), steps, invoice, preimage.hex())

    def root(self, session: str) -> Sum | None:
        leaf = Leaf(bytes.fromhex(session), Msat(self.msat), bytes.fromhex(self.salt))
        path = [Sibling(s.left, Sum(bytes.fromhex(s.hash), Msat(s.msat))) for s in self.path]
        return root_of(leaf, path)


class Receipt(Struct, frozen=True, forbid_unknown_fields=True):
    """A statement, the signature of the provider's node over it (`signmessage`), and the proofs
    of what has been settled so far."""

    statement: Statement
    signature: Text
    proofs: Annotated[tuple[Proof, ...], Meta(max_length=MAX_PROOFS)] = ()

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


_decoder: Final = msgspec.json.Decoder(Receipt)


def decode(data: bytes) -> Receipt:
    """Raises RemoteProtocolError("bad-receipt")."""
    if len(data) > MAX_BYTES:
        raise _refuse("bad-receipt", f"it has {len(data)} bytes")
    try:
        return _decoder.decode(data)
    except (ValueError, RecursionError) as error:
        raise _refuse("bad-receipt", str(error)) from None


# What both sides compute -------------------------------------------------------------------------

NO_EVENTS: Final = bytes(32)


def digest(before: bytes, event: bytes) -> bytes:
    """The running digest of an answer after one more data event; it begins with NO_EVENTS."""
    return hashlib.sha256(before + hashlib.sha256(event).digest()).digest()


def description(root: Sum) -> str:
    """The description of a batch's invoice, whose SHA-256 is in the `h` of BOLT 11."""
    return f"ODA shares {root.hash.hex()} {root.amount}"


# Checking ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """An answer as the user's client read it. Tokens that were never delivered are not in it.

    complete: whether it was read to its end; the provider may have charged for more of one that
    was left, up to `completion_tokens + in_flight`. most_prompt_tokens: the most that the question
    can have; where no token was read, nothing else bounds what was charged for it.
    """

    prompt_tokens: int
    completion_tokens: int
    digest: bytes
    complete: bool = True
    most_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Transcript:
    """What the user knows of a session: what was agreed and what came.

    blocks: the tips that challenges named. models: (model, weights_root) of all challenges that
    were accepted. in_flight: the most tokens that may have been sent to a reader who left.
    unheard: of each question to which nothing had come when the reader was killed, the most tokens
    that it can have; a challenge may have been lost with the answer.
    """

    network: str
    provider: bytes
    session: bytes
    model: str
    input_msat: Msat
    output_msat: Msat
    trainer_ppm: int
    producers_ppm: int
    answers: Mapping[str, ReadAnswer]
    blocks: frozenset[bytes] = frozenset()
    models: frozenset[tuple[bytes | None, bytes | None]] = frozenset()
    in_flight: int = 0
    unheard: tuple[int, ...] = ()


def check_statement(receipt: Receipt, transcript: Transcript) -> None:
    """Whether the statement is the provider's and agrees with what the user saw.

    Raises RemoteProtocolError, its reason one of "wrong-session", "statement-not-signed",
    "wrong-terms", "wrong-model", "wrong-tip", "truncated", "answer-differs", "overcharge",
    "understated".
    """
    check_signature(receipt, transcript)
    statement = receipt.statement
    _check_terms(statement, transcript)
    charged = 0
    _check_unheard(statement, transcript)
    for entry in statement.answers:
        charged += statement.input_msat * entry.prompt_tokens if entry.completion_tokens else 0
        charged += statement.output_msat * entry.completion_tokens
        _check_answer(entry, transcript)
    stated = {entry.id for entry in statement.answers}
    if any(read.completion_tokens for id, read in transcript.answers.items() if id not in stated):
        raise _refuse("understated", "it leaves out answers that were paid for")
    if len(stated) != len(statement.answers):
        raise _refuse("overcharge", "it counts an answer twice")
    if statement.spent > charged:
        raise _refuse("overcharge", f"{statement.spent} msat were taken for {charged}")
    if statement.spent < charged:
        raise _refuse("understated", f"{statement.spent} msat are stated of {charged}")


def check_signature(receipt: Receipt, transcript: Transcript) -> None:
    """Whether the provider's node signed a statement of this session.

    Raises RemoteProtocolError, its reason "wrong-session" or "statement-not-signed".
    """
    statement = receipt.statement
    if (statement.network, statement.session) != (transcript.network, transcript.session.hex()):
        raise _refuse("wrong-session", "it is about another session")
    signer = signmessage.signer(statement.text, receipt.signature)
    if signer != transcript.provider or statement.provider != transcript.provider.hex():
        raise _refuse("statement-not-signed", "the provider's node did not sign it")


def _check_terms(statement: Statement, transcript: Transcript) -> None:
    stated = (
        statement.input_msat,
        statement.output_msat,
        statement.trainer_ppm,
        statement.producers_ppm,
    )
    agreed = (
        transcript.input_msat,
        transcript.output_msat,
        transcript.trainer_ppm,
        transcript.producers_ppm,
    )
    if stated != agreed:
        raise _refuse("wrong-terms", "its prices or shares are not the agreed ones")
    if statement.model != transcript.model:
        raise _refuse("wrong-model", "it is for another model")
    for period in statement.periods:
        served = tuple(
            None if each is None else bytes.fromhex(each)
            for each in (period.model, period.weights_root)
        )
        if served not in transcript.models and not transcript.unheard:
            raise _refuse("wrong-model", "it names weights that no challenge promised")
        block = None if period.block is None else bytes.fromhex(period.block)
        # Where a challenge named a block, nothing was spent outside of the sidechain.
        if block not in (transcript.blocks or {None}) and (block is None or not transcript.unheard):
            raise _refuse("wrong-tip", "it names a block that no challenge named")


def _check_unheard(statement: Statement, transcript: Transcript) -> None:
    """What is charged for answers of which nothing was read: no more than a reader that was
    killed can have missed."""
    unread = [
        entry
        for entry in statement.answers
        if entry.completion_tokens and entry.id not in transcript.answers
    ]
    most = max(transcript.unheard, default=0)
    if len(unread) > len(transcript.unheard) or any(
        entry.completion_tokens > transcript.in_flight or entry.prompt_tokens > most
        for entry in unread
    ):
        raise _refuse("overcharge", "it charges for an answer that was never read")


def _check_answer(entry: AnswerEntry, transcript: Transcript) -> None:
    read = transcript.answers.get(entry.id)
    if read is None:
        return  # _check_unheard has seen it
    heard = read.completion_tokens > 0
    if entry.completion_tokens and (
        entry.prompt_tokens != read.prompt_tokens
        if heard
        else entry.prompt_tokens > max(read.most_prompt_tokens, read.prompt_tokens)
    ):
        raise _refuse("overcharge", "it counts the question's tokens differently")
    more = entry.completion_tokens - read.completion_tokens
    if more > (0 if read.complete else transcript.in_flight):
        raise _refuse("truncated", f"{more} charged tokens of an answer never arrived")
    if more < 0:
        raise _refuse("understated", "it counts fewer tokens than arrived")
    if read.complete and bytes.fromhex(entry.digest) != read.digest:
        raise _refuse("answer-differs", "the answer that it signs is not the one that came")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of what a session owed, in msat by key: what was proven to be paid, what is still owed, and
    what the provider owes to itself (its own node is the payee's), which proves nothing."""

    paid: Mapping[str, Msat] = field(default_factory=dict)
    carried: Mapping[str, Msat] = field(default_factory=dict)
    own: Mapping[str, Msat] = field(default_factory=dict)


def check_shares(statement: Statement, expected: Sequence[Mapping[bytes, Msat]]) -> None:
    """Whether each period owes what the sidechain says: `expected` in the order of periods.

    Raises RemoteProtocolError, its reason "wrong-payee" or "wrong-amount".
    """
    if len(expected) != len(statement.periods):
        raise ValueError("one expectation per period")
    for period, wanted in zip(statement.periods, expected, strict=True):
        stated = {bytes.fromhex(each.key): each.msat for each in period.owed}
        if stated.keys() != wanted.keys() or len(stated) != len(period.owed):
            raise _refuse("wrong-payee", "it owes a period's shares to others than the chain says")
        if stated != dict(wanted):
            raise _refuse("wrong-amount", "a period's shares are not the agreed parts")


def check_proofs(receipt: Receipt, payees: Mapping[bytes, Collection[bytes]]) -> Verdict:
    """What the proofs show. payees: of each key that is owed, the nodes that it has registered on
    the chain: now, and since the session that we know of.

    Raises RemoteProtocolError: "wrong-payee", "wrong-amount", "wrong-root", "bad-preimage",
    "batch-twice" or "bad-invoice".
    """
    statement = receipt.statement
    owed, paid = statement.owed, dict[str, Msat]()
    seen: set[bytes] = set()
    for proof in receipt.proofs:
        if proof.key not in owed:
            raise _refuse("wrong-payee", "a proof is for somebody who is owed nothing")
        payment_hash = _check_proof(proof, statement, payees.get(bytes.fromhex(proof.key), ()))
        if payment_hash in seen:
            raise _refuse("batch-twice", "the same payment is shown twice")
        seen.add(payment_hash)
        paid[proof.key] = Msat(paid.get(proof.key, 0) + proof.msat)
        if paid[proof.key] > owed[proof.key]:
            raise _refuse("wrong-amount", "more is shown as paid than was owed")
    own = {
        key: amount
        for key, amount in owed.items()
        if bytes.fromhex(statement.provider) in payees.get(bytes.fromhex(key), ())
    }
    left = {key: Msat(amount - paid.get(key, 0)) for key, amount in owed.items() if key not in own}
    return Verdict(paid, {key: amount for key, amount in left.items() if amount}, own)


def _check_proof(proof: Proof, statement: Statement, nodes: Collection[bytes]) -> bytes:
    """-> the payment hash."""
    invoice = _invoice(proof.invoice, statement.network, nodes)
    preimage = bytes.fromhex(proof.preimage)
    if hashlib.sha256(preimage).digest() != invoice.payment_hash:
        raise _refuse("bad-preimage", "its preimage is not the invoice's")
    root = proof.root(statement.session)
    if root is None:
        raise _refuse("wrong-amount", "its path leads to no total")
    _commits(invoice, root)
    return invoice.payment_hash


def check_invoice(text: str, network: str, node_id: bytes, root: Sum, now: UnixTime) -> bytes:
    """-> the payment hash of the invoice that a payee gave for a batch.

    Raises RemoteProtocolError as check_proofs does; nothing may be paid then.
    """
    invoice = _invoice(text, network, (node_id,))
    try:
        bolt11.check_payable(invoice, CURRENCIES[network], now)
    except UserError as error:
        raise _refuse(error.reason, str(error)) from None
    _commits(invoice, root)
    return invoice.payment_hash


def _invoice(text: str, network: str, nodes: Collection[bytes]) -> bolt11.Invoice:
    try:
        invoice = bolt11.decode(text)
    except UserError as error:
        raise _refuse("bad-invoice", str(error)) from None
    if invoice.currency != CURRENCIES.get(network):
        raise _refuse("bad-invoice", "its invoice is of another network")
    if invoice.payee not in nodes:
        raise _refuse("wrong-payee", "its invoice is not of the payee's registered node")
    return invoice


def _commits(invoice: bolt11.Invoice, root: Sum) -> None:
    """Whether the payee signed for exactly this batch."""
    if invoice.amount_msat != root.amount:
        raise _refuse("wrong-amount", "the batch's total is not the invoice's amount")
    if invoice.description_hash != hashlib.sha256(description(root).encode()).digest():
        raise _refuse("wrong-root", "the payee did not sign for this batch")


def _refuse(reason: str, what: str) -> RemoteProtocolError:
    return RemoteProtocolError(reason, f"This receipt does not hold: {what}.")
