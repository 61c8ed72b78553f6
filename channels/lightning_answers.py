"""What lightningd answers, as far as ODA reads it: names and units are the RPC's own.

Reference: Core Lightning 26.06, doc/schemas. Unknown fields are ignored; an answer that lacks a
field that lightningd always sends is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from channels.bolt.transactions import Transaction
from channels.units import BlockHeight, Msat, Sat, UnixTime


class Address(msgspec.Struct, frozen=True):
    type: str
    port: int | None = None
    address: str | None = None


class NodeInfo(msgspec.Struct, frozen=True):
    id: str
    alias: str
    network: str
    blockheight: BlockHeight
    version: str
    num_peers: int
    num_active_channels: int
    num_pending_channels: int
    num_inactive_channels: int
    fees_collected_msat: Msat
    address: list[Address] = []
    binding: list[Address] = []
    warning_bitcoind_sync: str | None = None
    warning_lightningd_sync: str | None = None


class NewAddress(msgspec.Struct, frozen=True):
    bech32: str


class FundsOutput(msgspec.Struct, frozen=True):
    txid: str
    output: int
    amount_msat: Msat
    scriptpubkey: str
    status: Literal["unconfirmed", "confirmed", "spent", "immature"]
    reserved: bool
    address: str | None = None
    blockheight: BlockHeight | None = None


class FundsChannel(msgspec.Struct, frozen=True):
    peer_id: str
    our_amount_msat: Msat
    amount_msat: Msat
    funding_txid: str
    funding_output: int
    connected: bool
    state: str
    channel_id: str | None = None
    short_channel_id: str | None = None


class Funds(msgspec.Struct, frozen=True):
    outputs: list[FundsOutput]
    channels: list[FundsChannel]


class Connected(msgspec.Struct, frozen=True):
    id: str
    features: str
    direction: Literal["in", "out"]


class FundedChannel(msgspec.Struct, frozen=True):
    tx: str
    txid: str
    outnum: int
    channel_id: str

    def fee(self, coins: Iterable[FundsOutput]) -> Sat:
        """What of the wallet's coins, spent ones included, went to the miners.

        Balances do not tell: lightningd goes on listing what it spends as it was, for a while.
        """
        values = {(coin.txid, coin.output): coin.amount_msat // 1000 for coin in coins}
        transaction = Transaction.parse(bytes.fromhex(self.tx))
        spent = (txin.outpoint for txin in transaction.inputs)
        inputs = sum(values[outpoint.txid[::-1].hex(), outpoint.vout] for outpoint in spent)
        return Sat(inputs - sum(output.value for output in transaction.outputs))


class StateChange(msgspec.Struct, frozen=True):
    old_state: str
    new_state: str


class Funding(msgspec.Struct, frozen=True):
    local_funds_msat: Msat
    remote_funds_msat: Msat
    pushed_msat: Msat | None = None


class PeerChannel(msgspec.Struct, frozen=True):
    peer_id: str
    peer_connected: bool
    state: str
    opener: Literal["local", "remote"]
    reestablished: bool | None = None
    channel_id: str | None = None
    short_channel_id: str | None = None
    funding_txid: str | None = None
    funding_outnum: int | None = None
    funding: Funding | None = None
    private: bool | None = None
    closer: Literal["local", "remote"] | None = None
    total_msat: Msat | None = None
    to_us_msat: Msat | None = None
    spendable_msat: Msat | None = None
    receivable_msat: Msat | None = None
    our_reserve_msat: Msat | None = None
    their_reserve_msat: Msat | None = None
    dust_limit_msat: Msat | None = None
    status: list[str] = []
    state_changes: list[StateChange] = []


class PeerChannels(msgspec.Struct, frozen=True):
    channels: list[PeerChannel]


class Closed(msgspec.Struct, frozen=True):
    type: Literal["mutual", "unilateral", "unopened"]
    txs: list[str] = []
    txids: list[str] = []


class CloseOutput(msgspec.Struct, frozen=True):
    """`status`: spent, claiming, waiting, theirs or ignored (too small, or an anchor)."""

    txid: str
    outnum: int
    type: str
    amount_msat: Msat
    status: str
    claim: str | None = None
    claimable_blockheight: BlockHeight | None = None
    deadline: BlockHeight | None = None
    spent_txid: str | None = None


class Close(msgspec.Struct, frozen=True):
    """Of `oda-listcloses`. Unless `confirmed`, heights suppose that the next block has it."""

    peer_id: str
    channel_id: str
    state: str
    closer: str
    txid: str
    confirmed: bool
    blockheight: BlockHeight
    outputs: list[CloseOutput]


class Closes(msgspec.Struct, frozen=True):
    closes: list[Close]


class NewInvoice(msgspec.Struct, frozen=True):
    bolt11: str
    payment_hash: str
    payment_secret: str
    expires_at: UnixTime
    created_index: int


class Invoice(msgspec.Struct, frozen=True):
    label: str
    payment_hash: str
    status: Literal["unpaid", "paid", "expired"]
    expires_at: UnixTime
    created_index: int
    bolt11: str | None = None
    description: str | None = None
    amount_msat: Msat | None = None
    pay_index: int | None = None
    amount_received_msat: Msat | None = None
    paid_at: UnixTime | None = None
    payment_preimage: str | None = None


class Invoices(msgspec.Struct, frozen=True):
    invoices: list[Invoice]


class Decoded(msgspec.Struct, frozen=True):
    type: str
    valid: bool
    currency: str | None = None
    created_at: UnixTime | None = None
    expiry: int | None = None
    payee: str | None = None
    payment_hash: str | None = None
    amount_msat: Msat | None = None
    description: str | None = None
    description_hash: str | None = None
    min_final_cltv_expiry: int | None = None
    payment_secret: str | None = None
    features: str | None = None


class SignedMessage(msgspec.Struct, frozen=True):
    signature: str
    recid: str
    zbase: str


class Pay(msgspec.Struct, frozen=True):
    payment_hash: str
    status: Literal["pending", "complete", "failed"]
    created_at: UnixTime
    bolt11: str | None = None
    destination: str | None = None
    completed_at: UnixTime | None = None
    amount_msat: Msat | None = None
    amount_sent_msat: Msat | None = None
    preimage: str | None = None


class Pays(msgspec.Struct, frozen=True):
    pays: list[Pay]


class Paid(msgspec.Struct, frozen=True):
    """The answer of `xpay`."""

    payment_preimage: str
    amount_msat: Msat
    amount_sent_msat: Msat
    failed_parts: int
    successful_parts: int
