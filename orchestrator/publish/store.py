"""What a run has published: the exports that engines load, each in a folder of its own that never changes, and a record of what was done.

    RUN.published/0001-peft/          an export with its certificate; another content is another folder, so that no engine's cache is stale
    RUN.published/publications.jsonl  one line for each publication, whatever came of it

It is beside the run's folder, so that a rollback or a replaced run leaves what engines may load again.
"""

import json
import os
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from editing.errors import InputError
from editing.files.format_version import Format
from orchestrator.export.certificate import CERTIFICATE, read_certificate, verify_folder
from orchestrator.jsonl import LineFile
from orchestrator.publish.engines import How

RECORD = "publications.jsonl"
FORMAT = Format("record of publications", 1)

LIVE, FAILED, RESTORED, TAKEN_BACK = "live", "failed", "failed, the former version is served", "taken back"
"""What came of a publication."""


@dataclass(frozen=True, slots=True)
class Publication:
    """One line of the record.

    Attributes:
        number: From 1.
        when: Time of the last word about it.
        target: The engine's address.
        engine: What the engine said of itself.
        how: ``adapter`` or ``weights``.
        name: Name under which it is served; empty for weights.
        folder: The export's folder.
        edits: Edits in it.
        outcome: :data:`LIVE`, or what else came of it.
        reason: Why it failed.
        verdict: Counts of the engine's answers.
    """

    number: int
    when: str
    target: str
    engine: str
    how: How
    name: str
    folder: str
    edits: int
    outcome: str
    reason: str
    verdict: dict[str, Any]

    @property
    def place(self) -> tuple[str, str, str]:
        """What it takes the place of: the publication before at the same engine, in the same way, under the same name."""
        return self.target, self.how, self.name


class Store:
    """The publications of a run.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: Path) -> None:
        real = run.resolve()
        self.folder = real.with_name(f"{real.name}.published")

    def publications(self) -> list[Publication]:
        """All of them, the oldest first, each with the last word about it.

        Raises:
            InputError: The record is damaged, or of a newer format version.
        """
        path, found = self.folder / RECORD, dict[int, Publication]()
        if not path.is_file():
            return []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                values = json.loads(line)
                FORMAT.version_of(values, path)
                publication = Publication(**{name: values[name] for name in Publication.__slots__})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}: line {number} is damaged ({type(error).__name__}: {error}); remove the line") from None
            found[publication.number] = publication
        return [found[number] for number in sorted(found)]

    def record(self, *publications: Publication) -> None:
        """Append lines, on the disk before this returns: all of them, or none.

        Raises:
            InputError: They could not be written, for instance to a full disk.
        """
        path, length = self.folder / RECORD, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            length = path.stat().st_size if path.exists() else 0
            with closing(LineFile(path, length)) as file:
                for publication in publications:
                    file.add({**FORMAT.tag, **asdict(publication)})
                file.sync()
        except OSError as error:
            if path.exists():
                os.truncate(path, length)
            raise InputError(f"{path}: could not be written ({error.strerror or error}); make room there") from None

    def served(self, place: tuple[str, str, str]) -> Publication | None:
        """What is served in a place, as far as this record knows."""
        return next((p for p in reversed(self.publications()) if p.place == place and p.outcome == LIVE), None)

    def next_number(self) -> int:
        """The number of the next publication."""
        return len(self.publications()) + 1

    def find(self, form: str, options: dict[str, Any], digests: dict[str, str]) -> Path | None:
        """A folder that has this export already, once it has been checked to be whole.

        Raises:
            InputError: It was altered.
        """
        for folder in sorted(self.folder.glob(f"*-{form}")):
            if (folder / CERTIFICATE).is_file():
                found = read_certificate(folder)
                if found["options"] == options and found["full_edit"]["digests"] == digests:
                    verify_folder(folder)
                    return folder
        return None

    def new_folder(self, form: str) -> Path:
        """A folder that no engine has seen."""
        numbers = [int(path.name.partition("-")[0]) for path in self.folder.glob("[0-9]*-*")]
        return self.folder / f"{max(numbers, default=0) + 1:04d}-{form}"


def now() -> str:
    """The time, for a record."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
