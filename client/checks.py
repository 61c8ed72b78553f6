"""When is a provider to blame for shares that were not paid? PURE.

Shares are settled at the latest after ten minutes or 1000 sat, so nobody is blamed before a grace
period after the close is over. Then:

- A receipt that doesn't hold is a lie, and its session is never looked at again.
- What is owed to a payee in whole satoshis, over all sessions with this provider, and was not paid
  although the payee could be reached at two looks that lie a grace period apart, is unpaid.
- A provider that answers, but with no receipt, has paid nobody.
- A payee that can't be reached, or is owed less than a satoshi, is nobody's fault: that share is
  carried over, which is said, and looked at again.

What is paid later is forgiven: the fault is taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from msgspec import Struct

from channels.units import Msat, UnixTime
from client.judge import FaultKind

SMALLEST: Final = Msat(1000)
"""Less is not paid to anybody at once."""
FIRST_RETRY: Final = 60
DAY: Final = 24 * 3600
GIVE_UP: Final = 30 * DAY
NEVER: Final = UnixTime(1 << 62)


class CheckState(StrEnum):
    UNCHECKED = "unchecked"
    """Nothing is known yet; `reason` says why where it was tried."""
    CARRIED = "carried"
    """The receipt holds, and something is still owed for which the provider is not to blame."""
    UNPAID = "unpaid"
    FALSE = "false"
    """The provider lied: `reason` says how."""
    PAID = "paid"


BAD: Final = (CheckState.UNPAID, CheckState.FALSE)
FINAL: Final = (CheckState.PAID, CheckState.FALSE)


class Owing(Struct, frozen=True):
    """What a session owes one payee. seen: at the last look that saw it. since: when the payee was
    first seen to be reachable with no failure after it; 0 while it is not."""

    msat: int
    seen: int
    since: int


@dataclass(frozen=True, slots=True)
class Check:
    """Of one closed session. next: when to look again. owing: by key (hex), what is not paid.

    blamed: the FaultKind that the provider's record has because of it, "" for none. told: whether
    the user has heard of what is bad.
    """

    session: int
    closed: UnixTime
    next: UnixTime
    state: CheckState = CheckState.UNCHECKED
    attempts: int = 0
    reason: str = ""
    sentence: str = ""
    owing: Mapping[str, Owing] = field(default_factory=dict)
    blamed: str = ""
    told: bool = True


# What a look may find ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """The receipt holds. carried: by key (hex), what is proven to nobody; reachable: of these, who
    could be paid just now."""

    carried: Mapping[str, Msat]
    reachable: frozenset[str]


@dataclass(frozen=True, slots=True)
class Refuted:
    """The receipt does not hold."""

    reason: str
    sentence: str


@dataclass(frozen=True, slots=True)
class NoReceipt:
    """The provider answers, but not with a receipt that it signed."""

    sentence: str


@dataclass(frozen=True, slots=True)
class NotKnown:
    """It could not be looked at: the provider is away, or nobody proves what the chain says."""

    reason: str
    sentence: str


Look = Held | Refuted | NoReceipt | NotKnown


def looked(check: Check, look: Look, now: UnixTime, grace: int) -> Check:
    """The check after a look. Whether what it owes is the provider's fault, `blame` decides."""
    if check.state in FINAL:
        return check
    check = replace(check, attempts=check.attempts + 1)
    match look:
        case Refuted(reason, sentence):
            return _bad(check, CheckState.FALSE, reason, sentence)
        case Held(carried, reachable):
            return _held(check, carried, reachable, now, grace)
        case NoReceipt(sentence) if now >= check.closed + grace:
            return _later(_bad(check, CheckState.UNPAID, "no-receipt", sentence), now, grace)
        case NoReceipt(sentence):
            return _later(_noted(check, "no-receipt", sentence), now, grace)
        case NotKnown(reason, sentence):
            return _later(_noted(check, reason, sentence), now, FIRST_RETRY)


