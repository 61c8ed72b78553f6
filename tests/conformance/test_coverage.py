"""The one list of methods is whole, and each has its cases on both nodes: answer and refusal."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from channels import lightning
from channels.node import rpc_methods
from tests.conformance.methods import METHODS
from tests.conformance.schema import SCHEMAS

CASES = sorted(Path(__file__).parent.glob("test_lightningd_*.py"))


def constants(node: ast.AST) -> set[str]:
    return {
        n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }


def functions(source: str) -> Iterator[ast.AsyncFunctionDef]:
    found = ast.walk(ast.parse(source))
    return (node for node in found if isinstance(node, ast.AsyncFunctionDef))


def asked(function: ast.AsyncFunctionDef, *names: str) -> set[str]:
    """The methods that a case calls by these functions of ours: `ask(node, method, ...)`.

    One that takes its method from a list, as a loop or a parametrized case does, asks for each
    that it names.
    """
    found: set[str] = set()
    for call in ast.walk(function):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            continue
        if call.func.id in names:
            method = call.args[1]
            literal = isinstance(method, ast.Constant)
            found |= constants(method if literal else function) & METHODS
    return found


@cache
def covered(*names: str) -> set[str]:
    every = (f for case in CASES for f in functions(case.read_text()))
    return {method for function in every for method in asked(function, *names)}


def test_the_list_is_what_the_embedded_node_answers() -> None:
    node: Any = None  # commands() only keeps it
    offered = {command.name for command in rpc_methods.commands(node, lambda: None)} | {"help"}
    assert {name for name in offered if not name.startswith("oda-")} == METHODS


def test_the_list_has_everything_that_is_asked_for() -> None:
    """`channels.lightning` is the one door to Lightning outside channels/node/."""
    calls = {
        call.args[0].value
        for call in ast.walk(ast.parse(inspect.getsource(lightning)))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("call", "_wait")
        and isinstance(call.args[0], ast.Constant)
    }
    assert "fundchannel" in calls
    assert {str(name) for name in calls} - {"oda-listcloses"} <= METHODS


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_has_its_cases(method: str) -> None:
    assert method in SCHEMAS
    assert method in covered("ask"), "its answer"
    assert method in covered("code_of", "refusal"), "its refusal"
