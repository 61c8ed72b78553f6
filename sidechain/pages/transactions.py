"""A transaction: as a line of a table, and with all that is in it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final, assert_never
from xml.etree.ElementTree import Element  # a type; nothing is parsed

from sidechain import api
from sidechain.pages.markup import Child, Row, badge, el, facts, said, table
from sidechain.pages.values import (
    compact,
    key_link,
    model_link,
    number,
    short,
    size,
    tx_link,
    whole,
)

NAMES: Final[Mapping[type[api.Tx], str]] = {
    api.ProducerTx: "Producer",
    api.RegisterPayeeTx: "Payee",
    api.AddModelTx: "Model",
    api.CommitTx: "Commit",
    api.RevealTx: "Reveal",
    api.OpenShardTx: "Shard",
}


def kind(tx: api.Tx) -> Element:
    name = NAMES[type(tx)]
    return badge(name.lower(), name)


def transactions(txs: Iterable[api.Tx], empty: str) -> Element:
    rows = [
        Row(tx.txid, (kind(tx), tx_link(tx.txid), el("span", line(tx)), size(tx.bytes)))
        for tx in txs
    ]
    return table(("Type", "Transaction", "What it says", "#Size"), rows, empty)


def line(tx: api.Tx) -> Child:
    """What it does, in a few words."""
    if isinstance(tx, api.ProducerTx):
        return ["mined by ", key_link(tx.payee)]
    if isinstance(tx, api.RegisterPayeeTx):
        return [key_link(tx.key), " is paid at ", said(tx.endpoint, 80)]
    if isinstance(tx, api.AddModelTx):
        return ["a new model by ", key_link(tx.trainer), f", score {number(tx.score)}"]
    if isinstance(tx, api.CommitTx):
        return ["weights to be revealed: ", el("span", short(tx.commit), class_="hash")]
    if isinstance(tx, api.RevealTx):
        score = f"score {number(tx.score)} for "
        return [score, model_link(tx.model), " by ", key_link(tx.trainer)]
    if isinstance(tx, api.OpenShardTx):
        return [f"shard {tx.index} of ", model_link(tx.model), " is open"]
    assert_never(tx)


def details(tx: api.Tx) -> Element:
    """All of it."""
    stamp = None if isinstance(tx, api.ProducerTx) else f"{compact(int(tx.stamp_hashes))} hashes"
    common: list[tuple[str, Child]] = [("Type", kind(tx)), ("Size", size(tx.bytes))]
    return facts([*common, ("Stamp", stamp), *_own(tx)])


def _own(tx: api.Tx) -> list[tuple[str, Child]]:
    if isinstance(tx, api.ProducerTx):
        extra = whole(tx.extra) if tx.extra else None
        root = whole(tx.state_root)
        return [("Payee", key_link(tx.payee)), ("State root", root), ("Extra", extra)]
    if isinstance(tx, api.RegisterPayeeTx):
        where: list[tuple[str, Child]] = [("Endpoint", said(tx.endpoint))]
        where.append(("Lightning node", whole(tx.node_id)))
        return [("Key", key_link(tx.key)), ("Sequence", number(tx.seq)), *where]
    if isinstance(tx, api.AddModelTx):
        return _model(tx)
    if isinstance(tx, api.CommitTx):
        return [("Commit", whole(tx.commit))]
    if isinstance(tx, api.RevealTx):
        return [
            ("Model", model_link(tx.model)),
            ("Score", number(tx.score)),
            ("Trainer", key_link(tx.trainer)),
            ("Weights root", whole(tx.weights_root)),
            ("Infohash", magnet(tx.infohash)),
        ]
    if isinstance(tx, api.OpenShardTx):
        key = whole(tx.key)
        return [("Model", model_link(tx.model)), ("Shard", number(tx.index)), ("Key", key)]
    assert_never(tx)


def _model(tx: api.AddModelTx) -> list[tuple[str, Child]]:
    return [
        ("Model", model_link(tx.txid)),
        ("Trainer", key_link(tx.trainer)),
        ("Score", number(tx.score)),
        ("Score cost", compact(tx.score_cost)),
        ("Smallest gain", number(tx.min_gain)),
        ("Sealed shards", number(len(tx.shards))),
        ("Openers", [key_link(each) for each in tx.openers] or None),
        ("Weights root", whole(tx.weights_root)),
        ("Dataset root", whole(tx.dataset_root)),
        ("Infohash", magnet(tx.infohash)),
        ("Objective", source(tx.objective)),
        ("Architecture", source(tx.architecture)),
    ]


def magnet(infohash: str) -> Element:
    """How to get the bytes (BEP 9; a v2 infohash is a multihash of SHA-256)."""
    href = f"magnet:?xt=urn:btmh:1220{infohash}"
    return el("a", infohash, href=href, class_="hash whole")


def source(text: str) -> Element:
    """JSON of a stranger, which may be anything; laid out where it is JSON."""
    laid_out = text
    # RecursionError: what is nested deeper than Python reads is shown as it came.
    with suppress(ValueError, RecursionError):
        laid_out = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
    lines = [el("div", said(each)) for each in laid_out[:8192].split("\n")[:400]]
    return el("pre", lines)
