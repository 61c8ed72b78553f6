from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt import wire
from channels.bolt.wire import Codec, Reader
from channels.errors import LocalProtocolError, RemoteProtocolError
from tests.vectors import bolt01

# The two namespaces of appendix B; each record is read into what the vectors call its values.
N1: dict[int, Codec[str]] = {
    1: Codec(lambda r: f"tlv1 amount_msat={r.tu64()}", str.encode),
    2: Codec(lambda r: f"tlv2 scid={wire.SHORT_CHANNEL_ID.read(r)}", str.encode),
    3: Codec(
        lambda r: f"tlv3 node_id={r.point().hex()} amount_msat_1={r.u64()} amount_msat_2={r.u64()}",
        str.encode,
    ),
    254: Codec(lambda r: f"tlv4 cltv_delta={r.u16()}", str.encode),
}
N2: dict[int, Codec[str]] = {
    0: Codec(lambda r: f"tlv1 amount_msat={r.tu64()}", str.encode),
    11: Codec(lambda r: f"tlv2 cltv_expiry={r.tu32()}", str.encode),
}


def decode(stream: str | bytes, namespace: dict[int, Codec[str]]) -> list[str]:
    data = bytes.fromhex(stream) if isinstance(stream, str) else stream
    return [
        namespace[number].decode(value)
        for number, value in wire.decode_tlvs(data, namespace).items()
    ]


@pytest.mark.parametrize(("value", "encoding"), bolt01.BIGSIZE)
def test_appendix_a(value: int, encoding: str) -> None:
    assert wire.bigsize(value).hex() == encoding
    reader = Reader(bytes.fromhex(encoding))
    assert reader.bigsize() == value
    assert reader.at_end()


@pytest.mark.parametrize(("encoding", "what"), bolt01.BIGSIZE_MALFORMED)
def test_appendix_a_malformed(encoding: str, what: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        Reader(bytes.fromhex(encoding)).bigsize()
    expected = "bigsize-not-minimal" if "not canonical" in what else "truncated-message"
    assert caught.value.reason == expected


@pytest.mark.parametrize("namespace", [N1, N2], ids=["n1", "n2"])
@pytest.mark.parametrize(("stream", "what"), bolt01.TLV_INVALID_ANYWHERE + bolt01.TLV_UNKNOWN_EVEN)
def test_appendix_b_invalid_anywhere(
    stream: str, what: str, namespace: dict[int, Codec[str]]
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(stream, namespace)
    assert (caught.value.reason == "unknown-even-tlv") == ("even" in what)
    assert (caught.value.reason == "bigsize-not-minimal") == ("not minimal" in what)


@pytest.mark.parametrize(("stream", "what"), bolt01.TLV_INVALID_N1 + bolt01.TLV_STREAM_INVALID_N1)
def test_appendix_b_invalid_n1(stream: str, what: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(stream, N1)
    for words, reason in (
        ("not minimal", "truncated-integer-not-minimal"),
        ("less than", "truncated-message"),
        ("not a valid point", "invalid-point"),
        ("unknown even", "unknown-even-tlv"),
        ("ordering", "tlv-out-of-order"),
        ("duplicate", "tlv-out-of-order"),
    ):
        assert words not in what or caught.value.reason == reason


@pytest.mark.parametrize(("stream", "what"), bolt01.TLV_STREAM_INVALID_N2)
def test_appendix_b_invalid_n2(stream: str, what: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(stream, N2)
    assert caught.value.reason == "tlv-out-of-order"


@pytest.mark.parametrize("namespace", [N1, N2], ids=["n1", "n2"])
@pytest.mark.parametrize(("stream", "what"), bolt01.TLV_IGNORED)
def test_appendix_b_ignored(stream: str, what: str, namespace: dict[int, Codec[str]]) -> None:
    assert decode(stream, namespace) == []


@pytest.mark.parametrize(("stream", "values"), bolt01.TLV_N1)
def test_appendix_b_n1(stream: str, values: str) -> None:
    assert decode(stream, N1) == [values]


@pytest.mark.parametrize(("valid", "_values"), bolt01.TLV_N1 + bolt01.TLV_IGNORED)
@pytest.mark.parametrize(("invalid", "_why"), bolt01.TLV_INVALID_ANYWHERE + bolt01.TLV_INVALID_N1)
def test_appendix_b_invalid_after_valid(valid: str, _values: str, invalid: str, _why: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(valid + invalid, N1)


def test_appendix_b_valid_after_lower_valid() -> None:
    def number(stream: str) -> int:
        return Reader(bytes.fromhex(stream)).bigsize()

    streams = sorted((s for s, _ in bolt01.TLV_N1 + bolt01.TLV_IGNORED if s), key=number)
    pairs = [(a, b) for a in streams for b in streams if number(a) < number(b)]
    for lower, higher in pairs:
        assert decode(lower + higher, N1) == decode(lower, N1) + decode(higher, N1)


@given(st.dictionaries(st.integers(0, 2**64 - 1), st.binary(max_size=300), max_size=8))
def test_tlvs_round_trip(records: dict[int, bytes]) -> None:
    encoded = wire.encode_tlvs(records)
    assert wire.decode_tlvs(encoded, records) == records
    assert list(wire.decode_tlvs(encoded, records)) == sorted(records)


@given(st.binary(max_size=400))
def test_tlvs_from_strangers(data: bytes) -> None:
    try:
        records = wire.decode_tlvs(data, range(2**64))
    except RemoteProtocolError:
        return
    assert wire.encode_tlvs(records) == data


@pytest.mark.parametrize(
    ("write", "codec", "bits"),
    [
        (wire.u8, wire.U8, 8),
        (wire.u16, wire.U16, 16),
        (wire.u32, wire.U32, 32),
        (wire.u64, wire.U64, 64),
        (wire.tu32, wire.TU32, 32),
        (wire.tu64, wire.TU64, 64),
        (wire.bigsize, wire.BIGSIZE, 64),
    ],
)
def test_integers(write: Callable[[int], bytes], codec: Codec[int], bits: int) -> None:
    for value in (0, 1, 0xFF, 1 << (bits - 1), (1 << bits) - 1):
        assert codec.decode(write(value)) == value
    for value in (-1, 1 << bits):
        with pytest.raises(LocalProtocolError) as caught:
            write(value)
        assert caught.value.reason == "integer-out-of-range"


@pytest.mark.parametrize("codec", [wire.TU32, wire.TU64], ids=["tu32", "tu64"])
def test_truncated_integers_are_bounded(codec: Codec[int]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(b"\x01" * 9)
    assert caught.value.reason == "truncated-integer-not-minimal"
    assert codec.decode(b"") == 0


@pytest.mark.parametrize(
    ("codec", "most"), [(wire.SAT, wire.MAX_SAT), (wire.MSAT, wire.MAX_MSAT)], ids=["sat", "msat"]
)
def test_amounts_are_at_most_21_million_bitcoin(codec: Codec[int], most: int) -> None:
    assert codec.decode(wire.u64(most)) == most
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(wire.u64(most + 1))
    assert caught.value.reason == "amount-too-large"


def test_a_value_with_bytes_to_spare_is_refused() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        wire.U16.decode(bytes(3))
    assert caught.value.reason == "tlv-too-long"


@pytest.mark.parametrize("point", [b"", b"\x02" * 32, b"\x04" + bytes(64), b"\x02" + b"\xff" * 32])
def test_what_is_no_point(point: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        wire.check_point(point)
    assert caught.value.reason == "invalid-point"


def test_a_fixed_field_has_one_length() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        wire.HASH.write(bytes(31))
    assert caught.value.reason == "field-length"
