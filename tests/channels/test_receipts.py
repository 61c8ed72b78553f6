from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels import receipts
from channels.bolt import invoice as bolt11
from channels.bolt import keys, signmessage
from channels.bolt.features import Feature
from channels.bolt.invoice import Invoice
from channels.errors import RemoteProtocolError
from channels.receipts import (
    AnswerEntry,
    Owed,
    Period,
    Proof,
    ReadAnswer,
    Receipt,
    Statement,
    Transcript,
    check_proofs,
    check_shares,
    check_statement,
)
from channels.sum_tree import Leaf, SumTree
from channels.units import Msat, UnixTime

PROVIDER, TRAINER, PRODUCER = (bytes([i]) * 32 for i in (1, 2, 3))
TRAINER_KEY, PRODUCER_KEY, OTHER_KEY = (bytes([i]) * 32 for i in (0xA1, 0xA2, 0xA3))
SESSION, MODEL, ROOT, BLOCK = (bytes([i]) * 32 for i in (0x51, 0x61, 0x71, 0x81))
PAYEES = {
    TRAINER_KEY: frozenset({keys.public_key(TRAINER)}),
    PRODUCER_KEY: frozenset({keys.public_key(PRODUCER)}),
}


def events(*data: bytes) -> bytes:
    state = receipts.NO_EVENTS
    for each in data:
        state = receipts.digest(state, each)
    return state


ANSWERS = (
    AnswerEntry("one", 10, 100, events(b"a", b"b").hex()),
    AnswerEntry("two", 5, 20, events(b"c").hex()),
    AnswerEntry("left", 5, 0, receipts.NO_EVENTS.hex()),
)
PERIODS = (
    Period(7, BLOCK.hex(), MODEL.hex(), ROOT.hex(), 120, (Owed(TRAINER_KEY.hex(), 6),)),
    Period(
        8,
        BLOCK.hex(),
        MODEL.hex(),
        ROOT.hex(),
        15,
        (Owed(TRAINER_KEY.hex(), 1), Owed(PRODUCER_KEY.hex(), 1)),
    ),
)
EXPECTED = [{TRAINER_KEY: Msat(6)}, {TRAINER_KEY: Msat(1), PRODUCER_KEY: Msat(1)}]
STATEMENT = Statement(
    "regtest",
    keys.public_key(PROVIDER).hex(),
    SESSION.hex(),
    "model",
    1,
    1,
    50_000,
    10_000,
    1_800_000_000,
    (ANSWERS[0], ANSWERS[1], ANSWERS[2]),
    PERIODS,
)
TRANSCRIPT = Transcript(
    "regtest",
    keys.public_key(PROVIDER),
    SESSION,
    "model",
    Msat(1),
    Msat(1),
    50_000,
    10_000,
    {
        "one": ReadAnswer(10, 100, events(b"a", b"b")),
        "two": ReadAnswer(5, 20, events(b"c")),
    },
    frozenset({BLOCK}),
    frozenset({(MODEL, ROOT)}),
    in_flight=8,
)


def signed(statement: Statement, secret: bytes = PROVIDER) -> Receipt:
    return Receipt(statement, signmessage.sign(secret, statement.text)[1])


def batch(
    secret: bytes,
    leaves: list[Leaf],
    *,
    amount: int | None = None,
    text: str | None = None,
    preimage: bytes = bytes([9]) * 32,
    currency: str = "bcrt",
) -> Callable[[int, bytes], Proof]:
    """A paid batch of these leaves; gives the proof of one of them."""
    tree = SumTree(leaves)
    described = receipts.description(tree.root) if text is None else text
    invoice = Invoice(
        currency=currency,
        amount_msat=Msat(tree.root.amount if amount is None else amount),
        timestamp=UnixTime(1_800_000_000),
        payment_hash=hashlib.sha256(preimage).digest(),
        payment_secret=bytes(32),
        description_hash=hashlib.sha256(described.encode()).digest(),
        payee=keys.public_key(secret),
        features=frozenset({int(Feature.VAR_ONION), int(Feature.PAYMENT_SECRET)}),
    )
    written = bolt11.encode(invoice, secret)

    def proof(index: int, key: bytes) -> Proof:
        return Proof.of(key, leaves[index], tree.path(index), written, preimage)

    return proof


def leaves(amount: int = 7) -> list[Leaf]:
    others = [Leaf(bytes([i]) * 32, Msat(i), bytes([i]) * 32) for i in range(1, 5)]
    return [*others[:2], Leaf(SESSION, Msat(amount), bytes([0x55]) * 32), *others[2:]]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        call()
    return caught.value.reason


