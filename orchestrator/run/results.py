"""``edits.parquet``: one row for each edit, with its request, what became of it, and what the model wrote before and after."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from editing.datasets.writing import REQUEST_COLUMNS, request_row
from editing.monitoring.evaluation import EditResult
from editing.monitoring.texts import VERDICTS, Answers
from orchestrator.run.ledger import Entry

_NAMES = {"generated_begins": "efficacy_generated", "generated_rephrased_begins": "generalization_generated"}
"""Columns that do not have the name of their framing and verdict, since they are older than the other verdicts."""

VERDICT_COLUMNS = tuple(_NAMES.get(name, name) for name in (f"{way}_{verdict}" for way in ("chat", "generated") for verdict in VERDICTS))
"""What is said of the texts. Those that begin with ``chat`` are asked in the model's chat template, the others as they are typed."""

TEXT_COLUMNS = ("text_before", "text_after", "rephrase_text_after", "chat_text_before", "chat_text_after", "chat_rephrase_text_after")


@dataclass(frozen=True, slots=True)
class Generated:
    """What the model wrote for one edit.

    Attributes:
        raw: After prompts as they are typed; ``None`` for an edit that is a chat.
        chat: After prompts in the model's chat template, if it has one, or after the chat.
        chat_retention: Whether at the locality probe, asked in chat, every token is still the unedited model's own choice.
    """

    raw: Answers | None
    chat: Answers | None = None
    chat_retention: bool | None = None

    def texts(self) -> dict[str, str | None]:
        """The texts, by column."""
        written = [w for one in (self.raw, self.chat) for w in ((one.before, one.after, one.rephrased) if one else (None, None, None))]
        return {column: None if w is None else w.text for column, w in zip(TEXT_COLUMNS, written, strict=True)}

    def verdicts(self, target: str) -> dict[str, bool | None]:
        """What is said of them, by column."""
        ways = (("chat", self.chat), ("generated", self.raw))
        found = {f"{way}_{name}": value for way, one in ways if one for name, value in one.verdicts(target).items()}
        return {_NAMES.get(name, name): value for name, value in found.items()} | {"chat_retention": self.chat_retention}


@dataclass(frozen=True, slots=True)
class EditRow:
    """One edit with all that is known of it.

    Attributes:
        entry: The edit and its turn.
        overwritten: Whether a later edit gave its prompt another target.
        result: Its metrics, if it was evaluated.
        generated: Its texts, if it was among the generated ones.
    """

    entry: Entry
    overwritten: bool
    result: EditResult | None = None
    generated: Generated | None = None

    @property
    def stands(self) -> bool:
        """Whether the model is supposed to know it."""
        return self.entry.applied and not self.overwritten

    @property
    def verdicts(self) -> dict[str, bool | None]:
        """What is said of its texts, by column; nothing if none was generated."""
        return self.generated.verdicts(self.entry.request.target) if self.generated else {}

    def as_dict(self) -> dict[str, object]:
        """The row as it is written."""
        return {
            **request_row(self.entry.request),
            "id": self.entry.id,
            "record": self.entry.record,
            "turn": self.entry.turn,
            "applied": self.entry.applied,
            "overwritten": self.overwritten,
            **(asdict(self.result) if self.result else {}),
            **(self.generated.texts() if self.generated else {}),
            **self.verdicts,
        }


_TEXT, _SHARE, _YES_NO = pa.string(), pa.float64(), pa.bool_()
SCHEMA = pa.schema(
    [
        ("id", _TEXT),
        ("record", pa.int64()),
        ("turn", pa.int64()),
        ("applied", _YES_NO),
        ("overwritten", _YES_NO),
        *((name, kind) for name, kind in REQUEST_COLUMNS if name != "id"),
        *((f.name, _YES_NO if f.name == "locality_retained" else _SHARE) for f in fields(EditResult)),
        *((name, _TEXT) for name in TEXT_COLUMNS),
        *((name, _YES_NO) for name in (*VERDICT_COLUMNS, "chat_retention")),
    ]
)


class EditsFile:
    """Writes ``edits.parquet`` a chunk at a time."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")

    def __enter__(self) -> "EditsFile":
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._writer.close()

    def write(self, rows: Sequence[EditRow]) -> None:
        """Append rows."""
        columns = [row.as_dict() for row in rows]
        self._writer.write_table(pa.Table.from_pylist(columns, schema=SCHEMA))
