"""What ``make gpu-check`` runs on a GPU runs on the CPU and on the emulated accelerator too, in small; and what is wrong makes a red row."""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig

from editing.files import pretrained
from editing.method import solver
from editing.method.shift import Shift, solve_rows
from tests.benchmarks import device_rows, solves
from tests.benchmarks.device_rows import Finding, Row, Setting, below, run_check
from tests.benchmarks.device_speed import WIDE, Wide
from tests.benchmarks.gpu_check import CHECKS, main
from tests.support import emulated_jobs
from tests.support.emulated_accelerator import NAME, accelerator

CPU = torch.device("cpu")


def check(tmp_path: Path, *names: str) -> tuple[Result, dict[str, Any]]:
    chosen = [argument for name in names for argument in ("--only", name)]
    output = tmp_path / "found.json"
    done = CliRunner().invoke(main, ["--device", "cpu", "--small", "--output", str(output), *chosen])
    return done, json.loads(output.read_text())


def wrong_shift(*given: Any, **named: Any) -> Shift:
    shift = solve_rows(*given, **named)
    return replace(shift, right=1.01 * shift.right)


def failures(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.result == "failed"]


@pytest.mark.long
@pytest.mark.thorough
def test_all_checks_pass_in_small_on_the_cpu(tmp_path: Path) -> None:
    done, report = check(tmp_path)
    assert done.exit_code == 0, done.output
    assert (report["device"], report["torch"], report["small"]) == ("cpu", torch.__version__, True)
    assert {row["check"] for row in report["rows"]} == set(CHECKS)
    assert {row["result"] for row in report["rows"]} == {"passed", "skipped", "noted"}
    assert all(row["found"] for row in report["rows"])
    assert all(f"| {row['check']} | {row['name']} |" in done.output for row in report["rows"])


def on_the_emulated_accelerator(names: list[str], folder: Path) -> list[Row]:
    with sdpa_kernel(SDPBackend.MATH), accelerator():
        return [row for name in names for row in run_check(name, CHECKS[name], Setting(torch.device(NAME), True, folder))]


@pytest.mark.long
@pytest.mark.thorough
def test_no_check_mixes_the_device_with_the_cpu(tmp_path: Path) -> None:
    names = [name for name in CHECKS if name not in ("flags", "process", "ranks")]  # which have no tensors of the device in this process
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=emulated_jobs.prepare) as pool:
        rows = pool.submit(on_the_emulated_accelerator, names, tmp_path).result()
    assert {row.check for row in rows} == set(names)
    assert not failures(rows)
    assert any("pinned" in row.name for row in rows)


def test_a_wrong_shift_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_row() -> Row:
        (row,) = islice(run_check("parity", CHECKS["parity"], Setting(CPU, True, tmp_path)), 1)
        return row

    assert first_row().result == "passed"
    monkeypatch.setattr(solver, "solve_rows", wrong_shift)
    assert first_row().result == "failed"
    assert first_row().found == "1.0e-02"


@pytest.mark.thorough
def test_a_red_row_is_in_the_table_and_in_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solves, "solve_rows", wrong_shift)
    done, report = check(tmp_path, "solves")
    assert done.exit_code == 1
    assert "| failed |" in done.output
    assert [row["result"] for row in report["rows"]] == ["failed"]


@pytest.mark.thorough
def test_a_check_that_raises_is_a_failed_row_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: Setting) -> Iterator[Finding]:
        yield Finding("before it breaks", "", "well", "passed")
        raise RuntimeError("no luck\nand more of it")

    monkeypatch.setitem(CHECKS, "flags", breaks)
    done, report = check(tmp_path, "flags", "solves")
    assert done.exit_code == 1
    assert [(row["check"], row["result"]) for row in report["rows"]] == [("flags", "passed"), ("flags", "failed"), ("solves", "passed")]
    assert report["rows"][1]["found"] == "RuntimeError: no luck"


def test_a_device_that_no_longer_answers_fails_every_check_that_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device_rows, "reset_peak", lost)
    done, report = check(tmp_path, "flags", "process")
    assert done.exit_code == 1
    assert [(row["check"], row["result"]) for row in report["rows"]] == [("flags", "failed"), ("process", "failed")]


def test_an_error_that_is_not_a_number_is_red() -> None:
    assert below("a shift", float("nan"), 1.0).result == "failed"
    assert below("a shift", 0.5, 1.0).result == "passed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--output", str(tmp_path / "found.json")])
    assert done.exit_code == 1
    assert done.output.startswith("error: torch ")
    assert "sees no CUDA device" in done.output
    assert len(done.output.splitlines()) == 1
    assert not (tmp_path / "found.json").exists()


@pytest.mark.parametrize("wide", WIDE, ids=lambda wide: wide.shape.model)
def test_the_wide_models_have_the_real_shapes(wide: Wide) -> None:
    skeleton = pretrained.make_skeleton("wide", AutoConfig.for_model(wide.family, **wide.config), torch.float32)
    linear = skeleton.get_submodule(wide.module)
    assert (linear.in_features, linear.out_features) == (wide.shape.d_in, wide.shape.d_out)
