"""Where a model lives: loads it, edits it, measures it. Holds no formula; each verb calls ``editing``.

A plain class, so that a test constructs it in process. The constructor is cheap; :meth:`load` does the heavy part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editing import Editor, TurnReport, pretrained
from editing.evaluation import EditResult, evaluate, generate
from editing.health import Health, Vitals
from editing.state import load_state, save_state
from editing.turn import PreparedTurn, TokenizedEdit, Turn
from editing.watch import Watch


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What a worker loads and how it edits.

    Attributes:
        model: Folder or Hub id of the model.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        preset: Name of a preset, or ``None`` for the model's own.
        modules: Patterns of the edited modules, or ``None`` for the preset's.
        learning_rate: Or ``None`` for the preset's.
        options: Further fields of :class:`editing.EditorConfig`.
        watch_size: Edits in the watched sample of all applied ones.
        seed: Seed of that sample.
    """

    model: str
    device: str = "auto"
    dtype: pretrained.DTypeName = "auto"
    preset: str | None = None
    modules: tuple[str, ...] | None = None
    learning_rate: float | None = None
    options: dict[str, Any]
    watch_size: int = 20
    seed: int = 0


class Worker:
    """One copy of one model and its lifelong moments."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec

    def load(self) -> None:
        """Load the model and get it ready to be edited."""
        spec = self.spec
        self.editor = Editor.from_pretrained(
            spec.model,
            modules=spec.modules,
            learning_rate=spec.learning_rate,
            preset=spec.preset,
            device=spec.device,
            dtype=spec.dtype,
            **spec.options,
        )
        self._watch = Watch(self.editor, size=spec.watch_size, seed=spec.seed)
        self._health = Health(self.editor, self._watch)

    def describe(self) -> dict[str, Any]:
        """What was loaded, for the run's log and ``run.json``."""
        editor = self.editor
        weights = next(iter(editor.modules.values())).weight
        return {
            "architecture": type(editor.model).__name__,
            "parameters": sum(p.numel() for p in editor.model.parameters()),
            "device": str(weights.device),
            "dtype": str(weights.dtype).removeprefix("torch."),
            "modules": list(editor.modules),
            "learning_rate": editor.config.learning_rate,
            "suffix_starts_at_layer": editor.start,
            "layers": editor.decoder.num_layers,
            "float32_masters": editor.uses_masters,
        }

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.editor.tokenizer

    @property
    def max_tokens(self) -> int | None:
        """The model's context length."""
        return self.editor.decoder.max_tokens

    def prepare(self, turns: Sequence[Turn]) -> list[PreparedTurn]:
        """Run the prefix for coming turns."""
        return self.editor.prepare(turns)

    def apply(self, prepared: PreparedTurn) -> TurnReport:
        """Apply one turn. Raises :class:`editing.TurnRefused` with nothing changed."""
        report = self.editor.apply_turn(prepared, measure=False)
        self._watch.offer(prepared.turn.edits)
        return report

    def measure_health(self, prepared: PreparedTurn) -> Vitals:
        """Vitals of the model after a turn was applied."""
        return self._health.measure(prepared)

    def evaluate(self, edits: Sequence[TokenizedEdit]) -> list[EditResult]:
        """Metrics of edits, before the first edit and now."""
        return evaluate(self.editor, edits)

    def generate(self, prompts: Sequence[str], *, unedited: bool = False, max_new_tokens: int = 12) -> list[str]:
        """Greedy text after prompts, from the model as it is now or as it was before the first edit."""
        model, tokenizer = self.editor.model, self.editor.tokenizer
        if not unedited:
            return generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens)
        with self.editor.unedited():
            return generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens)

    def digest(self) -> dict[str, str]:
        """SHA-256 of each edited module's weight."""
        return self.editor.digests()

    def fingerprint(self) -> str:
        """Tells this base model from others; to be asked before the first edit."""
        return pretrained.fingerprint(self.editor.model)

    def save_state(self, path: Path) -> None:
        """Write edited weights, masters and moments."""
        save_state(self.editor, path)

    def load_state(self, path: Path, watch: dict[str, Any] | None) -> None:
        """Go back to a stored state, with that of the watched sample."""
        load_state(self.editor, path)
        if watch is not None:
            self._watch.restore(watch)

    def watch_state(self) -> dict[str, Any]:
        """State of the watched sample, as plain values."""
        return self._watch.state()

    def saved_size(self) -> int:
        """Bytes that :meth:`save` writes, nearly."""
        return pretrained.saved_size(self.editor.model)

    def save(self, folder: Path) -> None:
        """Write the edited model."""
        self.editor.save(folder)

    def close(self) -> None:
        """Let go of the model."""
        del self.editor, self._watch, self._health
