"""What a full node answers, from its chain and its mempool."""

from __future__ import annotations

from typing import Literal

from channels.errors import UserError
from sidechain import api, fees, views
from sidechain.handlers import Around, Call, Handlers, find_record, no_such, served
from sidechain.headers import HeaderRecord
from sidechain.history import History
from sidechain.light import Prover
from sidechain.node import ChainNode
from sidechain.primitives import AddModel, Reveal, decode_transaction, display
from sidechain.protocol import MAX_PROOFS
from sidechain.serving import PROOF_DEPTH
from sidechain.state import ChainState, Version, model_key, payee_key
from sidechain.validation import required_gain
from torrent.magnet import Peer


class FullHandlers(Handlers):
    def __init__(self, node: ChainNode, history: History, around: Around) -> None:
        super().__init__(node, around)
        self._node = node
        self._chain = node.chain
        self._history = history
        self._counted = (ChainState(), 0, 0)

    @property
    def _state(self) -> ChainState:
        return self._chain.state

    async def status(self, call: Call) -> api.Status:
        node, chain, around = self._node, self._chain, self._around
        tip, best, miner = chain.tip, chain.headers.best, around.miner
        models, payees = self._count()
        return api.Status(
            node.params.name,
            node.params.network_id,
            display(chain.headers.genesis.hash),
            around.agent,
            False,
            None if around.key is None else around.key.hex(),
            tip.height,
            display(tip.hash),
            tip.header.time,
            self._state.root.hex(),
            best.height,
            tip is best,
            len(around.peers.infos()),
            len(node.mempool),
            len(chain.pending()),
            models,
            payees,
            around.swarm,
            None if miner is None else api.Mining(miner.rate, miner.blocks),
            around.now(),
        )

    def _count(self) -> tuple[int, int]:
        """Models and payees; counted once for each tip, because the state may be large."""
        if self._counted[0] is not self._state:
            kinds = [key[:1] for key, _ in self._state.entries()]
            models, payees = (kinds.count(key(b"")) for key in (model_key, payee_key))
            self._counted = self._state, models, payees
        return self._counted[1:]

    # --- blocks and transactions -----------------------------------------------------------------

    async def blocks(self, call: Call) -> api.Blocks:
        query = call.query(api.BlocksQuery)
        top = self._chain.tip.height if query.at is None else min(query.at, self._chain.tip.height)
        bottom = max(-1, top - query.limit)
        found = []
        for height in range(top, bottom, -1):
            record = self._chain.active(height)
            assert record is not None  # between genesis and tip
            found.append(views.summary(self._chain, record, self._chain.block(record.hash)))
        return api.Blocks(tuple(found), bottom if bottom >= 0 else None)

    async def block(self, call: Call) -> api.Block:
        record = self._record(call.path["block"])
        block = self._chain.block(record.hash)
        confirmations = self._chain.tip.height - record.height + 1
        return api.Block(
            views.summary(self._chain, record, block),
            record.header.merkle_root.hex(),
            str(record.work),
            confirmations if self._chain.is_active(record) else 0,
            record.invalid,
            None if block is None else tuple(views.transaction(tx) for tx in block.transactions),
        )

    def _record(self, name: str) -> HeaderRecord:
        return find_record(name, self._chain.active, self._chain.headers.get)

    async def pending(self, call: Call) -> api.Pending:
        jobs = self._around.scorer.jobs if self._around.scorer else {}
        shown = {
            request: views.scoring(request, job.tries, job.problem) for request, job in jobs.items()
        }
        blocks = [
            api.PendingBlock(
                display(record.hash),
                record.height,
                tuple(shown.get(each) or views.scoring(each, 0, "") for each in waiting),
            )
            for record, waiting in self._chain.pending().items()
        ]
        held = tuple(display(each) for each in self._node.held)
        return api.Pending(tuple(blocks)[: api.MOST], tuple(shown.values())[: api.MOST], held)

    async def mempool(self, call: Call) -> api.Mempool:
        query = call.query(api.PageQuery)
        pool = self._node.mempool
        chosen = [*pool][query.offset : query.offset + query.limit]
        return api.Mempool(len(pool), pool.size, tuple(views.transaction(tx) for tx in chosen))

    async def transaction(self, call: Call) -> api.FoundTransaction:
        txid = call.hash("txid")
        waiting = self._node.mempool.get(txid)
        if waiting is not None:
            return api.FoundTransaction(views.transaction(waiting), None, None, 0)
        await self._history.whole()
        height = self._history.height_of(txid)
        record = None if height is None else self._chain.active(height)
        block = None if record is None else self._chain.block(record.hash)
        for tx in block.transactions if record and block else ():
            if record and tx.txid == txid:
                confirmations = self._chain.tip.height - record.height + 1
                return api.FoundTransaction(
                    views.transaction(tx), record.height, display(record.hash), confirmations
                )
        raise no_such("transaction")

    async def post_transaction(self, call: Call) -> api.Posted:
        posted = call.posted(api.NewTransaction)
        tx = decode_transaction(bytes.fromhex(posted.transaction))
        holders = [Peer.parse(each) for each in posted.holders]
        scorer = self._around.scorer
        if scorer is not None and holders and isinstance(tx, AddModel | Reveal):
            scorer.hint(tx.infohash, holders)
        self._node.accept_transaction(tx)
        return api.Posted(tx.txid.hex())

    # --- models and payees -----------------------------------------------------------------------

    async def models(self, call: Call) -> api.Models:
        query = call.query(api.PageQuery)
        await self._history.whole()
        found = []
        for identity in self._state.models():
            model = self._state.model(identity)
            assert model is not None  # models() lists it
            found.append((identity, model))
        # The oldest first, and in one order within a block.
        found.sort(key=lambda each: (self._since(each[0]), each[0]))
        shown = []
        for identity, model in found[query.offset : query.offset + query.limit]:
            definition = self._state.definition(identity)
            assert definition is not None  # they come together
            shown.append(
                api.ModelSummary(
                    identity.hex(),
                    views.text(definition.architecture),
                    views.text(definition.objective),
                    views.version(model.current),
                    model.provisional is not None,
                    len(model.opened),
                    sum(1 for each in model.opened if each),
                    len(self._history.versions(identity)),
                )
            )
        return api.Models(len(found), tuple(shown))

    def _since(self, identity: bytes) -> int:
        return self._history.versions(identity)[0].version.height

    async def model(self, call: Call) -> api.Model:
        identity = call.hash("model")
        model, definition = self._state.model(identity), self._state.definition(identity)
        if model is None or definition is None:
            raise no_such("model")
        await self._history.whole()
        age = self._chain.tip.height + 1 - model.confirmed.height
        return api.Model(
            identity.hex(),
            views.text(definition.architecture),
            views.text(definition.objective),
            definition.dataset_root.hex(),
            definition.infohash.hex(),
            tuple(each.hex() for each in definition.openers),
            definition.min_gain,
            definition.score_cost,
            required_gain(self._node.params, definition.min_gain, age),
            views.version(model.confirmed),
            None if model.provisional is None else views.version(model.provisional),
            tuple(
                api.Shard(index, key.hex(), opened or None)
                for index, (key, opened) in enumerate(
                    zip(definition.shards, model.opened, strict=True)
                )
            ),
            self._past(identity, model.provisional),
        )

    def _past(self, identity: bytes, provisional: Version | None) -> tuple[api.PastVersion, ...]:
        shown = []
        for taken in self._history.versions(identity)[-api.MOST :]:
            root = self._state.root_of(taken.version.weights_root)
            confirmed = root is not None and root.confirmed
            waiting = taken.version == provisional
            state: Literal["confirmed", "provisional", "withdrawn"]
            state = "provisional" if waiting else "confirmed" if confirmed else "withdrawn"
            shown.append(api.PastVersion(views.version(taken.version), state, taken.txid.hex()))
        return tuple(shown)

    async def weights(self, call: Call) -> api.Weights:
        weights_root = call.hash("weights_root")
        root = self._state.root_of(weights_root)
        if root is None:
            raise no_such("set of weights")
        return api.Weights(
            weights_root.hex(),
            root.model.hex(),
            root.trainer.hex(),
            root.producer.hex(),
            root.height,
            root.revealed,
            root.confirmed,
        )

    async def commit(self, call: Call) -> api.Commit:
        commit = call.hash("commit")
        height = self._state.commit(commit)
        if height is None:
            raise no_such("open commit")
        params = self._node.params
        return api.Commit(
            commit.hex(),
            height,
            height + params.reveal_delay,
            height + params.commit_ttl + 1,
        )

    async def payees(self, call: Call) -> api.Payees:
        query = call.query(api.PageQuery)
        prefix = payee_key(b"")
        keys = sorted(key[1:] for key, _ in self._state.entries() if key[:1] == prefix)
        shown = []
        for key in keys[query.offset : query.offset + query.limit]:
            payee = self._state.payee(key)
            assert payee is not None  # it is listed
            shown.append(views.payee(key, payee))
        return api.Payees(len(keys), tuple(shown))

    async def payee(self, call: Call) -> api.Payee:
        key = call.hash("key")
        payee = self._state.payee(key)
        if payee is None:
            raise no_such("payee")
        return views.payee(key, payee)

    async def beneficiaries(self, call: Call) -> api.Beneficiaries:
        model, root = served(call)
        depth = min(self._node.params.fee_depth, self._chain.tip.height)
        owed = fees.beneficiaries(self._chain.state_at(depth), model, root)
        return views.beneficiaries(self._chain.tip.height - depth, owed)

    async def proofs(self, call: Call) -> api.Proofs:
        query = call.query(api.ProofsQuery)
        keys = [bytes.fromhex(each) for each in query.keys.split(",")]
        record = self._chain.tip if query.block is None else self._record(query.block)
        depth = self._chain.tip.height - record.height
        if not self._chain.is_active(record) or not 0 <= depth < PROOF_DEPTH or not record.height:
            raise no_such("block among the last that are proven")
        block = self._chain.block(record.hash)
        assert block is not None  # it is connected
        if len(keys) > MAX_PROOFS:
            raise UserError("bad-request", f"Ask for at most {MAX_PROOFS} keys.")
        prover = Prover(block, self._chain.state_at(depth))
        return api.Proofs(tuple(views.proof(prover.prove(key)) for key in keys))

    async def rejections(self, call: Call) -> api.Refusals:
        newest = [*self._node.rejections][::-1]
        return api.Refusals(
            tuple(views.refusal(each.time, each.what, each.hash, each.reason) for each in newest)
        )
