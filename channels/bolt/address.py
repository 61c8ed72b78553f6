"""Bitcoin addresses as output scripts and back: segwit (BIP 173, BIP 350) and Base58Check.

Networks are named by the prefix of their segwit addresses: bc (mainnet), tb (testnet and
signet), bcrt (regtest).
"""

from __future__ import annotations

import hashlib

from channels.bolt import bech32
from channels.errors import UserError

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# Version bytes (pubkey hash, script hash), Bitcoin Core chainparams `base58Prefixes`.
_MAINNET_PREFIXES, _TEST_PREFIXES = (0, 5), (111, 196)


def _prefixes(network: str) -> tuple[int, int]:
    return _MAINNET_PREFIXES if network == "bc" else _TEST_PREFIXES


def _checksum(payload: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(payload).digest()).digest()[:4]


def _base58check(payload: bytes) -> str:
    data = payload + _checksum(payload)
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def _from_base58check(text: str) -> bytes:
    number = 0
    # 21 bytes of payload and 4 of checksum never take more than 35 characters.
    if not 0 < len(text) <= 35 or not set(text) <= set(_BASE58):
        raise UserError("address", "The text is not a bitcoin address; copy it again.")
    for character in text:
        number = number * 58 + _BASE58.index(character)
    zeros = len(text) - len(text.lstrip("1"))
    data = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    if len(data) != 25 or _checksum(data[:-4]) != data[-4:]:
        raise UserError("address", "The address has a typing error; copy it again.")
    return data[:-4]


def to_script(network: str, address: str) -> bytes:
    """The output script of an address.

    Raises UserError: "address", "segwit-address", "wrong-network", or one of bech32's reasons.
    """
    if address.lower().startswith(("bc1", "tb1", "bcrt1")):
        version, program = bech32.decode_segwit_address(network, address)
        return witness_script(version, program)
    payload = _from_base58check(address)
    pubkey_hash, script_hash = _prefixes(network)
    if payload[0] == pubkey_hash:
        return b"\x76\xa9\x14" + payload[1:] + b"\x88\xac"
    if payload[0] == script_hash:
        return b"\xa9\x14" + payload[1:] + b"\x87"
    raise UserError("wrong-network", f"The address is not of the network {network!r}.")


def from_script(network: str, script: bytes) -> str | None:
    """The address of an output script; None when scripts of its kind have none."""
    pubkey_hash, script_hash = _prefixes(network)
    if len(script) == 25 and script[:3] == b"\x76\xa9\x14" and script[23:] == b"\x88\xac":
        return _base58check(bytes([pubkey_hash]) + script[3:23])
    if len(script) == 23 and script[:2] == b"\xa9\x14" and script[22:] == b"\x87":
        return _base58check(bytes([script_hash]) + script[2:22])
    if len(script) < 4 or script[1] != len(script) - 2:
        return None
    version = script[0] - 0x50 if script[0] else 0
    if not bech32.is_witness_program(version, script[2:]):
        return None
    return bech32.encode_segwit_address(network, version, script[2:])


def witness_script(version: int, program: bytes) -> bytes:
    """The output script of a witness program: OP_0 or OP_1 to OP_16, and one push (BIP 141)."""
    return bytes([version + 0x50 if version else 0, len(program)]) + program
