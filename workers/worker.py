"""Where a model lives: loads it, edits it, measures it. Holds no formula; each verb calls ``editing``.

A plain class, so that a test constructs it in process. The constructor is cheap; :meth:`load` does the heavy part.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from editing import TurnReport
from editing.config import EditorConfig, MethodOptions
from editing.memory.calibration import USUAL_LOOKAHEAD
from editing.model.generation import generate
from editing.model.joining import Joiner
from editing.monitoring.evaluation import EditResult, evaluate
from editing.monitoring.health import Health, Vitals
from editing.monitoring.watch import Watch
from editing.state import load_state, save_state
from editing.turn import PreparedTurn, TokenizedEdit, Turn
from workers.engines.streamed import BudgetedEngine
from workers.engines.whole import Engine, WholeEngine, WorkerSpec
from workers.process_groups import GroupCollectives, Placement, join_groups, leave_groups, local_device

__all__ = ["Placement", "Worker", "WorkerSpec"]

USUAL_EVALUATION = 200
"""Edits evaluated in one call, which keeps memory constant."""


class Worker:
    """One copy of one model and its lifelong moments, or one shard of it.

    Every verb is called on all shards of all replicas, with the same arguments and in the same order, and returns or raises
    the same on all of them. What only reads (``measure_health``, ``evaluate``, ``generate``) may be called on one replica alone.

    Args:
        spec: What is loaded and how it is edited.
        placement: Which shard of which replica this is; by default the model is whole and alone.
    """

    def __init__(self, spec: WorkerSpec, placement: Placement | None = None) -> None:
        self.spec = spec
        self.placement = placement or Placement()

    def outlook(self, num_edits: int | None = None) -> list[str]:
        """What loading will do, a line each; none if the model is simply loaded.

        Args:
            num_edits: Edits to come, if that is known.

        Raises:
            UltraEditError: The memory budget is too small. Nothing was loaded.
        """
        engine = self._engine
        if not isinstance(engine, BudgetedEngine):
            return []
        engine.num_edits = num_edits
        return engine.outlook(self.lookahead)

    def load(self) -> None:
        """Load the model and get it ready to be edited."""
        self.editor = self._engine.load()
        self._watch = Watch(self.editor, size=self.spec.watch_size, seed=self.spec.seed)
        self._health = Health(self.editor, self._watch)

    @cached_property
    def _engine(self) -> Engine:
        placement = self.placement
        device = local_device(self.spec.device, placement)
        if self.spec.device_memory is not None:
            return BudgetedEngine(self.spec, device)
        if placement.is_alone:
            return WholeEngine(self.spec, device)
        if placement.num_shards == 1:
            groups = join_groups(placement, device)
            return WholeEngine(self.spec, device, GroupCollectives(placement, groups, device))
        from workers.engines.sharded import ShardedEngine, check_num_shards  # which needs deepspeed

        check_num_shards(self.spec.model, placement.num_shards)  # before the others are waited for
        return ShardedEngine(self.spec, placement, join_groups(placement, device), device)

    def describe(self) -> dict[str, Any]:
        """What was loaded, for the run's log and ``run.json``."""
        editor = self.editor
        weights = next(iter(editor.modules.values())).weight
        return {
            "architecture": type(editor.model).__name__,
            "parameters": self._engine.num_parameters(),
            "shards": self.placement.num_shards,
            "replicas": self.placement.num_replicas,
            "device": str(weights.device),
            "dtype": str(weights.dtype).removeprefix("torch."),
            "preset": editor.config.preset,
            "modules": list(editor.modules),
            "learning_rate": editor.config.learning_rate,
            "method": {
                **{name: getattr(editor.config, name) for name in MethodOptions.names()},
                "subject_modules": [name for name, site in editor.sites.items() if site == "subject"],
            },
            "text": editor.joiner.findings(),
            "preserve_text_sha256": editor.text_sha256,
            "suffix_starts_at_layer": editor.start,
            "layers": editor.decoder.num_layers,
            "float32_masters": editor.uses_masters,
        }

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.editor.tokenizer

    @property
    def joiner(self) -> Joiner:
        """Turns prompts and answers into the model's tokens."""
        return self.editor.joiner

    @property
    def max_tokens(self) -> int | None:
        """The model's context length."""
        return self.editor.decoder.max_tokens

    @property
    def lookahead(self) -> int:
        """Turns that best go through the prefix in one pass."""
        engine = self._engine
        return self.spec.lookahead or (engine.lookahead if isinstance(engine, BudgetedEngine) else USUAL_LOOKAHEAD)

    @property
    def edits_at_a_time(self) -> int:
        """Edits that are best evaluated in one call: where layers are streamed, as many as a window holds."""
        window = self.lookahead * self.spec.options.get("edits_per_turn", EditorConfig.edits_per_turn)
        return max(USUAL_EVALUATION, window) if isinstance(self._engine, BudgetedEngine) else USUAL_EVALUATION

    def prepare(self, turns: Sequence[Turn]) -> list[PreparedTurn]:
        """Run the prefix for coming turns."""
        return self.editor.prepare(turns)

    def apply(self, prepared: PreparedTurn) -> TurnReport:
        """Apply one turn. Raises :class:`editing.TurnRefused` with nothing changed."""
        report = self.editor.apply_turn(prepared, measure=False)
        self._watch.offer(prepared.turn.edits)
        return report

    def observe(self, prepared: PreparedTurn) -> None:
        """Feed the lifelong statistics with a turn that is not applied. Raises as :meth:`apply` does."""
        self.editor.observe(prepared)

    def measure_health(self, prepared: PreparedTurn) -> Vitals:
        """Vitals of the model after a turn was applied."""
        return self._health.measure(prepared)

    def evaluate(self, edits: Sequence[TokenizedEdit]) -> list[EditResult]:
        """Metrics of edits, before the first edit and now."""
        return evaluate(self.editor, edits)

    def generate(self, prompts: Sequence[str], *, unedited: bool = False, max_new_tokens: int = 12) -> list[str]:
        """Greedy text after prompts, from the model as it is now or as it was before the first edit."""
        editor = self.editor
        with editor.unedited() if unedited else nullcontext():
            return generate(editor.decoder, editor.joiner, prompts, max_new_tokens=max_new_tokens)

    def digest(self) -> dict[str, str]:
        """SHA-256 of each edited module's weight."""
        return self.editor.digests()

    def fingerprint(self) -> str:
        """Tells this base model from others; to be asked before the first edit."""
        return self._engine.fingerprint()

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
        return self._engine.saved_size()

    def save(self, folder: Path) -> None:
        """Write the edited model."""
        self._engine.save(folder)

    def close(self) -> None:
        """Let go of the model."""
        if hasattr(self, "editor"):
            self._engine.close()
            del self.editor, self._watch, self._health, self._engine
        leave_groups()
