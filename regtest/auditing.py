"""What the demo's accounts are made of: transactions of bitcoind, and the nodes' own lists.

Nobody is asked what it believes to have paid, earned or still has: coins are outputs that bitcoind
finds unspent, fees are what its blocks gave the miners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.table import Table

from channels.bolt.transactions import Transaction
from channels.lightning import Lightning
from channels.lightning_answers import Close, CloseOutput, FundsOutput, PeerChannel
from channels.units import Msat, Sat, msat
from regtest.bitcoind import Miner
from regtest.books import HELD, MINERS, Books, Holdings, Transfer
from regtest.school import Demo, console, note, recorder, sats

PAYMENTS: Final = (
    ("inference", "user", "provider"),
    ("refunds", "provider", "user"),
    ("shares", "provider", "producer"),
    ("shares", "provider", "trainer"),
    ("shares", "provider", "rival"),
)
"""Who pays whom over Lightning, and for what: every payee is paid by one party alone."""

LEAVER, DEAD, HUB = "user", "provider", "producer"
"""Who closes alone, whose node is gone by then, and who forwards."""

NONE: Final = Sat(0)
SUBSIDY: Final = 50 * 100_000_000
HALVING: Final = 150
"""Blocks between halvings on regtest."""

# --- what bitcoind and the nodes say -------------------------------------------------------------


async def transaction(miner: Miner, txid: str) -> Transaction:
    return Transaction.parse(bytes.fromhex(await miner.rpc.call("getrawtransaction", txid)))


async def channel_balance(node: Lightning) -> Msat:
    (channel,) = [c for c in await node.listpeerchannels() if c.state == "CHANNELD_NORMAL"]
    assert channel.to_us_msat is not None, "an open channel has a balance"
    return channel.to_us_msat


async def sent(node: Lightning) -> Msat:
    """All that a node has paid over Lightning."""
    pays = await node.listpays()
    return Msat(sum(p.amount_sent_msat or 0 for p in pays if p.status == "complete"))


async def fee_of(miner: Miner, spending: Transaction) -> Sat:
    """What the inputs have and the outputs don't."""
    inputs = 0
    for source in spending.inputs:
        origin = await transaction(miner, source.outpoint.txid[::-1].hex())
        inputs += origin.outputs[source.outpoint.vout].value
    return Sat(inputs - sum(output.value for output in spending.outputs))


@dataclass(frozen=True, slots=True)
class Lists:
    """What a node lists, all since it first ran. sent: by the payee's node, less routing fees."""

    id: str
    outputs: Sequence[FundsOutput]
    channels: Sequence[PeerChannel]
    sent: Mapping[str, Msat]
    routing: Msat
    received: Msat
    forwarding: Msat


async def lists(node: Lightning) -> Lists:
    info = await node.getinfo()
    sent: dict[str, Msat] = {}
    routing = 0
    for pay in await node.listpays():
        if pay.status == "complete" and pay.destination is not None:
            amount = pay.amount_msat or Msat(0)
            sent[pay.destination] = Msat(sent.get(pay.destination, 0) + amount)
            routing += (pay.amount_sent_msat or 0) - amount
    received = sum(each.amount_received_msat or 0 for each in await node.listinvoices())
    return Lists(
        info.id,
        [each for each in (await node.listfunds()).outputs if each.status == "confirmed"],
        await node.listpeerchannels(),
        sent,
        Msat(routing),
        Msat(received),
        info.fees_collected_msat,
    )


async def unspent(miner: Miner, txid: str, output: int) -> Sat:
    """What an output is worth; nothing where it is spent."""
    if await miner.rpc.call("gettxout", txid, output) is None:
        return Sat(0)
    return Sat((await transaction(miner, txid)).outputs[output].value)


async def holdings(miner: Miner, of: Lists, unclaimed: Sat = NONE) -> Holdings:
    """Coins that bitcoind finds unspent, and our side of channels whose funding output is."""
    coins = [await unspent(miner, each.txid, each.output) for each in of.outputs]
    ours = 0
    for channel in of.channels:
        assert channel.funding_txid is not None and channel.funding_outnum is not None, "funded"
        if await unspent(miner, channel.funding_txid, channel.funding_outnum):
            ours += channel.to_us_msat or 0
    return Holdings(Sat(sum(coins)), Msat(ours), unclaimed)


async def mined(miner: Miner, since: int) -> tuple[list[tuple[Transaction, Sat]], Sat]:
    """All transactions after a block with their fees, and what the miners took beside the
    subsidy."""
    found: list[tuple[Transaction, Sat]] = []
    taken = 0
    for height in range(since + 1, await miner.rpc.call("getblockcount") + 1):
        block = await miner.rpc.call("getblock", await miner.rpc.call("getblockhash", height))
        coinbase, *others = [await transaction(miner, txid) for txid in block["tx"]]
        subsidy = SUBSIDY >> height // HALVING
        taken += sum(output.value for output in coinbase.outputs) - subsidy
        found += [(each, await fee_of(miner, each)) for each in others]
    return found, Sat(taken)


# --- the second half -----------------------------------------------------------------------------


