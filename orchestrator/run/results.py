"""``edits.parquet``: one row for each edit, with its request, what became of it, and what the model wrote before and after."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from editing.datasets.writing import REQUEST_COLUMNS
from editing.monitoring.evaluation import EditResult, begins_with
from orchestrator.run.ledger import Entry


@dataclass(frozen=True, slots=True)
class Generated:
    """What the model wrote for one edit."""

    text_before: str
    text_after: str
    rephrase_text_after: str | None


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
    def efficacy_generated(self) -> bool | None:
        return None if self.generated is None else begins_with(self.generated.text_after, self.entry.request.target)

    @property
    def generalization_generated(self) -> bool | None:
        if self.generated is None or self.generated.rephrase_text_after is None:
            return None
        return begins_with(self.generated.rephrase_text_after, self.entry.request.target)

    def as_dict(self) -> dict[str, object]:
        """The row as it is written."""
        return {
            **asdict(self.entry.request),
            "id": self.entry.id,
            "record": self.entry.record,
            "turn": self.entry.turn,
            "applied": self.entry.applied,
            "overwritten": self.overwritten,
            **(asdict(self.result) if self.result else {}),
            **(asdict(self.generated) if self.generated else {}),
            "efficacy_generated": self.efficacy_generated,
            "generalization_generated": self.generalization_generated,
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
        *((f.name, _TEXT) for f in fields(Generated)),
        ("efficacy_generated", _YES_NO),
        ("generalization_generated", _YES_NO),
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
