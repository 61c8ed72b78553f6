"""Checks answers against the facts of lightningd's published schemas.

The facts are in tests/vectors/lightningd_schemas.json: JSON Schema with Core Lightning's own types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

SCHEMAS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "lightningd_schemas.json").read_text()
)

_TEXTS: Final = {
    "string": r".*",
    "hex": r"(?:[0-9a-f]{2})*",
    "hash": r"[0-9a-f]{64}",
    "txid": r"[0-9a-f]{64}",
    "secret": r"[0-9a-f]{64}",
    "pubkey": r"0[23][0-9a-f]{64}",
    "signature": r"30[0-9a-f]{14,142}",  # DER
    "short_channel_id": r"[0-9]+x[0-9]+x[0-9]+",
    "short_channel_id_dir": r"[0-9]+x[0-9]+x[0-9]+/[01]",
}
_UNSIGNED: Final = {"u8": 8, "u16": 16, "u32": 32, "u64": 64, "msat": 64}


def check(method: str, answer: Any) -> None:
    """Fail with everything that is wrong with an answer."""
    wrong = list(_problems(SCHEMAS[method], answer, method))
    assert not wrong, "\n".join(wrong)


def _problems(schema: Any, value: Any, where: str) -> Iterator[str]:
    kind = schema.get("type")
    if kind is not None and not _is(kind, value):
        yield f"{where}: {value!r} is no {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is not one of {schema['enum']}"
    if isinstance(value, str) and not (
        schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
    ):
        yield f"{where}: {value!r} has a wrong length"
    if isinstance(value, list):
        for index, element in enumerate(value):
            yield from _problems(schema.get("items", {}), element, f"{where}[{index}]")
    if isinstance(value, dict):
        yield from _fields(schema, value, where)


def _fields(schema: Any, value: dict[str, Any], where: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where}: {name} is missing"
    for name, inner in value.items():
        if name in properties:
            yield from _problems(properties[name], inner, f"{where}.{name}")
        elif schema.get("additionalProperties") is False:
            yield f"{where}: {name} is not a field of lightningd"
    for rule in schema.get("allOf", ()):
        applies = "if" not in rule or not any(_problems(rule["if"], value, where))
        branch = rule.get("then" if applies else "else", {}) if "if" in rule else rule
        yield from _problems(branch, value, where)


def _is(kind: str, value: Any) -> bool:
    if kind in _TEXTS:
        return isinstance(value, str) and re.fullmatch(_TEXTS[kind], value, re.DOTALL) is not None
    whole = type(value) is int
    if kind in _UNSIGNED:
        return whole and 0 <= value < 1 << _UNSIGNED[kind]
    checks = {
        "integer": whole,
        "number": whole or isinstance(value, float),
        "boolean": isinstance(value, bool),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }
    return checks[kind]
