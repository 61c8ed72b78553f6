"""Parameters as lightningd reads them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.node import rpc_params as params
from channels.node.rpc_params import Param, RpcErrorCode, RpcMethodError, parse_params

TABLE = (
    Param("amount_msat", True, params.msat),
    Param("label", True, params.label),
    Param("expiry", False, params.u64, 604800),
)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        (5, 5),
        (0, 0),
        ("5", 5),
        ("5msat", 5),
        ("1sat", 1000),
        ("0.00001btc", 1_000_000),
        ("0.00000000001btc", 1),
        ("21000000btc", 2_100_000_000_000_000_000),
    ],
)
def test_millisatoshi_in_every_form(text: Any, amount: int) -> None:
    assert params.msat("a", text) == amount


@pytest.mark.parametrize(
    "text",
    [
        *(-1, 1.5, True, None, [], {}, "", "-1", "1.5", "1.5sat", "1.0msat", " 1", "1 sat"),
        *("1SAT", "0.000000000001btc", "21000001btc", "1e3", "٣", "9" * 30, "any", "1_000"),
    ],
)
def test_what_is_not_an_amount(text: Any) -> None:
    with pytest.raises(RpcMethodError) as refused:
        params.msat("amount_msat", text)
    assert refused.value.code == RpcErrorCode.INVALID_PARAMS
    assert str(refused.value).startswith("amount_msat: should be a millisatoshi amount")


@pytest.mark.parametrize(
    ("text", "amount"), [(7, 7), ("7sat", 7), ("7000msat", 7), ("0.1btc", 10_000_000)]
)
def test_satoshis(text: Any, amount: int) -> None:
    assert params.sat("a", text) == amount
    assert params.sat_or_all("a", text) == amount


def test_satoshis_must_be_whole() -> None:
    with pytest.raises(RpcMethodError, match="satoshi"):
        params.sat("amount", "7001msat")


def test_words_in_place_of_amounts() -> None:
    assert params.sat_or_all("a", "all") == params.ALL
    assert params.msat_or_any("a", "any") is None
    assert params.msat_or_any("a", "1sat") == 1000
    with pytest.raises(RpcMethodError, match="positive"):
        params.msat_or_any("a", 0)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("253perkw", 253), ("1012perkb", 253), (1013, 254), ("1000", 250), ("normal", "normal")],
)
def test_feerates(text: Any, rate: Any) -> None:
    assert params.feerate("f", text) == rate


@pytest.mark.parametrize(
    ("parse", "good", "value", "bad"),
    [
        (params.u16, "65535", 65535, [65536, -1, 1.0, True, "0x1"]),
        (params.u64, 2**64 - 1, 2**64 - 1, [2**64, "", None]),
        (params.boolean, "true", True, [1, 0, "yes", None]),
        (params.boolean, False, False, ["", []]),
        (params.string, "x", "x", [1, None, []]),
        (params.label, 7, "7", ["", 1.0, True, []]),
        (params.one_of("paid", "unpaid"), "paid", "paid", ["expired", 1, None, []]),
        (params.secret, "AB" * 32, b"\xab" * 32, ["ab" * 31, "zz" * 32, " " * 64, 1]),
        (params.hex_bytes(), "", b"", ["a", "0 a", 7]),
        (params.node_id, "02" * 33, b"\x02" * 33, ["04" * 33, "02" * 32, 2]),
        (params.short_channel_id, "1x2x3", (1 << 40) + (2 << 16) + 3, ["1x2", "1x2x70000", 5]),
        (params.array(params.u16), [1, "2"], [1, 2], ["1", [70000]]),
    ],
)
def test_types(parse: params.Parse, good: Any, value: Any, bad: list[Any]) -> None:
    assert parse("p", good) == value
    for wrong in bad:
        with pytest.raises(RpcMethodError) as refused:
            parse("p", wrong)
        assert refused.value.code == RpcErrorCode.INVALID_PARAMS


def test_positional_and_named_are_the_same() -> None:
    expected = {"amount_msat": 5, "label": "x", "expiry": 604800}
    assert parse_params(TABLE, ["5msat", "x"]) == expected
    assert parse_params(TABLE, {"label": "x", "amount_msat": 5, "expiry": None}) == expected


@pytest.mark.parametrize(
    ("given_params", "message", "code"),
    [
        ([1, "x", 3, 4], "too many parameters: got 4, expected 3", -32602),
        ({"amount_msat": 1, "label": "x", "more": 1}, "unknown parameter: more", -32602),
        ({"amount_msat": 1}, "missing required parameter: label", -32602),
        ([None, "x"], "missing required parameter: amount_msat", -32602),
        ("x", "Expected array or object for params", -32600),
    ],
)
def test_params_that_do_not_fit(given_params: Any, message: str, code: int) -> None:
    with pytest.raises(RpcMethodError) as refused:
        parse_params(TABLE, given_params)
    assert (str(refused.value), refused.value.code) == (message, code)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(value=json_values)
def test_no_value_raises_anything_else(value: Any) -> None:
    for parse in (
        *(params.msat, params.sat, params.msat_or_any, params.sat_or_all, params.feerate),
        *(params.u64, params.boolean, params.label, params.string, params.node_id),
        *(params.secret, params.short_channel_id, params.array(params.u16)),
    ):
        try:
            parse("p", value)
        except RpcMethodError as refused:
            assert refused.code == RpcErrorCode.INVALID_PARAMS
            assert len(str(refused)) < 300
