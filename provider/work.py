"""A request that is to be answered, and what is wrong with one, before it is paid for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from channels.http.session import Terms
from channels.units import Msat
from provider import api
from provider.api import ApiError, ChatAnswer, TextAnswer
from provider.engine import AnyRequest, GenerateRequest
from provider.ledger import Answer
from provider.serving import Models, Served
from provider.settings import ProviderSettings


@dataclass(frozen=True, slots=True)
class Work:
    """A request that was found in order, as the engine needs it. prompt_tokens: the most that they
    can be, where only the engine can tell (Engine.prompt_tokens)."""

    served: Served
    kind: str  # "chat", "text" or "embeddings"
    request: AnyRequest
    prompt: bytes
    prompt_tokens: int
    max_tokens: int

    def most(self, terms: Terms) -> Msat:
        """The price of the longest answer."""
        return terms.cost(self.prompt_tokens, self.max_tokens)

    def generation(self, answer: Answer) -> GenerateRequest:
        temperature = self.request.temperature
        return GenerateRequest(
            self.prompt,
            self.max_tokens,
            1.0 if temperature is None else temperature,
            answer.seed,
            self.request.stops,
            answer.api,
            answer.body,
        )

    def builder(self, answer: Answer) -> ChatAnswer | TextAnswer:
        kind, prefix = (ChatAnswer, "chatcmpl") if self.kind == "chat" else (TextAnswer, "cmpl")
        return kind(
            f"{prefix}-{answer.id}", answer.created, self.request.model, self.request.include_usage
        )


_PARSERS: Final[Mapping[str, Callable[[bytes], AnyRequest]]] = {
    "chat": api.parse_chat,
    "text": api.parse_completion,
    "embeddings": api.parse_embedding,
}


def read_work(kind: str, body: bytes, models: Models, settings: ProviderSettings) -> Work:
    """Everything that can be wrong with a request is found here, before it is paid for.

    Raises ApiError.
    """
    request = _PARSERS[kind](body)
    served = models.current.get(request.model)
    if served is None and models.is_away(request.model):
        raise ApiError(
            "model-unavailable",
            "The engine of this model can't be reached; try again in a moment.",
            status=503,
            type_="server_error",
        )
    if served is None:
        raise api.unknown_model(request.model)
    prompt = served.engine.read(request, body)
    wanted = request.wanted_tokens
    if wanted is not None and wanted > settings.max_tokens:
        raise ApiError(
            "invalid-request",
            f"max_tokens must be at most {settings.max_tokens} here.",
            param="max_tokens",
        )
    if kind == "embeddings":
        return Work(served, kind, request, prompt.text, prompt.tokens, 0)
    most = wanted or min(settings.default_max_tokens, settings.max_tokens)
    return Work(served, kind, request, prompt.text, prompt.tokens, most)
