"""What a run writes down while it goes: its loop state, and the files that grow with it.

    ledger/        every edit, in Parquet parts             turns.jsonl     what each turn did
    checkpoints/   the newest states of the run             rejected.jsonl  what was not applied, and why

A checkpoint holds the lengths of the growing files; going back to it cuts them to these lengths, so that nothing is in
them twice and nothing is missing. The state has a format version, which goes for ``turns.jsonl`` and ``rejected.jsonl`` too.
"""

import logging
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from editing import InputError
from editing.files.format_version import KEY, Format
from orchestrator.jsonl import LineFile
from orchestrator.run.checkpoint import Checkpoint, Checkpoints
from orchestrator.run.conflicts import PromptIndex
from orchestrator.run.ledger import Ledger

logger = logging.getLogger("ultraedit")

FORMAT = Format("run state", 2)
"""The loop state of a run in its checkpoints, and the lines of ``turns.jsonl`` and ``rejected.jsonl`` that it counts.

Version 1 has other names, and may have relative paths in its configuration.
"""

_NAMES_OF_VERSION_1 = {
    "base": "base_fingerprint",
    "sources": "num_sources",
    "record": "last_record",
    "taken": "num_usable_edits",
    "warmed": "num_warm_up_edits",
    "turn": "num_turns",
    "window": "num_windows",
    "asked": "num_requested_edits",
    "edits": "num_edits_applied",
    "turns": "num_turns_applied",
    "rejected": "num_records_rejected",
    "refused": "num_edits_refused",
    "watch": "watch_state",
    "healthy_turn": "last_healthy_turn",
    "conflicts": "num_conflicts",
    "without_subject": "num_edits_without_subject",
    "passed": "limits_passed",
    "ledger_parts": "num_ledger_parts",
}
"""Fields of a run state in version 1 that have another name now."""


@dataclass(kw_only=True)
class RunState:
    """All loop state of a run, as plain values.

    Attributes:
        config: The run's configuration as it was given.
        settings: What decides the weights: modules, learning rate, precision, turn and group size and so on.
        base_fingerprint: Fingerprint of the unedited model.
        base_digests: SHA-256 of each edited module before the first edit.
        source: Path, format, SHA-256 and limit of the input that is being read; the SHA-256 is ``None`` until a checkpoint needs it.
        preset: Name of the preset that the settings came from, if they came from one.
        num_sources: Number of inputs so far, this one included.
        last_record: Last record of the input that was read.
        num_usable_edits: Usable edits of the input so far.
        num_warm_up_edits: Edits of the warm-up before the first turn.
        input_done: Whether the input was read to its end.
        num_turns: Turns so far, refused ones counted too.
        num_windows: Lookahead windows so far.
        num_requested_edits: Edits of all turns, applied or not.
        num_edits_applied: Edits applied.
        num_turns_applied: Turns applied.
        num_records_rejected: Records set aside.
        num_edits_refused: Edits of refused turns.
        seconds: Wall time by phase.
        mlflow_run_id: The tracked run.
        watch_state: State of the watched sample.
        last_healthy_turn: Last measured turn that passed no limit.
        num_conflicts: Edits that overruled an earlier one.
        num_edits_without_subject: Edits applied without the subject that modules edited at the subjects want.
        num_edits_otherwise_tokenized: Edits applied whose tokens are not those of prompt and answer encoded together, as typed.
        limits_passed: Limits that the last turn had passed.
        milestones: Metrics at the numbers of edits that were asked for.
        num_ledger_parts: Number of the ledger's parts.
        turns_bytes: Length of ``turns.jsonl``.
        rejected_bytes: Length of ``rejected.jsonl``.
    """

    config: dict[str, Any]
    settings: dict[str, Any]
    base_fingerprint: str
    base_digests: dict[str, str]
    source: dict[str, Any]
    preset: str | None = None
    num_sources: int = 1
    last_record: int = 0
    num_usable_edits: int = 0
    num_warm_up_edits: int = 0
    input_done: bool = False
    num_turns: int = 0
    num_windows: int = 0
    num_requested_edits: int = 0
    num_edits_applied: int = 0
    num_turns_applied: int = 0
    num_records_rejected: int = 0
    num_edits_refused: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    mlflow_run_id: str | None = None
    watch_state: dict[str, Any] | None = None
    last_healthy_turn: int = 0
    num_conflicts: int = 0
    num_edits_without_subject: int = 0
    num_edits_otherwise_tokenized: int = 0
    limits_passed: list[str] = field(default_factory=list)
    milestones: list[dict[str, Any]] = field(default_factory=list)
    num_ledger_parts: int = 0
    turns_bytes: int = 0
    rejected_bytes: int = 0

    @classmethod
    def from_stored(cls, checkpoint: Checkpoint) -> "RunState":
        """The state of a checkpoint, whichever version of this program wrote it.

        A field that this version does not know is left out with a warning: within a format version it decides nothing.

        Raises:
            InputError: It is of a newer format version, or a field is missing.
        """
        renamed = _NAMES_OF_VERSION_1 if FORMAT.version_of(checkpoint.state, checkpoint.path) < 2 else {}
        values = {renamed.get(name, name): value for name, value in checkpoint.state.items() if name != KEY}
        known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(cls)}
        if missing := [name for name, required in known.items() if required and name not in values]:
            raise InputError(f"{checkpoint.path}: its run state has no field {missing[0]!r}; expected a checkpoint of a run of this program")
        if unknown := sorted(values.keys() - known):
            logger.warning("%s: left out fields of its run state that this version does not know: %s", checkpoint.path, ", ".join(unknown))
        return cls(**{name: value for name, value in values.items() if name in known})

    def as_stored(self) -> dict[str, Any]:
        """What :meth:`from_stored` reads."""
        return {**FORMAT.tag, **asdict(self)}


def may_have_relative_paths(checkpoint: Checkpoint) -> bool:
    """Whether paths in the configuration of a state are as they were given, from a working directory that is not known."""
    return FORMAT.version_of(checkpoint.state, checkpoint.path) < 2


class Journal:
    """The growing files of one run folder, opened at a state.

    Args:
        folder: The run's folder.
        state: The state that the files are cut back to; kept, and changed by the run.
        keep: Checkpoints that are kept.
    """

    def __init__(self, folder: Path, state: RunState, *, keep: int) -> None:
        self.state = state
        self.ledger = Ledger(folder / "ledger", state.num_ledger_parts)
        self.turns = LineFile(folder / "turns.jsonl", state.turns_bytes)
        self.rejected = LineFile(folder / "rejected.jsonl", state.rejected_bytes)
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=keep)
        self.prompts = PromptIndex()
        self.prompts.fill(self.ledger)

    def sync(self) -> None:
        """Have the growing files on the disk, and their lengths in the state."""
        self.ledger.flush()
        self.state.num_ledger_parts = self.ledger.num_parts
        self.state.turns_bytes, self.state.rejected_bytes = self.turns.sync(), self.rejected.sync()

    def checkpoint(self, save: Callable[[Path], None]) -> Checkpoint:
        """Sync, then write a checkpoint; ``save`` writes the model's state."""
        self.sync()
        return self.checkpoints.write(self.state.num_turns, self.state.as_stored(), save)

    def close(self) -> None:
        self.turns.close()
        self.rejected.close()
