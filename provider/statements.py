"""What a user gets at the end of a session: a signed statement, and the proofs of what was paid.

A statement is made once, when the session has closed, and kept as it was signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from channels import receipts
from channels.receipts import AnswerEntry, Owed, Proof, Receipt, Statement
from channels.receipts import Period as StatedPeriod
from channels.sum_tree import SumTree
from provider.ledger import Answer
from provider.sessions import Kind, Phase, Session
from provider.share_ledger import ShareLedger
from provider.shares import BatchStatus, Period


class Signer(Protocol):
    """What is used of channels.lightning.Lightning."""

    async def signmessage(self, message: str) -> str:
        """-> zbase"""


class Statements:
    """secret: what the salts of leaves are derived from (settlement.Rules)."""

    def __init__(
        self, ledger: ShareLedger, node: Signer, network: str, node_id: bytes, secret: bytes
    ) -> None:
        self._ledger = ledger
        self._node = node
        self._network = network
        self._node_id = node_id
        self._secret = secret

    async def receipt(self, session: Session) -> Receipt | None:
        """None while the session is open, or for a payment that was no session."""
        if session.kind is not Kind.SESSION or session.phase is not Phase.CLOSED:
            return None
        stored = self._ledger.statement(session.id)
        if stored is None:
            made = self._statement(session)
            signature = await self._node.signmessage(made.text)
            self._ledger.save_statement(session.id, msgspec.json.encode(made), signature)
            await self._ledger.ledger.committed()
            stored = self._ledger.statement(session.id)
            assert stored is not None  # it was saved
        statement = msgspec.json.decode(stored[0], type=Statement)
        return Receipt(statement, stored[1], self._proofs(session.id))

    def _statement(self, session: Session) -> Statement:
        terms = session.terms
        return Statement(
            network=self._network,
            provider=self._node_id.hex(),
            session=session.id.hex(),
            model=terms.model,
            input_msat=terms.input_msat,
            output_msat=terms.output_msat,
            trainer_ppm=terms.trainer_ppm,
            producers_ppm=terms.producers_ppm,
            closed=session.last_active,
            answers=tuple(self._entry(each) for each in self._ledger.ledger.answers(session.id)),
            periods=self._periods(session),
        )

    def _periods(self, session: Session) -> tuple[StatedPeriod, ...]:
        stated = [_stated(each) for each in self._ledger.periods(session.id) if each.spent]
        rest = session.spent - sum(each.spent_msat for each in stated)
        if rest:  # spent when the provider was on no sidechain
            stated.append(StatedPeriod(None, None, None, None, rest, ()))
        return tuple(stated)

    def _entry(self, answer: Answer) -> AnswerEntry:
        running = receipts.NO_EVENTS
        for event in self._ledger.ledger.events(answer.id):
            running = receipts.digest(running, event.data)
        return AnswerEntry(answer.id, answer.prompt_tokens, answer.completion_tokens, running.hex())

    def _proofs(self, session: bytes) -> tuple[Proof, ...]:
        proofs = []
        for batch in self._ledger.batches_of(session):
            if batch.status is not BatchStatus.PAID:
                continue
            assert batch.invoice is not None and batch.preimage is not None  # it is PAID
            leaves = self._ledger.leaves(batch.number, self._secret)
            index = next(i for i, leaf in enumerate(leaves) if leaf.session == session)
            path = SumTree(leaves).path(index)
            proofs.append(Proof.of(batch.key, leaves[index], path, batch.invoice, batch.preimage))
        return tuple(proofs)


def _stated(period: Period) -> StatedPeriod:
    provenance = period.provenance
    owed: Mapping[bytes, int] = period.owed
    return StatedPeriod(
        provenance.height,
        provenance.block.hex(),
        None if provenance.model is None else provenance.model.hex(),
        None if provenance.weights_root is None else provenance.weights_root.hex(),
        period.spent,
        tuple(Owed(key.hex(), amount) for key, amount in sorted(owed.items())),
    )
