"""Words and keys: BIP 39 and BIP 84 vectors, and the file that holds the words."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from channels.bolt.keys import public_key
from channels.errors import UserError
from channels.node import seed
from tests.vectors.bip84 import ADDRESSES, BIP39, MNEMONIC, ROOT_PRIVATE


@pytest.mark.parametrize(("entropy", "words", "with_passphrase"), BIP39)
def test_bip39(entropy: str, words: str, with_passphrase: str) -> None:
    mnemonic, _ = seed._bitcoinlib()
    # bitcoinlib would refuse the entropy 0, which is no private key but a fine seed.
    assert mnemonic.to_mnemonic(bytes.fromhex(entropy), check_on_curve=False) == words
    assert mnemonic.to_seed(words, "TREZOR").hex() == with_passphrase
    assert len(seed.to_seed(words)) == 64


def test_bip84() -> None:
    master = seed.to_seed(MNEMONIC)
    _, hd_key = seed._bitcoinlib()
    root = hd_key.from_seed(master, network="bitcoin", witness_type="segwit")
    assert root.wif(is_private=True) == ROOT_PRIVATE
    account = seed.HdAccount.of(master, "mainnet")
    for change, index, pubkey, _ in ADDRESSES:
        assert account.pubkey(change, index).hex() == pubkey
        assert public_key(account.secret(change, index)).hex() == pubkey
    assert seed.HdAccount.of(master, "regtest").pubkey(False, 0) != account.pubkey(False, 0)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "abandon",
        MNEMONIC.replace("about", "abandon"),
        MNEMONIC.replace("about", "abuot"),
        MNEMONIC + " about",
        "abandon " * 9,
        "zoo " * 12,
        "été " * 12,
    ],
)
def test_words_that_are_no_wallet(words: str) -> None:
    with pytest.raises(UserError) as refused:
        seed.to_seed(words)
    assert refused.value.reason == "bad-mnemonic"


def test_words_as_people_type_them() -> None:
    assert seed.to_seed("  " + MNEMONIC.upper().replace(" ", "\n") + " ") == seed.to_seed(MNEMONIC)


def test_new_words_differ_and_are_valid() -> None:
    first, second = seed.generate_mnemonic(), seed.generate_mnemonic()
    assert first != second
    assert len(first.split()) == 12
    assert seed.to_seed(first) != seed.to_seed(second)


def test_purposes_and_networks_have_their_own_secrets() -> None:
    master = seed.to_seed(MNEMONIC)
    derived = [
        seed.derive(master, purpose, network)
        for purpose in ("node-identity", "channel-secrets")
        for network in ("regtest", "signet", "mainnet")
    ]
    assert len({*derived}) == 6
    assert {len(secret) for secret in derived} == {32}


def test_the_file_of_words(tmp_path: Path) -> None:
    path = tmp_path / "node" / "hsm_secret"
    words = seed.load_or_create_mnemonic(path)
    assert seed.load_or_create_mnemonic(path) == words
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["hsm_secret"]

    with pytest.raises(UserError) as exists:
        seed.save_mnemonic(path, MNEMONIC)
    assert exists.value.reason == "secret-file-exists"
    assert path.read_text().strip() == words

    path.chmod(0o644)
    with pytest.raises(UserError) as readable:
        seed.load_or_create_mnemonic(path)
    assert readable.value.reason == "secret-file-open"


def test_wrong_words_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        seed.save_mnemonic(tmp_path / "hsm_secret", "twelve wrong words")
    assert list(tmp_path.iterdir()) == []


def test_bitcoinlib_leaves_nothing_behind(tmp_path: Path) -> None:
    script = (
        "import os; from channels.node import seed; seed.generate_mnemonic();"
        "assert 'BCL_DATA_DIR' not in os.environ"
    )
    environment = os.environ | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []
