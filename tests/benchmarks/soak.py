"""A lifelong run in small: very many edits of a tiny model through the whole pipeline, killed and resumed on the way.

    python -m tests.benchmarks.soak                      1,000,000 edits; make soak
    python -m tests.benchmarks.soak --edits 6000 --kills 1

The same command line that a person uses runs twice, in processes of its own: undisturbed, and killed (SIGKILL) and
resumed. Evaluation samples, checkpoints, ledger and tracking are on. What must hold is printed and checked:

    the same bits in both, every edit exactly once in the ledger, memory and time a turn flat over the undisturbed run
"""

import argparse
import gzip
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from tests.support.paths import PARITY

MODEL = PARITY / "llama-tiny" / "model"
PER_TURN = 100
_MAX_MEMORY_GROWTH = 100e6
"""Bytes between the second tenth of the run and its last: allocator noise is far below, a leak per edit far above."""
_MAX_SLOWDOWN = 1.3
"""Processor time a turn in the last tenth over that in the second tenth."""


@dataclass(frozen=True)
class Run:
    """What one run left behind.

    Attributes:
        folder: Its results.
        seconds: Wall time, restarts included.
        samples: Turns in its newest checkpoint, resident bytes and processor seconds of its last process, at each.
        resumes: Times it was killed and resumed.
    """

    folder: Path
    seconds: float
    samples: list[tuple[int, int, float]]
    resumes: int

    @property
    def digests(self) -> dict[str, str]:
        return dict(json.loads((self.folder / "run.json").read_text())["digests_after"])

    def memory(self, tenth: int) -> float:
        """Median of the resident bytes in the n-th tenth of the run."""
        return statistics.median(resident for _, resident, _ in self._tenth(tenth))

    def turn_seconds(self, tenth: int) -> float:
        """Processor seconds a turn in the n-th tenth of the run: what else the machine does counts little."""
        (first, _, began), *_, (last, _, ended) = self._tenth(tenth)
        return (ended - began) / max(1, last - first)

    def _tenth(self, number: int) -> list[tuple[int, int, float]]:
        total = self.samples[-1][0]
        return [sample for sample in self.samples if (number - 1) * total <= 10 * sample[0] <= number * total]

    def records(self) -> list[int]:
        parts = sorted((self.folder / "ledger").glob("*.parquet"))
        return [record for part in parts for record in pq.read_table(part, columns=["record"])["record"].to_pylist()]


def write_edits(path: Path, count: int) -> None:
    """Synthetic facts, one line each; every tenth has probes."""
    words = ["Asia", "Medina", "Spanish", "sitcom", "Turkish", "Shah", "Europe", "Latin", "Paris", "drama"]
    with gzip.open(path, "wt", compresslevel=1) as file:
        for i in range(count):
            record = {"prompt": f"The place of item {i} is in", "target": words[i * 7 % 10]}
            if i % 10 == 0:
                record |= {"rephrase": f"Item {i} lies in", "locality_prompt": "The capital of France is", "locality_answer": "Paris"}
            file.write(json.dumps(record) + "\n")


def command(edits: Path, out: Path, checkpoint_every: int) -> list[str]:
    settings = ["--modules", "model.layers.{1,2}.mlp.{gate,up}_proj", "--learning-rate", "1e-7", "--edits-per-turn", str(PER_TURN)]
    loop = [
        "--checkpoint-every",
        str(checkpoint_every),
        "--watch-every",
        "20",
        "--eval-sample",
        "500",
        "--generate",
        "20",
        "--resume",
        "auto",
        "--lookahead",
        "1",
    ]
    tracking = ["--tracking-uri", f"sqlite:///{out.parent}/mlflow.db"]
    return [
        "edit",
        "--model",
        str(MODEL),
        "--edits",
        str(edits),
        "--output",
        str(out),
        *settings,
        *loop,
        *tracking,
    ]


