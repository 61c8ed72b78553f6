"""Parameters and errors of lightningd's JSON-RPC: what a caller may write, and what it means.

lightningd reads parameters from the text of the JSON token, so `5` and `"5"` are the same number
and `"5msat"`, `"1sat"` and `"0.00001btc"` are all amounts. Reference: Core Lightning 26.06,
doc/schemas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from channels.errors import OdaError
from channels.units import FeeratePerKw, Msat, Sat, ShortChannelId


class RpcErrorCode(IntEnum):
    """lightningd's error codes (its manual pages, section ERRORS) that the embedded node uses."""

    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    LIGHTNINGD = -1
    SHUTDOWN = -5
    PAY_IN_PROGRESS = 200
    PAY_RHASH_ALREADY_USED = 201
    PAY_UNPARSEABLE_ONION = 202
    PAY_DESTINATION_PERM_FAIL = 203
    PAY_TRY_OTHER_ROUTE = 204
    PAY_ROUTE_NOT_FOUND = 205
    PAY_ROUTE_TOO_EXPENSIVE = 206
    PAY_INVOICE_EXPIRED = 207
    PAY_NO_SUCH_PAYMENT = 208
    PAY_UNSPECIFIED_ERROR = 209
    PAY_STOPPED_RETRYING = 210
    PAY_STATUS_UNEXPECTED = 211
    PAY_ALREADY_PAID = 219
    FUND_MAX_EXCEEDED = 300
    FUND_CANNOT_AFFORD = 301
    FUND_OUTPUT_IS_DUST = 302
    FUNDING_BROADCAST_FAIL = 303
    FUNDING_STILL_SYNCING_BITCOIN = 304
    FUNDING_PEER_NOT_CONNECTED = 305
    FUNDING_UNKNOWN_PEER = 306
    FUNDING_STATE_INVALID = 312
    FUND_CANNOT_AFFORD_WITH_EMERGENCY = 313
    CONNECT_NO_KNOWN_ADDRESS = 400
    CONNECT_ALL_ADDRESSES_FAILED = 401
    CONNECT_DISCONNECTED_DURING = 402
    BCLI_ERROR = 500
    INVOICE_LABEL_ALREADY_EXISTS = 900
    INVOICE_PREIMAGE_ALREADY_EXISTS = 901
    INVOICE_EXPIRED_DURING_WAIT = 903
    INVOICE_WAIT_TIMED_OUT = 904
    INVOICE_NOT_FOUND = 905
    INVOICE_STATUS_UNEXPECTED = 906
    WAIT_TIMEOUT = 2000


class RpcMethodError(OdaError):
    """A command's refusal; it reaches the caller as `{code, message, data?}`."""

    def __init__(self, code: RpcErrorCode, message: str, data: Any = None) -> None:
        super().__init__(code.name.lower().replace("_", "-"), message)
        self.code = code
        self.data = data


Parse = Callable[[str, Any], Any]
"""(parameter name, decoded JSON value that is not null) -> value; raises `RpcMethodError`."""


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter; an optional one that is absent or null has the value `default`."""

    name: str
    required: bool
    parse: Parse
    default: Any = None


def bad_param(name: str, expected: str, value: Any) -> RpcMethodError:
    """lightningd's wording; the offending value is quoted, cut to a bounded length."""
    token = repr(value)
    token = token if len(token) <= 100 else token[:97] + "..."
    message = f"{name}: {expected}: invalid token '{token}'"
    return RpcMethodError(RpcErrorCode.INVALID_PARAMS, message)


def parse_params(params: tuple[Param, ...], given: Any) -> dict[str, Any]:
    """Match positional (array) or named (object) JSON to `params`; every name gets a value."""
    invalid = RpcErrorCode.INVALID_PARAMS
    if isinstance(given, list):
        if len(given) > len(params):
            message = f"too many parameters: got {len(given)}, expected {len(params)}"
            raise RpcMethodError(invalid, message)
        named: Mapping[str, Any] = dict(zip((p.name for p in params), given, strict=False))
    elif isinstance(given, dict):
        named = given
        known = {param.name for param in params}
        for name in given:
            if name not in known:
                raise RpcMethodError(invalid, f"unknown parameter: {name[:100]}")
    else:
        raise RpcMethodError(RpcErrorCode.INVALID_REQUEST, "Expected array or object for params")
    values = {}
    for param in params:
        value = named.get(param.name)
        if value is not None:
            values[param.name] = param.parse(param.name, value)
        elif param.required:
            raise RpcMethodError(invalid, f"missing required parameter: {param.name}")
        else:
            values[param.name] = param.default
    return values


def _token(value: Any) -> str:
    """The text of a JSON string or whole number; empty, so never valid, for anything else."""
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else ""


def _whole(text: str) -> int | None:
    """Plain ASCII digits, at most 20 of them (u64), or None."""
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None


def unsigned(bits: int) -> Parse:
    """A whole number below 2^bits: u16, u32, u64."""

    def parse(name: str, value: Any) -> int:
        number = _whole(_token(value))
        if number is None or number >= 1 << bits:
            raise bad_param(name, f"should be an unsigned {bits} bit integer", value)
        return number

    return parse


u16, u32, u64 = unsigned(16), unsigned(32), unsigned(64)