def test_an_honest_receipt() -> None:
    receipt = signed(STATEMENT)
    check_statement(receipt, TRANSCRIPT)
    check_shares(STATEMENT, EXPECTED)
    receipt = msgspec.structs.replace(receipt, proofs=(batch(TRAINER, leaves())(2, TRAINER_KEY),))
    assert receipts.decode(receipt.encode()) == receipt
    verdict = check_proofs(receipt, PAYEES)
    assert verdict.paid == {TRAINER_KEY.hex(): 7}
    assert verdict.carried == {PRODUCER_KEY.hex(): 1}
    assert verdict.own == {}


def test_shares_in_several_batches() -> None:
    """A long session is settled as it goes: its parts in different payments add up."""
    proofs = (
        batch(TRAINER, leaves(4), preimage=bytes([9]) * 32)(2, TRAINER_KEY),
        batch(TRAINER, leaves(3), preimage=bytes([8]) * 32)(2, TRAINER_KEY),
        batch(PRODUCER, leaves(1), preimage=bytes([7]) * 32)(2, PRODUCER_KEY),
    )
    verdict = check_proofs(msgspec.structs.replace(signed(STATEMENT), proofs=proofs), PAYEES)
    assert verdict.paid == {TRAINER_KEY.hex(): 7, PRODUCER_KEY.hex(): 1}
    assert verdict.carried == {}


def test_what_a_provider_owes_to_itself_is_told_apart() -> None:
    payees = PAYEES | {TRAINER_KEY: {keys.public_key(PROVIDER)}}
    verdict = check_proofs(signed(STATEMENT), payees)
    assert verdict.own == {TRAINER_KEY.hex(): 7}
    assert verdict.carried == {PRODUCER_KEY.hex(): 1}


def entry(index: int, **changes: Any) -> tuple[AnswerEntry, ...]:
    changed = list(ANSWERS)
    changed[index] = msgspec.structs.replace(changed[index], **changes)
    return tuple(changed)


def period(**changes: Any) -> tuple[Period, ...]:
    return (msgspec.structs.replace(PERIODS[0], **changes), PERIODS[1])


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "another session": ({"session": "00" * 32}, "wrong-session"),
    "another network": ({"network": "mainnet"}, "wrong-session"),
    "another provider": ({"provider": keys.public_key(TRAINER).hex()}, "statement-not-signed"),
    "another price": ({"output_msat": 2}, "wrong-terms"),
    "smaller shares": ({"trainer_ppm": 1}, "wrong-terms"),
    "another name": ({"model": "cheaper"}, "wrong-model"),
    "older weights": ({"periods": period(weights_root="00" * 32)}, "wrong-model"),
    "unregistered": ({"periods": period(model=None, weights_root=None)}, "wrong-model"),
    "no tip": ({"periods": period(block=None, height=None)}, "wrong-tip"),
    "another tip": ({"periods": period(block="00" * 32)}, "wrong-tip"),
    "spent more": ({"periods": period(spent_msat=121)}, "overcharge"),
    "spent less": ({"periods": period(spent_msat=119)}, "understated"),
    "tokens that never came": ({"answers": entry(0, completion_tokens=101)}, "truncated"),
    "fewer tokens": ({"answers": entry(0, completion_tokens=99)}, "understated"),
    "a longer question": ({"answers": entry(0, prompt_tokens=11)}, "overcharge"),
    "another answer": ({"answers": entry(0, digest="00" * 32)}, "answer-differs"),
    "an answer nobody read": ({"answers": entry(2, completion_tokens=1)}, "overcharge"),
    "an answer left out": ({"answers": ANSWERS[1:]}, "understated"),
    "an answer twice": (
        {"answers": (*ANSWERS, ANSWERS[0]), "periods": period(spent_msat=230)},
        "overcharge",
    ),
}


@pytest.mark.parametrize(("changes", "reason"), LIES.values(), ids=LIES)
def test_a_lying_statement(changes: dict[str, Any], reason: str) -> None:
    lie = signed(msgspec.structs.replace(STATEMENT, **changes))
    assert refused(lambda: check_statement(lie, TRANSCRIPT)) == reason


def test_a_statement_that_the_provider_did_not_sign() -> None:
    assert refused(lambda: check_statement(signed(STATEMENT, TRAINER), TRANSCRIPT)) == (
        "statement-not-signed"
    )
    other = msgspec.structs.replace(signed(STATEMENT), signature="y" * 104)
    assert refused(lambda: check_statement(other, TRANSCRIPT)) == "statement-not-signed"


