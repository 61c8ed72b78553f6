from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt import keys
from channels.bolt.keys import FIRST_INDEX, ChannelSecrets, RevokedSecrets
from channels.errors import LocalProtocolError, OdaError, RemoteProtocolError
from tests.vectors import bolt03

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SECRET, OTHER = bytes(range(1, 33)), hashlib.sha256(b"other").digest()
PUBKEY = keys.public_key(SECRET)

secrets = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
digests = st.binary(min_size=32, max_size=32)


@pytest.mark.parametrize("case", bolt03.SECRET_GENERATION, ids=lambda case: case["name"])
def test_appendix_d_generation(case: dict[str, Any]) -> None:
    seed = bytes.fromhex(case["seed"])
    assert keys.per_commitment_secret(seed, case["index"]).hex() == case["output"]


@pytest.mark.parametrize("case", bolt03.SECRET_STORAGE, ids=lambda case: case["name"])
def test_appendix_d_storage(case: dict[str, Any]) -> None:
    revoked = RevokedSecrets()
    for index, secret, good in case["inserts"]:
        if good:
            revoked.insert(index, bytes.fromhex(secret))
            assert revoked.secret(index) == bytes.fromhex(secret)
            continue
        before = revoked.to_list()
        with pytest.raises(RemoteProtocolError) as caught:
            revoked.insert(index, bytes.fromhex(secret))
        assert caught.value.reason == "bad-per-commitment-secret"
        assert revoked.to_list() == before
        assert revoked.secret(index) is None


def test_appendix_e() -> None:
    vector = {name: bytes.fromhex(value) for name, value in bolt03.KEY_DERIVATION.items()}
    base, point = vector["base_point"], vector["per_commitment_point"]
    assert keys.public_key(vector["base_secret"]) == base
    assert keys.public_key(vector["per_commitment_secret"]) == point
    assert keys.derive_pubkey(base, point) == vector["localpubkey"]
    assert keys.derive_privkey(vector["base_secret"], point) == vector["localprivkey"]
    assert keys.derive_revocation_pubkey(base, point) == vector["revocationpubkey"]
    assert (
        keys.derive_revocation_privkey(vector["base_secret"], vector["per_commitment_secret"])
        == vector["revocationprivkey"]
    )


def test_every_revealed_secret_can_be_derived_again_from_few_entries() -> None:
    revoked = RevokedSecrets()
    last = FIRST_INDEX - 300
    for index in range(FIRST_INDEX, last, -1):
        revoked.insert(index, keys.per_commitment_secret(SECRET, index))
    restored = RevokedSecrets.from_list(revoked.to_list())
    assert len(restored.to_list()) <= 10
    assert restored.next_index == last
    for index in range(FIRST_INDEX, last, -1):
        assert restored.secret(index) == keys.per_commitment_secret(SECRET, index)
    assert restored.secret(last) is None
    assert restored.secret(FIRST_INDEX + 1) is None
    restored.insert(last, keys.per_commitment_secret(SECRET, last))
    with pytest.raises(LocalProtocolError, match="comes next"):
        restored.insert(last - 2, keys.per_commitment_secret(SECRET, last - 2))


def test_the_seed_itself_is_the_49th_entry() -> None:
    revoked = RevokedSecrets.from_list([(1, keys.per_commitment_secret(SECRET, 1))])
    revoked.insert(0, SECRET)
    assert revoked.secret(0xABCDEF) == keys.per_commitment_secret(SECRET, 0xABCDEF)


@pytest.mark.parametrize("index", [-1, FIRST_INDEX + 1])
def test_indices_end(index: int) -> None:
    with pytest.raises(LocalProtocolError):
        keys.per_commitment_secret(SECRET, index)


@given(secrets, secrets)
def test_derived_secrets_belong_to_derived_public_keys(base: bytes, commitment: bytes) -> None:
    base_point, point = keys.public_key(base), keys.public_key(commitment)
    assert keys.public_key(keys.derive_privkey(base, point)) == keys.derive_pubkey(
        base_point, point
    )
    assert keys.public_key(
        keys.derive_revocation_privkey(base, commitment)
    ) == keys.derive_revocation_pubkey(base_point, point)
    assert keys.public_key(keys.multiply_secret(base, commitment)) == keys.multiply_public_key(
        base_point, commitment
    )
    assert keys.ecdh(base, point) == keys.ecdh(commitment, base_point)


