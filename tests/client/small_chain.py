"""A sidechain in memory, as a light client would prove it."""

from __future__ import annotations

from collections.abc import Sequence

from channels.errors import RemoteProtocolError, UserError
from channels.http.session import Provenance
from sidechain.fees import Beneficiaries
from sidechain.state import Payee
from tests.provider.payees import PayeeWorld


class SmallChain:
    """deep: nobody proves anything any more; what was asked is counted."""

    def __init__(self, payees: PayeeWorld) -> None:
        self.world = payees
        self.recent = {payees.provenance.block}
        self.deep = False
        self.asked = 0

    def check_tip(self, provenance: Provenance) -> None:
        if provenance.block not in self.recent:
            raise RemoteProtocolError("stale-tip", "That block is not on our chain.")

    async def beneficiaries(self, provenance: Provenance) -> Beneficiaries:
        self.asked += 1
        if self.deep:
            raise UserError("no-proof", "No peer proves a block that deep.")
        backing = self.world.backing(provenance.model, provenance.weights_root)
        assert backing is not None
        return backing.beneficiaries

    async def payees(self, keys: Sequence[bytes]) -> dict[bytes, Payee]:
        found = {key: self.world.by_key(key).pay_to for key in keys}
        return {
            key: Payee(1, each.node_id, each.endpoint)
            for key, each in found.items()
            if each is not None
        }
