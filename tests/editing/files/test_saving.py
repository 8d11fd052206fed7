"""An edited model is its base with the edited tensors replaced, and every file of the base is accounted for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from editing import Editor, EditRequest, InputError, ModelError
from editing.files.saving import ACCOUNT, save_edited
from tests.support.families import FAMILIES, tiny_model
from tests.support.paths import PARITY

LLAMA = PARITY / "llama-tiny" / "model"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for file in sorted(folder.glob("model*.safetensors")) for key, tensor in load_file(file).items()}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def base_in(dtype: torch.dtype, folder: Path, family: str = "llama", **save: object) -> tuple[Path, str]:
    """A tiny model saved in a precision, and the name of one weight of it."""
    model, (name, _) = tiny_model(family)
    model.to(dtype).save_pretrained(folder, **save)
    return folder, f"{name}.weight"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16], ids=["held in float32", "held in bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=["stored float32", "stored bfloat16", "stored float16"])
def test_untouched_tensors_keep_every_bit_and_edited_ones_every_value(family: str, held: torch.dtype, stored: torch.dtype, tmp_path: Path) -> None:
    base, key = base_in(stored, tmp_path / "base", family, max_shard_size="20KB")
    before = tensors(base)
    edited = torch.randn(before[key].shape).to(held)
    save_edited(base, {key: edited}, tmp_path / "copy")
    after = tensors(tmp_path / "copy")
    assert after.keys() == before.keys()
    assert [name for name in before if not same_bits(after[name], before[name])] == [key]
    assert torch.equal(after[key].to(held), edited)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", dtype="auto")
    assert torch.equal(dict(loaded.named_parameters())[key].to(held), edited)


def test_edited_weights_take_the_bases_precision_where_that_is_exact(tmp_path: Path) -> None:
    base, key = base_in(torch.float16, tmp_path / "base")
    save_edited(base, {key: torch.ones_like(tensors(base)[key], dtype=torch.bfloat16)}, tmp_path / "copy")
    assert tensors(tmp_path / "copy")[key].dtype == torch.float16
    assert (tmp_path / "copy" / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_edited_weights_that_the_bases_precision_would_round_are_kept_and_the_configuration_says_so(tmp_path: Path) -> None:
    base, key = base_in(torch.bfloat16, tmp_path / "base")
    edited = torch.full(tensors(base)[key].shape, 1 + 2**-20)
    save_edited(base, {key: edited}, tmp_path / "copy")
    assert torch.equal(tensors(tmp_path / "copy")[key], edited)
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["dtype"] == "float32"
    assert json.loads((tmp_path / "copy" / ACCOUNT).read_text())["edited"] == {key: "float32"}


def test_every_file_of_the_base_is_accounted_for(tmp_path: Path) -> None:
    base, key = base_in(torch.float32, tmp_path / "base", max_shard_size="20KB")
    AutoTokenizer.from_pretrained(LLAMA).save_pretrained(base)
    belongs = ["preprocessor_config.json", "processor_config.json", "chat_template.jinja", "LICENSE", "NOTICE.txt", "special_tokens_map.json"]
    belongs.append("additional_chat_templates/tool_use.jinja")
    other = ["consolidated.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "onnx/model.onnx", "original/params.json"]
    other += ["modeling_own.py", "README.md", ".gitattributes", "model.gguf"]
    for name in (*belongs, *other):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(f"{{}}  {name}")
    save_edited(base, {key: torch.randn(tensors(base)[key].shape)}, tmp_path / "copy")
    account = json.loads((tmp_path / "copy" / ACCOUNT).read_text())
    files = {str(p.relative_to(base)) for p in base.rglob("*") if p.is_file()}
    assert {*account["replaced"], *account["copied"], *account["left_out"]} == files
    assert set(account["left_out"]) == set(other)
    assert all((tmp_path / "copy" / name).read_bytes() == (base / name).read_bytes() for name in account["copied"])
    assert set(belongs) <= set(account["copied"])
    there = {str(p.relative_to(tmp_path / "copy")) for p in (tmp_path / "copy").rglob("*") if p.is_file()}
    assert there == files - set(other) | {ACCOUNT}


def test_a_copy_of_a_copy_tells_of_the_last_base_alone(tmp_path: Path) -> None:
    base, key = base_in(torch.float32, tmp_path / "base")
    weight = tensors(base)[key]
    save_edited(base, {key: weight + 1}, tmp_path / "once")
    save_edited(tmp_path / "once", {key: weight + 2}, tmp_path / "twice")
    assert torch.equal(tensors(tmp_path / "twice")[key], weight + 2)
    assert json.loads((tmp_path / "twice" / ACCOUNT).read_text())["base"] == str(tmp_path / "once")


def test_the_index_tells_the_size_that_the_copy_has(tmp_path: Path) -> None:
    base, key = base_in(torch.bfloat16, tmp_path / "base", max_shard_size="10KB")
    save_edited(base, {key: torch.full(tensors(base)[key].shape, 1 + 2**-20)}, tmp_path / "copy")
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors(tmp_path / "copy").values())


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, key = base_in(torch.float32, tmp_path / "base")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "model.safetensors").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"copy: the edited model could not be written .*No space left"):
        save_edited(base, {key: tensors(base)[key] + 1}, tmp_path / "copy")


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
def test_an_editor_that_loaded_a_folder_saves_a_copy_that_differs_in_the_edited_weights_alone(stored: torch.dtype, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(LLAMA)
    model.to(stored).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(LLAMA).save_pretrained(tmp_path / "base")
    editor = Editor.from_pretrained(tmp_path / "base", modules=["layers.1.mlp.down_proj"], learning_rate=1e-1, device="cpu")
    editor.apply([EditRequest("The capital of France is", "Rome")])
    editor.save(tmp_path / "edited")
    before, after = tensors(tmp_path / "base"), tensors(tmp_path / "edited")
    changed = [name for name in before if not same_bits(after[name], before[name])]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]
    again = Editor.from_pretrained(tmp_path / "edited", modules=["layers.1.mlp.down_proj"], learning_rate=1e-1, device="cpu")
    assert again.digests() == editor.digests()


def test_a_base_that_changed_during_the_run_is_refused(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(LLAMA).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(LLAMA).save_pretrained(tmp_path / "base")
    editor = Editor.from_pretrained(tmp_path / "base", modules=["layers.1.mlp.down_proj"], learning_rate=1e-3, device="cpu")
    file = tmp_path / "base" / "model.safetensors"
    file.rename(tmp_path / "old")
    file.write_bytes((tmp_path / "old").read_bytes())
    with pytest.raises(ModelError, match=r"model\.safetensors: has been replaced or changed since the run began"):
        editor.save(tmp_path / "edited")


def test_a_model_of_no_folder_is_saved_as_transformers_does(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(LLAMA)
    model.name_or_path = ""
    editor = Editor.of_loaded(model, AutoTokenizer.from_pretrained(LLAMA), "mine", modules=["layers.1.mlp.down_proj"], learning_rate=1e-3)
    editor.save(tmp_path / "edited")
    with safe_open(tmp_path / "edited" / "model.safetensors", "pt") as file:
        assert "model.layers.1.mlp.down_proj.weight" in file.keys()  # noqa: SIM118