def _held(
    check: Check, carried: Mapping[str, Msat], reachable: frozenset[str], now: UnixTime, grace: int
) -> Check:
    owing = {}
    for key, amount in carried.items():
        before = check.owing.get(key)
        since = (before.since if before else 0) or now
        owing[key] = Owing(amount, now, since if key in reachable else 0)
    if not owing:
        return replace(
            check,
            state=CheckState.PAID,
            owing={},
            reason="",
            sentence="Everybody who is owed was paid.",
            next=NEVER,
            told=True,
        )
    check = replace(check, owing=owing)
    if not _is_blamed_for_shares(check):
        check = _carried(check)
    return _later(check, now, grace)


def _is_blamed_for_shares(check: Check) -> bool:
    return check.state is CheckState.UNPAID and check.reason == "shares-unpaid"


def _carried(check: Check) -> Check:
    away = sorted(f"{key[:16]}…" for key, each in check.owing.items() if not each.since)
    total = sum(each.msat for each in check.owing.values())
    sentence = f"{total} msat are carried over"
    sentence += f"; {', '.join(away)} can't be reached." if away else "."
    return replace(check, state=CheckState.CARRIED, reason="carried", sentence=sentence, told=True)


def _noted(check: Check, reason: str, sentence: str) -> Check:
    """Why nothing is known; what was known before stays."""
    if check.state is not CheckState.UNCHECKED:
        return check
    return replace(check, reason=reason, sentence=sentence)


def _bad(check: Check, state: CheckState, reason: str, sentence: str) -> Check:
    told = check.told and check.state is state
    return replace(check, state=state, reason=reason, sentence=sentence, next=NEVER, told=told)


def _later(check: Check, now: UnixTime, wait: int) -> Check:
    """The first time when the grace is over; then after waits that double, up to a day."""
    if now - check.closed > GIVE_UP:
        return replace(check, next=NEVER)
    wait = max(1, min(DAY, wait << min(check.attempts - 1, 20)))
    return replace(check, next=UnixTime(now + wait))


def blame(checks: Iterable[Check], now: UnixTime, grace: int) -> list[Check]:
    """Those of one provider's checks, looked at now, that change because it should have paid."""
    late: list[tuple[Check, dict[str, int]]] = []
    sums: dict[str, int] = {}
    for check in checks:
        owed = _late(check, now, grace)
        late.append((check, owed))
        for key, amount in owed.items():
            sums[key] = sums.get(key, 0) + amount
    due = {key for key, amount in sums.items() if amount >= SMALLEST}
    changed = []
    for check, owed in late:
        unpaid = sum(amount for key, amount in owed.items() if key in due)
        if unpaid and check.state is CheckState.CARRIED:
            sentence = (
                f"{unpaid} msat were not paid to those who made the model, though they can be "
                "reached, longer than a settlement takes."
            )
            bad = _bad(check, CheckState.UNPAID, "shares-unpaid", sentence)
            changed.append(replace(bad, next=check.next))
        was_seen = any(each.seen == now for each in check.owing.values())
        if not unpaid and was_seen and _is_blamed_for_shares(check):
            changed.append(_carried(check))
    return changed


def _late(check: Check, now: UnixTime, grace: int) -> dict[str, int]:
    """By key, what this look saw unpaid for too long, in msat."""
    if check.state not in (CheckState.CARRIED, CheckState.UNPAID) or now < check.closed + grace:
        return {}
    return {
        key: owing.msat
        for key, owing in check.owing.items()
        if owing.seen == now and owing.since and now >= owing.since + grace
    }


def fault_of(check: Check) -> FaultKind | None:
    """What a provider is remembered for."""
    match check.state, check.reason:
        case CheckState.UNPAID, _:
            return FaultKind.UNPAID_SHARES
        case CheckState.FALSE, "overcharge" | "truncated":
            return FaultKind.OVERCHARGE
        case CheckState.FALSE, "wrong-model":
            return FaultKind.WRONG_MODEL
        case CheckState.FALSE, _:
            return FaultKind.FALSE_RECEIPT
    return None
