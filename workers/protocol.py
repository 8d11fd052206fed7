"""What a run asks of whoever holds its model: what is to be loaded, and the verbs. One process has them, and so has a group of many."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from editing import TurnReport
from editing.config import RAW
from editing.files.pretrained import DTypeName
from editing.messages import Asked
from editing.model.generation import Written
from editing.model.joining import Joiner
from editing.monitoring.evaluation import Answers, EditResult, Predictions
from editing.monitoring.health import Vitals
from editing.turn import PreparedTurn, TokenizedEdit, Turn

USUAL_EVALUATION = 200
"""Edits evaluated in one call, which keeps memory constant."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What a worker loads and how it edits.

    Attributes:
        model: Folder or Hub id of the model.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        preset: Name of a preset, or ``None`` for the model's own.
        dataset: Format of the edits, where a preset has other modules for some data sets.
        modules: Patterns of the edited modules, or ``None`` for the preset's.
        learning_rate: Or ``None`` for the preset's.
        options: Further fields of :class:`editing.EditorConfig`.
        lookahead: Turns that go through the prefix in one pass; ``None`` leaves it to the worker.
        device_memory: Memory that may be used, as ``6GiB`` or ``auto``; ``None`` keeps the whole model in memory.
        watch_size: Edits in the watched sample of all applied ones.
        seed: Seed of that sample.
        min_probe_retention: Share of the fixed probes that a first turn which finds the learning rate has to keep; below it the turn is
            done again at half the strength.
    """

    model: str
    device: str = "auto"
    dtype: DTypeName = "auto"
    preset: str | None = None
    dataset: str | None = None
    modules: tuple[str, ...] | None = None
    learning_rate: float | None = None
    options: dict[str, Any]
    lookahead: int | None = None
    device_memory: str | None = None
    watch_size: int = 20
    seed: int = 0
    min_probe_retention: float = 0.0

    @property
    def editing(self) -> dict[str, Any]:
        """Keywords of :meth:`editing.Editor.of_loaded`."""
        return {**self.settings, **self.options}

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords of :func:`editing.presets.resolve.resolve_settings`."""
        return {name: getattr(self, name) for name in ("modules", "learning_rate", "preset", "dataset")}


class Worker(Protocol):
    """One model and its lifelong moments, wherever it lives."""

    def outlook(self, num_edits: int | None = None) -> list[str]:
        """What loading will do, a line each; none if the model is simply loaded.

        Args:
            num_edits: Edits to come, if that is known.

        Raises:
            UltraEditError: The memory budget is too small. Nothing was loaded.
        """
        ...

    def load(self) -> None:
        """Load the model and get it ready to be edited."""
        ...

    def describe(self) -> dict[str, Any]:
        """What was loaded, for the run's log and ``run.json``."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        ...

    @property
    def joiner(self) -> Joiner:
        """Turns prompts and answers into the model's tokens."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """The model's context length."""
        ...

    @property
    def lookahead(self) -> int:
        """Turns that best go through the prefix in one pass."""
        ...

    @property
    def edits_at_a_time(self) -> int:
        """Edits that are best evaluated in one call."""
        ...

    def prepare(self, turns: Sequence[Turn]) -> list[PreparedTurn]:
        """Run the prefix for coming turns."""
        ...

    def apply(self, prepared: PreparedTurn) -> TurnReport:
        """Apply one turn. Raises :class:`editing.TurnRefused` with nothing changed."""
        ...

    def observe(self, prepared: PreparedTurn) -> None:
        """Feed the lifelong statistics with a turn that is not applied. Raises as :meth:`apply` does."""
        ...

    def measure_health(self, prepared: PreparedTurn) -> Vitals:
        """Vitals of the model after a turn was applied."""
        ...

    def evaluate(self, edits: Sequence[TokenizedEdit], known: Sequence[Answers | None] | None = None) -> tuple[list[EditResult], Predictions]:
        """Metrics of edits, before the first edit and now; see :func:`editing.monitoring.evaluation.evaluate_beside`."""
        ...

    def write(self, prompts: Sequence[Asked], *, framing: str = RAW, unedited: bool = False, max_new_tokens: int = 12) -> list[Written]:
        """Greedy text after prompts in a framing, from the model as it is now or as it was before the first edit."""
        ...

    def perplexities(self, passages: Sequence[str], known: float | None = None) -> tuple[float, float]:
        """Perplexity of a text, before the first edit and now; see :mod:`editing.monitoring.held_out`."""
        ...

    def digest(self) -> dict[str, str]:
        """SHA-256 of each edited module's weight."""
        ...

    def fingerprint(self) -> str:
        """Tells this base model from others; to be asked before the first edit."""
        ...

    def save_state(self, path: Path) -> None:
        """Write edited weights, masters and moments."""
        ...

    def load_state(self, path: Path, watch: dict[str, Any] | None) -> None:
        """Go back to a stored state, with that of the watched sample."""
        ...

    def watch_state(self) -> dict[str, Any]:
        """State of the watched sample, as plain values."""
        ...

    def saved_size(self) -> int:
        """Bytes that :meth:`save` writes, nearly."""
        ...

    def save(self, folder: Path) -> None:
        """Write the edited model."""
        ...

    def close(self) -> None:
        """Let go of the model, however far :meth:`load` came. May be called again."""
        ...