@given(secrets, digests, st.integers(0, 511))
def test_signatures(secret: bytes, digest: bytes, bit: int) -> None:
    pubkey, signature = keys.public_key(secret), keys.sign(secret, digest)
    assert keys.verify(pubkey, digest, signature)
    assert int.from_bytes(signature[32:], "big") <= ORDER // 2
    recoverable = keys.sign_recoverable(secret, digest)
    assert recoverable[:64] == signature
    assert keys.recover(digest, recoverable) == pubkey
    flipped = (int.from_bytes(signature, "big") ^ 1 << bit).to_bytes(64, "big")
    assert not keys.verify(pubkey, digest, flipped)
    assert keys.der(signature)[0] == 0x30


def test_high_s_is_refused() -> None:
    signature = keys.sign(SECRET, OTHER)
    high = ORDER - int.from_bytes(signature[32:], "big")
    assert not keys.verify(PUBKEY, OTHER, signature[:32] + high.to_bytes(32, "big"))


@given(st.binary(max_size=70), st.binary(max_size=40), st.binary(max_size=70))
def test_verify_and_recover_never_raise(pubkey: bytes, digest: bytes, signature: bytes) -> None:
    assert not keys.verify(pubkey, digest, signature)
    assert not keys.verify(PUBKEY, OTHER, signature)
    if keys.is_public_key(pubkey):
        assert len(pubkey) == 33
    recovered = keys.recover(OTHER, signature)
    assert recovered is None or keys.is_public_key(recovered)


@given(st.binary(max_size=66))
def test_what_is_no_key_is_the_peers_fault(data: bytes) -> None:
    if keys.is_public_key(data):
        return
    uses: list[Callable[[], bytes]] = [
        lambda: keys.derive_pubkey(data, PUBKEY),
        lambda: keys.derive_revocation_pubkey(PUBKEY, data),
        lambda: keys.ecdh(SECRET, data),
        lambda: keys.multiply_public_key(data, SECRET),
    ]
    for use in uses:
        with pytest.raises(RemoteProtocolError) as caught:
            use()
        assert caught.value.reason == "invalid-public-key"


@pytest.mark.parametrize(
    "secret", [b"", bytes(31), bytes(32), bytes(33), ORDER.to_bytes(32, "big"), b"\xff" * 32]
)
def test_what_is_no_secret_is_refused(secret: bytes) -> None:
    uses: list[Callable[[], bytes]] = [
        lambda: keys.public_key(secret),
        lambda: keys.sign(secret, OTHER),
        lambda: keys.sign_recoverable(secret, OTHER),
        lambda: keys.ecdh(secret, PUBKEY),
        lambda: keys.derive_privkey(secret, PUBKEY),
        lambda: keys.multiply_secret(SECRET, secret),
    ]
    for use in uses:
        with pytest.raises(OdaError) as caught:
            use()
        assert caught.value.reason == "invalid-secret-key"


def test_digests_have_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        keys.sign(SECRET, b"short")


def test_der_needs_a_signature() -> None:
    with pytest.raises(RemoteProtocolError):
        keys.der(b"\xff" * 64)


def test_channel_secrets_differ_by_channel_and_purpose_and_stay_out_of_repr() -> None:
    first, second = ChannelSecrets.derive(SECRET, 0), ChannelSecrets.derive(SECRET, 1)
    assert first == ChannelSecrets.derive(SECRET, 0)
    material = [
        getattr(channel, name)
        for channel in (first, second, ChannelSecrets.derive(OTHER, 0))
        for name in ChannelSecrets.__slots__
    ]
    assert len(set(material)) == 18
    assert not any(part.hex() in repr(first) or repr(part) in repr(first) for part in material)
    assert first.public().htlc_basepoint == keys.public_key(first.htlc_basepoint)
    assert first.per_commitment_point(FIRST_INDEX) == keys.public_key(
        keys.per_commitment_secret(first.shachain_seed, FIRST_INDEX)
    )
