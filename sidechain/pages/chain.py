"""Pages of the chain: overview, blocks, transactions, the mempool, and what was refused. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element  # a type; nothing is parsed

from sidechain import api
from sidechain.pages import transactions
from sidechain.pages.markup import (
    Child,
    Page,
    Row,
    badge,
    el,
    facts,
    figures,
    heading,
    said,
    section,
    table,
)
from sidechain.pages.values import (
    block_link,
    compact,
    height_link,
    key_link,
    lasting,
    model_link,
    number,
    short,
    size,
    when,
    whole,
)

BLOCK_COLUMNS: Final = ("#Height", "~Block", "Time", "Producer", "#Transactions")


# --- overview ------------------------------------------------------------------------------------


def overview(
    status: api.Status,
    blocks: api.Blocks,
    models: Element | None,
    refusals: Sequence[api.Refusal],
) -> Page:
    """models: their table; None on a node that has headers alone."""
    sections = [_headline(status), section("now", None, _now(status, blocks))]
    more = el("a", "all blocks", href="/blocks")
    sections.append(section("latest", "Latest blocks", block_table(blocks.blocks), note=more))
    if models is not None:
        more = el("a", "all models", href="/models")
        sections.append(section("models", "Models", models, note=more))
    if refusals:
        more = el("a", "all", href="/rejections")
        refused = section("refused", "Refused lately", refusal_table(refusals), note=more)
        sections.append(refused)
    sections.append(section("node", "This node", _node(status)))
    return Page("Overview", "/", tuple(sections))


def _headline(status: api.Status) -> Element:
    if status.light:
        state = badge("light", "light node")
    elif status.synced:
        state = badge("confirmed", "synced")
    else:
        behind = f"{number(status.headers - status.height)} blocks to fetch"
        state = badge("pending", f"syncing: {behind}")
    return heading("The chain of models", state)


def _now(status: api.Status, blocks: api.Blocks) -> Element:
    rows: list[tuple[str, Child, Child]] = [
        ("Height", height_link(status.height), ["tip ", when(status.tip_time)]),
        ("Between blocks", *_pace(blocks.blocks)),
    ]
    if not status.light:
        waits = f"{number(status.pending)} blocks wait for weights"
        below = waits if status.pending else "transactions"
        rows += [
            ("Mempool", el("a", number(status.mempool), href="/mempool"), below),
            ("Models", el("a", number(status.models), href="/models"), "registered"),
            ("Payees", el("a", number(status.payees), href="/payees"), "registered"),
        ]
    rows.append(("Peers", el("a", number(status.peers), href="/peers"), "connected"))
    if status.mining is not None:
        mined = f"{number(status.mining.blocks)} blocks since start"
        rows.append(("Mining", f"{compact(status.mining.hash_rate)}H/s", mined))
    return figures(rows)


def _pace(blocks: Sequence[api.BlockSummary]) -> tuple[str, str]:
    """Genesis has the time of a definition, and is left out."""
    mined = [each for each in blocks if each.height]
    if len(mined) < 2:
        return "–", "too few yet"
    seconds = (mined[0].time - mined[-1].time) / (len(mined) - 1)
    return lasting(seconds), f"mean of the last {len(mined)}"


def _node(status: api.Status) -> Element:
    network = f"{status.network} ({status.network_id:#06x})"
    return facts(
        [
            ("Network", network),
            ("Software", said(status.agent)),
            ("Tip", block_link(status.tip)),
            ("State root", None if status.state_root is None else whole(status.state_root)),
            ("Produces for", None if status.key is None else key_link(status.key)),
            ("BitTorrent", status.swarm),
            ("Genesis", block_link(status.genesis)),
        ]
    )


# --- blocks --------------------------------------------------------------------------------------


def blocks(found: api.Blocks, top: bool) -> Page:
    links: list[Child] = []
    if not top:
        links.append(el("a", "newest", href="/blocks"))
    if found.next is not None:
        links.append(el("a", "older", href=f"/blocks?at={found.next}", rel="next"))
    listed = section("blocks", None, block_table(found.blocks), el("p", links, class_="pages"))
    return Page("Blocks", "/blocks", (heading("Blocks"), listed))


def block_table(found: Sequence[api.BlockSummary]) -> Element:
    rows = [
        Row(
            each.hash,
            (
                height_link(each.height),
                [block_link(each.hash), None if each.status == "active" else badge(each.status)],
                when(each.time),
                "–" if each.producer is None else key_link(each.producer),
                "–" if each.transactions is None else number(each.transactions),
            ),
        )
        for each in found
    ]
    return table(BLOCK_COLUMNS, rows, "There are no blocks yet.")


def block(found: api.Block) -> Page:
    about = found.summary
    state: list[Child] = [badge(_kind(about.status), about.status)]
    if found.confirmations:
        state.append(f" {number(found.confirmations)} confirmations")
    around: list[Child] = []
    if about.height:
        around.append(el("a", f"← {number(about.height - 1)}", href=f"/blocks/{about.prev}"))
    if found.confirmations > 1:
        around.append(el("a", f"{number(about.height + 1)} →", href=f"/blocks/{about.height + 1}"))
    shown = facts(
        [
            ("Hash", whole(about.hash)),
            ("State", state),
            ("Refused", None if found.invalid is None else badge("invalid", found.invalid)),
            ("Time", when(about.time)),
            ("Producer", None if about.producer is None else key_link(about.producer)),
            ("Previous", el("a", about.prev, href=f"/blocks/{about.prev}", class_="hash whole")),
            ("Merkle root", whole(found.merkle_root)),
            ("Target (bits)", el("code", about.bits)),
            ("Nonce", number(about.nonce)),
            ("Work to here", f"{compact(int(found.work))} hashes"),
        ]
    )
    title = f"Block {number(about.height)}"
    sections = [heading(title, el("p", around, class_="pages")), section("block", None, shown)]
    if found.transactions is None:
        sections.append(section("transactions", "Transactions", _no_body()))
    else:
        listed = transactions.transactions(found.transactions, "Genesis has no transactions.")
        count = number(len(found.transactions))
        sections.append(section("transactions", "Transactions", listed, note=count))
    return Page(title, "/blocks", tuple(sections))


def _no_body() -> Element:
    return el("p", "This node has the header alone.", class_="empty")


def _kind(status: str) -> str:
    return {"active": "confirmed", "stale": "withdrawn"}.get(status, status)


# --- transactions --------------------------------------------------------------------------------


def transaction(found: api.FoundTransaction) -> Page:
    tx = found.transaction
    if found.height is None or found.block is None:
        where: Child = badge("pending", "in the mempool")
    else:
        where = ["block ", height_link(found.height)]
        where = [*where, f", {number(found.confirmations)} confirmations"]
    own = facts([("Txid", whole(tx.txid)), ("Where", where)])
    return Page(
        f"Transaction {short(tx.txid)}",
        "/blocks",
        (
            heading(f"{transactions.NAMES[type(tx)]} transaction"),
            section("where", None, own),
            section("details", "What it says", transactions.details(tx)),
        ),
    )


def mempool(found: api.Mempool, pending: api.Pending) -> Page:
    note = f"{number(found.count)} with {size(found.bytes)}; the next block takes from these"
    listed = transactions.transactions(found.transactions, "Nothing is waiting.")
    sections = [heading("Mempool"), section("mempool", "Transactions", listed, note=note)]
    if pending.blocks:
        rows = [
            Row(
                each.hash,
                (height_link(each.height), block_link(each.hash), number(len(each.waits_for))),
            )
            for each in pending.blocks
        ]
        blocks_table = table(("#Height", "Block", "#Scores missing"), rows, "")
        said_of = "they have more work than the tip, and weights that nobody has served yet"
        sections.append(section("pending", "Blocks that wait", blocks_table, note=said_of))
    if pending.held:
        held = [el("p", block_link(each)) for each in pending.held]
        sections.append(section("held", "Reorganizations that need your word", held))
    if pending.scoring:
        sections.append(section("scoring", "To be scored", _scoring(pending.scoring)))
    return Page("Mempool", "/mempool", tuple(sections))


def _scoring(waiting: Sequence[api.Scoring]) -> Element:
    rows = [
        Row(
            each.weights_root + str(each.shard),
            (
                model_link(each.model),
                el("span", short(each.weights_root), class_="hash", title=each.weights_root),
                "public part" if each.shard is None else f"shard {each.shard}",
                number(each.tries),
                said(each.problem) if each.problem else "–",
            ),
        )
        for each in waiting
    ]
    return table(("Model", "Weights", "On", "#Tries", "Last problem"), rows, "")


# --- refusals ------------------------------------------------------------------------------------


def rejections(found: api.Refusals) -> Page:
    listed = refusal_table(found.rejections)
    note = "blocks, headers, transactions and announcements, the newest first"
    return Page(
        "Rejections",
        "/rejections",
        (heading("Rejections"), section("refused", "What this node refused", listed, note=note)),
    )


def refusal_table(found: Sequence[api.Refusal]) -> Element:
    rows = [
        Row(
            f"{each.hash}{each.reason}",
            (when(each.time), each.what, _refused(each), el("code", each.reason), each.sentence),
        )
        for each in found
    ]
    return table(("Time", "What", "~Hash", "Reason", "Rule"), rows, "Nothing has been refused.")


def _refused(refusal: api.Refusal) -> Element:
    if refusal.what == "block":
        return block_link(refusal.hash)
    # A block is known by its end, where its hash is not all zeros. The rest is on no chain, so
    # there is no page about it.
    shown = f"…{refusal.hash[-12:]}" if refusal.what == "header" else short(refusal.hash)
    return el("span", shown, class_="hash", title=refusal.hash)
