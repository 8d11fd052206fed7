"""What the benchmarks run: a model, its turns of edits, both editors on it, and the machine they run on."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editing import Editor, InputError
from editing.datasets import EditFile, NumberedRequest
from editing.files import pretrained
from editing.turn import TokenizedEdit, Turn, in_turns, tokenize
from tests.benchmarks.baseline import BaselineEditor

FALLBACK_EDITS = Path("orchestrator/demo/facts.jsonl")
"""Edits that ship with the project, used where the requested file is missing."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Turns of edits for one model.

    Attributes:
        model: Folder of the model.
        edits: File of the edits.
        num_turns: Turns, the first of them a warm-up; fewer are run where the file is short.
        edits_per_turn: Edits in each turn.
        preset: Settings: those of the published method, which is what the baseline does.
    """

    model: str
    edits: Path
    num_turns: int
    edits_per_turn: int
    preset: str = "published"

    def load_model(self) -> Any:
        """The model in float32 on the CPU."""
        return pretrained.load(self.model, device=torch.device("cpu"), dtype="float32")[0]

    def load_editor(self) -> Editor:
        """This project's editor."""
        return Editor.from_pretrained(self.model, preset=self.preset, device="cpu", dtype="float32", edits_per_turn=self.edits_per_turn)

    def turns(self, editor: Editor, *, at_least: int = 2) -> list[Turn]:
        """The first edits of the file, cut into turns; fewer turns where the file is short.

        Raises:
            InputError: The file has usable edits for fewer turns than ``at_least``.
        """
        needed = self.num_turns * self.edits_per_turn
        edits: list[TokenizedEdit] = []
        for record in EditFile(self.edits):
            if len(edits) == needed:
                break
            if isinstance(record, NumberedRequest):
                edits.append(tokenize(editor.tokenizer, record.request, max_tokens=editor.decoder.max_tokens))
        whole = len(edits) // self.edits_per_turn
        if whole < at_least:
            raise InputError(f"{self.edits}: has {len(edits)} usable edits, expected at least {at_least} turns of {self.edits_per_turn}")
        return list(in_turns(edits[: whole * self.edits_per_turn], self.edits_per_turn))


def make_baseline(like: Editor, model: Any, folder: Path, *, solve_dtype: torch.dtype | None = None) -> BaselineEditor:
    """The baseline on a model, with an editor's settings."""
    settings = {"learning_rate": like.config.learning_rate, "group_size": like.config.group_size, "solve_dtype": solve_dtype}
    return BaselineEditor(model, list(like.modules), folder=folder, **settings)


def choose_edits(requested: Path) -> tuple[Path, str]:
    """The file of edits to use, and a note where it is not the requested one."""
    if requested.is_file():
        return requested, ""
    return FALLBACK_EDITS, f"{requested} is missing, so the edits are those of {FALLBACK_EDITS}."


def machine_line() -> str:
    """Processor, cores, torch, threads and date, in one line."""
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.machine()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {date.today().isoformat()}"
    )


def matmul_speeds(size: int = 2048, repetitions: int = 8) -> dict[str, float]:
    """Best float32 matrix-multiply speed seen, in FLOP/s, of each library that torch brings.

    ``torch.mm`` takes the BLAS that torch was built with, on x86 usually MKL, which uses narrower vectors on other
    makers' processors than on Intel's. oneDNN comes with torch too; its speed shows what the machine can do.
    """
    a, b = torch.randn(size, size), torch.randn(size, size)
    products: dict[str, Callable[[], object]] = {"torch.mm": lambda: torch.mm(a, b)}
    if torch.backends.mkldnn.is_available():
        products["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return {name: 2 * size**3 / min(seconds(product) for _ in range(repetitions)) for name, product in products.items()}


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call, with what it leaves to a GPU."""
    synchronize()
    began = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    """Wait for the GPU, if this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
