"""Checks of ``make gpu-check`` that look at numbers: flags of torch, published shifts, the CPU's weights, equal bits."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import MistralConfig

from editing import Editor
from editing.files import pretrained
from editing.files.pretrained import DTypeName
from editing.model.matmul import _mkl_is_slow
from editing.model.modules import expand
from editing.turn import in_turns, tokenize
from tests.benchmarks.ablation import total_shifts
from tests.benchmarks.baseline import BaselineEditor
from tests.benchmarks.checkpoint import write_random
from tests.benchmarks.device_rows import Finding, Setting, below, held, noted, skipped
from tests.benchmarks.streamed import facts_of
from tests.editing.memory.test_streaming import edited, streamed
from tests.support.published import FIXTURES, editor_of, errors_by_turn, errors_of_run, relative_error, requests_of, worst
from tests.support.tiny_models import TINY

CPU = torch.device("cpu")
FIRST_TURN, LATER_TURNS, TOTAL = 1e-4, 1e-3, 1e-4
"""Relative errors of float32 shifts against the published ones; later turns start from weights that differ by rounding. The CPU has about 1e-5."""
METRICS = 0.01
"""Absolute error of a metric of 60 edits: one answer token that flips at a tie."""
AGAINST_FLOAT64 = 1e-3
"""Relative error of the shifts of a float32 turn against one that is float64 throughout, with TF32 off."""
_ACCELERATED = "TF32 in products of float32"


def flags(setting: Setting) -> Iterator[Finding]:
    """What torch was told of precision and determinism, by this project's command line or by default."""
    yield held(_ACCELERATED, "highest: no TF32", torch.get_float32_matmul_precision(), torch.get_float32_matmul_precision() == "highest")
    found = torch.are_deterministic_algorithms_enabled()
    yield held("deterministic algorithms", "True, as the command line sets it", str(found), found)
    yield noted("CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG", "not set; see the rows on equal bits"))
    yield noted("TF32 in cuDNN", str(torch.backends.cudnn.allow_tf32), "used by convolutions alone")
    reduced = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    yield noted("sums of bfloat16 products in bfloat16", str(reduced), "torch's default")
    yield noted("large float32 products on the CPU", "oneDNN" if _mkl_is_slow() else "torch's own choice")


def parity(setting: Setting) -> Iterator[Finding]:
    """Every turn of the fixtures, and whole runs of the command line, against the published implementation."""
    device = str(setting.device)
    for fixture in FIXTURES:
        for solve in ("row", "d_in"):
            turns = list(errors_by_turn(fixture, solve=solve, device=device, dtype="float32"))
            name = f"{fixture}, {solve} form"
            yield below(f"{name}: first turn", worst(turns[0].shifts), FIRST_TURN)
            yield below(f"{name}: {len(turns) - 1} later turns", worst({str(t.turn): worst(t.shifts) for t in turns[1:]}), LATER_TURNS)
            agree = all(t.counts_agree for t in turns)
            error = worst({str(t.turn): worst(t.statistics) for t in turns}) if agree else float("nan")
            yield below(f"{name}: lifelong moments", error, LATER_TURNS, what="relative error", more="" if agree else "counts differ")
        run = errors_of_run(fixture, setting.scratch / f"run-{fixture}", "--device", device)
        yield below(f"{fixture}: ultraedit edit, all turns", worst(run.shifts), TOTAL)
        yield below(f"{fixture}: ultraedit edit, metrics", worst(run.metrics), METRICS, what="error of efficacy, generalization, specificity")


def against_cpu(setting: Setting) -> Iterator[Finding]:
    """The same edits on the device and on the CPU."""
    for fixture in FIXTURES:
        here, there = (_edited_fixture(fixture, device) for device in (setting.device, CPU))
        expected, equal = total_shifts(there), _equal(here.digests(), there.digests())
        error = worst({name: relative_error(shift, expected[name]) for name, shift in total_shifts(here).items()})
        yield below(f"{fixture}: weights against the CPU's", error, TOTAL, more=f"{equal} digests equal")