@dataclass
class Audit:
    """Of what happens between begin() and finish(). settle() is called when all that was owed is
    paid, and everybody still answers."""

    demo: Demo
    parties: Sequence[str]
    height: int = 0
    began: Mapping[str, Lists] = field(default_factory=dict)
    settled: Mapping[str, Lists] = field(default_factory=dict)
    before: Mapping[str, Holdings] = field(default_factory=dict)

    async def begin(self) -> None:
        self.began = await self._ask(self.parties)
        async with self.demo.network.miner() as miner:
            self.height = await miner.rpc.call("getblockcount")
            self.before = {who: await holdings(miner, each) for who, each in self.began.items()}

    async def settle(self) -> None:
        self.settled = await self._ask(self.parties)

    async def finish(self) -> Books:
        """When the leaver has its coins. Of the dead node's lists the last ones count, as far as
        bitcoind bears them out."""
        alive = await self._ask([who for who in self.parties if who != DEAD])
        async with Lightning(self.demo.socket(LEAVER)) as leaver:
            (close,) = [
                each for each in await leaver.listcloses() if each.peer_id == self.settled[DEAD].id
            ]
        async with self.demo.network.miner() as miner:
            transactions, miners = await mined(miner, self.height)
            left = {who: Sat(0) for who in self.parties}
            for output in close.outputs:
                worth = await unspent(miner, output.txid, output.outnum)
                left[_owner(output)] = Sat(left[_owner(output)] + worth)
            after = {
                who: await holdings(miner, alive.get(who, self.settled[who]), left[who])
                for who in self.parties
            }
        made = [
            *openings(self.settled, transactions),
            *over_lightning(self.began, self.settled),
            *closing(self.settled, transactions, close),
        ]
        return Books(self.before, made, after, miners)

    async def _ask(self, parties: Sequence[str]) -> dict[str, Lists]:
        found = {}
        for who in parties:
            async with Lightning(self.demo.socket(who)) as node:
                found[who] = await lists(node)
        return found


def _owner(output: CloseOutput) -> str:
    return DEAD if output.type.endswith("_TO_THEM") else LEAVER


def _openers(settled: Mapping[str, Lists]) -> dict[str, str]:
    """By funding transaction."""
    return {
        channel.funding_txid: who
        for who, each in settled.items()
        for channel in each.channels
        if channel.opener == "local" and channel.funding_txid is not None
    }


def openings(
    settled: Mapping[str, Lists], transactions: Sequence[tuple[Transaction, Sat]]
) -> list[Transfer]:
    """What the miners got for funding transactions, and the reserves that openers gave away."""
    made, openers = [], _openers(settled)
    funded = {each.txid_hex: fee for each, fee in transactions if each.txid_hex in openers}
    for txid, amount in funded.items():
        made.append(Transfer("openings", openers[txid], MINERS, msat(amount), msat(amount)))
    both = {
        (who, channel.funding_txid): channel
        for who, each in settled.items()
        for channel in each.channels
    }
    names = {each.id: who for who, each in settled.items()}
    for txid in funded:
        ours = both[openers[txid], txid]
        peer = names[ours.peer_id]
        given, taken = _pushed(ours), _pushed(both[peer, txid])
        made.append(Transfer("reserves", openers[txid], peer, given, taken))
    return made


def _pushed(channel: PeerChannel) -> Msat:
    assert channel.funding is not None, "it was funded"
    return channel.funding.pushed_msat or Msat(0)


def over_lightning(began: Mapping[str, Lists], settled: Mapping[str, Lists]) -> list[Transfer]:
    """Payments as payer and payee have them, and routing fees as payer and hub do."""
    made = []
    for what, payer, payee in PAYMENTS:
        node = settled[payee].id
        given = settled[payer].sent.get(node, 0) - began[payer].sent.get(node, 0)
        taken = settled[payee].received - began[payee].received
        made.append(Transfer(what, payer, payee, Msat(given), Msat(taken)))
    routing = settled[DEAD].routing - began[DEAD].routing
    earned = settled[HUB].forwarding - began[HUB].forwarding
    made.append(Transfer("routing fees", DEAD, HUB, Msat(routing), Msat(earned)))
    return made


def closing(
    settled: Mapping[str, Lists],
    transactions: Sequence[tuple[Transaction, Sat]],
    close: Close,
) -> list[Transfer]:
    """BOLT 3: whoever opened a channel pays for its commitment and for both anchors, and gets no
    output for less than a sat; nor does the other side, or for dust. Then there are claims."""
    openers = _openers(settled)
    fees = sum(fee for each, fee in transactions if each.txid_hex not in openers)
    (theirs,) = [c for c in settled[DEAD].channels if c.channel_id == close.channel_id]
    outputs = {each.type: each.amount_msat for each in close.outputs}
    rest = Msat((theirs.to_us_msat or 0) - outputs.get("OUTPUT_TO_THEM", 0))
    anchor = outputs.get("ANCHOR_TO_THEM", Msat(0))
    ours = Msat(msat(Sat(fees)) - rest)
    return [
        Transfer("closing", LEAVER, MINERS, ours, ours),
        Transfer("closing", DEAD, MINERS, rest, rest),
        Transfer("anchor", LEAVER, DEAD, anchor, anchor),
    ]


def show(books: Books) -> None:
    console.print()
    table = Table(title="Where every msat went", title_justify="left", box=None)
    table.add_column("sat")
    for party in books.before:
        table.add_column(party, justify="right")
    for what, amounts in books.rows():
        style = "bold" if what in HELD else ""
        table.add_row(what, *(sats(amount) if amount else "" for amount in amounts), style=style)
    console.print(table)
    for party in books.before:
        recorder.account(f"The second half: the {party}", books.of(party))
    gone = books.after[DEAD]
    note(f"Gone with the {DEAD}'s keys: {gone.coins:,} sat of coins, {sats(gone.channels)} in its")
    note(
        f"channel, {gone.unclaimed:,} on chain: its side of the closed one, which the {LEAVER} had"
    )
    note("filled with a reserve and what was sold, and an anchor.")
    note(f"The miners got {books.miners:,} sat: transactions say so, and blocks do.")
    same = "agree" if books.conserved else "DO NOT AGREE"
    note(f"Both sides of every payment, all balances and all coins {same}, to the msat.")
