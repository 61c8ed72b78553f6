from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt import signmessage
from channels.node.rpc_chain import ChainMethods
from sidechain import payee
from tests.sidechain.world import ALICE, BOB
from tests.vectors.signmessage import SIGNED

TEXT = payee.payee_text(7, ALICE.key, 1, ALICE.node_id, "http://alice.example")


async def embedded_signmessage(secret: bytes, text: str) -> str:
    """The embedded node's own RPC method."""
    node: Any = SimpleNamespace(node_secret=secret)
    call: Any = None
    answer = await ChainMethods(node).signmessage({"message": text}, call)
    return str(answer["zbase"])


async def test_the_embedded_nodes_signmessage_is_accepted() -> None:
    for person in (ALICE, BOB):
        zbase = await embedded_signmessage(person.node_secret, TEXT)
        assert signmessage.signer(TEXT, zbase) == person.node_id
        assert zbase == signmessage.sign(person.node_secret, TEXT)[1]


@pytest.mark.parametrize(("text", "zbase", "node_id"), SIGNED)
def test_lightningds_examples(text: str, zbase: str, node_id: str) -> None:
    assert signmessage.signer(text, zbase) == bytes.fromhex(node_id)


def test_the_text_names_everything() -> None:
    parts: list[Any] = [7, ALICE.key, 1, ALICE.node_id, "http://alice.example"]
    others: list[Any] = [8, BOB.key, 2, BOB.node_id, "http://bob.example"]
    for i, other in enumerate(others):
        changed = [*parts[:i], other, *parts[i + 1 :]]
        assert payee.payee_text(*changed) != TEXT


def test_another_text_is_another_signer() -> None:
    zbase = signmessage.sign(ALICE.node_secret, TEXT)[1]
    assert signmessage.signer(TEXT + " ", zbase) != ALICE.node_id


def test_other_spellings_are_refused() -> None:
    zbase = signmessage.sign(ALICE.node_secret, TEXT)[1]
    for bad in ("", zbase[:-1], zbase + "y", zbase.upper(), "l" + zbase[1:], "y" * 104):
        assert signmessage.signer(TEXT, bad) is None


@given(st.text(max_size=110), st.text(signmessage.ALPHABET, min_size=104, max_size=104))
def test_garbage_is_nobodys(text: str, zbase: str) -> None:
    assert signmessage.signer(TEXT, text) is None
    assert signmessage.signer(TEXT, zbase) != ALICE.node_id


def test_endpoints() -> None:
    for good in ("http://alice.example:8080/pay", "x", "~" * 256):
        assert payee.is_endpoint(good)
    for bad in ("", "a b", "a\n", "ü", "\x7f", "x" * 257):
        assert not payee.is_endpoint(bad)
