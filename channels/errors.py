"""Who broke the rule is in the type; which rule, in a stable `reason`.

Every exception carries one sentence that says what is wrong and what to do.
"""

from __future__ import annotations


class OdaError(Exception):
    """The root of all errors that ODA raises on purpose.

    `reason` is a short, stable, unique slug that programs may rely on; `str()` is a sentence.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class LocalProtocolError(OdaError):
    """Our own side asked for something that the protocol does not allow now; nothing was sent."""


class RemoteProtocolError(OdaError):
    """The peer broke a rule of the protocol. The connection or channel must be failed."""


class UserError(OdaError):
    """The person at the keyboard can mend this; the sentence says how."""
