"""The API's side of the speaker: started when the first question comes, started again if it dies, one question after another."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from editing.errors import InputError, UltraEditError

_MAX_WAITING = 8
_LINE_BYTES = 2**22


class SpeakerBusy(UltraEditError):
    """Too many questions wait already."""


class SpeakerDown(UltraEditError):
    """The speaker could not be started, or died while it answered."""


class Speaking:
    """Questions to a speaker.

    Args:
        told: What the speaker loads: ``model``, ``device`` and ``dtype``.
    """

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._told = dict(told)
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._answers: dict[int, asyncio.Queue[dict[str, Any] | None]] = {}
        self._number = 0
        self._reader: asyncio.Task[None] | None = None

    async def ask(self, question: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Pieces of the answer, as the speaker gives them.

        Raises:
            InputError: The question cannot be answered.
            SpeakerBusy, SpeakerDown: Not now.
        """
        if len(self._answers) >= _MAX_WAITING:
            raise SpeakerBusy(f"chat: {_MAX_WAITING} questions wait already; this endpoint is for trying out, not for traffic")
        process = await self._started()
        self._number += 1
        number, answers = self._number, asyncio.Queue[dict[str, Any] | None]()
        self._answers[number] = answers
        finished = False
        try:
            await self._tell(process, {**question, "id": number})
            while (piece := await answers.get()) is not None:
                finished = "done" in piece or "error" in piece
                if "error" in piece:
                    raise InputError(piece["error"])
                yield piece
                if finished:
                    return
            finished = True
            raise SpeakerDown("chat: the process that answers has died; ask again")
        finally:
            del self._answers[number]
            if not finished:
                with suppress(SpeakerDown):
                    await self._tell(process, {"cancel": number})

    async def close(self) -> None:
        """End the process."""
        if self._process is not None and self._process.returncode is None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), timeout=5)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def _started(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start()
            if self._process is None:
                raise SpeakerDown("chat: the process that answers could not be started")
            return self._process

    async def _start(self) -> None:
        command = (sys.executable, "-m", "orchestrator.service.speaker")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=_LINE_BYTES)
        await self._tell(process, self._told)
        line = await process.stdout.readline() if process.stdout is not None else b""
        ready = json.loads(line) if line else {"ready": False, "error": "it ended at once"}
        if not ready["ready"]:
            raise SpeakerDown(f"chat: the process that answers could not be started: {ready['error']}")
        self._process = process
        self._reader = asyncio.create_task(self._read(process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        if process.stdout is None:
            return
        while line := await process.stdout.readline():
            piece = json.loads(line)
            if (answers := self._answers.get(piece.pop("id"))) is not None:
                answers.put_nowait(piece)
        await process.wait()
        for answers in self._answers.values():
            answers.put_nowait(None)

    async def _tell(self, process: asyncio.subprocess.Process, message: Mapping[str, Any]) -> None:
        if process.stdin is None:
            raise SpeakerDown("chat: the process that answers cannot be told anything")
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise SpeakerDown("chat: the process that answers has died; ask again") from None
