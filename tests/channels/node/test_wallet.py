"""The wallet: addresses, blocks and reorgs, and transactions judged by pycoin's script VM."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycoin.satoshi import flags
from pycoin.symbols.btc import network as pycoin

from channels.bolt.transactions import OutPoint, Transaction, TxIn, TxOut, p2wsh
from channels.errors import LocalProtocolError, UserError
from channels.node.seed import _bitcoinlib
from channels.node.store import Store
from channels.node.wallet import ANCHOR_RESERVE, COINBASE_MATURITY, GAP_LIMIT, Balance, Wallet
from channels.units import BlockHeight, FeeratePerKw, Sat, UnixTime
from tests.vectors.bip84 import ADDRESSES, MNEMONIC

NOW = UnixTime(1_700_000_000)
RATE = FeeratePerKw(500)
THEIRS = p2wsh(b"theirs")

JUDGE = (
    flags.VERIFY_P2SH
    | flags.VERIFY_WITNESS
    | flags.VERIFY_LOW_S
    | flags.VERIFY_STRICTENC
    | flags.VERIFY_NULLFAIL
    | flags.VERIFY_CLEANSTACK
    | flags.VERIFY_MINIMALDATA
    | flags.VERIFY_DISCOURAGE_UPGRADABLE_WITNESS_PROGRAM
)


def judge(transaction: Transaction, spent: list[TxOut]) -> None:
    """Raise unless every input satisfies the output that it spends."""
    tx = pycoin.tx.from_bin(transaction.serialize())
    tx.set_unspents([pycoin.tx.TxOut(output.value, output.script) for output in spent])
    for position in range(len(tx.txs_in)):
        tx.check_solution(position, flags=JUDGE)


class Chain:
    """Blocks handed to a wallet, and transactions of strangers to put into them."""

    def __init__(self, wallet: Wallet) -> None:
        self.wallet = wallet
        self.height = 100
        self.strangers = 0

    def payment(self, *outputs: tuple[bytes, int]) -> Transaction:
        self.strangers += 1
        source = OutPoint(self.strangers.to_bytes(32, "big"), 0)
        paid = tuple(TxOut(Sat(value), script) for script, value in outputs)
        return Transaction(2, (TxIn(source),), paid, 0)

    def coinbase(self, script: bytes, value: int) -> Transaction:
        source = TxIn(OutPoint(bytes(32), 0xFFFFFFFF), script_sig=self.height.to_bytes(4, "big"))
        return Transaction(2, (source,), (TxOut(Sat(value), script),), 0)

    def mine(self, *transactions: Transaction) -> None:
        self.height += 1
        block_hash = self.height.to_bytes(32, "big")
        self.wallet.connect_block(BlockHeight(self.height), block_hash, transactions)

    def undo(self) -> None:
        block_hash = self.height.to_bytes(32, "big")
        self.wallet.disconnect_block(BlockHeight(self.height), block_hash)
        self.height -= 1

    def give(self, *values: int) -> list[Transaction]:
        given = [self.payment((self.wallet.new_script(), value)) for value in values]
        self.mine(*given)
        return given


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "node.sqlite") as store:
        yield store


@pytest.fixture
def wallet(store: Store) -> Wallet:
    return Wallet(MNEMONIC, store, "regtest")


@pytest.fixture
def chain(wallet: Wallet) -> Chain:
    return Chain(wallet)


def test_bip84_addresses(store: Store) -> None:
    wallet = Wallet(MNEMONIC, store, "mainnet")
    external = [address for change, _, _, address in ADDRESSES if not change]
    assert [wallet.new_address(), wallet.new_address()] == external
    transaction_change = wallet.address_of(wallet._new_script(change=True))
    assert transaction_change == ADDRESSES[2][3]


@pytest.mark.parametrize(("network", "prefix"), [("regtest", "bcrt1q"), ("signet", "tb1q")])
def test_addresses_are_those_of_bitcoinlib(store: Store, network: str, prefix: str) -> None:
    _, hd_key = _bitcoinlib()
    wallet = Wallet(MNEMONIC, store, network)
    address = wallet.new_address()
    assert address.startswith(prefix)
    key = hd_key(wallet._account.secret(False, 0), network=network, witness_type="segwit")
    assert address == key.address(encoding="bech32", script_type="p2wpkh")


def test_addresses_are_never_given_out_twice(store: Store, wallet: Wallet) -> None:
    given_out = [wallet.new_address() for _ in range(3)]
    again = Wallet(MNEMONIC, store, "regtest")
    assert again.new_address() not in given_out
    assert len({*given_out}) == 3


def test_secrets(store: Store, wallet: Wallet, tmp_path: Path) -> None:
    with Store(tmp_path / "other" / "node.sqlite") as empty:
        again = Wallet(MNEMONIC, empty, "regtest")
        assert (again.node_secret, again.channel_seed) == (wallet.node_secret, wallet.channel_seed)
        other = Wallet(MNEMONIC, empty, "signet")
    secrets = {wallet.node_secret, wallet.channel_seed, other.node_secret, other.channel_seed}
    assert len(secrets) == 4
    assert not any(secret.hex() in repr(wallet) for secret in secrets)
    with pytest.raises(UserError):
        Wallet("not words", store, "regtest")


def test_a_channel_always_pays_out_to_the_same_address(store: Store, wallet: Wallet) -> None:
    scripts = [wallet.shutdown_script(index) for index in (0, 1)]
    assert scripts[0] != scripts[1]
    again = Wallet(MNEMONIC, store, "regtest")
    assert [again.shutdown_script(index) for index in (0, 1)] == scripts
    assert again.new_script() not in scripts
    assert {*scripts} <= again.watched_scripts()


def test_restoring_finds_coins_within_the_gap(wallet: Wallet, tmp_path: Path) -> None:
    scripts = [wallet.new_script() for _ in range(2 * GAP_LIMIT)]
    with Store(tmp_path / "restored" / "node.sqlite") as empty:
        restored = Wallet(MNEMONIC, empty, "regtest", restored=True)
        fresh = Chain(restored)
        assert scripts[GAP_LIMIT - 1] in restored.watched_scripts()
        assert scripts[GAP_LIMIT] not in restored.watched_scripts()
        # The second output is found only because of the first one, which comes after it.
        late, early = (
            fresh.payment((scripts[n], 1000)) for n in (2 * GAP_LIMIT - 1, GAP_LIMIT - 1)
        )
        fresh.mine(late, early)
        assert restored.balance().confirmed == 2000
        assert restored.new_script() not in scripts


def test_receiving_spending_and_change(store: Store, chain: Chain, wallet: Wallet) -> None:
    given_ = chain.give(100_000, 60_000)
    assert wallet.balance() == Balance(Sat(160_000), Sat(0), Sat(0))
    transaction = wallet.fund([TxOut(Sat(120_000), THEIRS)], RATE, NOW)
    judge(transaction, [tx.outputs[0] for tx in given_])
    assert transaction.outputs[0] == TxOut(Sat(120_000), THEIRS)
    fee = 160_000 - sum(output.value for output in transaction.outputs)
    assert transaction.weight * RATE <= fee * 1000
    assert fee * 1000 * 5 < transaction.weight * RATE * 6
    change = transaction.outputs[1].value
    assert wallet.balance() == Balance(Sat(0), change, Sat(0))
    store.add_transaction(transaction.txid, transaction.serialize())
    chain.mine(transaction)
    assert wallet.balance() == Balance(change, Sat(0), Sat(0))
    assert store.transactions_to_broadcast() == []


def test_coins_are_chosen_for_one_transaction_only(chain: Chain, wallet: Wallet) -> None:
    chain.give(100_000, 90_000)
    first = wallet.fund([TxOut(Sat(50_000), THEIRS)], RATE, NOW)
    second = wallet.fund([TxOut(Sat(50_000), THEIRS)], RATE, NOW)
    assert {i.outpoint for i in first.inputs}.isdisjoint(i.outpoint for i in second.inputs)
    with pytest.raises(UserError) as refused:
        wallet.fund([TxOut(Sat(50_000), THEIRS)], RATE, NOW)
    assert refused.value.reason == "not-enough-funds"
    wallet.unreserve(first)
    third = wallet.fund([TxOut(Sat(50_000), THEIRS)], RATE, NOW)
    assert third.inputs[0].outpoint == first.inputs[0].outpoint
    # Change goes to a new address each time.
    assert third.outputs[1].script != first.outputs[1].script


def test_a_transaction_not_sent_before_a_crash_frees_its_coins(
    store: Store, chain: Chain, wallet: Wallet
) -> None:
    chain.give(100_000, 100_000)
    sent = wallet.fund([TxOut(Sat(50_000), THEIRS)], RATE, NOW)
    store.add_transaction(sent.txid, sent.serialize())
    wallet.fund([TxOut(Sat(50_000), THEIRS)], RATE, NOW)
    again = Wallet(MNEMONIC, store, "regtest")
    assert again.balance().confirmed == 100_000
    assert again.balance().unconfirmed == sent.outputs[1].value


def test_the_anchor_reserve_stays(chain: Chain, wallet: Wallet) -> None:
    chain.give(100_000)
    with pytest.raises(UserError) as refused:
        wallet.fund([TxOut(Sat(80_000), THEIRS)], RATE, NOW, keep=ANCHOR_RESERVE)
    assert refused.value.reason == "not-enough-funds"
    transaction = wallet.fund([TxOut(Sat(70_000), THEIRS)], RATE, NOW, keep=ANCHOR_RESERVE)
    assert transaction.outputs[1].value >= ANCHOR_RESERVE


@pytest.mark.parametrize("keep", [Sat(0), ANCHOR_RESERVE])
def test_sweep(chain: Chain, wallet: Wallet, keep: Sat) -> None:
    given_ = chain.give(100_000, 60_000, 50)
    value = wallet.spendable(THEIRS, RATE, NOW, keep)
    transaction = wallet.sweep(THEIRS, RATE, NOW, keep)
    assert transaction.outputs[0] == TxOut(value, THEIRS)
    assert [output.value for output in transaction.outputs[1:]] == ([keep] if keep else [])
    judge(transaction, [tx.outputs[0] for tx in given_[:2]])
    # Fifty satoshis cost more to spend than they are worth.
    assert [coin.value for coin in wallet.coins() if coin.height] == [50]


def test_dust_is_refused(chain: Chain, wallet: Wallet) -> None:
    chain.give(100_000)
    with pytest.raises(UserError) as refused:
        wallet.fund([TxOut(Sat(329), THEIRS)], RATE, NOW)
    assert refused.value.reason == "output-is-dust"


def test_a_coinbase_ripens(chain: Chain, wallet: Wallet) -> None:
    chain.mine(chain.coinbase(wallet.new_script(), 5_000_000))
    for _ in range(COINBASE_MATURITY - 2):
        chain.mine()
    assert wallet.balance() == Balance(Sat(0), Sat(0), Sat(5_000_000))
    with pytest.raises(UserError):
        wallet.fund([TxOut(Sat(1000), THEIRS)], RATE, NOW)
    chain.mine()
    assert wallet.balance().confirmed == 5_000_000
    wallet.fund([TxOut(Sat(1000), THEIRS)], RATE, NOW)


def test_depth_and_unconfirmed_change(chain: Chain, wallet: Wallet) -> None:
    chain.give(100_000)
    chain.mine()
    with pytest.raises(UserError):
        wallet.fund([TxOut(Sat(1000), THEIRS)], RATE, NOW, minconf=3)
    first = wallet.fund([TxOut(Sat(1000), THEIRS)], RATE, NOW, minconf=2)
    with pytest.raises(UserError):
        wallet.fund([TxOut(Sat(1000), THEIRS)], RATE, NOW)
    second = wallet.fund([TxOut(Sat(1000), THEIRS)], RATE, NOW, minconf=0)
    assert second.inputs[0].outpoint == OutPoint(first.txid, 1)


def test_reserved_coins(chain: Chain, wallet: Wallet) -> None:
    (given_,) = chain.give(100_000)
    wallet.reserve([OutPoint(given_.txid, 0)], UnixTime(NOW + 1))
    with pytest.raises(UserError):
        wallet.fund([TxOut(Sat(1000), THEIRS)], RATE, NOW)
    wallet.unreserve(wallet.fund([TxOut(Sat(1000), THEIRS)], RATE, UnixTime(NOW + 1)))
    wallet.release([OutPoint(given_.txid, 0)])
    wallet.fund([TxOut(Sat(1000), THEIRS)], RATE, NOW)


def test_reorg(store: Store, chain: Chain, wallet: Wallet) -> None:
    chain.give(100_000)
    transaction = wallet.fund([TxOut(Sat(30_000), THEIRS)], RATE, NOW)
    store.add_transaction(transaction.txid, transaction.serialize())
    stranger = chain.payment((wallet.new_script(), 7_000))
    chain.mine(transaction, stranger)
    change = transaction.outputs[1].value
    assert wallet.balance() == Balance(Sat(change + 7_000), Sat(0), Sat(0))
    chain.undo()
    assert wallet.balance() == Balance(Sat(0), change, Sat(0))
    assert store.transactions_to_broadcast() == [transaction.serialize()]
    chain.mine(stranger, transaction)
    assert wallet.balance() == Balance(Sat(change + 7_000), Sat(0), Sat(0))


def test_a_double_spend_frees_what_depended_on_it(
    store: Store, chain: Chain, wallet: Wallet
) -> None:
    chain.give(100_000, 50_000)
    first = wallet.fund([TxOut(Sat(30_000), THEIRS)], RATE, NOW)
    heir = wallet.fund([TxOut(Sat(100_000), THEIRS)], RATE, NOW, minconf=0)
    assert len(heir.inputs) == 2
    for transaction in (first, heir):
        store.add_transaction(transaction.txid, transaction.serialize())
    rival = Transaction(2, first.inputs, (TxOut(Sat(1), THEIRS),), 0)
    chain.mine(rival)
    assert wallet.balance() == Balance(Sat(50_000), Sat(0), Sat(0))
    assert store.transactions_to_broadcast() == []


def test_blocks_out_of_order(chain: Chain, wallet: Wallet) -> None:
    wallet.disconnect_block(BlockHeight(7))  # nothing known, nothing to take back
    assert wallet.tip() is None
    chain.mine()
    assert wallet.tip() == (101, (101).to_bytes(32, "big"))
    for height in (101, 103):
        with pytest.raises(LocalProtocolError) as refused:
            wallet.connect_block(BlockHeight(height), bytes(32), [])
        assert refused.value.reason == "not-the-next-block"
    with pytest.raises(LocalProtocolError) as wrong:
        wallet.disconnect_block(BlockHeight(101), bytes(32))
    assert wrong.value.reason == "not-the-tip"


@given(
    values=st.lists(st.integers(1_000, 10**8), min_size=1, max_size=8),
    amount=st.integers(330, 10**8),
    feerate=st.integers(253, 20_000),
)
@settings(max_examples=20, deadline=None)
def test_whatever_is_funded_is_valid(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], amount: int, feerate: int
) -> None:
    with Store(tmp_path_factory.mktemp("wallet") / "node.sqlite") as store:
        wallet = Wallet(MNEMONIC, store, "regtest")
        given_ = {tx.txid: tx.outputs[0] for tx in Chain(wallet).give(*values)}
        try:
            transaction = wallet.fund([TxOut(Sat(amount), THEIRS)], FeeratePerKw(feerate), NOW)
        except UserError as refused:
            assert refused.reason == "not-enough-funds"
            return
        spent = [given_[txin.outpoint.txid] for txin in transaction.inputs]
        judge(transaction, spent)
        fee = sum(out.value for out in spent) - sum(out.value for out in transaction.outputs)
        assert fee * 1000 >= transaction.weight * feerate
