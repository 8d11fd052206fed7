"""Exports of a finished run: what engines load is the edited model, and the certificate says what it is and what was lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.command_line import FinishedRun, Outcome
from tests.support.failing_disk import files_of_at_most
from tests.support.paths import PARITY

MODEL = PARITY / "llama-tiny" / "model"
IDS = torch.tensor([[5, 9, 33, 120, 7, 200, 64]])

Run = Callable[..., Outcome]


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def certificate(folder: Path) -> dict:
    return json.loads((folder / "certificate.json").read_text())


def test_an_adapter_on_the_base_is_the_edited_model(finished_run: FinishedRun, ultraedit: Run, tmp_path: Path) -> None:
    done = ultraedit("export", finished_run.path, "--as", "peft", "--output", tmp_path / "adapter")
    assert done.code == 0, done.stderr
    edited = logits(load(finished_run.path / "model"))
    assert torch.allclose(logits(PeftModel.from_pretrained(load(MODEL), tmp_path / "adapter")), edited, atol=1e-5)
    assert not torch.allclose(logits(load(MODEL)), edited, atol=1e-3)
    found = certificate(tmp_path / "adapter")
    assert found["full_edit"]["digests"] == json.loads((finished_run.path / "run.json").read_text())["digests_after"]
    assert found["edits"]["count"] == 60
    assert found["metrics"]["exported"] == pytest.approx(found["metrics"]["full_edit"], rel=1e-4)
    assert all(module["kept"] > 1 - 1e-9 for module in found["modules"].values())


def test_a_low_rank_says_what_it_loses(finished_run: FinishedRun, ultraedit: Run, tmp_path: Path) -> None:
    assert ultraedit("export", finished_run.path, "--as", "peft", "--rank", 4, "--output", tmp_path / "thin").code == 0
    found = certificate(tmp_path / "thin")
    weights = {
        name: load_file(tmp_path / "thin" / "adapter_model.safetensors")[f"base_model.model.{name}.lora_A.weight"] for name in found["modules"]
    }
    assert {len(weight) for weight in weights.values()} == {4}
    assert all(0.1 < module["kept"] < 0.99 for module in found["modules"].values())
    assert found["metrics"]["exported"] != found["metrics"]["full_edit"]


def test_two_parts_of_a_run_make_the_whole(finished_run: FinishedRun, ultraedit: Run, tmp_path: Path) -> None:
    """The turn between them has no checkpoint, so it is run again."""
    for name, turns in {"first": ["--to-turn", 1], "second": ["--from-turn", 1]}.items():
        done = ultraedit("export", finished_run.path, "--as", "peft", "--measure", 0, "--output", tmp_path / name, *turns)
        assert done.code == 0, done.stderr
    assert certificate(tmp_path / "first")["full_edit"]["digests"] == certificate(tmp_path / "second")["base"]["digests"]
    model = PeftModel.from_pretrained(load(MODEL), tmp_path / "first").merge_and_unload()
    model = PeftModel.from_pretrained(model, tmp_path / "second").merge_and_unload()
    assert torch.allclose(logits(model), logits(load(finished_run.path / "model")), atol=1e-5)
    assert not [path.name for path in finished_run.path.parent.iterdir() if "replay" in path.name]


def test_a_whole_checkpoint_is_the_edited_model_bit_for_bit(finished_run: FinishedRun, ultraedit: Run, tmp_path: Path) -> None:
    assert ultraedit("export", finished_run.path, "--as", "checkpoint", "--whole", "--measure", 0, "--output", tmp_path / "whole").code == 0
    assert torch.equal(logits(load(tmp_path / "whole")), logits(load(finished_run.path / "model")))


def test_a_checkpoint_has_the_edited_matrices_alone_with_config_and_tokenizer(finished_run: FinishedRun, ultraedit: Run, tmp_path: Path) -> None:
    assert ultraedit("export", finished_run.path, "--as", "checkpoint", "--measure", 0, "--output", tmp_path / "part").code == 0
    held = load_file(tmp_path / "part" / "model.safetensors")
    edited = load(finished_run.path / "model").state_dict()
    assert held.keys() == {f"{name}.weight" for name in certificate(tmp_path / "part")["modules"]}
    assert all(torch.equal(weight, edited[key]) for key, weight in held.items())
    assert {"config.json", "tokenizer.json"} <= {path.name for path in (tmp_path / "part").iterdir()}


def test_rounding_to_bfloat16_is_said_in_numbers(llama_tiny: Path, edit_flags: list[str], ultraedit: Run, tmp_path: Path) -> None:
    made = ultraedit(
        *edit_flags, "--edits", llama_tiny / "edits.json", "--dtype", "bfloat16", "--no-eval", "--limit", 20, "--output", tmp_path / "run"
    )
    assert made.code == 0, made.stderr
    assert ultraedit("export", tmp_path / "run", "--as", "checkpoint", "--output", tmp_path / "part").code == 0
    found = certificate(tmp_path / "part")
    assert all(1e-4 < module["rounding"] < 1 for module in found["modules"].values())
    assert ultraedit("export", tmp_path / "run", "--as", "peft", "--measure", 0, "--output", tmp_path / "adapter").code == 0
    assert all(module["kept"] > 1 - 1e-9 for module in certificate(tmp_path / "adapter")["modules"].values())


def test_a_run_saves_its_adapter_itself(llama_tiny: Path, edit_flags: list[str], ultraedit: Run, tmp_path: Path) -> None:
    edits = ["--edits", llama_tiny / "edits.json", "--no-eval", "--limit", 20]
    for save in ("peft", "full"):
        assert ultraedit(*edit_flags, *edits, "--save", save, "--output", tmp_path / save).code == 0
    adapted = PeftModel.from_pretrained(load(MODEL), tmp_path / "peft" / "adapter")
    assert torch.allclose(logits(adapted), logits(load(tmp_path / "full" / "model")), atol=1e-5)
    assert not (tmp_path / "peft" / "model").exists()


def test_a_delta_is_what_apply_takes(finished_run: FinishedRun, ultraedit: Run, tmp_path: Path) -> None:
    assert ultraedit("export", finished_run.path, "--as", "delta", "--measure", 0, "--output", tmp_path / "delta").code == 0
    assert ultraedit("apply", tmp_path / "delta", "--output", tmp_path / "model").code == 0
    assert torch.equal(logits(load(tmp_path / "model")), logits(load(finished_run.path / "model")))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--as", "peft", "--rank", "0"], "expected auto or a whole number of at least 1"),
        (["--as", "checkpoint", "--rank", "8"], "rank: belongs to adapters"),
        (["--as", "delta", "--from-turn", "1"], "from-turn: belongs to adapters"),
        (["--as", "peft", "--to-turn", "9"], "to-turn: expected a turn from 0 to 3, found 9"),
        (["--as", "peft", "--from-turn", "3"], "from-turn: expected a turn from 0 to 2"),
        (["--as", "peft", "--whole"], "whole: belongs to --as checkpoint"),
        (["--as", "gguf"], "base-gguf: --as gguf copies"),
        (["--as", "gguf", "--base-gguf", str(MODEL / "config.json")], "is no GGUF file"),
        (["--as", "peft", "--sign", str(MODEL / "config.json")], "cannot be read as a private key"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_exported_is_one_line_and_nothing_is_written(
    options: list[str], told: str, finished_run: FinishedRun, ultraedit: Run, tmp_path: Path
) -> None:
    done = ultraedit("export", finished_run.path, *options, "--output", tmp_path / "out")
    assert done.code != 0
    assert len(done.errors) == 1
    assert told in done.errors[0]
    assert not list(tmp_path.iterdir())


def test_another_base_is_refused(finished_run: FinishedRun, ultraedit: Run, tmp_path: Path) -> None:
    done = ultraedit("export", finished_run.path, "--as", "peft", "--model", finished_run.path / "model", "--output", tmp_path / "out")
    assert done.code == 1
    assert "is not the model that" in done.errors[0]
    assert not list(tmp_path.iterdir())


def test_a_base_of_another_architecture_is_refused_as_another_model(finished_run: FinishedRun, ultraedit: Run, tmp_path: Path) -> None:
    other = PARITY / "gptj-tiny" / "model"
    done = ultraedit("export", finished_run.path, "--as", "peft", "--model", other, "--output", tmp_path / "out")
    assert done.code == 1
    (line,) = done.errors
    assert f"{other}: has no model.layers." in line
    assert "is not the model that this run was made from; give that one with --model" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["peft", "checkpoint", "gguf-lora", "delta"])
def test_a_full_disk_leaves_nothing(form: str, finished_run: FinishedRun, ultraedit: Run, tmp_path: Path) -> None:
    with files_of_at_most(20_000):
        done = ultraedit("export", finished_run.path, "--as", form, "--measure", 0, "--output", tmp_path / "out")
    assert done.code == 1
    assert len(done.errors) == 1
    assert "could not be written" in done.errors[0]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(finished_run: FinishedRun, ultraedit: Run, tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "out")
    done = ultraedit("export", finished_run.path, "--as", "peft", "--output", tmp_path / "out")
    assert "is there already" in done.errors[0]
    assert not (tmp_path / "out" / "certificate.json").exists()
