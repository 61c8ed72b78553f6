"""Bitcoin transactions as Lightning uses them: segwit serialisation, BIP 143, output scripts.

Transaction ids and hashes are `bytes` in internal order; only `txid_hex` is in the reversed
order that people and bitcoind's RPC use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from struct import pack

from channels.errors import RemoteProtocolError
from channels.units import Sat

SIGHASH_ALL = 0x01
SIGHASH_SINGLE_ANYONECANPAY = 0x83

MAX_SIZE = 4_000_000
"""No valid transaction is larger than a block's weight limit."""

MAX_MONEY = Sat(21_000_000 * 100_000_000)


def sha256d(data: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(data).digest()).digest()


def hash160(data: bytes) -> bytes:
    return ripemd160(hashlib.sha256(data).digest())


def ripemd160(data: bytes) -> bytes:
    return hashlib.new("ripemd160", data).digest()


@dataclass(frozen=True, slots=True, order=True)
class OutPoint:
    """An output of a transaction; `txid` is 32 bytes in internal order."""

    txid: bytes
    vout: int

    def serialize(self) -> bytes:
        return self.txid + pack("<I", self.vout)

    def __str__(self) -> str:
        return f"{self.txid[::-1].hex()}:{self.vout}"


@dataclass(frozen=True, slots=True)
class TxIn:
    outpoint: OutPoint
    sequence: int = 0xFFFFFFFF
    script_sig: bytes = b""
    witness: tuple[bytes, ...] = ()

    def serialize(self) -> bytes:
        """All but the witness, which a transaction carries after its outputs."""
        return self.outpoint.serialize() + _sized(self.script_sig) + pack("<I", self.sequence)


@dataclass(frozen=True, slots=True)
class TxOut:
    value: Sat
    script: bytes

    def serialize(self) -> bytes:
        return pack("<Q", self.value) + _sized(self.script)


@dataclass(frozen=True)
class Transaction:
    """A transaction. Ids and BIP 143 midstates are computed once and kept."""

    version: int
    inputs: tuple[TxIn, ...]
    outputs: tuple[TxOut, ...]
    locktime: int

    def serialize(self) -> bytes:
        """With witnesses (BIP 144) when there are any."""
        if not any(txin.witness for txin in self.inputs):
            return self._stripped
        stacks = b"".join(
            _count(len(i.witness)) + b"".join(map(_sized, i.witness)) for i in self.inputs
        )
        stripped = self._stripped
        return stripped[:4] + b"\x00\x01" + stripped[4:-4] + stacks + stripped[-4:]

    @classmethod
    def parse(cls, data: bytes) -> Transaction:
        """Read one whole transaction from a stranger.

        Raises RemoteProtocolError ("bad-transaction") for everything that is not one. Its
        scripts are not executed.
        """
        return _Parser(data).transaction()

    @cached_property
    def _stripped(self) -> bytes:
        return b"".join(
            (
                pack("<I", self.version),
                _count(len(self.inputs)),
                *(txin.serialize() for txin in self.inputs),
                _count(len(self.outputs)),
                *(txout.serialize() for txout in self.outputs),
                pack("<I", self.locktime),
            )
        )

    @cached_property
    def txid(self) -> bytes:
        """32 bytes in internal order."""
        return sha256d(self._stripped)

    @property
    def txid_hex(self) -> str:
        """As bitcoind and block explorers write it."""
        return self.txid[::-1].hex()

    @property
    def weight(self) -> int:
        """In weight units (BIP 141)."""
        return 3 * len(self._stripped) + len(self.serialize())

    def with_witness(self, index: int, stack: Sequence[bytes]) -> Transaction:
        """The same transaction with the witness of one input set."""
        inputs = list(self.inputs)
        inputs[index] = replace(inputs[index], witness=tuple(stack))
        return replace(self, inputs=tuple(inputs))

    @cached_property
    def _hash_prevouts(self) -> bytes:
        return sha256d(b"".join(txin.outpoint.serialize() for txin in self.inputs))

    @cached_property
    def _hash_sequence(self) -> bytes:
        return sha256d(b"".join(pack("<I", txin.sequence) for txin in self.inputs))

    @cached_property
    def _hash_outputs(self) -> bytes:
        return sha256d(b"".join(txout.serialize() for txout in self.outputs))

    def segwit_digest(
        self, index: int, script_code: bytes, value: Sat, sighash: int = SIGHASH_ALL
    ) -> bytes:
        """What a signature of input `index` signs (BIP 143), 32 bytes.

        `value` is the amount of the output that the input spends; `script_code` its witness
        script, or for a p2wpkh output `p2wpkh_script_code`. Only SIGHASH_ALL and
        SIGHASH_SINGLE_ANYONECANPAY are known.
        """
        txin = self.inputs[index]
        if sighash == SIGHASH_ALL:
            prevouts, sequences = self._hash_prevouts, self._hash_sequence
            outputs = self._hash_outputs
        elif sighash == SIGHASH_SINGLE_ANYONECANPAY:
            prevouts = sequences = bytes(32)
            # BIP 143: without an output of the same index there is nothing to commit to.
            in_range = index < len(self.outputs)
            outputs = sha256d(self.outputs[index].serialize()) if in_range else bytes(32)
        else:
            raise ValueError(f"sighash type {sighash:#x} is not used in Lightning")
        return sha256d(
            b"".join(
                (
                    pack("<I", self.version),
                    prevouts,
                    sequences,
                    txin.outpoint.serialize(),
                    _sized(script_code),
                    pack("<QI", value, txin.sequence),
                    outputs,
                    pack("<II", self.locktime, sighash),
                )
            )
        )


