"""Keys of BOLT 3: derivation, per-commitment secrets, and ECDSA over secp256k1.

Public keys are 33 bytes (compressed), secret keys 32, signatures 64 (r || s, low s), message
digests 32. Every function that takes a key from a peer raises RemoteProtocolError
("invalid-public-key" or "invalid-secret-key") for bytes that are no key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

# The bindings below coincurve's classes: PrivateKey() computes two public keys that a signature
# does not need, which costs more than the signature itself. They are a compiled module without
# stubs.
from coincurve._libsecp256k1 import ffi, lib  # type: ignore[import-not-found]
from coincurve.context import GLOBAL_CONTEXT
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from channels.errors import LocalProtocolError, RemoteProtocolError

FIRST_INDEX = (1 << 48) - 1
"""Index of the first per-commitment secret; indices count down (BOLT 3)."""

_ctx = GLOBAL_CONTEXT.ctx
_COMPRESSED = 0x0102  # SECP256K1_EC_COMPRESSED


def _exactly(data: bytes, size: int, reason: str, what: str) -> bytes:
    # The C library reads as many bytes as it needs whatever the length of what it is given.
    if len(data) != size:
        raise RemoteProtocolError(reason, f"A {what} of {len(data)} bytes was given, not {size}.")
    return data


def _digest(digest: bytes) -> bytes:
    if len(digest) != 32:
        raise ValueError(f"a message digest has 32 bytes, not {len(digest)}")
    return digest


def _secret(secret: bytes) -> bytes:
    return _exactly(secret, 32, "invalid-secret-key", "secret key")


def _bad_secret() -> RemoteProtocolError:
    return RemoteProtocolError("invalid-secret-key", "The 32 bytes are not a secp256k1 secret key.")


@lru_cache(maxsize=4096)
def _parse(pubkey: bytes) -> Any:
    """The library's form of a public key. Parsing costs a square root, so it is kept; callers
    must not change what they get."""
    _exactly(pubkey, 33, "invalid-public-key", "public key")
    point = ffi.new("secp256k1_pubkey *")
    if not lib.secp256k1_ec_pubkey_parse(_ctx, point, pubkey, 33):
        raise RemoteProtocolError(
            "invalid-public-key", "The 33 bytes are not a point on secp256k1."
        )
    return point


def _own_copy(pubkey: bytes) -> Any:
    point = ffi.new("secp256k1_pubkey *")
    point[0] = _parse(pubkey)[0]
    return point


def _serialize(point: Any) -> bytes:
    output = ffi.new("unsigned char[33]")
    lib.secp256k1_ec_pubkey_serialize(_ctx, output, ffi.new("size_t *", 33), point, _COMPRESSED)
    return bytes(ffi.buffer(output))


def is_public_key(pubkey: bytes) -> bool:
    """Whether the bytes are a compressed point on the curve."""
    try:
        _parse(pubkey)
    except RemoteProtocolError:
        return False
    return True


def public_key(secret: bytes) -> bytes:
    """The public key of a secret key."""
    point = ffi.new("secp256k1_pubkey *")
    if not lib.secp256k1_ec_pubkey_create(_ctx, point, _secret(secret)):
        raise _bad_secret()
    return _serialize(point)


def multiply_public_key(pubkey: bytes, scalar: bytes) -> bytes:
    """`scalar` times the point."""
    point = _own_copy(pubkey)
    if not lib.secp256k1_ec_pubkey_tweak_mul(_ctx, point, _secret(scalar)):
        raise _bad_secret()
    return _serialize(point)


def multiply_secret(secret: bytes, scalar: bytes) -> bytes:
    """The product of two secret keys modulo the order of the curve."""
    product = ffi.new("unsigned char[32]", _secret(secret))
    if not lib.secp256k1_ec_seckey_tweak_mul(_ctx, product, _secret(scalar)):
        raise _bad_secret()
    return bytes(ffi.buffer(product))


def _add_secrets(secret: bytes, tweak: bytes) -> bytes:
    total = ffi.new("unsigned char[32]", _secret(secret))
    if not lib.secp256k1_ec_seckey_tweak_add(_ctx, total, _secret(tweak)):
        raise _bad_secret()
    return bytes(ffi.buffer(total))


def derive_pubkey(basepoint: bytes, per_commitment_point: bytes) -> bytes:
    """BOLT 3 "Key Derivation": basepoint + SHA256(per_commitment_point || basepoint) * G."""
    tweak = hashlib.sha256(per_commitment_point + basepoint).digest()
    point = _own_copy(basepoint)
    if not lib.secp256k1_ec_pubkey_tweak_add(_ctx, point, tweak):
        raise RemoteProtocolError("invalid-public-key", "The derived key is no point.")
    return _serialize(point)


def derive_privkey(base_secret: bytes, per_commitment_point: bytes) -> bytes:
    """The secret of `derive_pubkey(public_key(base_secret), per_commitment_point)`."""
    tweak = hashlib.sha256(per_commitment_point + public_key(base_secret)).digest()
    return _add_secrets(base_secret, tweak)


def derive_revocation_pubkey(revocation_basepoint: bytes, per_commitment_point: bytes) -> bytes:
    """BOLT 3 "revocationpubkey Derivation": its secret needs a secret of both sides."""
    base, commitment = revocation_basepoint, per_commitment_point
    base_part, commitment_part = _own_copy(base), _own_copy(commitment)
    multiplied = lib.secp256k1_ec_pubkey_tweak_mul(
        _ctx, base_part, hashlib.sha256(base + commitment).digest()
    ) and lib.secp256k1_ec_pubkey_tweak_mul(
        _ctx, commitment_part, hashlib.sha256(commitment + base).digest()
    )
    total = ffi.new("secp256k1_pubkey *")
    parts = ffi.new("secp256k1_pubkey *[2]", [base_part, commitment_part])
    if not (multiplied and lib.secp256k1_ec_pubkey_combine(_ctx, total, parts, 2)):
        raise RemoteProtocolError("invalid-public-key", "The derived key is no point.")
    return _serialize(total)


def derive_revocation_privkey(
    revocation_basepoint_secret: bytes, per_commitment_secret: bytes
) -> bytes:
    """The secret of a revocation key, once the per-commitment secret has been revealed."""
    base, commitment = public_key(revocation_basepoint_secret), public_key(per_commitment_secret)
    return _add_secrets(
        multiply_secret(revocation_basepoint_secret, hashlib.sha256(base + commitment).digest()),
        multiply_secret(per_commitment_secret, hashlib.sha256(commitment + base).digest()),
    )


def _descend(secret: bytes, bits: int, index: int) -> bytes:
    """BOLT 3 `derive_secret`: the secret of `index` from one that shares all but its low `bits`."""
    value = bytearray(secret)
    for bit in range(bits - 1, -1, -1):
        if index >> bit & 1:
            value[bit // 8] ^= 1 << bit % 8
            value[:] = hashlib.sha256(value).digest()
    return bytes(value)


def per_commitment_secret(seed: bytes, index: int) -> bytes:
    """BOLT 3 `generate_from_seed`. The first commitment uses FIRST_INDEX, the next one less."""
    if not 0 <= index <= FIRST_INDEX:
        raise LocalProtocolError(
            "per-commitment-index-out-of-range", "The channel has used up its 2^48 commitments."
        )
    return _descend(seed, 48, index)


class RevokedSecrets:
    """The per-commitment secrets that a peer has revealed, in at most 49 entries (BOLT 3
    "Efficient Per-commitment Secret Storage")."""

    def __init__(self) -> None:
        self._buckets: dict[int, tuple[int, bytes]] = {}
        self._next = FIRST_INDEX

    @property
    def next_index(self) -> int:
        """The only index that `insert` takes now."""
        return self._next

    def insert(self, index: int, secret: bytes) -> None:
        """Keep the secret of `next_index`.

        Raises RemoteProtocolError("bad-per-commitment-secret") when it does not generate those
        that were revealed before it; nothing is kept then.
        """
        if index != self._next:
            raise LocalProtocolError(
                "revoked-secret-out-of-order", f"Secret {self._next} comes next, not {index}."
            )
        _exactly(secret, 32, "bad-per-commitment-secret", "per-commitment secret")
        bucket = _bucket(index)
        for lower in range(bucket):
            known = self._buckets.get(lower)
            if known and not hmac.compare_digest(_descend(secret, bucket, known[0]), known[1]):
                raise RemoteProtocolError(
                    "bad-per-commitment-secret",
                    f"Secret {index} does not generate the ones revealed before it.",
                )
        self._buckets[bucket] = (index, secret)
        self._next = index - 1

    def secret(self, index: int) -> bytes | None:
        """The secret of an index that was revealed, else None."""
        if not self._next < index <= FIRST_INDEX:
            return None
        for bucket, (known, secret) in self._buckets.items():
            if known >> bucket == index >> bucket:
                return _descend(secret, bucket, index)
        return None

    def to_list(self) -> list[tuple[int, bytes]]:
        """All entries as (index, secret), for storage."""
        return sorted(self._buckets.values())

    @classmethod
    def from_list(cls, entries: Iterable[tuple[int, bytes]]) -> RevokedSecrets:
        """The reverse of `to_list`."""
        secrets = cls()
        for index, secret in entries:
            secrets._buckets[_bucket(index)] = (index, secret)
            secrets._next = min(secrets._next, index - 1)
        return secrets


def _bucket(index: int) -> int:
    """BOLT 3 `where_to_put_secret`: the number of trailing zero bits, 48 for index 0."""
    return (index & -index).bit_length() - 1 if index else 48


def _parse_signature(signature: bytes) -> Any | None:
    parsed = ffi.new("secp256k1_ecdsa_signature *")
    if len(signature) != 64:
        return None
    return parsed if lib.secp256k1_ecdsa_signature_parse_compact(_ctx, parsed, signature) else None


def sign(secret: bytes, digest: bytes) -> bytes:
    """An ECDSA signature over a 32-byte digest: r || s, low s, nonce of RFC 6979."""
    signature, output = ffi.new("secp256k1_ecdsa_signature *"), ffi.new("unsigned char[64]")
    signed = lib.secp256k1_ecdsa_sign(
        _ctx, signature, _digest(digest), _secret(secret), ffi.NULL, ffi.NULL
    )
    if not signed:
        raise _bad_secret()
    lib.secp256k1_ecdsa_signature_serialize_compact(_ctx, output, signature)
    return bytes(ffi.buffer(output))


def verify(pubkey: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether the key made the signature. Garbage and high s are False, never an error."""
    parsed = _parse_signature(signature)
    if parsed is None or len(digest) != 32 or not is_public_key(pubkey):
        return False
    return bool(lib.secp256k1_ecdsa_verify(_ctx, parsed, digest, _parse(pubkey)))


