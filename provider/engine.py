"""What produces the tokens: one Protocol, and torch in this process behind it (upstream.py has
the other kind).

The answer of an engine that `goes_on` is a function of (request, seed): taken up again with the
tokens that were already generated, it goes on as if it had never stopped. That is what makes a
stream survive an unpaid pause or a crash unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from provider.api import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Message,
    no_embeddings,
)
from provider.decoding import Decoding, Token
from provider.models import ServedModel
from sidechain.model.generate import Generation, one_thread, seen_prompt
from sidechain.model.prompt import render_chat


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """`seed` is part of the request: who wants a random one draws it and keeps it.

    kind, body: "chat", "text" or "embeddings", and the request as it came, for engines that
    speak the API themselves.
    """

    prompt: bytes
    max_tokens: int
    temperature: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    kind: str = "chat"
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model sees of a request. tokens: how many that are, or the most that it can be
    where only the engine can tell; those cost."""

    text: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The body of an answer, and how many tokens were read for it."""

    body: bytes
    prompt_tokens: int


AnyRequest = ChatRequest | CompletionRequest | EmbeddingRequest


class Engine(Protocol):
    @property
    def model_id(self) -> str: ...

    @property
    def weights_id(self) -> str:
        """Which weights these are: an answer can only be taken up again with the same."""

    @property
    def context_length(self) -> int:
        """The tokens that the model can see at once."""

    @property
    def goes_on(self) -> bool:
        """Whether an answer that was interrupted can be taken up again."""

    def read(self, request: AnyRequest, body: bytes) -> Prompt:
        """body: the same request as it came. Nothing is asked of anybody for it. Raises ApiError
        for embeddings of a model that has none."""

    async def prompt_tokens(self, request: GenerateRequest, most: int) -> int:
        """How many tokens of the prompt are charged, at most `most`. Called when it is paid for,
        before it is answered."""

    def generate(
        self, request: GenerateRequest, already: Sequence[int] = ()
    ) -> AsyncGenerator[Token, None]:
        """The tokens after `already`; the last one has a finish_reason.

        No more is computed than is asked for, and nothing after `aclose()` or a cancellation.
        Raises ApiError for what is not the engine's fault.
        """

    def replay(self, request: GenerateRequest, already: Sequence[int]) -> tuple[Token, ...]:
        """What was sent for tokens generated before: the same text at the same places.

        ValueError when `already` can't be an answer to the request.
        """

    async def embed(self, request: GenerateRequest) -> Embeddings:
        """Raises ApiError where `read` does."""

    def close(self) -> None:
        """Free what the engine holds; answers in the making end with an error."""


class TorchEngine:
    """A model in this process, on one worker thread.

    Each step of each answer is a job of its own in the worker's queue, so that answers take
    turns token by token, and one that is no longer wanted simply queues no further job.
    """

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._worker = ThreadPoolExecutor(1, "engine", initializer=one_thread)

    @property
    def model_id(self) -> str:
        return self._model.name

    @property
    def weights_id(self) -> str:
        return self._model.weights_id

    @property
    def context_length(self) -> int:
        return self._model.module.architecture.context

    @property
    def goes_on(self) -> bool:
        return True

    def read(self, request: AnyRequest, body: bytes) -> Prompt:
        if isinstance(request, EmbeddingRequest):
            raise no_embeddings(self.model_id)
        if isinstance(request, ChatRequest):
            text = self.render_chat(request.messages)
        else:
            text = request.text.encode()
        return Prompt(text, self.count_tokens(text))

    async def prompt_tokens(self, request: GenerateRequest, most: int) -> int:
        return most

    async def embed(self, request: GenerateRequest) -> Embeddings:
        raise no_embeddings(self.model_id)

    def count_tokens(self, prompt: bytes) -> int:
        """The tokens of the prompt that the model will see."""
        return len(seen_prompt(prompt, self.context_length))

    def render_chat(self, messages: Sequence[Message]) -> bytes:
        """The prompt that a conversation becomes."""
        return render_chat(message.text for message in messages)

    def replay(self, request: GenerateRequest, already: Sequence[int]) -> tuple[Token, ...]:
        return Decoding(request.max_tokens, request.stop).replay(already)

    async def generate(
        self, request: GenerateRequest, already: Sequence[int] = ()
    ) -> AsyncGenerator[Token, None]:
        decoding = Decoding(request.max_tokens, request.stop)
        decoding.replay(already)
        generation = Generation(
            self._model.module, request.prompt, request.temperature, request.seed, already
        )
        loop = asyncio.get_running_loop()
        while decoding.finish_reason is None:
            token_id = await loop.run_in_executor(self._worker, generation.step)
            if token_id is not None:
                yield decoding.feed(token_id)

    def close(self) -> None:
        self._worker.shutdown(wait=True)
