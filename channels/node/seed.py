"""The twelve words of a node, and the keys that come from them (BIP 39, BIP 84).

bitcoinlib does the words and the HD keys. It is imported only when a seed is opened, because that
takes a third of a second; it writes its settings and log into a folder, which is a temporary one
here and gone after the import.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from channels.errors import UserError

ENTROPY_BYTES = 16
WORD_COUNTS = (12, 15, 18, 21, 24)

# SLIP 44: Bitcoin, and one coin type for all its test networks.
COIN_TYPES = {"mainnet": 0, "signet": 1, "regtest": 1}


@cache
def _bitcoinlib() -> tuple[Any, Any]:
    """bitcoinlib's `Mnemonic` for English and its `HDKey` class."""
    # The variable is read at import only, and is not for the processes that this one starts.
    before = os.environ.get("BCL_DATA_DIR")
    with tempfile.TemporaryDirectory(prefix="oda-") as folder, warnings.catch_warnings():
        # The import leaves a file open and uses a deprecated name of SQLAlchemy.
        warnings.simplefilter("ignore")
        os.environ["BCL_DATA_DIR"] = folder
        try:
            from bitcoinlib.keys import HDKey
            from bitcoinlib.mnemonic import Mnemonic
        finally:
            del os.environ["BCL_DATA_DIR"]
            if before is not None:
                os.environ["BCL_DATA_DIR"] = before
        # Its own log file goes with the folder; what it logs goes where everything else goes.
        logger = logging.getLogger("bitcoinlib")
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
    return Mnemonic("english"), HDKey


def generate_mnemonic() -> str:
    """Twelve new words from the system's entropy."""
    words: str = _bitcoinlib()[0].to_mnemonic(os.urandom(ENTROPY_BYTES))
    return words


def to_seed(mnemonic: str) -> bytes:
    """The 64 bytes that BIP 39 derives from the words, without a passphrase.

    Raises UserError "bad-mnemonic" for a wrong number of words, an unknown word or a bad checksum.
    """
    words = mnemonic.lower().split()
    if len(words) in WORD_COUNTS:
        try:
            seed: bytes = _bitcoinlib()[0].to_seed(" ".join(words))
        # bitcoinlib raises the class Warning itself for a word that is in no list.
        except (ValueError, Warning):
            pass
        else:
            return seed
    raise UserError(
        "bad-mnemonic",
        "These are not the words of a wallet: check their spelling, number and order.",
    )


def load_or_create_mnemonic(path: Path) -> str:
    """The words in the file at `path`; a new file (mode 0600) with new words if there is none."""
    if not path.exists():
        save_mnemonic(path, generate_mnemonic())
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(
            "secret-file-open", f"Others may read {path}, which holds your money: chmod 600 it."
        )
    return path.read_text().strip()


def save_mnemonic(path: Path, mnemonic: str) -> None:
    """Write the words, after checking them; raises UserError rather than replace a file."""
    to_seed(mnemonic)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Complete under another name first: a crash must not leave half of the words.
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(" ".join(mnemonic.lower().split()) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(name, path)
    except FileExistsError:
        raise UserError("secret-file-exists", f"{path} holds a wallet already: move it.") from None
    finally:
        Path(name).unlink()
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class HdAccount:
    """BIP 84's first account: `m/84'/coin'/0'`."""

    _chains: tuple[Any, Any] = field(repr=False)

    @classmethod
    def of(cls, seed: bytes, network: str) -> HdAccount:
        key = _bitcoinlib()[1].from_seed(seed, witness_type="segwit")
        for index in (84, COIN_TYPES[network], 0):
            key = key.child_private(index, hardened=True)
        return cls((key.child_private(0), key.child_private(1)))

    def secret(self, change: bool, index: int) -> bytes:
        """The private key (32 bytes) of one address of the external or the change chain."""
        secret: bytes = self._chains[change].child_private(index).private_byte
        return secret

    def pubkey(self, change: bool, index: int) -> bytes:
        """Its public key, 33 bytes."""
        pubkey: bytes = self._chains[change].child_private(index).public_byte
        return pubkey


def derive(seed: bytes, purpose: str, network: str) -> bytes:
    """32 bytes for one purpose on one network; they say nothing about each other or the seed."""
    info = f"{purpose}/{network}".encode()
    return HKDF(hashes.SHA256(), 32, salt=b"oda/seed/1", info=info).derive(seed)
