"""From what the chain knows to what the API says (api.py). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, assert_never

from sidechain import api, light
from sidechain.announcements import Announcement
from sidechain.chain import Chain
from sidechain.fees import Beneficiaries
from sidechain.headers import HeaderRecord
from sidechain.primitives import (
    AddModel,
    AnyTransaction,
    Block,
    Commit,
    OpenShard,
    Producer,
    RegisterPayee,
    Reveal,
    display,
    stamp_work,
)
from sidechain.reasons import REASONS
from sidechain.scores import Answer, PairedSums, Request, Scored, ScoreRequest
from sidechain.state import Payee, Version

BlockStatus = Literal["header", "body", "pending", "active", "stale", "invalid"]
_STATUS: Mapping[str, BlockStatus] = {
    "header": "header",
    "body": "body",
    "pending": "pending",
    "active": "active",
    "stale": "stale",
    "invalid": "invalid",
}


def transaction(tx: AnyTransaction) -> api.Tx:
    txid, size = tx.txid.hex(), len(tx.encode())
    if isinstance(tx, Producer):
        return api.ProducerTx(
            txid, size, tx.height, tx.payee.hex(), tx.state_root.hex(), tx.extra.hex()
        )
    work = str(stamp_work(tx))
    if isinstance(tx, RegisterPayee):
        return api.RegisterPayeeTx(
            txid, size, work, tx.key.hex(), tx.seq, tx.node_id.hex(), tx.endpoint
        )
    if isinstance(tx, AddModel):
        return _add_model(tx, txid, size, work)
    if isinstance(tx, Commit):
        return api.CommitTx(txid, size, work, tx.commit.hex())
    if isinstance(tx, Reveal):
        return api.RevealTx(
            txid,
            size,
            work,
            tx.model.hex(),
            tx.infohash.hex(),
            tx.weights_root.hex(),
            tx.score,
            tx.trainer.hex(),
        )
    if isinstance(tx, OpenShard):
        return api.OpenShardTx(txid, size, work, tx.model.hex(), tx.index, tx.key.hex())
    assert_never(tx)


def _add_model(tx: AddModel, txid: str, size: int, work: str) -> api.AddModelTx:
    return api.AddModelTx(
        txid,
        size,
        work,
        tx.infohash.hex(),
        tx.weights_root.hex(),
        text(tx.architecture),
        text(tx.objective),
        tx.dataset_root.hex(),
        tuple(each.hex() for each in tx.shards),
        tuple(each.hex() for each in tx.openers),
        tx.min_gain,
        tx.score,
        tx.score_cost,
        tx.trainer.hex(),
    )


def text(data: bytes) -> str:
    """JSON of a stranger, who may have written anything."""
    return data.decode(errors="replace")


def summary(chain: Chain, record: HeaderRecord, block: Block | None) -> api.BlockSummary:
    return _summary(record, block, _STATUS[chain.status(record.hash).value])


def header_summary(record: HeaderRecord, active: bool) -> api.BlockSummary:
    """For a node that has headers alone."""
    if record.invalid is not None:
        return _summary(record, None, "invalid")
    return _summary(record, None, "active" if active else "header")


def _summary(record: HeaderRecord, block: Block | None, status: BlockStatus) -> api.BlockSummary:
    header = record.header
    producer = block.transactions[0] if block and block.transactions else None
    return api.BlockSummary(
        display(record.hash),
        record.height,
        display(header.prev),
        header.time,
        f"{header.bits:08x}",
        header.nonce,
        status,
        producer.payee.hex() if isinstance(producer, Producer) else None,
        len(block.transactions) if block else None,
    )


def version(found: Version) -> api.Version:
    return api.Version(
        found.weights_root.hex(),
        found.infohash.hex(),
        found.score,
        found.trainer.hex(),
        found.producer.hex(),
        found.height,
    )


def payee(key: bytes, found: Payee) -> api.Payee:
    return api.Payee(key.hex(), found.seq, found.node_id.hex(), found.endpoint)


def announcement(found: Announcement) -> api.Announcement:
    return api.Announcement(
        found.key.hex(),
        found.seq,
        found.expires,
        found.url,
        found.certificate.hex(),
        found.node_id.hex(),
        tuple(each.hex() for each in found.models),
    )


def beneficiaries(height: int, owed: Beneficiaries) -> api.Beneficiaries:
    keys = (owed.trainer, owed.last_producer, owed.accepting_producer)
    return api.Beneficiaries(height, *(None if key is None else key.hex() for key in keys))


def scoring(request: Request, tries: int, problem: str) -> api.Scoring:
    if isinstance(request, ScoreRequest):
        root, infohash, shard = request.weights_root, request.infohash, None
    else:
        root, infohash, shard = request.new_root, request.new_infohash, request.index
    return api.Scoring(request.model.hex(), root.hex(), infohash.hex(), shard, tries, problem)


def score(request: Request, answer: Answer) -> api.ScoreEvent:
    root = request.weights_root if isinstance(request, ScoreRequest) else request.new_root
    if isinstance(answer, Scored):
        return api.ScoreEvent(request.model.hex(), root.hex(), "scored")
    kind: Literal["paired", "unusable"] = "paired" if isinstance(answer, PairedSums) else "unusable"
    return api.ScoreEvent(request.model.hex(), root.hex(), kind)


def proof(found: light.EntryProof) -> api.Proof:
    return api.Proof(
        display(found.block),
        found.producer.hex(),
        found.transactions,
        tuple(each.hex() for each in found.branch),
        found.key.hex(),
        found.value_hash.hex(),
        found.value.hex(),
        tuple((bit, each.hex()) for bit, each in found.path),
    )


def refusal(time: int, what: str, identity: bytes, reason: str) -> api.Refusal:
    shown = display(identity) if what in ("block", "header") else identity.hex()
    return api.Refusal(time, what, shown, reason, REASONS[reason])
