"""The node's on-chain wallet: BIP 84 addresses of one seed, coins in the store.

Writes belong to the turn in which they are made (see store.py). Transactions are signed here with
the keys of channels.bolt; nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from channels.bolt import address, keys
from channels.bolt.transactions import (
    SIGHASH_ALL,
    OutPoint,
    Transaction,
    TxIn,
    TxOut,
    dust_limit,
    p2wpkh,
    p2wpkh_script_code,
)
from channels.errors import LocalProtocolError, UserError
from channels.node import coin_selection, seed
from channels.node.coin_selection import Selection
from channels.node.store import BlockRow, Store, UtxoRow
from channels.units import BlockHeight, FeeratePerKw, Sat, UnixTime

GAP_LIMIT: Final = 20
"""Addresses watched beyond the last one used (BIP 44 "Address gap limit")."""

COINBASE_MATURITY: Final = 100
ANCHOR_RESERVE: Final = Sat(25_000)
"""What stays on chain while there are anchor channels, so that their closing can be paid for."""

# BIP 125: replaceable, because a fee may turn out to be too low.
SEQUENCE: Final = 0xFFFFFFFD

ADDRESS_PREFIXES: Final = {"mainnet": "bc", "signet": "tb", "regtest": "bcrt"}


@dataclass(frozen=True, slots=True)
class Balance:
    """Of the coins that nothing of ours spends. `immature` are coinbases too young to spend."""

    confirmed: Sat
    unconfirmed: Sat
    immature: Sat


@dataclass(frozen=True, slots=True)
class _Key:
    change: bool
    index: int


class Wallet:
    """Keys of `mnemonic` on `network` (mainnet, signet or regtest), coins of `store`.

    `restored` says that the words were used before, so that the chain must be read from its
    beginning. Raises UserError "bad-mnemonic".
    """

    def __init__(
        self, mnemonic: str, store: Store, network: str, *, restored: bool = False
    ) -> None:
        master = seed.to_seed(mnemonic)
        self.network = network
        self.restored = restored
        self.node_secret = seed.derive(master, "node-identity", network)
        self.channel_seed = seed.derive(master, "channel-secrets", network)
        self._account = seed.HdAccount.of(master, network)
        self._prefix = ADDRESS_PREFIXES[network]
        self._store = store
        self._next = {change: self._load_next(change) for change in (False, True)}
        self._watched: dict[bytes, _Key] = {}
        self._scripts: dict[bool, list[bytes]] = {False: [], True: []}
        for change in (False, True):
            self._watch(change)
        for txid in store.unsent_spends():
            # Built before a crash, and never handed over for broadcasting.
            store.unspend_utxos(txid)

    # --- addresses -----------------------------------------------------------------------------

    def new_address(self) -> str:
        """An address that was never given out before."""
        return self.address_of(self._new_script(change=False))

    def new_script(self) -> bytes:
        """The output script of an address that was never given out before."""
        return self._new_script(change=False)

    def address_of(self, script: bytes) -> str:
        text = address.from_script(self._prefix, script)
        assert text is not None, "the wallet's scripts all have addresses"
        return text

    def shutdown_script(self, channel_index: int) -> bytes:
        """Where channel `channel_index` pays out: always the same address of this wallet.

        It is one of the ordinary addresses, so that any BIP 84 wallet finds the money again.
        """
        name = f"wallet/shutdown/{channel_index}"
        known = self._store.meta(name)
        if known is not None:
            return self._scripts[False][int.from_bytes(known, "big")]
        index = self._next[False]
        self._store.set_meta(name, index.to_bytes(4, "big"))
        return self._new_script(change=False)

    def watched_scripts(self) -> frozenset[bytes]:
        """All scripts whose outputs are ours, `GAP_LIMIT` beyond the last one in use."""
        return frozenset(self._watched)

    def _new_script(self, *, change: bool) -> bytes:
        key = _Key(change, self._next[change])
        self._use(key)
        return self._scripts[change][key.index]

    def _use(self, key: _Key) -> None:
        """Never give this address out again, nor those before it."""
        if key.index >= self._next[key.change]:
            self._next[key.change] = key.index + 1
            value = self._next[key.change].to_bytes(4, "big")
            self._store.set_meta(_next_name(key.change), value)
            self._watch(key.change)

    def _watch(self, change: bool) -> None:
        scripts = self._scripts[change]
        for index in range(len(scripts), self._next[change] + GAP_LIMIT):
            scripts.append(p2wpkh(self._account.pubkey(change, index)))
            self._watched[scripts[index]] = _Key(change, index)

    def _load_next(self, change: bool) -> int:
        return int.from_bytes(self._store.meta(_next_name(change)) or b"", "big")

    # --- the chain -----------------------------------------------------------------------------

    def tip(self) -> tuple[BlockHeight, bytes] | None:
        """Height and hash of the last block connected."""
        tip = self._store.tip()
        return None if tip is None else (tip.height, tip.hash)

    def connect_block(
        self, height: BlockHeight, block_hash: bytes, txs: Sequence[Transaction]
    ) -> None:
        """Take in the next block; raises LocalProtocolError when it is not the next one."""
        tip = self._store.tip()
        if tip is not None and height != tip.height + 1:
            raise LocalProtocolError(
                "not-the-next-block", f"Block {height} cannot follow block {tip.height}."
            )
        # A payment to an address near the limit makes more addresses ours, and a payment to one
        # of those may stand before it in the same block.
        watched = -1
        while watched != len(self._watched):
            watched = len(self._watched)
            for tx in txs:
                self._receive(tx, height)
        for tx in txs:
            self._spend(tx, height)
            self._store.transaction_confirmed(tx.txid, height)
        self._store.add_block(BlockRow(height, block_hash))

    def disconnect_block(self, height: BlockHeight, block_hash: bytes | None = None) -> None:
        """Take back the tip; raises LocalProtocolError for any other block."""
        tip = self._store.tip()
        if tip is None:
            return
        if height != tip.height or block_hash not in (None, tip.hash):
            raise LocalProtocolError(
                "not-the-tip", f"Block {height} is not the one that was connected last."
            )
        self._store.undo_coins(height)
        self._store.remove_block(height)

    def _receive(self, tx: Transaction, height: BlockHeight | None) -> None:
        coinbase = tx.inputs[0].outpoint.txid == bytes(32)
        for vout, output in enumerate(tx.outputs):
            key = self._watched.get(output.script)
            if key is not None:
                self._use(key)
                self._store.add_utxo(
                    UtxoRow(
                        *(tx.txid, vout, output.value, output.script, key.index, key.change),
                        coinbase=coinbase,
                        height=height,
                    )
                )

    def _spend(self, tx: Transaction, height: BlockHeight | None) -> None:
        for txin in tx.inputs:
            outpoint = txin.outpoint
            coin = self._store.utxo(outpoint.txid, outpoint.vout)
            if coin is None:
                continue
            if height is not None and coin.spent_by not in (None, tx.txid):
                self._abandon(coin.spent_by)
            self._store.spend_utxo(outpoint.txid, outpoint.vout, tx.txid, height)

    def _abandon(self, txid: bytes) -> None:
        """Another transaction took an input of this one: neither it nor its heirs can confirm."""
        for coin in self._store.list_utxos(spent=True):
            if coin.txid == txid and coin.spent_by is not None:
                self._abandon(coin.spent_by)
        self._store.unspend_utxos(txid)
        self._store.stop_broadcast(txid)

    # --- coins ---------------------------------------------------------------------------------

    def coins(self) -> list[UtxoRow]:
        """Coins that nothing of ours spends."""
        return self._store.list_utxos()

    def is_immature(self, coin: UtxoRow) -> bool:
        return coin.coinbase and self._depth(coin) < COINBASE_MATURITY

    def balance(self) -> Balance:
        confirmed = unconfirmed = immature = 0
        for coin in self.coins():
            if coin.height is None:
                unconfirmed += coin.value
            elif self.is_immature(coin):
                immature += coin.value
            else:
                confirmed += coin.value
        return Balance(Sat(confirmed), Sat(unconfirmed), Sat(immature))

    def reserve(self, outpoints: Iterable[OutPoint], until: UnixTime) -> None:
        """Keep coins from being chosen until then."""
        for outpoint in outpoints:
            self._store.reserve_utxo(outpoint.txid, outpoint.vout, until)

    def release(self, outpoints: Iterable[OutPoint]) -> None:
        """Let reserved coins be chosen again."""
        for outpoint in outpoints:
            self._store.reserve_utxo(outpoint.txid, outpoint.vout, None)

    def fund(
        self,
        outputs: Sequence[TxOut],
        feerate_per_kw: FeeratePerKw,
        now: UnixTime,
        keep: Sat = Sat(0),  # a NewType call makes a plain, immutable int
        *,
        minconf: int = 1,
    ) -> Transaction:
        """A signed transaction that pays these outputs, in their order, and then any change.

        Its coins are set aside for it until `unreserve`, or for good once the store holds it as a
        transaction to broadcast. Raises UserError "not-enough-funds" or "output-is-dust".
        """
        for output in outputs:
            if output.value < dust_limit(output.script):
                raise _dust(output)
        selection = coin_selection.select(
            self._available(now, minconf), outputs, feerate_per_kw, keep
        )
        return self._build(selection, outputs)

    def spendable(
        self,
        script: bytes,
        feerate_per_kw: FeeratePerKw,
        now: UnixTime,
        keep: Sat = Sat(0),  # as above
        *,
        minconf: int = 1,
    ) -> Sat:
        """What an output to a script of this size would get if it took all coins."""
        available = self._available(now, minconf)
        return coin_selection.sweep(available, script, feerate_per_kw, keep)[1]

    def sweep(
        self,
        script: bytes,
        feerate_per_kw: FeeratePerKw,
        now: UnixTime,
        keep: Sat = Sat(0),  # as above
        *,
        minconf: int = 1,
    ) -> Transaction:
        """Like `fund`, with one output that gets all coins but `keep` (lightningd's "all")."""
        selection, value = coin_selection.sweep(
            self._available(now, minconf), script, feerate_per_kw, keep
        )
        output = TxOut(value, script)
        if value < dust_limit(script):
            raise _dust(output)
        return self._build(selection, [output])

    def unreserve(self, transaction: Transaction) -> None:
        """A transaction of `fund` will not be sent: its coins are free again."""
        self._store.unspend_utxos(transaction.txid)

    def attach(
        self,
        base: Transaction,
        *,
        value: Sat,
        weight: int,
        feerate: FeeratePerKw,
        change: bytes,
        now: UnixTime,
        paid_for: tuple[int, Sat] = (0, Sat(0)),
        replacing: Transaction | None = None,
    ) -> Transaction:
        """`base` with coins added that pay its fee, and what is left of them paid to `change`.

        The inputs of `base` are worth `value` and are signed afterwards, for the whole; `weight`
        counts their witnesses. `paid_for` is weight and fee of a parent that is to be lifted to
        the same feerate. The coins of `replacing` may be used again. Raises UserError
        "not-enough-funds", and then nothing has changed.
        """
        if replacing is not None:
            self.unreserve(replacing)
        missing = Sat(sum(output.value for output in base.outputs) - value)
        try:
            # BIP 125, rule 2: a replacement adds no unconfirmed inputs.
            selection = coin_selection.top_up(
                self._available(now, minconf=1), missing, weight, feerate, paid_for
            )
        except UserError:
            if replacing is not None:
                self._spend(replacing, None)
            raise
        inputs = (TxIn(OutPoint(c.txid, c.vout), SEQUENCE) for c in selection.coins)
        outputs = (*base.outputs, TxOut(selection.change, change))
        transaction = replace(base, inputs=(*base.inputs, *inputs), outputs=outputs)
        transaction = self._signed(transaction, selection.coins, len(base.inputs))
        self._spend(transaction, None)
        return transaction

    def _available(self, now: UnixTime, minconf: int) -> list[tuple[UtxoRow, Sat]]:
        return [
            (coin, coin.value)
            for coin in self.coins()
            if (coin.reserved_until is None or coin.reserved_until <= now)
            and not self.is_immature(coin)
            and self._depth(coin) >= minconf
            # What others have not confirmed they may still take back; our change is ours.
            and (coin.height is not None or coin.change)
        ]

    def _depth(self, coin: UtxoRow) -> int:
        tip = self._store.tip()
        return 0 if coin.height is None or tip is None else tip.height - coin.height + 1

    def _build(self, selection: Selection[UtxoRow], outputs: Sequence[TxOut]) -> Transaction:
        every = list(outputs)
        if selection.change:
            every.append(TxOut(selection.change, self._new_script(change=True)))
        inputs = (TxIn(OutPoint(c.txid, c.vout), SEQUENCE) for c in selection.coins)
        transaction = Transaction(2, tuple(inputs), tuple(every), 0)
        transaction = self._signed(transaction, selection.coins, 0)
        self._spend(transaction, None)
        self._receive(transaction, None)
        return transaction

    def _signed(
        self, transaction: Transaction, coins: Sequence[UtxoRow], first: int
    ) -> Transaction:
        """With the witnesses of the inputs that spend these coins, from input `first` on."""
        for position, coin in enumerate(coins, first):
            transaction = transaction.with_witness(
                position, self._sign(transaction, position, coin)
            )
        return transaction

    def _sign(self, transaction: Transaction, position: int, coin: UtxoRow) -> tuple[bytes, bytes]:
        """The witness of a P2WPKH input (BIP 141, BIP 143)."""
        secret = self._account.secret(coin.change, coin.keyindex)
        pubkey = keys.public_key(secret)
        digest = transaction.segwit_digest(position, p2wpkh_script_code(pubkey), coin.value)
        return keys.der(keys.sign(secret, digest)) + bytes([SIGHASH_ALL]), pubkey


def _next_name(change: bool) -> str:
    return f"wallet/next/{int(change)}"


def _dust(output: TxOut) -> UserError:
    least = dust_limit(output.script)
    return UserError(
        "output-is-dust", f"{output.value} sat are too few to send: send at least {least} sat."
    )
