"""Does the provider pay those who made the model? Receipts, held against what we saw ourselves.

A receipt needs three witnesses: the provider's signature (channels.receipts), our own transcript
of the session, and the sidechain, which says who is owed. The first two show overcharge and
truncation; with the third, a share that went to the wrong one, or to nobody, is found.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from channels import receipts
from channels.errors import RemoteProtocolError, UserError
from channels.http.session import Provenance
from channels.receipts import Receipt, Statement, Transcript, Verdict
from channels.units import Msat
from client.known_chain import KnownChain
from client.store import SessionRow, Store
from sidechain.fees import Terms, by_key, split

PATIENCE: Final = 24 * 3600
"""Seconds after which shares that are still carried over count as not paid."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a receipt shows, in msat by key (hex).

    provider: what it keeps; paid: proven; carried: owed and not proven yet; own: owed by the
    provider to itself. overdue: carried over for longer than a settlement may take.
    """

    session: int
    spent_msat: Msat
    provider_msat: Msat
    paid: Mapping[str, Msat]
    carried: Mapping[str, Msat]
    own: Mapping[str, Msat]
    overdue: bool


def transcript(row: SessionRow, store: Store, node_id: str) -> Transcript:
    """What we know of a session. Raises UserError `no-transcript`."""
    value = row.value
    terms, session = value.terms, value.id
    if terms is None or session is None:
        raise UserError("no-transcript", f"Nothing was ever paid in session {row.number}.")
    return Transcript(
        network=value.caps.network,
        provider=bytes.fromhex(node_id),
        session=session,
        model=value.model,
        input_msat=terms.input_msat,
        output_msat=terms.output_msat,
        trainer_ppm=terms.trainer_ppm,
        producers_ppm=terms.producers_ppm,
        answers=store.read_answers(row.number),
        blocks=frozenset(each.block for each in value.provenances),
        models=frozenset((each.model, each.weights_root) for each in value.provenances)
        or frozenset({(None, None)}),
        # What was paid and not read: no more can have been on its way to us.
        in_flight=terms.exposure_limit // max(1, terms.output_msat),
        unheard=store.unheard(row.number),
    )


def keep(receipt: Receipt, seen: Transcript, number: int, store: Store) -> None:
    """Keep a receipt that agrees with what we saw: the provider can't take it back.

    Raises RemoteProtocolError as receipts.check_statement, and "statement-changed".
    """
    receipts.check_statement(receipt, seen)
    kept = store.receipt(number)
    if kept is not None and receipts.decode(kept).statement != receipt.statement:
        raise RemoteProtocolError(
            "statement-changed", "The provider signed two statements of one session."
        )
    store.save_receipt(number, receipt.encode())


async def check(receipt: Receipt, seen: Transcript, number: int, chain: KnownChain) -> Checked:
    """Raises RemoteProtocolError with the reason of what does not hold, and UserError
    `no-chain` where shares are owed and who is owed is not known."""
    receipts.check_statement(receipt, seen)
    statement = receipt.statement
    expected = [await _expected(period, statement, chain) for period in statement.periods]
    receipts.check_shares(statement, expected)
    owed = statement.owed
    verdict = Verdict()
    if owed:
        payees = await chain.nodes([bytes.fromhex(key) for key in owed])
        verdict = receipts.check_proofs(receipt, payees)
    age = int(time.time()) - statement.closed
    return Checked(
        session=number,
        spent_msat=statement.spent,
        provider_msat=Msat(statement.spent - sum(owed.values())),
        paid=verdict.paid,
        carried=verdict.carried,
        own=verdict.own,
        overdue=bool(verdict.carried) and age > PATIENCE,
    )


async def _expected(
    period: receipts.Period, statement: Statement, chain: KnownChain
) -> dict[bytes, Msat]:
    if period.block is None or period.height is None:
        return {}
    model, root = (
        None if each is None else bytes.fromhex(each)
        for each in (period.model, period.weights_root)
    )
    provenance = Provenance(period.height, bytes.fromhex(period.block), model, root)
    beneficiaries = await chain.beneficiaries(provenance)
    terms = Terms(statement.trainer_ppm, statement.producers_ppm)
    return by_key(split(Msat(period.spent_msat), beneficiaries, terms), beneficiaries)


def unpaid(checked: Checked) -> RemoteProtocolError | None:
    """What a user should hear of a provider that does not pass on what it owes."""
    if not checked.overdue:
        return None
    return RemoteProtocolError(
        "shares-unpaid",
        f"The provider still owes {sum(checked.carried.values())} msat to those who made the "
        "model, longer than a settlement takes.",
    )


def document(checked: Checked) -> dict[str, Any]:
    return {
        "session": checked.session,
        "spent_msat": checked.spent_msat,
        "provider_msat": checked.provider_msat,
        "paid_msat": dict(checked.paid),
        "carried_msat": dict(checked.carried),
        "own_msat": dict(checked.own),
        "overdue": checked.overdue,
    }
