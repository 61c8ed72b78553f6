"""Headers, transactions and blocks: their bytes, hashes, stamps and signatures.

A header is Bitcoin's, 80 bytes. A transaction is a msgpack array
`[type, network_id, stamp_nonce, …fields, sig?]` and has exactly one encoding: what is decoded is
encoded again and compared, so that nobody can change a txid without changing the transaction.
Hashes are in internal byte order; `display` turns one round as block explorers show it.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Annotated, Any, ClassVar, Final, TypeVar

import msgspec
from coincurve.keys import PrivateKey, PublicKeyXOnly
from msgspec import Meta

from channels.tagged_hash import tagged
from sidechain import merkle
from sidechain.reasons import Rejection

HEADER_BYTES: Final = 80
MAX_TRANSACTION: Final = 16 * 1024
"""No transaction of any type comes near; checked before anything is decoded."""

MAX_INT: Final = (1 << 63) - 1
MAX_SHARDS: Final = 64
MAX_OPENERS: Final = 8

Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""An x-only public key (BIP 340)."""
NodeId = Annotated[bytes, Meta(min_length=33, max_length=33)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Uint = Annotated[int, Meta(ge=0, le=MAX_INT)]
Uint32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]

_signature_hash = tagged("ODA/transaction")
_commit_hash = tagged("ODA/commit")
_shard_key_hash = tagged("oda/shard key")
_header = struct.Struct("<i32s32sIII")


def sha256d(data: bytes) -> bytes:
    """Bitcoin's double SHA-256."""
    return hashlib.sha256(hashlib.sha256(data).digest()).digest()


def display(block_hash: bytes) -> str:
    """The hash as people read it: reversed, so that proof of work shows as leading zeros."""
    return block_hash[::-1].hex()


class Header(msgspec.Struct, frozen=True, gc=False):
    """Bitcoin's block header; integers are little-endian in its 80 bytes."""

    version: int
    prev: bytes
    merkle_root: bytes
    time: int
    bits: int
    nonce: int

    def encode(self) -> bytes:
        return _header.pack(
            self.version, self.prev, self.merkle_root, self.time, self.bits, self.nonce
        )

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """Raises Rejection("hdr-decode")."""
        if len(data) != HEADER_BYTES:
            raise Rejection("hdr-decode", f"{len(data)} bytes")
        return cls(*_header.unpack(data))

    @property
    def hash(self) -> bytes:
        return sha256d(self.encode())


# --- transactions --------------------------------------------------------------------------------