def der(signature: bytes) -> bytes:
    """A 64-byte signature as it stands in a script, before the sighash byte."""
    parsed = _parse_signature(signature)
    if parsed is None:
        raise RemoteProtocolError("invalid-signature", "The bytes are not an ECDSA signature.")
    output, size = ffi.new("unsigned char[72]"), ffi.new("size_t *", 72)
    lib.secp256k1_ecdsa_signature_serialize_der(_ctx, output, size, parsed)
    return bytes(ffi.buffer(output, size[0]))


def sign_recoverable(secret: bytes, digest: bytes) -> bytes:
    """A signature from which the key can be recovered: r || s || recovery id, 65 bytes."""
    signature = ffi.new("secp256k1_ecdsa_recoverable_signature *")
    signed = lib.secp256k1_ecdsa_sign_recoverable(
        _ctx, signature, _digest(digest), _secret(secret), ffi.NULL, ffi.NULL
    )
    if not signed:
        raise _bad_secret()
    output, recovery_id = ffi.new("unsigned char[64]"), ffi.new("int *")
    lib.secp256k1_ecdsa_recoverable_signature_serialize_compact(
        _ctx, output, recovery_id, signature
    )
    return bytes(ffi.buffer(output)) + bytes([recovery_id[0]])


def recover(digest: bytes, signature: bytes) -> bytes | None:
    """The public key that made a 65-byte recoverable signature; None when there is none."""
    if len(signature) != 65 or signature[64] > 3:
        return None
    parsed = ffi.new("secp256k1_ecdsa_recoverable_signature *")
    if not lib.secp256k1_ecdsa_recoverable_signature_parse_compact(
        _ctx, parsed, signature[:64], signature[64]
    ):
        return None
    point = ffi.new("secp256k1_pubkey *")
    if not lib.secp256k1_ecdsa_recover(_ctx, point, parsed, _digest(digest)):
        return None
    return _serialize(point)