def precision(setting: Setting) -> Iterator[Finding]:
    """A turn of a wider model against the plain baseline in float64 on the CPU, with TF32 off and on."""
    width, edits = (256, 20) if setting.small else (1024, 100)
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
    folder = setting.scratch / "wide"
    write_random(folder, MistralConfig(**shape, vocab_size=641, sliding_window=None), torch.float32)
    modules = "model.layers.{1,2}.mlp.{gate,down}_proj"
    expected = _shifts_in_float64(folder, modules, edits)

    def error_on(device: torch.device) -> float:
        editor = Editor.from_pretrained(folder, device=str(device), modules=(modules,), learning_rate=1e-6, edits_per_turn=edits)
        editor.apply(facts_of(edits), measure=False)
        return worst({name: relative_error(shift, expected[name]) for name, shift in total_shifts(editor).items()})

    what = f"a turn of {edits} edits, width {width}"
    yield below(f"{what}: CPU in float32 against float64", error_on(CPU), AGAINST_FLOAT64)
    if not setting.is_gpu:
        yield skipped(f"{what}: TF32 off and on against float64", f"relative error of the shifts < {AGAINST_FLOAT64:.0e}", "TF32 is a GPU's")
        return
    yield below(f"{what}: TF32 off against float64 on the CPU", error_on(setting.device), AGAINST_FLOAT64)
    with _tf32():
        yield noted(f"{what}: TF32 on", f"{error_on(setting.device):.1e}", "for comparison; the project does not use it")


def same_bits(setting: Setting) -> Iterator[Finding]:
    """The same edits again, and with layers that are streamed, also through pinned memory, give the same weights bit for bit."""
    dtypes: tuple[DTypeName, ...] = ("float32", "bfloat16")
    for fixture in FIXTURES:
        for dtype in dtypes:
            first, second = (_edited_fixture(fixture, setting.device, dtype).digests() for _ in range(2))
            yield _same(f"{fixture} in {dtype}: edited twice", second, first)
    for model in TINY:
        if model.name in ("llama", "gemma3_text"):
            folder = setting.scratch / f"tiny-{model.name}"
            model.write(folder)
            resident = edited(*pretrained.load(folder, device=setting.device), model.modules).digests()
            for pinned in (False, True) if setting.is_accelerator else (False,):
                for layers in (1, 3, 4):
                    with streamed(folder, model.modules, layers, device=str(setting.device), pinned=pinned) as loaded:
                        tokenizer = pretrained.load_tokenizer(folder)
                        found = edited(loaded.model, tokenizer, model.modules, decoder=loaded.decoder, originals=loaded.originals)
                        how = "each layer kept in pinned memory" if pinned else "each pass reads the files"
                        yield _same(f"tiny {model.name}: {layers} of 4 layers streamed, {how}", found.digests(), resident)


def _edited_fixture(fixture: str, device: torch.device, dtype: DTypeName = "float32") -> Editor:
    editor = editor_of(fixture, device=str(device), dtype=dtype)
    editor.apply(requests_of(fixture), measure=False)
    return editor


def _shifts_in_float64(folder: Path, modules: str, num_edits: int) -> dict[str, Tensor]:
    """The first turn of the plain baseline with all in float64, on the CPU; by module, ``(d_out, d_in)``."""
    model, tokenizer = pretrained.load(folder, device=CPU, dtype="float32")
    tokenized = [tokenize(tokenizer, fact, max_tokens=None) for fact in facts_of(num_edits)]
    (turn,) = in_turns(tokenized, num_edits)
    with tempfile.TemporaryDirectory() as rows:
        baseline = BaselineEditor(model.double(), expand(modules), learning_rate=1e-6, folder=Path(rows))
        before = {name: m.weight.detach().clone() for name, m in baseline.modules.items()}
        baseline.apply_turn(turn.sequences)
    return {name: m.weight.detach() - before[name] for name, m in baseline.modules.items()}


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _equal(found: dict[str, str], expected: dict[str, str]) -> str:
    return f"{sum(found.get(name) == digest for name, digest in expected.items())} of {len(expected)}"


def _same(name: str, found: dict[str, str], expected: dict[str, str]) -> Finding:
    return held(name, f"{len(expected)} equal digests", _equal(found, expected), found == expected)
