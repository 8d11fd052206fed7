"""A worker in this process: loads a model, edits it, measures it. Holds no formula; each verb calls ``editing``.

A plain class, so that a test constructs it in process. The constructor is cheap; :meth:`LocalWorker.load` does the heavy part.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from editing import TurnReport
from editing.config import RAW, MethodOptions
from editing.files.conversion import account_in
from editing.messages import Asked
from editing.model.generation import Written, write
from editing.model.joining import Joiner
from editing.monitoring.evaluation import Answers, EditResult, Predictions, evaluate_beside
from editing.monitoring.health import Health, Vitals
from editing.monitoring.held_out import perplexities
from editing.monitoring.watch import Watch
from editing.state import load_state, save_state
from editing.turn import PreparedTurn, TokenizedEdit, Turn
from workers.engines.engine import Engine
from workers.engines.streamed import StreamedEngine
from workers.engines.whole import WholeEngine
from workers.process_groups import GroupCollectives, Placement, join_groups, leave_groups, local_device
from workers.protocol import Worker, WorkerSpec

__all__ = ["LocalWorker", "Placement", "WorkerSpec"]


_MOST_HALVINGS = 4
"""Of the strength of a first turn: a sixteenth of it is left."""


class LocalWorker(Worker):
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
        return self._engine.outlook(num_edits)

    def load(self) -> None:
        self.editor = self._engine.load()
        self._watch = Watch(self.editor, size=self.spec.watch_size, seed=self.spec.seed)
        self._health = Health(self.editor, self._watch)

    def _keeps_probes(self) -> bool:
        return self._health.probe_retention() >= self.spec.min_probe_retention

    @cached_property
    def _engine(self) -> Engine:
        placement = self.placement
        device = local_device(self.spec.device, placement)
        if self.spec.device_memory is not None:
            return StreamedEngine(self.spec, device)
        if placement.is_single_process:
            return WholeEngine(self.spec, device)
        if placement.num_shards == 1:
            groups = join_groups(placement, device)
            return WholeEngine(self.spec, device, GroupCollectives(placement, groups, device))
        from workers.engines.sharded import ShardedEngine, check_num_shards  # which needs deepspeed

        check_num_shards(self.spec.model, placement.num_shards)  # before the others are waited for
        return ShardedEngine(self.spec, placement, join_groups(placement, device), device)

    def describe(self) -> dict[str, Any]:
        editor = self.editor
        weights = next(iter(editor.modules.values())).weight
        return {
            "architecture": type(editor.model).__name__,
            "converted": editor.base and account_in(editor.base.folder),
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
                "framings": list(editor.config.framings),
            },
            "text": editor.joiner.findings(),
            "preserve_text_sha256": editor.text_sha256,
            "suffix_starts_at_layer": editor.start,
            "layers": editor.decoder.num_layers,
            "float32_masters": editor.uses_masters,
        }

    @property
    def tokenizer(self) -> Any:
        return self.editor.tokenizer

    @property
    def joiner(self) -> Joiner:
        """Turns prompts and answers into the model's tokens."""
        return self.editor.joiner

    @property
    def max_tokens(self) -> int | None:
        return self.editor.decoder.max_tokens

    @property
    def lookahead(self) -> int:
        return self._engine.lookahead

    @property
    def edits_at_a_time(self) -> int:
        return self._engine.edits_at_a_time

    def prepare(self, turns: Sequence[Turn]) -> list[PreparedTurn]:
        return self.editor.prepare(turns)

    def apply(self, prepared: PreparedTurn) -> TurnReport:
        if self.editor.finds_rate(prepared.turn):
            report = self.editor.apply_gently(prepared, self._keeps_probes, most_halvings=_MOST_HALVINGS)
        else:
            report = self.editor.apply_turn(prepared, measure=False)
        self._watch.offer(prepared.turn.edits)
        return report

    def observe(self, prepared: PreparedTurn) -> None:
        self.editor.observe(prepared)

    def measure_health(self, prepared: PreparedTurn) -> Vitals:
        return self._health.measure(prepared)

    def evaluate(self, edits: Sequence[TokenizedEdit], known: Sequence[Answers | None] | None = None) -> tuple[list[EditResult], Predictions]:
        return evaluate_beside(self.editor, edits, known)

    def write(self, prompts: Sequence[Asked], *, framing: str = RAW, unedited: bool = False, max_new_tokens: int = 12) -> list[Written]:
        editor = self.editor
        with editor.unedited() if unedited else nullcontext():
            return write(editor.decoder, editor.joiner.framed(framing), prompts, max_new_tokens=max_new_tokens)

    def perplexities(self, passages: Sequence[str], known: float | None = None) -> tuple[float, float]:
        return perplexities(self.editor, passages, known)

    def digest(self) -> dict[str, str]:
        return self.editor.digests()

    def fingerprint(self) -> str:
        return self._engine.fingerprint()

    def save_state(self, path: Path) -> None:
        save_state(self.editor, path)

    def load_state(self, path: Path, watch: dict[str, Any] | None) -> None:
        load_state(self.editor, path)
        if watch is not None:
            self._watch.restore(watch)

    def watch_state(self) -> dict[str, Any]:
        return self._watch.state()

    def saved_size(self) -> int:
        return self._engine.saved_size()

    def save(self, folder: Path) -> None:
        self._engine.save(folder)

    def close(self) -> None:
        try:
            if "_engine" in vars(self):  # or it would be made now
                self._engine.close()
        finally:
            for name in ("_engine", "editor", "_watch", "_health"):  # the last of them are not there if loading failed
                vars(self).pop(name, None)
            leave_groups()
