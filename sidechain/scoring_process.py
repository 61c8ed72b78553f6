"""The process that scores: torch takes seconds to import and cores to run, so the node has one
beside it, which ends with it.

Both sides are here. Bytes from strangers are read in that process alone.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
from types import TracebackType
from typing import BinaryIO, Final, Self

import msgspec

from channels.errors import OdaError, UserError
from sidechain import questions
from sidechain.questions import MOST, Finding, Question

_LENGTH: Final = 4


class ScoringProcess:
    """Asks one question at a time. Use it as an async context manager; a process that died is
    started anew with the next question."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: asyncio.Queue[tuple[Question, asyncio.Future[Finding]]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        await self._start()  # so that it has imported torch when the first question comes
        self._asking = asyncio.create_task(self._ask_all())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._asking.cancel()
        await asyncio.gather(self._asking, return_exceptions=True)
        while not self._waiting.empty():
            self._waiting.get_nowait()[1].cancel()
        await self._stop()

    async def ask(self, question: Question) -> Finding:
        """Raises UserError where there is no answer: the examiner's reasons, or "scoring-died"."""
        answered: asyncio.Future[Finding] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((question, answered))
        return await answered

    async def _ask_all(self) -> None:
        # In a task of its own: a reply is read to its end also when nobody waits for it any more.
        while True:
            question, answered = await self._waiting.get()
            if answered.done():
                continue
            try:
                reply = await self._exchange(msgspec.msgpack.encode(question))
                answer = questions.decode_reply(reply)
            except (OSError, asyncio.IncompleteReadError) as error:
                await self._stop()
                died = UserError(
                    "scoring-died", f"The process that scores has ended: {error}; it starts again."
                )
                if not answered.done():
                    answered.set_exception(died)
            except UserError as error:
                if not answered.done():
                    answered.set_exception(error)
            except asyncio.CancelledError:
                answered.cancel()
                raise
            else:
                if not answered.done():
                    answered.set_result(answer)

    async def _exchange(self, data: bytes) -> bytes:
        process = self._process or await self._start()
        assert process.stdin is not None and process.stdout is not None  # both are pipes
        process.stdin.write(len(data).to_bytes(_LENGTH, "big") + data)
        await process.stdin.drain()
        length = int.from_bytes(await process.stdout.readexactly(_LENGTH), "big")
        return await process.stdout.readexactly(length)

    async def _start(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sidechain.scoring_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C is for the node, which then ends this process in its own time.
            start_new_session=True,
        )
        return self._process

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


def _read(source: BinaryIO, length: int) -> bytes:
    """All of it, or the end of this process: nobody is there any more to ask."""
    data = source.read(length)
    if len(data) < length:
        os._exit(0)
    return data


def _listen(waiting: queue.Queue[bytes]) -> None:
    # In a thread, so that the process also ends when the node does in the midst of scoring.
    source = sys.stdin.buffer
    while True:
        length = int.from_bytes(_read(source, _LENGTH), "big")
        if length > MOST:
            os._exit(1)
        waiting.put(_read(source, length))


def main() -> None:
    out, sys.stdout = sys.stdout.buffer, sys.stderr  # what prints must not end up among replies
    waiting: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(waiting,), daemon=True).start()
    from sidechain.answers import Examiner  # here: whoever asks must not import torch

    examiner = Examiner()
    while True:
        question = questions.decode_question(waiting.get())
        try:
            reply = questions.encode_reply(examiner.answer(question))
        except OdaError as error:
            reply = questions.encode_reply(error)
        except MemoryError:
            reply = questions.encode_reply(
                UserError("out-of-memory", "There is too little memory to score this.")
            )
        out.write(len(reply).to_bytes(_LENGTH, "big") + reply)
        out.flush()


if __name__ == "__main__":
    main()
