"""BOLT 4 "Key Generation" and "Pseudo Random Byte Stream"."""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20


def derive_key(key_type: bytes, secret: bytes) -> bytes:
    """The 32-byte key of a type (b"rho", b"mu", b"um", b"pad", b"ammag")."""
    return hmac.digest(key_type, secret, "sha256")


def stream(key: bytes, size: int) -> bytes:
    """ChaCha20 over zeros with a zero nonce; the keys are never used twice."""
    # The library wants a 4-byte counter before the 12-byte nonce; both are 0.
    return Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(size))


def xor(left: bytes, right: bytes) -> bytes:
    """Of two strings of one length."""
    number = int.from_bytes(left, "big") ^ int.from_bytes(right, "big")
    return number.to_bytes(len(left), "big")
