"""What a light node answers: headers, and entries of the state that peers prove when asked."""

from __future__ import annotations

from sidechain import api, views
from sidechain.handlers import Around, Call, Handlers, find_record, no_such, served
from sidechain.headers import HeaderRecord
from sidechain.light_node import LightNode
from sidechain.primitives import display


class LightHandlers(Handlers):
    def __init__(self, node: LightNode, around: Around) -> None:
        super().__init__(node, around)
        self._node = node

    async def status(self, call: Call) -> api.Status:
        headers, around = self._node.headers, self._around
        best = headers.best
        return api.Status(
            self._node.params.name,
            self._node.params.network_id,
            display(headers.genesis.hash),
            around.agent,
            True,
            None,
            best.height,
            display(best.hash),
            best.header.time,
            None,
            best.height,
            True,
            len(around.peers.infos()),
            0,
            0,
            0,
            0,
            None,
            None,
            around.now(),
        )

    def _active(self, height: int) -> HeaderRecord | None:
        best = self._node.headers.best
        return best.ancestor(height) if 0 <= height <= best.height else None

    async def blocks(self, call: Call) -> api.Blocks:
        query = call.query(api.BlocksQuery)
        best = self._node.headers.best
        record = best if query.at is None else best.ancestor(min(query.at, best.height))
        found: list[api.BlockSummary] = []
        for each in record.chain():
            if len(found) == query.limit:
                return api.Blocks(tuple(found), each.height)
            found.append(views.header_summary(each, True))
        return api.Blocks(tuple(found), None)

    async def block(self, call: Call) -> api.Block:
        record = find_record(call.path["block"], self._active, self._node.headers.get)
        active = self._active(record.height) is record
        confirmations = self._node.headers.best.height - record.height + 1
        return api.Block(
            views.header_summary(record, active),
            record.header.merkle_root.hex(),
            str(record.work),
            confirmations if active else 0,
            record.invalid,
            None,
        )

    async def model(self, call: Call) -> api.ProvenModel:
        identity = call.hash("model")
        model = await self._node.model(identity)
        if model is None:
            raise no_such("model")
        return api.ProvenModel(
            identity.hex(),
            views.version(model.confirmed),
            None if model.provisional is None else views.version(model.provisional),
            model.opened,
        )

    async def payee(self, call: Call) -> api.Payee:
        key = call.hash("key")
        payee = await self._node.payee(key)
        if payee is None:
            raise no_such("payee")
        return views.payee(key, payee)

    async def beneficiaries(self, call: Call) -> api.Beneficiaries:
        model, root = served(call)
        height = self._node.client.pinned().height
        owed = await self._node.beneficiaries(model, root)
        return views.beneficiaries(height, owed)
