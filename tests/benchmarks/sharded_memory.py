"""Peak memory of each shard while a model is loaded: ``python -m tests.benchmarks.sharded_memory [--gib 1.0]``.

Writes a random float32 model of Llama's shape, in files of 256 MB, loads it on 1, 2 and 4 shards on this machine's CPU, one
process a shard, and prints each process's peak of anonymous memory (``RssAnon``) above what it used before. Weights that
are mapped from files are not anonymous: a whole float32 model is mapped as it lies, a shard is always a copy.
"""

import tempfile
import threading
import time
from pathlib import Path

import click
import torch
import torch.multiprocessing as mp
from transformers import LlamaConfig, LlamaForCausalLM

from editing.files import pretrained
from tests.support.ports import free_ports
from workers.engines.sharded import load_sharded
from workers.process_groups import Placement, join_groups

MIB = 2**20


@click.command()
@click.option("--gib", default=1.0, help="Size of the model.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", help="Precision in which it is loaded.")
def main(gib: float, dtype: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        total, largest = write_model(Path(folder), gib)
        scale = 1 if dtype == "float32" else 2
        print(f"model {total / scale / MIB:.0f} MiB in {dtype}, largest weight {largest / scale / MIB:.0f} MiB (embeddings, whole on every shard)")
        print("| shards | model/shards MiB | + largest | measured peak of each shard MiB | after loading | seconds |")
        print("|---|---|---|---|---|---|")
        for shards in (1, 2, 4):
            results = mp.get_context("spawn").SimpleQueue()
            mp.start_processes(measure, (shards, free_ports(1)[0], folder, dtype, results), nprocs=shards, start_method="spawn")
            rows = sorted(results.get() for _ in range(shards))
            share = total / scale / shards / MIB
            peaks, ends = (" ".join(f"{row[i]:.0f}" for row in rows) for i in (1, 2))
            print(f"| {shards} | {share:.0f} | {share + largest / scale / MIB:.0f} | {peaks} | {ends} | {max(r[3] for r in rows):.1f} |")


def write_model(folder: Path, gib: float) -> tuple[int, int]:
    """Write the model; returns its bytes and those of its largest weight."""
    layers = max(1, round((gib * 2**30 - 2 * 4 * 16000 * 1024) / (4 * (4 * 1024**2 + 3 * 1024 * 4096))))
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=16, vocab_size=16000
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="256MB")
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    return sum(sizes), max(sizes)


def measure(rank: int, shards: int, port: int, folder: str, dtype: pretrained.DTypeName, results: object) -> None:
    """Load one shard, or the whole model, in this process and report its memory."""
    torch.set_num_threads(1)
    pretrained.load_tokenizer = lambda _: None  # the model has none
    placement, device = Placement(rank=rank, num_shards=shards, port=port), torch.device("cpu")
    if shards > 1:
        groups = join_groups(placement, device)
        import deepspeed  # noqa: F401  # its own memory is not the model's
    before = anonymous()
    peak = Peak()
    began = time.perf_counter()
    if shards == 1:
        model, _ = pretrained.load(folder, device=device, dtype=dtype)
    else:
        model, *_ = load_sharded(Path(folder), groups.shards, device=device, dtype=dtype)
    seconds = time.perf_counter() - began
    results.put((rank, (peak.stop() - before) / MIB, (anonymous() - before) / MIB, seconds))  # type: ignore[attr-defined]
    assert model is not None


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class Peak:
    """The largest :func:`anonymous` seen, looked at every 2 ms."""

    def __init__(self) -> None:
        self._highest, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._highest = max(self._highest, anonymous())

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._highest


if __name__ == "__main__":
    main()
