from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt import features
from channels.bolt.features import Feature
from channels.errors import RemoteProtocolError

ELECTRUM = frozenset({0, 8, 12, 14, 22, 44})
CORE_LIGHTNING = frozenset({0, 5, 7, 8, 11, 12, 14, 17, 19, 23, 25, 27, 35, 39, 43, 44, 47, 51, 63})


def test_what_we_offer() -> None:
    assert {1, 7, 9, 11, 13, 15, 17, 23, 27, 45} == features.OUR_INIT
    assert {8, 14, 17} == features.OUR_INVOICE
    # BOLT 9: both bits of a pair MUST NOT be set, and dependencies MUST be.
    assert not any(bit ^ 1 in features.OUR_INIT for bit in features.OUR_INIT)
    features.check_compatible(features.OUR_INIT)


@pytest.mark.parametrize(
    ("bits", "field"),
    [
        (set(), ""),
        ({0}, "01"),
        ({7}, "80"),
        ({8}, "0100"),
        ({0, 15}, "8001"),
        ({1, 5, 7, 8, 11, 13, 14, 17, 27}, "080269a2"),
    ],
)
def test_encoding(bits: set[int], field: str) -> None:
    assert features.encode_bits(bits).hex() == field
    assert features.decode_bits(bytes.fromhex(field)) == bits


def test_padding_is_read() -> None:
    assert features.decode_bits(bytes.fromhex("00000001")) == {0}


@given(st.frozensets(st.integers(0, 2000)))
def test_encoding_round_trip(bits: frozenset[int]) -> None:
    field = features.encode_bits(bits)
    assert features.decode_bits(field) == bits
    assert not field.startswith(b"\0")


def test_the_longest_field_is_read() -> None:
    assert len(features.decode_bits(b"\xff" * 65535)) == 8 * 65535


@pytest.mark.parametrize("bits", [frozenset(), ELECTRUM, CORE_LIGHTNING, frozenset({9999})])
def test_peers_we_can_live_with(bits: frozenset[int]) -> None:
    features.check_compatible(bits)


@pytest.mark.parametrize("bit", [Feature.ROUTE_BLINDING, Feature.DUAL_FUND, Feature.ZEROCONF, 9998])
def test_a_required_feature_that_we_lack(bit: int) -> None:
    for bits in ({bit}, {bit, bit + 1}):
        with pytest.raises(RemoteProtocolError) as caught:
            features.check_compatible(ELECTRUM | bits)
        assert caught.value.reason == "unknown-required-feature"


@pytest.mark.parametrize(("feature", "needed"), features.DEPENDENCIES.items())
def test_dependencies(feature: Feature, needed: Feature) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        features.check_compatible(frozenset({feature + 1}))
    assert caught.value.reason == "missing-feature-dependency"
    features.check_compatible(frozenset({feature + 1, needed + 1}))


def test_offered_and_negotiated() -> None:
    anchors = Feature.ANCHORS
    assert features.offers({22}, anchors)
    assert features.offers({23}, anchors)
    assert not features.offers({21, 24}, anchors)
    assert features.negotiated({23}, {22}, anchors)
    assert features.negotiated({22}, set(), anchors)
    assert not features.negotiated({23}, set(), anchors)
    assert not features.negotiated(set(), {22}, anchors)
