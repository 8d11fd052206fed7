"""Whole turns of the baseline and of :class:`editing.Editor`: time, memory, and whether both give the same weights."""

import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import psutil
from torch import nn

from editing import Editor
from editing.memory.budget import peak_bytes
from editing.turn import Turn
from tests.benchmarks.ablation import total_shifts
from tests.benchmarks.workload import Workload, make_baseline, relative_difference, seconds

SIDES = ("baseline", "editor")

PHASES = ("prefix", "capture", "solve", "apply")


@dataclass(frozen=True)
class Comparison:
    """Both editors on the same turns.

    Attributes:
        baseline: Seconds of each turn of the baseline.
        editor: Seconds of each turn of the editor, with the turn's share of the lookahead window's prefix.
        phases: Seconds of the editor's phases in each turn.
        flops: What prefix and capture of each turn compute.
        errors: By module, relative error of the editor's total shift against the baseline's.
    """

    baseline: list[float]
    editor: list[float]
    phases: list[dict[str, float]]
    flops: list[float]
    errors: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        """The module with the largest error, and that error. One that is not a number is the worst."""
        return max(self.errors.items(), key=lambda item: (math.isnan(item[1]), item[1]))

    @property
    def capture_speed(self) -> float:
        """Median FLOP/s of prefix and capture together, warm-up left out."""
        return median(f / (p["prefix"] + p["capture"]) for f, p in zip(self.flops[1:], self.phases[1:], strict=True))


@dataclass(frozen=True)
class Memory:
    """Resident bytes of a process that loaded the model and applied a turn."""

    loaded: int
    peak: int


def compare(workload: Workload) -> Comparison:
    """Let both editors apply the same turns, one after the other turn by turn, so that machine drift hits both."""
    editor = workload.load_editor()
    turns = workload.turns(editor)
    editor.prepare(turns[:1])  # touches the prefix's weights for the first time
    result = Comparison([], [], [], [capture_flops(editor, turn) for turn in turns], {})
    with tempfile.TemporaryDirectory() as folder:
        baseline = make_baseline(editor, workload.load_model(), Path(folder))
        originals = {name: m.weight.detach().clone() for name, m in baseline.modules.items()}
        for index, turn in enumerate(turns):
            result.baseline.append(seconds(partial(baseline.apply_turn, turn.sequences)))
            prepared = editor.prepare(turns)[index]  # the whole window each time, so that its share is measured under the same load
            began = time.perf_counter()
            report = editor.apply_turn(prepared, measure=False)
            result.editor.append(prepared.prefix_seconds + time.perf_counter() - began)
            result.phases.append(report.seconds)
    for name, shift in total_shifts(editor).items():
        result.errors[name] = relative_difference(shift, baseline.modules[name].weight.detach() - originals[name])
    return result


def capture_flops(editor: Editor, turn: Turn) -> float:
    """Floating-point operations of one turn's prefix and capture, a lower bound of what must be computed.

    With ``t`` tokens, padding left out, ``n`` rows, ``P`` weights in one layer's linears and ``H`` in the head, a matrix
    product costs 2 operations a weight and row:

        2 t P * start                   prefix forward, layers 0 .. start - 1
      + 2 t P * (L - start)             suffix forward
      + 2 t P * (L - start - 1)         suffix backward: gradients of activations alone, layers above the lowest edited
      + 2 n H + 2 n H                   head on the rows, forward and backward

    Left out: attention scores, norms, activations, and the part of the lowest edited layer that lies above its edits.
    """
    decoder = editor.decoder
    layer = sum(m.weight.numel() for m in decoder.layers[0].modules() if isinstance(m, nn.Linear))
    tokens = sum(len(s.input_ids) for s in turn.sequences)
    rows = sum(len(s.answer_ids) for s in turn.sequences)
    lowest = min(decoder.layer_of(name) for name in editor.modules)
    passes = decoder.num_layers + (decoder.num_layers - lowest - 1)
    return 2.0 * tokens * layer * passes + 4.0 * rows * decoder.head.weight.numel()


def measure_memory(side: str, workload: Workload) -> Memory:
    """Peak resident memory of one side, in a process of its own.

    Linux hands the parent's peak on to a child through fork and exec, so call this while the parent is still small.
    """
    command = [sys.executable, "-m", "tests.benchmarks.bench", "--child", side, "--model", workload.model, "--edits", str(workload.edits)]
    sizes = ["--turns", str(workload.num_turns), "--edits-per-turn", str(workload.edits_per_turn)]
    done = subprocess.run(command + sizes, stdout=subprocess.PIPE, text=True, check=True)
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def run_child(side: str, workload: Workload) -> None:
    """Load a model, apply the first turn and print this process's memory as JSON. The editor's window holds all turns."""
    editor = workload.load_editor()
    turns = workload.turns(editor)
    loaded = psutil.Process().memory_info().rss
    with tempfile.TemporaryDirectory() as folder:
        if side == "editor":
            editor.apply_turn(editor.prepare(turns)[0], measure=False)
        else:
            baseline = make_baseline(editor, editor.model, Path(folder))
            tokenizer = editor.tokenizer  # stays, as it would in a run
            del editor  # goes, with the copies of the edited weights that it keeps
            baseline.apply_turn(turns[0].sequences)
            del tokenizer
    peak = peak_bytes()
    print(json.dumps({"loaded": loaded, "peak": peak}))