def _count(number: int) -> bytes:
    """Bitcoin's compact size."""
    if number < 0xFD:
        return bytes((number,))
    if number <= 0xFFFF:
        return b"\xfd" + pack("<H", number)
    return b"\xfe" + pack("<I", number)


def _sized(data: bytes) -> bytes:
    return _count(len(data)) + data


def _bad(sentence: str) -> RemoteProtocolError:
    return RemoteProtocolError("bad-transaction", sentence)


class _Parser:
    """Reads a transaction; no count is believed before the bytes that it needs are there."""

    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_SIZE:
            raise _bad(f"A transaction of {len(data)} bytes fits in no block.")
        self._data = data
        self._at = 0

    def transaction(self) -> Transaction:
        version = self._integer(4)
        # BIP 144: a marker where the number of inputs would be, then a flag.
        segwit = self._data[self._at : self._at + 2] == b"\x00\x01"
        if segwit:
            self._at += 2
        inputs = [self._input() for _ in range(self._number(at_least=41))]
        outputs = [self._output() for _ in range(self._number(at_least=9))]
        if not inputs or not outputs:
            raise _bad("A transaction without inputs or outputs is not valid.")
        if segwit:
            inputs = [replace(txin, witness=self._witness()) for txin in inputs]
            if not any(txin.witness for txin in inputs):
                raise _bad("A transaction announces witnesses and has none.")
        locktime = self._integer(4)
        if self._at != len(self._data):
            raise _bad("Bytes follow the end of the transaction.")
        return Transaction(version, tuple(inputs), tuple(outputs), locktime)

    def _input(self) -> TxIn:
        outpoint = OutPoint(self._take(32), self._integer(4))
        script_sig = self._take(self._number(at_least=1))
        return TxIn(outpoint, self._integer(4), script_sig)

    def _output(self) -> TxOut:
        value = self._integer(8)
        if value > MAX_MONEY:
            raise _bad(f"An output of {value} sat is more than there can be.")
        return TxOut(Sat(value), self._take(self._number(at_least=1)))

    def _witness(self) -> tuple[bytes, ...]:
        items = range(self._number(at_least=1))
        return tuple(self._take(self._number(at_least=1)) for _ in items)

    def _take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) != size:
            raise _bad("The transaction ends too early.")
        self._at += size
        return taken

    def _integer(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _number(self, at_least: int) -> int:
        """A compact size: how many things of `at_least` that many bytes each follow."""
        number = self._integer(1)
        if number >= 0xFD:
            size = {0xFD: 2, 0xFE: 4, 0xFF: 8}[number]
            number = self._integer(size)
            if number < (0xFD if size == 2 else 1 << 4 * size):
                raise _bad("A number is not in its shortest form.")
        if number * at_least > len(self._data) - self._at:
            raise _bad("The transaction ends too early.")
        return number


def push(data: bytes) -> bytes:
    """The shortest script that pushes up to 255 bytes of data (never an OP_n)."""
    size = len(data)
    if size < 0x4C:
        return bytes((size,)) + data
    if size > 0xFF:
        raise ValueError(f"no script of Lightning pushes {size} bytes")
    return b"\x4c" + bytes((size,)) + data


def script_number(number: int) -> bytes:
    """The shortest script that pushes a number that is not negative."""
    if number == 0:
        return b"\x00"
    if number <= 16:
        return bytes((0x50 + number,))
    # One more bit than the number has: the highest one is the sign.
    return push(number.to_bytes(number.bit_length() // 8 + 1, "little"))


def p2wpkh(pubkey: bytes) -> bytes:
    """The output script (BIP 141) that pays to a public key."""
    return b"\x00\x14" + hash160(pubkey)


def p2wpkh_script_code(pubkey: bytes) -> bytes:
    """What stands for a witness script when a p2wpkh output is spent (BIP 143)."""
    return b"\x76\xa9\x14" + hash160(pubkey) + b"\x88\xac"


def p2wsh(script: bytes) -> bytes:
    """The output script (BIP 141) that pays to a witness script."""
    return b"\x00\x20" + hashlib.sha256(script).digest()


@lru_cache(maxsize=1024)
def funding_script(pubkey1: bytes, pubkey2: bytes) -> bytes:
    """The witness script of a funding output, 2 of 2 with sorted keys (BOLT 3)."""
    lesser, greater = sorted((pubkey1, pubkey2))
    return b"\x52" + push(lesser) + push(greater) + b"\x52\xae"


def _is_segwit(script: bytes, versions: range) -> bool:
    """Whether the script is a witness program of 2 to 40 bytes with one of those versions."""
    return (
        4 <= len(script) <= 42
        and script[0] in {0x50 + version if version else 0 for version in versions}
        and script[1] == len(script) - 2
    )


def dust_limit(script: bytes) -> Sat:
    """The least that an output with this script may be worth (BOLT 3 "Dust Limits")."""
    if script[:1] == b"\x6a":  # OP_RETURN
        return Sat(0)
    if script == b"\x51\x02\x4e\x73":  # pay to anchor
        return Sat(240)
    if _is_segwit(script, range(1)):
        return Sat(294 if len(script) == 22 else 330)
    if _is_segwit(script, range(1, 17)):
        return Sat(354)
    # 3 sat for each byte of the output and of the 148 of a p2pkh or smallest p2sh input.
    return Sat(3 * (8 + len(_sized(script)) + 148))


def is_valid_shutdown_script(script: bytes, anysegwit: bool) -> bool:
    """Whether `shutdown` may name the script (BOLT 2 "Closing Initiation").

    `anysegwit` says whether option_shutdown_anysegwit was negotiated.
    """
    if _is_segwit(script, range(1)):
        return len(script) in (22, 34)
    return anysegwit and _is_segwit(script, range(1, 17))
