"""What replicas bring: turns a second with one and with two, each held to one core, and a cost model beside it.

    python -m tests.benchmarks.replicas --model .cache/gemma-3-270m

Both run through Ray actors, on the same edits, a window of each in turn, so that whatever else the machine does hits both.
"""

import argparse
import os
import statistics
import time
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.console import Console
from rich.table import Table

from editing.datasets import EditFile, NumberedRequest
from editing.turn import Turn, in_turns, tokenize
from orchestrator.run.run_config import RunConfig
from tests.benchmarks.workload import FALLBACK_EDITS

if TYPE_CHECKING:
    from workers.group import WorkerGroup


@dataclass(frozen=True)
class Model:
    """What the cost of a turn depends on.

    Attributes:
        name: Name.
        prefix: Parameters below the lowest edited layer, embeddings apart.
        suffix: Parameters from there on, the head apart.
        head: Parameters of the head.
        hidden: Width of the hidden states.
        layers: Layers.
        edited: ``(d_in, d_out)`` of each edited module.
    """

    name: str
    prefix: float
    suffix: float
    head: float
    hidden: int
    layers: int
    edited: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Machine:
    """One worker's speed: flops a second, bytes a second and seconds a message between workers."""

    name: str
    flops: float
    bandwidth: float
    latency: float


GEMMA_270M = Model("Gemma 3 270M", 66.8e6, 33.4e6, 168e6, 640, 18, ((1024, 640),) * 4)
GEMMA_27B = Model("Gemma 3 27B", 22.9e9, 1.7e9, 1.4e9, 5376, 62, ((21504, 5376),) * 2)
SEVENTY_B = Model("a 70B Llama", 65e9, 3.4e9, 1.05e9, 8192, 80, ((28672, 8192),) * 2)
H100 = Machine("H100, NVLink", 400e12, 150e9, 20e-6)
"""Dense bfloat16 at 40 % of the peak and a third of NVLink's bandwidth: what large products and sums reach; not measured here."""

_LOOKAHEAD = 4


@dataclass(frozen=True)
class Cost:
    """What one worker does in a turn: floating-point operations of capture and of the solves, bytes that it sends, messages that it waits for."""

    capture: float
    solve: float
    sent: float
    messages: float

    def seconds(self, machine: Machine) -> dict[str, float]:
        """Of each part."""
        return {
            "capture": self.capture / machine.flops,
            "solve": self.solve / machine.flops,
            "bytes": self.sent / machine.bandwidth,
            "latency": self.messages * machine.latency,
        }


def cost_of_a_turn(model: Model, *, shards: int, replicas: int, tokens: float, rows: float) -> Cost:
    """Predicted cost.

    Forward is 2 flops a parameter and token; backward through the suffix is as much again, as no weight gradients are made.
    A shard sums hidden states twice a layer, forward and in the suffix back. Replicas gather rows. All of them solve.
    """
    share = 1 / replicas
    work = 2 * tokens * (model.prefix + 2 * model.suffix) + 4 * rows * model.head
    solve = sum(2 * rows * rows * (d_in + d_out) + rows**3 / 3 + 2 * rows * d_in * d_out / shards for d_in, d_out in model.edited)
    sums = 2 * model.layers * (1 if shards == 1 else 2) * (shards > 1)
    sent = sums * tokens * share * model.hidden * 2 * 2 * (shards - 1) / shards
    gathered = (replicas > 1) * rows * sum(sum(pair) for pair in model.edited) / shards * 4
    messages = sums + (replicas > 1) + len(model.edited) * 4 * (shards > 1 or replicas > 1)
    return Cost(work * share / shards, solve, sent + gathered, messages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(".cache/gemma-3-270m"))
    parser.add_argument("--windows", type=int, default=4)
    options = parser.parse_args()
    measured, turns = measure(str(options.model), options.windows)
    tokens = statistics.mean(sum(len(s.input_ids) for s in turn.sequences) for turn in turns)
    rows = statistics.mean(sum(len(s.answer_ids) for s in turn.sequences) for turn in turns)
    _show_measured(measured, tokens, rows)
    _show_predicted(tokens, rows)