def test_an_answer_that_was_left_may_cost_what_was_on_its_way() -> None:
    answers = dict(TRANSCRIPT.answers) | {
        "two": ReadAnswer(5, 12, events(), complete=False),
    }
    check_statement(signed(STATEMENT), replace(TRANSCRIPT, answers=answers))
    answers["two"] = ReadAnswer(5, 11, events(), complete=False)
    seen = replace(TRANSCRIPT, answers=answers)
    assert refused(lambda: check_statement(signed(STATEMENT), seen)) == "truncated"


def test_shares_are_held_against_the_chain() -> None:
    elsewhere = [{OTHER_KEY: Msat(6)}, EXPECTED[1]]
    assert refused(lambda: check_shares(STATEMENT, elsewhere)) == "wrong-payee"
    more = [{TRAINER_KEY: Msat(7)}, EXPECTED[1]]
    assert refused(lambda: check_shares(STATEMENT, more)) == "wrong-amount"
    twice = period(owed=(Owed(TRAINER_KEY.hex(), 6), Owed(TRAINER_KEY.hex(), 6)))
    lie = msgspec.structs.replace(STATEMENT, periods=twice)
    assert refused(lambda: check_shares(lie, EXPECTED)) == "wrong-payee"


GOOD = batch(TRAINER, leaves())
BAD_PROOFS: dict[str, tuple[tuple[Proof, ...], str]] = {
    "for nobody": ((GOOD(2, OTHER_KEY),), "wrong-payee"),
    "of another node": ((batch(PRODUCER, leaves())(2, TRAINER_KEY),), "wrong-payee"),
    "of another session": ((GOOD(1, TRAINER_KEY),), "wrong-root"),
    "more than owed": ((batch(TRAINER, leaves(8))(2, TRAINER_KEY),), "wrong-amount"),
    "paid less": ((batch(TRAINER, leaves(), amount=16)(2, TRAINER_KEY),), "wrong-amount"),
    "another batch": ((batch(TRAINER, leaves(), text="ODA shares")(2, TRAINER_KEY),), "wrong-root"),
    "another network": ((batch(TRAINER, leaves(), currency="bc")(2, TRAINER_KEY),), "bad-invoice"),
    "unpaid": (
        (msgspec.structs.replace(GOOD(2, TRAINER_KEY), preimage="00" * 32),),
        "bad-preimage",
    ),
    "no invoice": ((msgspec.structs.replace(GOOD(2, TRAINER_KEY), invoice="lnx"),), "bad-invoice"),
    "twice": (
        (
            batch(TRAINER, leaves(3))(2, TRAINER_KEY),
            batch(TRAINER, leaves(3))(2, TRAINER_KEY),
        ),
        "batch-twice",
    ),
    "leaf as node": (
        (
            msgspec.structs.replace(
                GOOD(2, TRAINER_KEY),
                path=(*GOOD(2, TRAINER_KEY).path, GOOD(0, TRAINER_KEY).path[0]),
            ),
        ),
        "wrong-amount",
    ),
}


@pytest.mark.parametrize(("proofs", "reason"), BAD_PROOFS.values(), ids=BAD_PROOFS)
def test_a_bad_proof(proofs: tuple[Proof, ...], reason: str) -> None:
    receipt = msgspec.structs.replace(signed(STATEMENT), proofs=proofs)
    assert refused(lambda: check_proofs(receipt, PAYEES)) == reason


def test_a_proof_for_one_session_is_none_for_another() -> None:
    """The same payment shown to a second user leads to another root."""
    other = msgspec.structs.replace(STATEMENT, session="52" * 32)
    receipt = msgspec.structs.replace(signed(other), proofs=(GOOD(2, TRAINER_KEY),))
    assert refused(lambda: check_proofs(receipt, PAYEES)) == "wrong-root"


@given(st.binary(max_size=300))
def test_garbage(data: bytes) -> None:
    assert refused(lambda: receipts.decode(data)) == "bad-receipt"


@given(st.data())
def test_one_changed_character_is_found(data: st.DataObject) -> None:
    """Whatever is changed in an encoded receipt: it is refused, or says the same."""
    receipt = msgspec.structs.replace(signed(STATEMENT), proofs=(GOOD(2, TRAINER_KEY),))
    encoded = receipt.encode()
    at = data.draw(st.integers(0, len(encoded) - 1))
    other = bytes([data.draw(st.integers(0x20, 0x7E))])
    try:
        changed = receipts.decode(encoded[:at] + other + encoded[at + 1 :])
        check_statement(changed, TRANSCRIPT)
        check_shares(changed.statement, EXPECTED)
        verdict = check_proofs(changed, PAYEES)
    except RemoteProtocolError:
        return
    assert changed.statement == STATEMENT
    assert verdict.paid == {TRAINER_KEY.hex(): 7}