def boolean(name: str, value: Any) -> bool:
    if value is True or value == "true":
        return True
    if value is False or value == "false":
        return False
    raise bad_param(name, "should be 'true' or 'false'", value)


def string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise bad_param(name, "should be a string", value)
    return value


def label(name: str, value: Any) -> str:
    """A string, or a number which is taken as the string that it is written as."""
    text = _token(value)
    if not text:
        raise bad_param(name, "should be a string or number", value)
    return text


def one_of(*allowed: str) -> Parse:
    def parse(name: str, value: Any) -> str:
        if value not in allowed:
            raise bad_param(name, f"should be one of {', '.join(allowed)}", value)
        return str(value)

    return parse


def hex_bytes(size: int | None = None) -> Parse:
    """Hexadecimal of exactly `size` bytes (any whole number of them when None)."""
    wanted = "should be a hex value" if size is None else f"should be {size} bytes of hex"

    def parse(name: str, value: Any) -> bytes:
        # bytes.fromhex alone would let spaces pass.
        if not isinstance(value, str) or not re.fullmatch(r"(?:[0-9a-fA-F]{2})*", value):
            raise bad_param(name, wanted, value)
        data = bytes.fromhex(value)
        if size is not None and len(data) != size:
            raise bad_param(name, wanted, value)
        return data

    return parse


secret = hex_bytes(32)
payment_hash = hex_bytes(32)


def node_id(name: str, value: Any) -> bytes:
    """A compressed public key: 33 bytes; that it is on the curve is for the handshake to find."""
    if not isinstance(value, str) or not re.fullmatch(r"0[23][0-9a-fA-F]{64}", value):
        raise bad_param(name, "should be a node id", value)
    return bytes.fromhex(value)


def short_channel_id(name: str, value: Any) -> ShortChannelId:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,8}(?:x[0-9]{1,8}){2}", value):
        raise bad_param(name, "should be a short_channel_id of form NxNxN", value)
    try:
        return ShortChannelId.parse(value)
    except ValueError:
        raise bad_param(name, "should be a short_channel_id of form NxNxN", value) from None


_AMOUNT = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,11}))?(msat|sat|btc|)")
_DECIMALS = {"": 0, "msat": 0, "sat": 3, "btc": 11}
_MAX_MSAT = 21_000_000 * 100_000_000 * 1000


def _amount(value: Any, plain_unit: str) -> int | None:
    """Millisatoshi in an amount of any form; only `btc` may have a decimal point."""
    match = _AMOUNT.fullmatch(_token(value))
    if match is None:
        return None
    whole, fraction, unit = match[1], match[2] or "", match[3] or plain_unit
    if fraction and unit != "btc":
        return None
    millisatoshi = int(whole + fraction.ljust(_DECIMALS[unit], "0"))
    return millisatoshi if millisatoshi <= _MAX_MSAT else None


def msat(name: str, value: Any) -> Msat:
    """`5`, `"5"`, `"5msat"`, `"1sat"`, `"0.00001btc"`: a bare number is in millisatoshi."""
    amount = _amount(value, "msat")
    if amount is None:
        raise bad_param(name, "should be a millisatoshi amount", value)
    return Msat(amount)


def u32_msat(name: str, value: Any) -> Msat:
    """An amount that BOLT 7 has 32 bits for: a base fee."""
    amount = msat(name, value)
    if amount >= 1 << 32:
        raise bad_param(name, "exceeds u32 max", value)
    return amount


def sat(name: str, value: Any) -> Sat:
    """A bare number is in satoshi; millisatoshi must be whole satoshis."""
    amount = _amount(value, "sat")
    if amount is None or amount % 1000:
        raise bad_param(name, "should be a satoshi amount", value)
    return Sat(amount // 1000)


def msat_or_any(name: str, value: Any) -> Msat | None:
    """A positive amount, or None for the string `any`."""
    if value == "any":
        return None
    amount = _amount(value, "msat")
    if not amount:
        raise bad_param(name, "should be positive millisatoshis or 'any'", value)
    return Msat(amount)


ALL = "all"


def sat_or_all(name: str, value: Any) -> Sat | str:
    """Satoshis, or the constant `ALL`."""
    if value == ALL:
        return ALL
    amount = _amount(value, "sat")
    if amount is None or amount % 1000:
        raise bad_param(name, "should be a satoshi amount or 'all'", value)
    return Sat(amount // 1000)


_FEERATE_NAMES = ("slow", "normal", "urgent", "opening", "minimum")


def feerate(name: str, value: Any) -> FeeratePerKw | str:
    """`"253perkw"`, `"1012perkb"`, a bare number (perkb), or one of lightningd's names."""
    if value in _FEERATE_NAMES:
        return str(value)
    match = re.fullmatch(r"([0-9]{1,10})(perkw|perkb|)", _token(value))
    if match is None:
        raise bad_param(name, "should be a feerate", value)
    rate = int(match[1])
    # 1000 virtual bytes are 4000 weight units; rounded up so as never to fall below what was asked.
    return FeeratePerKw(rate if match[2] == "perkw" else -(-rate // 4))


def array(item: Parse) -> Parse:
    def parse(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise bad_param(name, "should be an array", value)
        return [item(f"{name}[{i}]", element) for i, element in enumerate(value)]

    return parse