def measure(model: str, num_windows: int) -> tuple[dict[int, list[float]], list[Turn]]:
    """Seconds of whole turns, prefix included, by number of replicas."""
    groups = {replicas: _group(RunConfig(model=model, edits="-", output="-", preset="published", replicas=replicas)) for replicas in (2, 1)}
    requests = [record.request for record in EditFile(FALLBACK_EDITS) if isinstance(record, NumberedRequest)]
    edits = (tokenize(groups[1].tokenizer, request, max_tokens=None) for request in islice(cycle(requests), 100 * _LOOKAHEAD * (num_windows + 1)))
    turns = list(in_turns(edits, 100))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for a in range(0, len(turns), _LOOKAHEAD):
        for replicas, group in groups.items():
            began = time.perf_counter()
            for prepared in group.prepare(turns[a : a + _LOOKAHEAD]):
                group.apply(prepared)
            seconds[replicas].append((time.perf_counter() - began) / _LOOKAHEAD)
    for replicas in (1, 2):  # the one that started the cluster last
        groups[replicas].close()
    return {replicas: each[1:] for replicas, each in seconds.items()}, turns  # the first one warms up


def _group(config: RunConfig) -> "WorkerGroup":
    """Workers of a configuration, each held to one core; here one worker is a group too."""
    from workers.cluster import ClusterSpec
    from workers.group import WorkerGroup

    before = _workers()
    spec = replace(config.worker_spec(), watch_size=0)  # its sample fills up in the first turns and then costs next to nothing
    group = WorkerGroup(spec, ClusterSpec(replicas=config.replicas))
    group.load()
    for core, pid in enumerate(sorted(_workers() - before)):
        for thread in psutil.Process(pid).threads():
            os.sched_setaffinity(thread.id, {core % (os.cpu_count() or 1)})
    return group


def _workers() -> set[int]:
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "RemoteWorker" in " ".join(child.cmdline())}


def _show_measured(seconds: dict[int, list[float]], tokens: float, rows: float) -> None:
    medians = {replicas: statistics.median(each) for replicas, each in seconds.items()}
    # the machine's speed is taken from the run with one replica; the model then says what two would give
    one = cost_of_a_turn(GEMMA_270M, shards=1, replicas=1, tokens=tokens, rows=rows)
    core = Machine("one core", (one.capture + one.solve) / medians[1], 1e9, 1e-3)
    table = Table(
        title=f"Turns of 100 edits ({tokens:.0f} tokens, {rows:.0f} rows), Gemma 3 270M", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for column in ("replicas, one core each", "seconds a turn", "turns a second", "speedup", "predicted"):
        table.add_column(column, justify="right")
    for replicas, median in medians.items():
        predicted = sum(cost_of_a_turn(GEMMA_270M, shards=1, replicas=replicas, tokens=tokens, rows=rows).seconds(core).values())
        table.add_row(str(replicas), f"{median:.2f}", f"{1 / median:.2f}", f"{medians[1] / median:.2f}", f"{medians[1] / predicted:.2f}")
    Console().print(table)


def _show_predicted(tokens: float, rows: float) -> None:
    table = Table(title=f"Predicted by the cost model, {H100.name}, not measured", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("model", "GPUs", "shards x replicas", "Tflop", "MB sent", "messages", "compute ms", "bytes ms", "latency ms", "turns/s"):
        table.add_column(column, justify="right" if column != "model" else "left")
    for model in (GEMMA_27B, SEVENTY_B):
        for gpus in (8, 64):
            for shards in (2, 4, 8):
                cost = cost_of_a_turn(model, shards=shards, replicas=gpus // shards, tokens=tokens, rows=rows)
                amounts = (f"{(cost.capture + cost.solve) / 1e12:.2f}", f"{cost.sent / 1e6:.0f}", f"{cost.messages:.0f}")
                seconds = cost.seconds(H100)
                spent = (seconds["capture"] + seconds["solve"], seconds["bytes"], seconds["latency"])
                each = (f"{1e3 * value:.1f}" for value in spent)
                table.add_row(model.name, str(gpus), f"{shards} x {gpus // shards}", *amounts, *each, f"{1 / sum(spent):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
