from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt import bech32
from channels.errors import LocalProtocolError, UserError
from tests.vectors import bip350


@pytest.mark.parametrize("text", bip350.VALID_BECH32)
def test_bech32_vectors(text: str) -> None:
    hrp, groups, constant = bech32.decode(text)
    assert constant == bech32.BECH32
    assert bech32.encode(hrp, groups) == text.lower()


@pytest.mark.parametrize("text", bip350.VALID_BECH32M)
def test_bech32m_vectors(text: str) -> None:
    hrp, groups, constant = bech32.decode(text)
    assert constant == bech32.BECH32M
    assert bech32.encode(hrp, groups, bech32.BECH32M) == text.lower()


@pytest.mark.parametrize(("text", "reason"), bip350.INVALID.items())
def test_invalid_vectors(text: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        bech32.decode(text)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("address", "script"), bip350.SEGWIT_ADDRESSES.items())
def test_segwit_address_vectors(address: str, script: str) -> None:
    hrp = address[:2].lower()
    version, program = bech32.decode_segwit_address(hrp, address)
    opcode = bytes.fromhex(script)[0]
    assert version == (opcode - 0x50 if opcode else 0)
    assert program.hex() == script[4:]
    assert bech32.encode_segwit_address(hrp, version, program) == address.lower()


@pytest.mark.parametrize(("address", "reason"), bip350.INVALID_ADDRESSES.items())
def test_invalid_segwit_address_vectors(address: str, reason: str) -> None:
    hrp = "bc" if reason == "wrong-network" else address[:2].lower()
    with pytest.raises(UserError) as caught:
        bech32.decode_segwit_address(hrp, address)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("version", "size"), [(0, 19), (0, 21), (1, 1), (1, 41), (17, 20), (-1, 20)]
)
def test_what_is_no_witness_program_is_not_written(version: int, size: int) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        bech32.encode_segwit_address("bcrt", version, bytes(size))
    assert caught.value.reason == "witness-program"


@given(data=st.binary(max_size=200))
def test_groups_round_trip(data: bytes) -> None:
    groups = bech32.to_groups(data)
    assert len(groups) == -(-len(data) * 8 // 5)
    assert bech32.from_groups(groups) == data
    assert bech32.from_characters(bech32.to_characters(groups)) == groups


@given(groups=st.lists(st.integers(0, 31), max_size=70).map(bytes), at=st.integers(0, 200))
def test_every_single_error_is_found(groups: bytes, at: int) -> None:
    text = bech32.encode("bcrt", groups)
    assert bech32.decode(text) == ("bcrt", groups, bech32.BECH32)
    at = 5 + at % (len(text) - 5)
    other = "q" if text[at] != "q" else "p"
    with pytest.raises(UserError, match="typing error"):
        bech32.decode(text[:at] + other + text[at + 1 :])


@given(text=st.text(max_size=100))
def test_any_text_decodes_or_is_a_user_error(text: str) -> None:
    try:
        hrp, groups, constant = bech32.decode(text)
    except UserError as error:
        assert error.reason.startswith("bech32-")
    else:
        assert bech32.encode(hrp, groups, constant) == text.lower()