def _start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("a") as file:
        whole = [sys.executable, "-m", "orchestrator", *arguments]
        return subprocess.Popen(whole, stderr=file, stdout=file, env={**os.environ, "OMP_NUM_THREADS": "1"})


def run(edits: Path, out: Path, checkpoint_every: int, kill_at: list[int], start: Callable[[list[str], Path], Any] = _start) -> Run:
    """One run; killed each time its ledger holds the next number of turns in ``kill_at``."""
    began = time.perf_counter()
    waiting = list(kill_at)
    out.parent.mkdir(parents=True)
    (out.parent / "log.txt").touch()
    while True:
        process = start(command(edits, out, checkpoint_every), out.parent / "log.txt")
        samples: list[tuple[int, int, float]] = []
        for sample in _watch(process, out):
            if not samples or sample[0] > samples[-1][0]:
                samples.append(sample)
            if waiting and sample[0] >= waiting[0]:
                waiting.pop(0)
                process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            return Run(out, time.perf_counter() - began, samples, len(kill_at) - len(waiting))
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"a run failed: {(out.parent / 'log.txt').read_text()[-2000:]}")


def _watch(process: Any, out: Path) -> Iterator[tuple[int, int, float]]:
    """Samples of a process, as in :class:`Run`, while it edits."""
    while process.poll() is None:
        time.sleep(0.2)
        checkpoints = [path.name for path in out.parent.glob(f".{out.name}.partial-*/checkpoints/turn-*")]
        try:
            seen = psutil.Process(process.pid)
            resident, times = seen.memory_info().rss, seen.cpu_times()
        except psutil.Error:
            return
        if checkpoints:  # loading is over
            yield max(int(name.removeprefix("turn-")) for name in checkpoints), resident, times.user + times.system


def soak(folder: Path, count: int, kills: int, start: Callable[[list[str], Path], Any] = _start) -> dict[str, tuple[str, bool]]:
    """Both runs and what must hold of them: in words, and whether it does.

    Args:
        folder: Where they are written.
        count: Edits.
        kills: How often the second one is killed.
        start: Starts a process of ``ultraedit`` with arguments and a file for what it says.
    """
    edits = folder / "edits.jsonl.gz"
    write_edits(edits, count)
    turns = -(-count // PER_TURN)
    every = max(1, min(20, turns // 50))
    whole = run(edits, folder / "undisturbed" / "out", every, [], start)
    killed = run(edits, folder / "killed" / "out", every, [turns * k // (kills + 1) for k in range(1, kills + 1)], start)
    memory, seconds = ((take(2), take(10)) for take in (whole.memory, whole.turn_seconds))
    once = all(r.records() == list(range(1, count + 1)) for r in (whole, killed))
    return {
        "kills survived": (str(killed.resumes), killed.resumes == kills),
        "same bits": (next(iter(killed.digests.values()))[:12], killed.digests == whole.digests),
        "every edit once in both ledgers": (f"{count:,}", once),
        "memory, second and last tenth": (f"{memory[0] / 1e6:.0f} MB, {memory[1] / 1e6:.0f} MB", memory[1] - memory[0] < _MAX_MEMORY_GROWTH),
        "processor time a turn, second and last tenth": (
            f"{1e3 * seconds[0]:.1f} ms, {1e3 * seconds[1]:.1f} ms",
            seconds[1] < _MAX_SLOWDOWN * seconds[0],
        ),
        "wall time, undisturbed and killed": (f"{whole.seconds:.0f} s, {killed.seconds:.0f} s", True),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the runs are kept; by default a temporary folder")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = soak(folder, options.edits, options.kills)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    table = Table(title=f"{options.edits:,} edits of a tiny Llama, {PER_TURN} a turn", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("", "found", "holds"):
        table.add_column(column)
    for name, (words, holds) in found.items():
        table.add_row(name, words, "yes" if holds else "NO")
    Console().print(table)
    return 0 if all(holds for _, holds in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
