"""A model edited in less memory than it has: ``python -m tests.benchmarks.streamed [--scratch DIR]``.

Writes a random bfloat16 checkpoint of Mistral 7B's shape (14.5 GB) to a scratch folder, edits 100 and then 400 facts
(down_proj of layers 29 and 30) in a process of its own, whose memory a control group caps where this machine lets us make
one, and prints what that took. Beside it the plain baseline makes ten of the edits with the model in memory, if the machine has
memory for it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn import functional as F
from transformers import MistralConfig

from editing import EditRequest
from editing.files import pretrained
from editing.memory.budget import free_memory, parse_size, peak_bytes, show_size
from editing.model.modules import expand
from editing.turn import TokenizedEdit, in_turns, tokenize
from tests.benchmarks.baseline import BaselineEditor
from tests.benchmarks.checkpoint import write_random
from tests.support.paths import ROOT
from workers.worker import LocalWorker, WorkerSpec

MISTRAL_7B: dict[str, Any] = {"vocab_size": 32768, "rope_theta": 1e6, "sliding_window": None, "dtype": "bfloat16"}
MODULES = "model.layers.{29,30}.mlp.down_proj"
_WORDS = "the capital of a small country in the north is known to be called after its first king and lies on a river by the sea"


@click.command()
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for the checkpoint, kept there; by default a temporary one.")
@click.option("--budget", default="5GiB", show_default=True, help="What --device-memory is given.")
@click.option("--cap", default="6GiB", show_default=True, help="Limit of the control group.")
@click.option("--baseline/--no-baseline", default=True, show_default=True, help="Also the plain baseline, with the model in memory.")
@click.option("--child", hidden=True, help="JSON arguments of the measured process.")
def main(scratch: Path | None, budget: str, cap: str, baseline: bool, child: str | None) -> None:
    if child is not None:
        print(json.dumps(measure(**json.loads(child))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (scratch or Path(temporary)) / "mistral-7b-random"
        if not (folder / "config.json").exists():
            write_random(folder, MistralConfig(**MISTRAL_7B), torch.bfloat16)
        result = measure_apart(folder, budget, MODULES, windows=[1, 4], edits_per_turn=100, cap=cap)
        print_result(result)
        if baseline:
            print(f"\nplain baseline, the whole model in memory in bfloat16: {show_baseline(folder, result['model'])}")


def show_baseline(folder: Path, model_bytes: int) -> str:
    needed, free = model_bytes + 4 * 2**30, free_memory(torch.device("cpu"))
    if free < needed:
        return f"not run, it needs about {show_size(needed)} and {show_size(free)} are free"
    return f"{baseline_seconds(folder):.0f} s for one turn of 10 edits, peak {show_size(peak_bytes())}"


def baseline_seconds(folder: Path) -> float:
    """One turn of ten edits the published way: the whole model forward and back, a d_in x d_in system for each module."""
    model, tokenizer = pretrained.load(folder, device=torch.device("cpu"))
    sequences = [tokenize(tokenizer, fact, max_tokens=None).sequence for fact in facts_of(10)]
    with tempfile.TemporaryDirectory() as rows:
        editor = BaselineEditor(model, expand(MODULES), learning_rate=1e-6, folder=Path(rows))
        began = time.perf_counter()
        editor.apply_turn(sequences)
        return time.perf_counter() - began


def facts_of(count: int) -> list[EditRequest]:
    """Facts of about seventeen tokens."""
    words = _WORDS.split()
    return [EditRequest(prompt=f"{i} {' '.join(words[(i + j) % len(words)] for j in range(5 + i % 4))}", target=f"Q{i % 97}") for i in range(count)]


def measure_apart(
    folder: Path, budget: str, modules: str, *, windows: list[int], edits_per_turn: int, dtype: str = "auto", cap: str | None = None
) -> dict[str, Any]:
    """As :func:`measure`, in a process whose memory is capped, at the budget by default, where the machine lets us."""
    arguments = {"folder": str(folder), "budget": budget, "modules": modules, "windows": windows, "edits_per_turn": edits_per_turn, "dtype": dtype}
    limit = parse_size(cap or budget)
    assert limit is not None
    with memory_group(limit) as (group, kind):
        join = None if group is None else lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.streamed", "--child", json.dumps(arguments)],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=join,
            cwd=ROOT,
        )
    if done.returncode:
        raise RuntimeError(f"the measured process ended with {done.returncode}: {done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "capped": kind}


@contextmanager
def memory_group(limit: int) -> Iterator[tuple[Path | None, str]]:
    """A control group with a memory limit, of either version; none where we may not make one."""
    for root, name in ((Path("/sys/fs/cgroup"), "memory.max"), (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")):
        group = root / f"ultraedit-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / name).exists():
                (group / name).write_text(str(limit))
                yield group, f"by a control group at {show_size(limit)}"
                return
        finally:
            group.rmdir()
    yield None, "not capped: no control group could be made"


def measure(folder: str, budget: str, modules: str, windows: list[int], edits_per_turn: int, dtype: pretrained.DTypeName) -> dict[str, Any]:
    """Edit windows of turns, and say what it took."""
    spec = WorkerSpec(
        model=folder, dtype=dtype, device_memory=budget, modules=(modules,), learning_rate=1e-6, options={"edits_per_turn": edits_per_turn}
    )
    worker = LocalWorker(spec)
    outlook = worker.outlook()
    began = time.perf_counter()
    worker.load()
    load_seconds = time.perf_counter() - began
    reader = worker._engine._loaded.reader  # type: ignore[attr-defined]
    tokenized = [tokenize(worker.tokenizer, fact, max_tokens=worker.max_tokens) for fact in facts_of(sum(windows) * edits_per_turn)]
    turns = list(in_turns(tokenized, edits_per_turn))
    decoder = worker.editor.decoder
    prefix_weights = sum(
        torch.Size(shape).numel() for name, shape in reader.files.shapes.items() if _layer(name, decoder.layers_path) in range(worker.editor.start)
    )
    flops = matmul_flops(decoder.config.hidden_size, decoder.config.intermediate_size, worker.editor.decoder.model.dtype)
    rows = []
    for count in windows:
        window, turns = turns[:count], turns[count:]
        read, began = reader.bytes_read, time.perf_counter()
        prepared = worker.prepare(window)
        seconds = time.perf_counter() - began
        reports = [worker.apply(p) for p in prepared]
        suffix = [r.seconds["capture"] + r.seconds["solve"] + r.seconds["apply"] for r in reports]
        tokens = sum(_tokens(turn.edits) for turn in window)
        share = 2 * tokens * prefix_weights / seconds / flops
        rows.append(
            {"edits": count * edits_per_turn, "tokens": tokens, "prefix": seconds, "suffix": suffix, "read": reader.bytes_read - read, "share": share}
        )
    return {
        "outlook": outlook,
        "load": load_seconds,
        "model": sum(torch.Size(s).numel() for s in reader.files.shapes.values()) * worker.editor.decoder.model.dtype.itemsize,
        "peak": peak_bytes(),
        "memory": [line for line in Path("/proc/self/status").read_text().splitlines() if "Rss" in line or "HWM" in line],
        "flops": flops,
        "digests": worker.digest(),
        "windows": rows,
    }


def print_result(result: dict[str, Any]) -> None:
    print("\n".join(result["outlook"]))
    print(f"\nmodel {show_size(result['model'])}, loaded in {result['load']:.1f} s; memory {result['capped']}; peak {show_size(result['peak'])}")
    print(f"matrix products in this precision: {result['flops'] / 1e9:.0f} GFLOP/s\n")
    print("| edits | tokens | prefix s | of the matrix-product peak | read GB | suffix, solve and apply of each turn s | s a turn |")
    print("|---|---|---|---|---|---|---|")
    for row in result["windows"]:
        suffix = ", ".join(f"{s:.1f}" for s in row["suffix"])
        turn = (row["prefix"] + sum(row["suffix"])) / len(row["suffix"])
        print(f"| {row['edits']} | {row['tokens']} | {row['prefix']:.1f} | {row['share']:.0%} | {row['read'] / 1e9:.1f} | {suffix} | {turn:.1f} |")


def matmul_flops(d_in: int, d_out: int, dtype: torch.dtype) -> float:
    """Of a product as large as the prefix's batches make, the best of five."""
    left, right = torch.randn(2048, d_in).to(dtype), torch.randn(d_out, d_in).to(dtype)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        F.linear(left, right)
        best = min(best, time.perf_counter() - began)
    return 2 * 2048 * d_in * d_out / best


def _tokens(edits: tuple[TokenizedEdit, ...]) -> int:
    return sum(len(edit.sequence.input_ids) for edit in edits)


def _layer(name: str, path: str) -> int:
    return int(name.removeprefix(path + ".").split(".")[0]) if name.startswith(path + ".") else -1


if __name__ == "__main__":
    main()
