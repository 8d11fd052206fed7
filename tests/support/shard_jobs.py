"""What one worker does in a test, and what it leaves behind. The same code runs on the whole model and on every shard."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from editing import EditRequest, TurnRefused, UltraEditError
from editing.method.rows import TurnRows
from editing.turn import PreparedTurn, TokenizedEdit, in_turns, tokenize
from tests.support.small_editor import FACTS, SUBJECTS
from workers.worker import LocalWorker, Placement, WorkerSpec

PASSAGES = ["A short passage of no meaning.", "Another one, which is somewhat longer than the first."]
PROMPTS = ["The capital of Kiribati is", "Perl", "The moon Triton orbits the planet that is called"]


@dataclass(frozen=True)
class Job:
    """A model, how it is edited, and what is left out or done on top; ``measured`` adds evaluation, vitals and generated texts.

    ``device`` is ``cpu`` or ``cuda``, where each process has the GPU of its own rank.
    """

    name: str
    model: str
    modules: tuple[str, ...]
    edits: str | None = None
    learning_rate: float = 1e-3
    dtype: str = "float32"
    options: dict[str, Any] = field(default_factory=lambda: {"edits_per_turn": 3, "group_size": 2})
    first_turn: int = 0
    last_turn: int | None = None
    lookahead: int | None = None
    state_before: str | None = None
    state_after: str | None = None
    saved: str | None = None
    measured: bool = True
    extra: str | None = None
    device: str = "cpu"


@dataclass
class Record:
    """What one worker saw: plain values and tensors by name."""

    values: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def write(self, folder: Path, name: str) -> None:
        (folder / f"{name}.json").write_text(json.dumps(self.values))
        save_file({k: t.contiguous().clone() for k, t in self.tensors.items()}, folder / f"{name}.safetensors")

    @classmethod
    def read(cls, folder: Path, name: str) -> "Record":
        return cls(json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors"))


def run(job: Job, placement: Placement) -> Record:
    """Do a job, on one shard or on the whole model."""
    if job.extra == "own head":
        return run_with_deepspeeds_own_head(job, placement)
    worker = _loaded(job, placement)
    values: dict[str, Any] = {"fingerprint": worker.fingerprint(), "described": worker.describe()}
    if job.state_before:
        worker.load_state(Path(job.state_before), None)
    turns = list(in_turns(_edits(worker, job), worker.editor.config.edits_per_turn))[job.first_turn : job.last_turn]
    windows = [worker.prepare(turns[a : a + (job.lookahead or len(turns))]) for a in range(0, len(turns), job.lookahead or len(turns))]
    prepared = [turn for window in windows for turn in window]
    tensors = _captured(worker, prepared[0])
    if job.extra == "refusals":
        values["refusals"] = _refusals(worker, prepared[0], placement)
    with _counted() as sent:
        values["reports"] = [_without_times(worker.apply(turn)) for turn in prepared]
    if job.extra == "sent":
        values["sent"] = sent
    values["digests"] = worker.digest()
    if job.measured:
        values |= _outcome(worker, prepared[0], turns[0].edits)
    tensors |= {f"weight.{name}": weight for name, weight in worker.editor.weights.whole()}
    for shape, moments in worker.editor.moments.items():
        tensors |= {f"mean.{shape}": moments.mean, f"std.{shape}": moments.std}
        values[f"count.{shape}"] = moments.count
    if job.state_after:
        worker.save_state(Path(job.state_after))
    if job.saved:
        worker.save(Path(job.saved))
    return Record(values, tensors)


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Elements of every tensor that collectives take from this process."""
    sent: list[int] = []
    originals = {name: getattr(dist, name) for name in ("all_reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce", "send")}

    def counting(name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            sent.extend(t.numel() for t in (*given, *named.values()) if isinstance(t, torch.Tensor))  # what is received comes in lists
            return originals[name](*given, **named)

        return call

    for name in originals:
        setattr(dist, name, counting(name))
    try:
        yield sent
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def run_with_deepspeeds_own_head(job: Job, placement: Placement) -> Record:
    """Capture with the head forward that DeepSpeed brings, made to take rows but without the sum of its gradient."""
    worker = _loaded(job, placement)
    (prepared,) = worker.prepare(list(in_turns(_edits(worker, job), 100)))
    if placement.num_shards == 1:
        return Record({}, _captured(worker, prepared))
    with _own_head():
        return Record({}, _captured(worker, prepared))


@contextmanager
def _own_head() -> Iterator[None]:
    from deepspeed.module_inject import layers

    repaired = layers.LmHeadLinearAllreduce.forward

    def forward(head: Any, rows: torch.Tensor) -> torch.Tensor:
        a = sum(head._partition_sizes[: head.tp_index])
        logits = torch.matmul(rows[..., a : a + head._partition_sizes[head.tp_index]], head.weight.t())
        return layers.RowParallel.apply(head.mp_group, logits, True)

    layers.LmHeadLinearAllreduce.forward = forward
    try:
        yield
    finally:
        layers.LmHeadLinearAllreduce.forward = repaired


def _loaded(job: Job, placement: Placement) -> LocalWorker:
    spec = WorkerSpec(
        model=job.model,
        device=job.device,
        dtype=job.dtype,
        modules=job.modules,
        learning_rate=None if "strength" in job.options else job.learning_rate,
        options=job.options,
        watch_size=4,
    )
    worker = LocalWorker(spec, placement)
    worker.load()
    return worker


def _edits(worker: LocalWorker, job: Job) -> list[TokenizedEdit]:
    if job.edits:
        requests = [EditRequest(e["prompt"], e["ans"]) for e in json.loads(Path(job.edits).read_text())]
    else:
        requests = [
            EditRequest(p, t, subject=subject, rephrase="Say: " + p, locality_prompt=FACTS[i - 1][0])
            for i, ((p, t), subject) in enumerate(zip(FACTS, SUBJECTS, strict=True))
        ]
    return [tokenize(worker.tokenizer, request, max_tokens=worker.max_tokens) for request in requests]


def _captured(worker: LocalWorker, prepared: PreparedTurn) -> dict[str, torch.Tensor]:
    rows = worker.editor.capture(prepared)
    tensors = {"losses": rows.losses}
    for name, part in worker.editor.shards.items():
        tensors |= {f"keys.{name}": rows.keys[name], f"key_features.{name}": part.key_features}
        tensors |= {f"gradients.{name}": rows.value_gradients[name], f"value_features.{name}": part.value_features - part.shape[0]}
    return tensors


def _outcome(worker: LocalWorker, prepared: PreparedTurn, edits: tuple[TokenizedEdit, ...]) -> dict[str, Any]:
    return {
        "evaluated": [asdict(result) for result in worker.evaluate(edits)[0]],
        "vitals": worker.measure_health(prepared).as_dict() | dict(zip(("held_out_before", "held_out"), worker.perplexities(PASSAGES), strict=True)),
        "generated": [asdict(w) for w in worker.write(PROMPTS, max_new_tokens=6)],
        "generated_before": [asdict(w) for w in worker.write(PROMPTS, unedited=True, max_new_tokens=6)],
    }


def _refusals(worker: LocalWorker, prepared: PreparedTurn, placement: Placement) -> list[str]:
    """What a worker says when a number of the last shard alone is broken, and when the first one cannot write."""
    said = []
    editor = worker.editor
    name = next(iter(editor.modules))

    def broken(rows: TurnRows, _collectives: Any, _shares: Any) -> TurnRows:
        if placement.rank == placement.num_shards - 1:
            rows.value_gradients[name][3, 0] = float("nan")
        return rows

    with patch.object(TurnRows, "gathered", broken):
        try:
            worker.apply(prepared)
        except TurnRefused as refused:
            said.append(f"{refused} {refused.culprits} {editor.turns}")
    try:
        worker.save_state(Path("/nowhere/state"))
    except UltraEditError:
        said.append("not written")
    except Exception:
        said.append("not written" if placement.rank == 0 else "unexpected")
    return said


def _without_times(report: Any) -> dict[str, Any]:
    return asdict(replace(report, seconds=dict.fromkeys(report.seconds, 0.0)))
