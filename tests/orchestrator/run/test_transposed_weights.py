"""Whole runs on GPT-2, whose weights lie transposed: streamed, resumed, rolled back, saved in every form, measured, exported, or refused."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from orchestrator.export.reference import Reference
from orchestrator.export.source import RunSource
from orchestrator.progress import Progress
from orchestrator.publish.folder import FolderEngine
from tests.support.command_line import Outcome
from tests.support.paths import PARITY
from tests.support.tiny_models import GPT2

Run = Callable[..., Outcome]

MODULES = "transformer.h.{2,3}.{mlp.c_fc,mlp.c_proj,attn.c_proj}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    GPT2.write(path := tmp_path_factory.mktemp("gpt2"))
    return path


@pytest.fixture(scope="module")
def flags(model: Path) -> list[str]:
    """Flags of a run of three turns; ``--output`` is left to the test."""
    shown = ["edit", "--model", str(model), "--edits", str(PARITY / "llama-tiny" / "edits.json"), "--limit", "18", "--edits-per-turn", "6"]
    shown += ["--modules", MODULES, "--learning-rate", "3e-3", "--passes", "3", "--tracking-uri", "none", "--checkpoint-every", "1"]
    return [*shown, "--batch-tokens", "64", "--keep", "9"]


@pytest.fixture(scope="module")
def finished(flags: list[str], ultraedit: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = ultraedit(*flags, "--output", path := tmp_path_factory.mktemp("finished") / "out")
    assert done.code == 0, done.stderr
    return path


def digests(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((path / "run.json").read_text())["digests_after"]
    return found


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([[5, 9, 33, 120, 7, 200, 64]]), use_cache=False).logits
    return found


def load(folder: Path) -> nn.Module:
    loaded: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return loaded


@pytest.mark.thorough
def test_a_streamed_run_gives_the_same_bits(
    flags: list[str], finished: Path, ultraedit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engines.streamed.process_bytes", lambda _: 0)
    monkeypatch.setattr("editing.memory.budget.MIB", 2**10)  # the whole model is smaller than the unit in which a budget is told
    told = ultraedit(*flags, "--output", tmp_path / "out", "--device-memory", "1KB").errors[0]
    smallest = told.partition("the smallest that works is ")[2].partition("MiB")[0] + "KiB"
    done = ultraedit(*flags, "--output", tmp_path / "out", "--device-memory", smallest)
    assert done.code == 0, done.stderr
    assert "are read from" in done.stderr
    assert digests(tmp_path / "out") == digests(finished)
    assert torch.equal(logits(load(tmp_path / "out" / "model")), logits(load(finished / "model")))


def test_a_run_that_is_rolled_back_and_gone_on_with_ends_in_the_same_bits(flags: list[str], finished: Path, ultraedit: Run, tmp_path: Path) -> None:
    records = json.loads((PARITY / "llama-tiny" / "edits.json").read_text())[:18]
    (rest := tmp_path / "rest.json").write_text(json.dumps(records[12:]))
    for turn in (2, 0):
        out = shutil.copytree(finished, tmp_path / f"out-{turn}")
        assert ultraedit("rollback", out, "--to-turn", turn).code == 0
        assert digests(out) != digests(finished)
        if turn == 2:
            done = ultraedit("edit", "--resume", out, "--edits", rest, "--limit", 18)
            assert done.code == 0, done.stderr
            assert digests(out) == digests(finished)


def test_a_delta_and_an_adapter_make_the_edited_model_of_the_base(
    flags: list[str], model: Path, finished: Path, ultraedit: Run, tmp_path: Path
) -> None:
    edited = logits(load(finished / "model"))
    assert not torch.allclose(logits(load(model)), edited, atol=1e-2)
    for save in ("delta", "peft"):
        done = ultraedit(*flags, "--no-eval", "--save", save, "--output", tmp_path / save)
        assert done.code == 0, done.stderr
    assert ultraedit("apply", tmp_path / "delta" / "delta", "--output", tmp_path / "applied").code == 0
    assert torch.equal(logits(load(tmp_path / "applied")), edited)
    check_adapter(model, tmp_path / "peft" / "adapter", edited)


def check_adapter(model: Path, adapter: Path, edited: torch.Tensor) -> None:
    assert json.loads((adapter / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fan_in_fan_out.*")  # with which peft says that it takes another value
        adapted = PeftModel.from_pretrained(load(model), adapter)
    assert torch.allclose(logits(adapted), edited, atol=1e-4)
    assert torch.allclose(logits(adapted.merge_and_unload()), edited, atol=1e-4)


@pytest.mark.parametrize("turns", [[], ["--from-turn", "1"]], ids=["of the unedited model", "of a later one"])
def test_an_exported_adapter_is_the_edited_model_and_its_certificate_says_so(
    turns: list[str], model: Path, finished: Path, ultraedit: Run, tmp_path: Path
) -> None:
    done = ultraedit("export", finished, "--as", "peft", *turns, "--output", tmp_path / "adapter")
    assert done.code == 0, done.stderr
    certificate = json.loads((tmp_path / "adapter" / "certificate.json").read_text())
    assert certificate["metrics"]["exported"] == pytest.approx(certificate["metrics"]["full_edit"], rel=1e-4)
    assert {name: (module["d_in"], module["d_out"]) for name, module in certificate["modules"].items() if "h.2" in name} == {
        "transformer.h.2.mlp.c_fc": (32, 48),
        "transformer.h.2.mlp.c_proj": (48, 32),
        "transformer.h.2.attn.c_proj": (32, 32),
    }
    if not turns:
        check_adapter(model, tmp_path / "adapter", logits(load(finished / "model")))
        published = FolderEngine(tmp_path, source := RunSource(finished), lambda: Reference(source))._weights(tmp_path / "adapter")
        for name, weight in source.snapshot(source.last_turn, Progress.silent()).held.items():
            torch.testing.assert_close(published[name], weight, rtol=1e-4, atol=1e-5)


def test_other_exports_hold_the_edited_model(finished: Path, ultraedit: Run, tmp_path: Path) -> None:
    edited = logits(load(finished / "model"))
    done = ultraedit("export", finished, "--as", "checkpoint", "--whole", "--output", tmp_path / "whole")
    assert done.code == 0, done.stderr
    assert torch.equal(logits(load(tmp_path / "whole")), edited)
    refused = ultraedit("export", finished, "--as", "gguf-lora", "--output", tmp_path / "gguf")
    assert len(refused.errors) == 1
    assert "GGUF's layout of gpt2 is not known here" in refused.errors[0]


def test_a_saved_model_is_measured(model: Path, finished: Path, ultraedit: Run, tmp_path: Path) -> None:
    asked = ["--edits", PARITY / "llama-tiny" / "edits.json", "--limit", "6"]
    efficacy = []
    for number, folder in enumerate((model, finished / "model")):
        done = ultraedit("evaluate", "--model", folder, *asked, "--output", tmp_path / str(number))
        assert done.code == 0, done.stderr
        efficacy.append(json.loads((tmp_path / str(number)).read_text())["efficacy"])
    assert efficacy[1] > efficacy[0]


def test_shards_are_refused_in_one_line(flags: list[str], ultraedit: Run, model: Path, tmp_path: Path) -> None:
    planned = ultraedit("plan", "--model", model, "--modules", MODULES, "--shards", 2)
    edited = ultraedit(*flags, "--output", tmp_path / "out", "--shards", 2)
    for refused in (planned, edited):
        (line,) = refused.errors
        assert "its layers are Conv1D, which cannot be cut into shards; give 1 shard" in line
    told = ultraedit("plan", "--model", model, "--modules", MODULES, "--device-memory", "1KB")
    assert "no number of shards: its layers are Conv1D" in told.stdout + told.stderr
