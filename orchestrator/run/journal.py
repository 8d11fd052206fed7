"""What a run writes down while it goes: its loop state, and the files that grow with it.

    ledger/        every edit, in Parquet parts             turns.jsonl     what each turn did
    checkpoints/   the newest states of the run             rejected.jsonl  what was not applied, and why

A checkpoint holds the lengths of the growing files; going back to it cuts them to these lengths, so that nothing is in
them twice and nothing is missing.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.jsonl import LineFile
from orchestrator.run.checkpoint import Checkpoint, Checkpoints
from orchestrator.run.conflicts import PromptIndex
from orchestrator.run.ledger import Ledger


@dataclass(kw_only=True)
class RunState:
    """All loop state of a run, as plain values.

    Attributes:
        config: The run's configuration as it was given.
        settings: What decides the weights: modules, learning rate, precision, turn and group size and so on.
        base: Fingerprint of the unedited model.
        base_digests: SHA-256 of each edited module before the first edit.
        source: Path, format, SHA-256 and limit of the input that is being read; the SHA-256 is ``None`` until a checkpoint needs it.
        sources: Number of inputs so far, this one included.
        record: Last record of the input that was read.
        taken: Usable edits of the input so far.
        warmed: Edits of the warm-up before the first turn.
        input_done: Whether the input was read to its end.
        turn: Turns so far, refused ones counted too.
        window: Lookahead windows so far.
        asked: Edits of all turns, applied or not.
        edits: Edits applied.
        turns: Turns applied.
        rejected: Records set aside.
        refused: Edits of refused turns.
        seconds: Wall time by phase.
        mlflow_run_id: The tracked run.
        watch: State of the watched sample.
        healthy_turn: Last measured turn that passed no limit.
        conflicts: Edits that overruled an earlier one.
        without_subject: Edits applied without the subject that modules edited at the subjects want.
        otherwise_tokenized: Edits applied whose tokens are not those of prompt and answer encoded together, as typed.
        passed: Limits that the last turn had passed.
        milestones: Metrics at the numbers of edits that were asked for.
        ledger_parts: Number of the ledger's parts.
        turns_bytes: Length of ``turns.jsonl``.
        rejected_bytes: Length of ``rejected.jsonl``.
    """

    config: dict[str, Any]
    settings: dict[str, Any]
    base: str
    base_digests: dict[str, str]
    source: dict[str, Any]
    sources: int = 1
    record: int = 0
    taken: int = 0
    warmed: int = 0
    input_done: bool = False
    turn: int = 0
    window: int = 0
    asked: int = 0
    edits: int = 0
    turns: int = 0
    rejected: int = 0
    refused: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    mlflow_run_id: str | None = None
    watch: dict[str, Any] | None = None
    healthy_turn: int = 0
    conflicts: int = 0
    without_subject: int = 0
    otherwise_tokenized: int = 0
    passed: list[str] = field(default_factory=list)
    milestones: list[dict[str, Any]] = field(default_factory=list)
    ledger_parts: int = 0
    turns_bytes: int = 0
    rejected_bytes: int = 0


class Journal:
    """The growing files of one run folder, opened at a state.

    Args:
        folder: The run's folder.
        state: The state that the files are cut back to; kept, and changed by the run.
        keep: Checkpoints that are kept.
    """

    def __init__(self, folder: Path, state: RunState, *, keep: int) -> None:
        self.state = state
        self.ledger = Ledger(folder / "ledger", state.ledger_parts)
        self.turns = LineFile(folder / "turns.jsonl", state.turns_bytes)
        self.rejected = LineFile(folder / "rejected.jsonl", state.rejected_bytes)
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=keep)
        self.prompts = PromptIndex()
        self.prompts.fill(self.ledger)

    def sync(self) -> None:
        """Have the growing files on the disk, and their lengths in the state."""
        self.ledger.flush()
        self.state.ledger_parts = self.ledger.num_parts
        self.state.turns_bytes, self.state.rejected_bytes = self.turns.sync(), self.rejected.sync()

    def checkpoint(self, save: Callable[[Path], None]) -> Checkpoint:
        """Sync, then write a checkpoint; ``save`` writes the model's state."""
        self.sync()
        return self.checkpoints.write(asdict(self.state), save)

    def close(self) -> None:
        self.turns.close()
        self.rejected.close()
