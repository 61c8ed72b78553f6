"""What went wrong, as a program that knows only OpenAI's API understands it. PURE.

402 never reaches a program: what it can't pay for is `insufficient_quota`, as OpenAI says of an
account that has used up its budget.
"""

from __future__ import annotations

from typing import Final

from channels.errors import OdaError, RemoteProtocolError
from channels.lightning import LightningError, LightningUnreachable
from client.budget import CAPS
from client.provider import ProviderRefused, ProviderUnreachable
from provider.api import ApiError

QUOTA: Final = "insufficient-quota"
MONEY: Final = CAPS | {
    "exposure-limit",
    "too-expensive",
    "too-much-exposure",
    "share-below-floor",
    "payment-failed",
}
"""Reasons that the user's caps or the user's node give for not paying."""
OWN_FAULT: Final = {"bad-question": 400, "body-too-large": 413}
ABOUT_THE_REQUEST: Final = (400, 404, 413, 415, 422)
"""Statuses of a provider that say something about the request, and not about its payment."""
BUSY: Final = (429, 503)
"""Of a provider that can't be served now."""


def api_error(error: OdaError) -> ApiError:
    """The status and the OpenAI error for it."""
    if isinstance(error, ApiError):
        return error
    reason, sentence = error.reason, str(error)
    if reason in MONEY:
        return ApiError(QUOTA, sentence, status=429, type_="insufficient_quota")
    if reason in OWN_FAULT:
        return ApiError(reason, sentence, status=OWN_FAULT[reason])
    if isinstance(error, ProviderRefused) and error.status in ABOUT_THE_REQUEST:
        return ApiError(reason.rpartition("/")[2], sentence, status=error.status)
    return ApiError(reason, sentence, status=_status(error), type_="server_error")


def may_retry(error: OdaError, *, was_paid: bool) -> bool:
    """Whether a program should ask again by itself, as OpenAI's clients do after a 429 or a 5xx:
    not where it would pay again for what was paid already, or where only a person can help."""
    return not was_paid and error.reason not in MONEY and error.reason != "payment-unknown"


def _status(error: OdaError) -> int:
    is_away = isinstance(error, ProviderUnreachable | LightningUnreachable | LightningError)
    is_busy = isinstance(error, ProviderRefused) and error.status in BUSY
    if is_away or is_busy or error.reason in ("payment-unknown", "topup-timeout", "no-provider"):
        return 503
    return 502 if isinstance(error, RemoteProtocolError) else 500
