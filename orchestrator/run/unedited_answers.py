"""What the unedited model answers, kept between runs: the next run on the same model and the same questions does not compute it again.

An answer is found by the model's fingerprint, this project's version and the tokens of the question; nothing else decides it. The files are in
the user's cache, one for each model, and may be deleted at any time. Where they cannot be used, answers are computed as if there were none.
"""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from editing.config import RAW
from editing.files.conversion import cache
from editing.messages import Asked
from editing.model.generation import Written
from editing.model.tokenization import AnswerSequence
from editing.monitoring.evaluation import EditResult
from editing.turn import TokenizedEdit
from editing.version import __version__
from workers.protocol import Worker

logger = logging.getLogger("ultraedit")

T = TypeVar("T")

_MOST = 500_000
"""Answers that are kept of a model, about 100 bytes each; the oldest make room."""
_TABLE = "CREATE TABLE IF NOT EXISTS answers (number INTEGER PRIMARY KEY, question BLOB UNIQUE NOT NULL, answer TEXT NOT NULL)"


def folder_of_all() -> Path | None:
    """Where the answers of all models are kept; ``None`` keeps none."""
    return cache("answers")


class UneditedAnswers:
    """Asks a worker, and of the unedited model only what is not kept.

    Args:
        worker: Holds the edited model.
        fingerprint: Of its unedited model.
    """

    def __init__(self, worker: Worker, fingerprint: str) -> None:
        self._worker = worker
        name = hashlib.sha256(f"{fingerprint} {__version__}".encode()).hexdigest()[:32]
        folder = folder_of_all()
        self._file = folder / f"{name}.db" if folder else None

    def evaluate(self, edits: Sequence[TokenizedEdit]) -> list[EditResult]:
        """As :meth:`workers.protocol.Worker.evaluate`."""
        questions = [{name: _question("rows", _of(probe)) for name, probe in edit.probes.items()} for edit in edits]
        kept = self._kept(question for probes in questions for question in probes.values())
        known = [
            {name: tuple(kept[question]) for name, question in probes.items()} if kept.keys() >= set(probes.values()) else None
            for probes in questions
        ]
        results, before = self._worker.evaluate(edits, known)
        self._keep(
            (question, list(answers[name]))
            for probes, answers, was in zip(questions, before, known, strict=True)
            if was is None
            for name, question in probes.items()
        )
        return results

    def write(self, prompts: Sequence[Asked], *, framing: str = RAW, max_new_tokens: int) -> list[Written]:
        """What the unedited model writes; as :meth:`workers.protocol.Worker.write`."""
        joiner = self._worker.joiner.framed(framing).as_typed
        room = [max_new_tokens, self._worker.max_tokens]
        asked = [_question("text", [*room, list(own.prompt_ids(prompt))]) for own, prompt in map(joiner.asking, prompts)]
        kept = {question: Written(*answer) for question, answer in self._kept(asked).items()}
        new = {question: prompt for question, prompt in zip(asked, prompts, strict=True) if question not in kept}
        if new:
            written = self._worker.write(list(new.values()), framing=framing, unedited=True, max_new_tokens=max_new_tokens)
            kept |= dict(zip(new, written, strict=True))
            self._keep((question, [kept[question].text, kept[question].stopped]) for question in new)
        return [kept[question] for question in asked]

    def perplexities(self, passages: Sequence[str]) -> tuple[float, float]:
        """As :meth:`workers.protocol.Worker.perplexities`."""
        joiner = self._worker.joiner.as_typed
        question = _question("perplexity", [self._worker.max_tokens, [list(joiner.prompt_ids(passage)) for passage in passages]])
        known = self._kept([question]).get(question)
        before, now = self._worker.perplexities(passages, known)
        if known is None:
            self._keep([(question, before)])
        return before, now

    def _kept(self, questions: Iterable[bytes]) -> dict[bytes, Any]:
        def read(connection: sqlite3.Connection) -> dict[bytes, Any]:
            found = (
                (question, connection.execute("SELECT answer FROM answers WHERE question = ?", (question,)).fetchone()) for question in questions
            )
            return {question: json.loads(row[0]) for question, row in found if row is not None}

        return self._in_file(read) or {}

    def _keep(self, answers: Iterable[tuple[bytes, Any]]) -> None:
        def add(connection: sqlite3.Connection) -> None:
            with connection:
                rows = ((question, json.dumps(answer)) for question, answer in answers)
                connection.executemany("INSERT OR IGNORE INTO answers (question, answer) VALUES (?, ?)", rows)
                connection.execute("DELETE FROM answers WHERE number <= (SELECT MAX(number) FROM answers) - ?", (_MOST,))

        self._in_file(add)

    def _in_file(self, do: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do something with the file; one that cannot be used is not used again by this object."""
        if self._file is None:
            return None
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file, timeout=30)) as connection:
                connection.execute(_TABLE)
                return do(connection)
        except (sqlite3.Error, OSError, ValueError) as error:
            logger.warning("cache     %s: %s; what the unedited model answers is computed again; delete the file if this stays", self._file, error)
            self._file = None
            return None


def _of(probe: AnswerSequence) -> list[Any]:
    return [len(probe.answer_ids), list(probe.input_ids)]


def _question(kind: str, tokens: Any) -> bytes:
    return hashlib.sha256(json.dumps([kind, tokens]).encode()).digest()