class Transaction(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What all types begin with. `tag` is the type number."""

    network_id: Uint32
    stamp_nonce: Uint

    SIGNED: ClassVar[bool] = False

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @property
    def txid(self) -> bytes:
        return sha256d(self.encode())

    def unsigned(self) -> bytes:
        """The encoding without `sig`: what a stamp and a signature are over."""
        fields = msgspec.to_builtins(self, builtin_types=(bytes,))
        return msgspec.msgpack.encode(fields[:-1] if self.SIGNED else fields)

    def signature_hash(self) -> bytes:
        """The 32 bytes that BIP 340 signs."""
        return _signature_hash(self.unsigned())


class Producer(Transaction, frozen=True, tag=0):
    """First in each block: who made it, and the state after it. `stamp_nonce` is free to grind."""

    height: Uint32
    payee: Key
    state_root: Hash
    extra: Annotated[bytes, Meta(max_length=64)]


class RegisterPayee(Transaction, frozen=True, tag=1):
    """Where a key is paid: a Lightning node and the endpoint at which it gives invoices."""

    SIGNED: ClassVar[bool] = True

    key: Key
    seq: Uint
    node_id: NodeId
    endpoint: Annotated[str, Meta(min_length=1, max_length=256)]
    proof: Annotated[str, Meta(max_length=128)]
    """zbase of lightningd's `signmessage` over payee.payee_text()."""
    sig: Signature


class AddModel(Transaction, frozen=True, tag=2):
    """A model with its first weights. Its txid is the model's identity for ever."""

    SIGNED: ClassVar[bool] = True

    infohash: Hash
    weights_root: Hash
    architecture: Annotated[bytes, Meta(min_length=1, max_length=4096)]
    objective: Annotated[bytes, Meta(min_length=1, max_length=256)]
    dataset_root: Hash
    shards: Annotated[tuple[Hash, ...], Meta(max_length=MAX_SHARDS)]
    """shard_key_hash() of each sealed shard's key."""
    openers: Annotated[tuple[Key, ...], Meta(max_length=MAX_OPENERS)]
    min_gain: Annotated[int, Meta(ge=1, le=MAX_INT)]
    score: Uint
    score_cost: Annotated[int, Meta(ge=1, le=MAX_INT)]
    trainer: Key
    """Who trained the first weights and is paid for them until they are improved."""
    sig: Signature


class Commit(Transaction, frozen=True, tag=3):
    """32 blind bytes, so that the weights can be shown without being stolen."""

    commit: Hash


class Reveal(Transaction, frozen=True, tag=4):
    """Better weights for a model, committed to before. Signed, or anybody could change the
    infohash to one that nobody has."""

    SIGNED: ClassVar[bool] = True

    model: Hash
    infohash: Hash
    weights_root: Hash
    score: Uint
    trainer: Key
    salt: Hash
    sig: Signature


class OpenShard(Transaction, frozen=True, tag=5):
    """The key of a sealed shard; opening it decides about the model's provisional version."""

    SIGNED: ClassVar[bool] = True

    model: Hash
    index: Annotated[int, Meta(ge=0, lt=MAX_SHARDS)]
    key: Hash
    sig: Signature


AnyTransaction = Producer | RegisterPayee | AddModel | Commit | Reveal | OpenShard

_transaction = msgspec.msgpack.Decoder(AnyTransaction)
T = TypeVar("T", bound=Transaction)


def decode_transaction(data: bytes) -> AnyTransaction:
    """Raises Rejection("tx-decode") for anything but the one encoding of a transaction."""
    if len(data) > MAX_TRANSACTION:
        raise Rejection("tx-decode", f"{len(data)} bytes")
    try:
        transaction: AnyTransaction = _transaction.decode(data)
        again = transaction.encode()
    except (ValueError, RecursionError) as error:  # msgspec's and UTF-8's errors are ValueErrors
        raise Rejection("tx-decode", str(error)) from None
    if again != data:
        raise Rejection("tx-decode", "not canonical")
    return transaction


def commitment(weights_root: bytes, model: bytes, trainer: bytes, salt: bytes) -> bytes:
    """What a Commit holds; all arguments have 32 bytes."""
    return _commit_hash(weights_root + model + trainer + salt)


def shard_key_hash(key: bytes) -> bytes:
    """What AddModel says of a sealed shard's key (the same as sidechain.model.sealed.key_hash)."""
    return _shard_key_hash(key)


# --- stamps and signatures -----------------------------------------------------------------------


def stamp_work(transaction: Transaction) -> int:
    """How many hashes the stamp stands for: 2^256 over its hash. Unsigned bytes are hashed, so
    that changing anything but the signature costs a new stamp."""
    found = int.from_bytes(sha256d(transaction.unsigned()), "little")
    return (1 << 256) // (found + 1)


def stamped(transaction: T, hashes: int) -> T:
    """The same transaction with the first nonce that is worth `hashes` hashes. A signature over
    another nonce is void: stamp first, then sign."""
    while stamp_work(transaction) < hashes:
        transaction = msgspec.structs.replace(transaction, stamp_nonce=transaction.stamp_nonce + 1)
    return transaction


def x_only(secret: bytes) -> bytes:
    """The x-only public key of a 32-byte secret."""
    key: bytes = PrivateKey(secret).public_key_xonly.format()
    return key


def sign_schnorr(secret: bytes, digest: bytes) -> bytes:
    """BIP 340 over 32 bytes. Auxiliary randomness is zeros, which BIP 340 allows: the nonce is
    then fixed by key and message, and this module stays without randomness."""
    return PrivateKey(secret).sign_schnorr(digest, bytes(32))


def verify_schnorr(key: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether the x-only key made the BIP 340 signature. Garbage is False, never an error."""
    if len(key) != 32 or len(signature) != 64:
        return False
    try:
        return PublicKeyXOnly(key).verify(signature, digest)
    except ValueError:  # 32 bytes that are no point
        return False


def signed(transaction: T, secret: bytes) -> T:
    """The same transaction with `sig` by the secret."""
    signature = sign_schnorr(secret, transaction.signature_hash())
    changes: dict[str, Any] = {"sig": signature}
    return msgspec.structs.replace(transaction, **changes)


NO_SIGNATURE: Final = bytes(64)
"""What stands for `sig` in a transaction that is still to be stamped and signed."""


# --- blocks --------------------------------------------------------------------------------------

_raw_list = msgspec.msgpack.Decoder(list[msgspec.Raw])


class Block(msgspec.Struct, frozen=True):
    """A header and the transactions it commits to. On the wire: the header's 80 bytes, then a
    msgpack array of the transactions."""

    header: Header
    transactions: tuple[AnyTransaction, ...]

    def encode(self) -> bytes:
        return self.header.encode() + msgspec.msgpack.encode(self.transactions)

    @classmethod
    def decode(cls, data: bytes, most: int) -> Block:
        """Raises Rejection: "bad-blk-length" beyond `most` bytes, "blk-decode", "tx-decode"."""
        if len(data) > most:
            raise Rejection("bad-blk-length", f"{len(data)} bytes")
        if len(data) <= HEADER_BYTES:
            raise Rejection("blk-decode", f"{len(data)} bytes")
        try:
            parts = [bytes(raw) for raw in _raw_list.decode(data[HEADER_BYTES:])]
        except (ValueError, RecursionError) as error:
            raise Rejection("blk-decode", str(error)) from None
        transactions = tuple(decode_transaction(part) for part in parts)
        block = cls(Header.decode(data[:HEADER_BYTES]), transactions)
        if block.encode() != data:  # a longer form of the array's length
            raise Rejection("blk-decode", "not canonical")
        return block

    @property
    def hash(self) -> bytes:
        return self.header.hash

    def txids(self) -> list[bytes]:
        return [transaction.txid for transaction in self.transactions]

    def merkle_root(self) -> bytes:
        """What the header's merkle_root must be."""
        return merkle.root(self.txids())