def ecdh(secret: bytes, pubkey: bytes) -> bytes:
    """SHA256 of the compressed shared point, as BOLT 4 and BOLT 8 use it."""
    output = ffi.new("unsigned char[32]")
    if not lib.secp256k1_ecdh(_ctx, output, _parse(pubkey), _secret(secret), ffi.NULL, ffi.NULL):
        raise _bad_secret()
    return bytes(ffi.buffer(output))


@dataclass(frozen=True, slots=True)
class Basepoints:
    """What one side says of its keys when a channel is opened (33 bytes each)."""

    funding_pubkey: bytes
    revocation_basepoint: bytes
    payment_basepoint: bytes
    delayed_payment_basepoint: bytes
    htlc_basepoint: bytes


@dataclass(frozen=True, slots=True)
class ChannelSecrets:
    """The secrets of one channel (32 bytes each); left out of repr() so that no log shows them."""

    funding: bytes = field(repr=False)
    revocation_basepoint: bytes = field(repr=False)
    payment_basepoint: bytes = field(repr=False)
    delayed_payment_basepoint: bytes = field(repr=False)
    htlc_basepoint: bytes = field(repr=False)
    shachain_seed: bytes = field(repr=False)

    @classmethod
    def derive(cls, seed: bytes, index: int) -> ChannelSecrets:
        """All secrets of channel `index` from the node's 32-byte seed, by HKDF-SHA256."""
        material = HKDF(
            algorithm=hashes.SHA256(),
            length=6 * 32,
            salt=b"oda/channel-secrets/1",
            info=index.to_bytes(8, "big"),
        ).derive(seed)
        return cls(*(material[start : start + 32] for start in range(0, 6 * 32, 32)))

    def public(self) -> Basepoints:
        """The public halves."""
        return Basepoints(
            public_key(self.funding),
            public_key(self.revocation_basepoint),
            public_key(self.payment_basepoint),
            public_key(self.delayed_payment_basepoint),
            public_key(self.htlc_basepoint),
        )

    def per_commitment_secret(self, index: int) -> bytes:
        """The secret that revokes the commitment with this index."""
        return per_commitment_secret(self.shachain_seed, index)

    def per_commitment_point(self, index: int) -> bytes:
        """The point that is sent for the commitment with this index."""
        return public_key(self.per_commitment_secret(index))
