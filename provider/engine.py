"""What produces the tokens: one Protocol, and torch in this process behind it.

An engine's answer is a function of (request, seed): taken up again with the tokens that were
already generated, it goes on as if it had never stopped. That is what makes a stream survive an
unpaid pause or a crash unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from channels.errors import UserError
from provider.api import Message
from provider.decoding import Decoding, Token
from sidechain.model import bundle, trainer
from sidechain.model.architecture import Architecture, ByteTransformer
from sidechain.model.bundle import Bundle
from sidechain.model.dataset import python_documentation
from sidechain.model.generate import Generation, one_thread, seen_prompt
from sidechain.model.trainer import Budget, Progress

log = logging.getLogger(__name__)

MODEL_ID: Final = "oda-pydoc"
FIRST_TRAINING: Final = Budget(steps=1500, seconds=600)
"""Half a minute on two quiet cores. Steps, so that a busy machine gets the same model later."""
SEED: Final = 1


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """`seed` is part of the request: who wants a random one draws it and keeps it."""

    prompt: bytes
    max_tokens: int
    temperature: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


class Engine(Protocol):
    @property
    def model_id(self) -> str: ...

    @property
    def context_length(self) -> int:
        """The tokens that the model can see at once."""

    def count_tokens(self, prompt: bytes) -> int:
        """The tokens of the prompt that the model will see, which are those that cost."""

    def render_chat(self, messages: Sequence[Message]) -> bytes:
        """The prompt that a conversation becomes."""

    def generate(
        self, request: GenerateRequest, already: Sequence[int] = ()
    ) -> AsyncGenerator[Token, None]:
        """The tokens after `already`; the last one has a finish_reason.

        No more is computed than is asked for, and nothing after `aclose()` or a cancellation.
        """

    def replay(self, request: GenerateRequest, already: Sequence[int]) -> tuple[Token, ...]:
        """What was sent for tokens generated before: the same text at the same places.

        ValueError when `already` can't be an answer to the request.
        """

    def close(self) -> None:
        """Free what the engine holds; answers in the making end with an error."""


class TorchEngine:
    """A model in this process, on one worker thread.

    Each step of each answer is a job of its own in the worker's queue, so that answers take
    turns token by token, and one that is no longer wanted simply queues no further job.
    """

    def __init__(self, model: Bundle) -> None:
        self._model = model
        self._worker = ThreadPoolExecutor(1, "engine", initializer=one_thread)

    @property
    def model_id(self) -> str:
        return self._model.manifest.name

    @property
    def weights_sha256(self) -> str:
        """Which weights these are: an answer can only be resumed with the same."""
        return self._model.manifest.weights_sha256

    @property
    def holdout_nats_per_byte(self) -> float:
        return self._model.manifest.holdout_nats_per_byte

    @property
    def context_length(self) -> int:
        return self._model.architecture.context

    def count_tokens(self, prompt: bytes) -> int:
        return len(seen_prompt(prompt, self.context_length))

    def render_chat(self, messages: Sequence[Message]) -> bytes:
        # The model knows paragraphs of text, not roles: a conversation is read as paragraphs,
        # and the answer is what would follow them.
        return "".join(f"{message.text}\n\n" for message in messages).encode()

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


def load_or_train(
    cache_dir: Path,
    progress: Progress | None = None,
    *,
    budget: Budget = FIRST_TRAINING,
    architecture: Architecture | None = None,
) -> TorchEngine:
    """The model in `cache_dir`, trained there first when there is none that can be read.

    Blocks for as long as the budget of a first training; a second process waits for the first
    and loads what it trained. `progress` is called with (step, nats per byte, seconds).
    """
    directory = cache_dir / MODEL_ID
    wanted = architecture or ByteTransformer()
    with _locked(cache_dir / f"{MODEL_ID}.lock"):
        try:
            model = bundle.read(directory)
            if model.architecture == wanted:
                return TorchEngine(model)
            log.info("The cached model has another architecture; training a new one.")
        except UserError as error:
            if error.reason != "missing-model":
                log.warning("%s Training a new one in its place.", error)
        trained = trainer.train(
            wanted, python_documentation(), budget, seed=SEED, progress=progress
        )
        bundle.write(
            directory,
            trained.module,
            name=MODEL_ID,
            holdout_nats_per_byte=trained.holdout_nats_per_byte,
            steps=trained.steps,
            seed=SEED,
        )
        # Read back, so that the first run serves exactly what every later one will.
        return TorchEngine(bundle.read(directory))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock on a file; the system lets go of it even after a kill -9."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
