"""A second opinion on every transaction: pycoin's script interpreter, which shares no code with
ours, executes the inputs under the rules of a node that relays."""

from __future__ import annotations

from collections.abc import Sequence

from pycoin.coins.SolutionChecker import ScriptError
from pycoin.satoshi import flags
from pycoin.symbols.btc import network

from channels.bolt.transactions import Transaction, TxOut

# pycoin's default flags accept an unmet CSV or CLTV, and any witness for a version that it does
# not know (taproot): the last flag refuses those instead.
_STANDARD = (
    flags.VERIFY_P2SH
    | flags.VERIFY_WITNESS
    | flags.VERIFY_DERSIG
    | flags.VERIFY_STRICTENC
    | flags.VERIFY_LOW_S
    | flags.VERIFY_NULLDUMMY
    | flags.VERIFY_MINIMALDATA
    | flags.VERIFY_CLEANSTACK
    | flags.VERIFY_CHECKLOCKTIMEVERIFY
    | flags.VERIFY_CHECKSEQUENCEVERIFY
    | flags.VERIFY_MINIMALIF
    | flags.VERIFY_NULLFAIL
    | flags.VERIFY_WITNESS_PUBKEYTYPE
    | flags.VERIFY_DISCOURAGE_UPGRADABLE_WITNESS_PROGRAM
)


def refusal(tx: Transaction, spent: Sequence[TxOut]) -> str | None:
    """Why the first input that fails does, or None when all inputs may spend `spent`."""
    judged = network.tx.from_bin(tx.serialize())
    judged.set_unspents([network.tx.TxOut(out.value, out.script) for out in spent])
    for index in range(len(tx.inputs)):
        try:
            judged.check_solution(index, flags=_STANDARD)
        except ScriptError as error:
            return f"input {index}: {error}"
    return None


def accepts(tx: Transaction, *spent: TxOut) -> bool:
    """Whether the transaction may spend these outputs, one for each input."""
    return refusal(tx, spent) is None
