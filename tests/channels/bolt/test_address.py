from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt import address
from channels.errors import UserError
from tests.vectors import bip350

# BOLT 11 "Examples": fallback addresses and the hashes its breakdowns name.
LEGACY = [
    ("tb", "mk2QpYatsKicvFVuTAQLBryyccRXMUaGHP", "3172b5654f6683c8fb146959d347ce303cae4ca7"),
    ("bc", "1RustyRX2oai4EYYDpQGWvEL62BBGqN9T", "04b61f7dc1ea0dc99424464cc4064dc564d91e89"),
    ("bc", "3EktnHQD7RiAE6uzMj2ZifT9YgRrkSgzQX", "8f55563b9a19f321c211e9b9f38cdf686ea07845"),
]


@pytest.mark.parametrize(("network", "text", "digest"), LEGACY)
def test_base58_addresses_of_bolt_11(network: str, text: str, digest: str) -> None:
    script = address.to_script(network, text)
    assert digest in script.hex()
    assert len(script) == (23 if text.startswith("3") else 25)
    assert address.from_script(network, script) == text


@pytest.mark.parametrize(("text", "script"), bip350.SEGWIT_ADDRESSES.items())
def test_segwit_addresses_of_bip_350(text: str, script: str) -> None:
    network = text[:2].lower()
    assert address.to_script(network, text).hex() == script
    assert address.from_script(network, bytes.fromhex(script)) == text.lower()


@pytest.mark.parametrize(
    ("network", "text", "reason"),
    [
        ("bcrt", "1RustyRX2oai4EYYDpQGWvEL62BBGqN9T", "wrong-network"),
        ("bcrt", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "wrong-network"),
        ("bc", "mk2QpYatsKicvFVuTAQLBryyccRXMUaGHP", "wrong-network"),
        ("bc", "1RustyRX2oai4EYYDpQGWvEL62BBGqN9U", "address"),
        ("bc", "", "address"),
        ("bc", "0OIl", "address"),
        ("bc", "z" * 36, "address"),
        ("bc", "z" * 35, "address"),
    ],
)
def test_addresses_that_are_refused(network: str, text: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        address.to_script(network, text)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "script", ["", "00", "6a0401020304", "0013" + "00" * 19, "5114" + "00" * 21, "4f02abcd"]
)
def test_scripts_without_an_address(script: str) -> None:
    assert address.from_script("bcrt", bytes.fromhex(script)) is None


@given(network=st.sampled_from(["bc", "tb", "bcrt"]), digest=st.binary(min_size=20, max_size=20))
def test_scripts_round_trip(network: str, digest: bytes) -> None:
    for script in (
        b"\x76\xa9\x14" + digest + b"\x88\xac",
        b"\xa9\x14" + digest + b"\x87",
        address.witness_script(0, digest),
        address.witness_script(16, digest),
    ):
        text = address.from_script(network, script)
        assert text is not None
        assert address.to_script(network, text) == script


@given(text=st.text(max_size=60))
def test_any_text_is_an_address_or_a_user_error(text: str) -> None:
    try:
        script = address.to_script("bcrt", text)
    except UserError as error:
        assert error.reason
    else:
        assert address.from_script("bcrt", script) == text
