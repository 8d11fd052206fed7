"""A plan says what fits and what would, from a configuration alone, and what it says of memory is what a run then does."""

import json
import re
import shutil
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from tests.support.paths import PARITY
from tests.support.tiny_runs import CHAT_TEMPLATE

LLAMA_70B, GEMMA_27B = PARITY.parent / "configs" / "llama-3-70b", PARITY.parent / "configs" / "gemma-3-27b"
TOP = "model.layers.{77,78}.mlp.down_proj"


def plan(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert main(["plan", *map(str, arguments)]) == code
    return " ".join(capsys.readouterr().out.split())


def test_a_configuration_alone_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    told = plan(capsys, "--model", LLAMA_70B, "--modules", TOP, "--device", "cuda")
    assert "70.55 billion parameters, 80 layers, in bfloat16" in told
    assert "model.layers.{0..79}.mlp.down_proj (28672 -> 8192)" in told
    assert "give --flops" in told


def test_70b_fits_on_one_gpu_of_24_gib_if_layers_are_streamed(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--modules", TOP, "--device", "cuda", "--device-memory", "24GiB", "--flops", "1.2e14", "--read", "3e9"]
    told = plan(capsys, "--model", LLAMA_70B, *flags)
    assert re.search(r"layers 7\d to 79 stay; 0 to 7\d are read from disk, 1\d\d\.\d GiB a pass", told)
    assert "does not fit" not in told


def test_what_does_not_fit_names_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    many = "model.layers.{52..60}.mlp.{gate,up}_proj"
    told = plan(capsys, "--model", GEMMA_27B, "--modules", many, "--device", "cuda", "--device-memory", "8GiB", code=1)
    smallest = int(re.search(r"the smallest that works is (\d+)MiB", told)[1])
    flags = ["--modules", many, "--device", "cuda", "--device-memory"]
    assert "does not fit" not in plan(capsys, "--model", GEMMA_27B, *flags, f"{smallest}MiB")
    plan(capsys, "--model", GEMMA_27B, *flags, f"{smallest - 1}MiB", code=1)


def test_shards_that_would_fit_do(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", LLAMA_70B, "--modules", TOP, "--device", "cuda", "--device-memory", "45GiB"]
    told = plan(capsys, *flags, "--shards", "2", code=1)
    shards = re.search(r"would fit --shards (\d+)", told)[1]
    told = plan(capsys, *flags, "--shards", shards, "--replicas", "2")
    assert "a shard sends" in told
    assert "a replica gets" in told


def seconds(told: str) -> float:
    return float(re.search(r"about ([\d.]+) s a turn", told)[1])


def test_a_chat_model_takes_memory_and_time_of_both_forms_of_an_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, work = shutil.copytree(PARITY / "llama-tiny" / "model", tmp_path / "model"), r"hidden states ([\d.]+) MiB"
    flags = ["--model", model, "--modules", "model.layers.1.mlp.down_proj", "--flops", "1e10", "--read", "1e9", "--edits-per-turn", 1000]
    plain = plan(capsys, *flags)
    (model / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    told = plan(capsys, *flags)
    assert "text each edit is written as 'raw' and 'chat'" in told
    assert "each edit is written" not in plain
    assert seconds(told) == pytest.approx(2 * seconds(plain), abs=0.01)  # hundredths
    assert float(re.search(work, told)[1]) == pytest.approx(2 * float(re.search(work, plain)[1]), abs=1.0)  # whole mebibytes


def test_the_preset_and_the_time_of_a_model_that_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    told = plan(capsys, "--model", PARITY / "llama-tiny" / "model", "--modules", "model.layers.1.mlp.down_proj")
    assert "preset none: modules by their depth, unless --modules names them" in told
    assert re.search(r"time about \d+\.\d+ s a turn", told)
    assert "measured here" in told


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "{tmp}"], ["has no config.json"]),
        (["--model", LLAMA_70B, "--preset", "refined"], ["no preset 'refined' fits this model"]),
        (["--model", LLAMA_70B, "--modules", "model.layers.90.mlp.down_proj"], ["no module 'model.layers.90.mlp.down_proj'"]),
        (["--model", LLAMA_70B, "--modules", TOP, "--shards", "65"], ["64 attention heads", "give 1 to 64"]),
        (["--model", LLAMA_70B, "--modules", TOP, "--device-memory", "lots"], ["expected a size like 6GiB"]),
    ],
    ids=["no configuration", "no preset", "no such module", "too many shards", "no size"],
)
def test_a_question_that_makes_no_sense_is_one_line(
    flags: list[object], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *(str(flag).replace("{tmp}", str(tmp_path)) for flag in flags)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words), error


def test_a_run_says_the_same_before_it_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, edits = PARITY / "llama-tiny" / "model", PARITY / "llama-tiny" / "edits.json"
    shared = ["--model", str(model), "--edits", str(edits), "--modules", "model.layers.{1,2}.mlp.down_proj", "--learning-rate", "1e-3"]
    shared += ["--tracking-uri", "none", "--no-eval", "--edits-per-turn", "20"]
    assert main(["edit", *shared, "--output", str(tmp_path / "small"), "--device-memory", "20MiB"]) == 1
    assert "too little for this model; the smallest that works is" in capsys.readouterr().err
    assert main(["edit", *shared, "--output", str(tmp_path / "whole")]) == 0
    assert main(["edit", *shared, "--output", str(tmp_path / "budget"), "--device-memory", "8GiB"]) == 0
    assert "memory     8.0 GiB allowed" in capsys.readouterr().err
    digests = [json.loads((tmp_path / name / "run.json").read_text())["digests_after"] for name in ("whole", "budget")]
    assert digests[0] == digests[1]


def test_a_model_is_measured_within_a_budget_too(tmp_path: Path) -> None:
    flags = ["--model", str(PARITY / "llama-tiny" / "model"), "--edits", str(PARITY / "llama-tiny" / "edits.json"), "--limit", "20"]
    assert main(["evaluate", *flags, "--output", str(tmp_path / "whole.json")]) == 0
    assert main(["evaluate", *flags, "--output", str(tmp_path / "budget.json"), "--device-memory", "8GiB"]) == 0
    assert (tmp_path / "whole.json").read_text() == (tmp_path / "budget.json").read_text()
    assert main(["evaluate", *flags, "--device-memory", "20MiB"]) == 1
