"""What the sidechain says, kept: full nodes prove the last blocks only, receipts are checked later.

Who is owed under a block is asked when a challenge names it, and stored before it can be too late.
From then on a receipt can be held against it without anybody who proves it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from channels.errors import OdaError, UserError
from channels.http.session import Provenance
from client.check_table import CheckTable
from sidechain.fees import Beneficiaries
from sidechain.state import Payee


class Chain(Protocol):
    """What is asked of the sidechain; a light client answers it."""

    def check_tip(self, provenance: Provenance) -> None:
        """Raises RemoteProtocolError where its block is not a recent one of our own chain."""

    async def beneficiaries(self, provenance: Provenance) -> Beneficiaries:
        """Who is owed for what was served under it. Raises OdaError where that can't be known."""

    async def payees(self, keys: Sequence[bytes]) -> Mapping[bytes, Payee]:
        """Where keys are paid; those that never registered are left out."""


class KnownChain:
    """chain: None where no node of the sidechain is named; what is stored is known all the same."""

    def __init__(self, chain: Chain | None, table: CheckTable) -> None:
        self.chain = chain
        self._table = table

    async def learn(self, provenance: Provenance) -> None:
        """Store who is owed, and at which nodes they are paid. Raises OdaError."""
        if self._table.beneficiaries(provenance) is not None:
            return
        owed = await self.beneficiaries(provenance)
        keys = {owed.trainer, owed.last_producer, owed.accepting_producer}
        await self.nodes([key for key in keys if key is not None])

    async def beneficiaries(self, provenance: Provenance) -> Beneficiaries:
        """Raises UserError "no-chain" where it is not stored and there is no chain to ask, and
        what the chain raises."""
        found = self._table.beneficiaries(provenance)
        if found is None:
            found = await self._asked().beneficiaries(provenance)
            self._table.save_beneficiaries(provenance, found)
        return found

    async def nodes(self, keys: Sequence[bytes]) -> dict[bytes, frozenset[bytes]]:
        """The nodes at which keys are paid now, or were when we looked before."""
        known = {key: self._table.nodes(key) for key in keys}
        try:
            for key, payee in (await self._asked().payees(keys)).items():
                self._table.save_node(key, payee.node_id)
        except OdaError:
            if not all(known.values()):
                raise
        return {key: self._table.nodes(key) for key in keys}

    def _asked(self) -> Chain:
        if self.chain is None:
            raise UserError(
                "no-chain",
                "Who is owed for this session is on the sidechain: name a node of it with --chain "
                "or client.chain.",
            )
        return self.chain
