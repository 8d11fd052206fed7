"""GPT-2's Conv1D, whose weight lies transposed: edited as the same function with linears is, in every way, and stored as it was found."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from editing import Editor, TurnRefused
from editing.config import EditorConfig
from editing.edited_weights import EditedWeights
from editing.method.shift import Shift
from editing.sharding.collectives import SingleWorker
from tests.support.small_editor import requests
from tests.support.tiny_models import GPT2

ANSWERED = ("transformer.h.2.mlp.c_fc", "transformer.h.{2,3}.mlp.c_proj", "transformer.h.3.attn.{c_attn,c_proj}")
NAMED = "transformer.h.{0,1}.mlp.c_proj"
PRESERVING = {"preserve": "exact", "preserve_text": "everyday", "preserve_weight": 5.0}
SOLVED = {"subject_targets": "solved", "subject_weight": 5.0, "subject_bound": 3.0, "subject_steps": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "published": {},
    "the other system": {"solve": "d_in"},
    "several passes": {"passes": 3},
    "preserving": {"passes": 2, **PRESERVING},
    "a sketch": {**PRESERVING, "preserve": "sketch", "preserve_rank": 8},
    "whitened": {"whiten": True},
    "at subjects": {"subject_modules": (NAMED,)},
    "solved targets": {"subject_modules": (NAMED,), **PRESERVING, **SOLVED},
    "a strength": {"learning_rate": None, "strength": 0.1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    GPT2.write(path := tmp_path_factory.mktemp("gpt2"))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def gpt2(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def with_linears(model: PreTrainedModel) -> PreTrainedModel:
    """The same function with a linear in the place of every Conv1D."""
    other = copy.deepcopy(model)
    for name, conv in list(other.named_modules()):
        if isinstance(conv, Conv1D):
            linear = nn.Linear(conv.nx, conv.nf, dtype=conv.weight.dtype)
            linear.weight.copy_(conv.weight.T)
            linear.bias.copy_(conv.bias)
            parent, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(parent), leaf, linear)
    return other


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=torch.tensor([[5, 9, 33, 120, 7, 200, 64]]), use_cache=False).logits


def edited(model: PreTrainedModel, tokenizer: Any, **options: Any) -> Editor:
    given = {"modules": ANSWERED, "learning_rate": 1e-3, "edits_per_turn": 4, "group_size": 2, "join": "none", **options}
    editor = Editor(model, tokenizer, EditorConfig(**given))
    editor.apply(requests(), measure=False)
    return editor


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_is_edited_as_the_same_function_with_linears(settings: str, folder: Path, tokenizer: Any) -> None:
    model = gpt2(folder)
    linears = edited(with_linears(model), tokenizer, **SETTINGS[settings])
    found = edited(model, tokenizer, **SETTINGS[settings])
    assert found.turns == linears.turns == 2
    for name, weight in linears.weights.items():
        moved = (weight - linears.weights.originals[name]).norm()
        assert moved > 1e-3 * weight.norm()
        assert (found.weights[name].T - weight).norm() < 1e-5 * moved
    torch.testing.assert_close(logits(found.model), logits(linears.model), rtol=1e-4, atol=1e-4)


def test_masters_hold_the_shifts_of_a_model_in_bfloat16(folder: Path, tokenizer: Any) -> None:
    model = gpt2(folder).bfloat16()
    linears = edited(with_linears(model), tokenizer)
    found = edited(model, tokenizer)
    for name, master in linears.weights.masters.items():
        assert torch.equal(found.weights[name], found.weights.masters[name].bfloat16())
        torch.testing.assert_close(found.weights.masters[name].T, master, rtol=1e-2, atol=1e-2)
        assert not torch.equal(master, linears.weights.originals[name].float())


def test_a_shift_is_added_in_place_as_it_lies_and_makes_no_copy_of_the_weight() -> None:
    conv = Conv1D(6, 8).requires_grad_(False)
    before, place = conv.weight.clone(), conv.weight.data_ptr()
    weights = EditedWeights({"conv": conv}, SingleWorker())
    shift = Shift(torch.randn(8, 2), torch.randn(2, 6))
    weights.add({"conv": shift})
    torch.testing.assert_close(conv.weight.data, before + shift.dense())
    assert conv.weight.data_ptr() == place
    assert weights["conv"].is_contiguous()
    assert weights.shards["conv"].turned(weights["conv"]).data_ptr() == place


def test_only_a_shift_that_changes_a_weight_is_seen(folder: Path, tokenizer: Any) -> None:
    with pytest.raises(TurnRefused, match="too small to change any float32 weight"):
        edited(gpt2(folder), tokenizer, learning_rate=1e-14)
    square = Conv1D(4, 4).requires_grad_(False)
    square.weight.copy_(torch.full((4, 4), 2.0**30))
    square.weight[0, 1] = 0.0  # the only weight that such a shift changes
    ones = torch.eye(4)
    weights = EditedWeights({"square": square}, SingleWorker())
    assert weights.would_change({"square": Shift(ones[:, :1], ones[1:2])})
    assert not weights.would_change({"square": Shift(ones[:, 1:2], ones[:1])})


def test_a_saved_model_loads_in_transformers_alone_and_answers_alike(folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    model = gpt2(folder)
    linears = edited(with_linears(model), tokenizer)
    found = edited(model, tokenizer)
    found.save(tmp_path / "edited")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "edited").eval()
    assert torch.equal(logits(loaded), logits(found.model))
    torch.testing.assert_close(logits(loaded), logits(linears.model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(loaded), logits(gpt2(folder)), atol=1e-2)


def test_a_checkpoint_with_the_names_of_the_first_gpt_2_files_is_edited_and_saved_under_them(folder: Path, tmp_path: Path) -> None:
    """As on the Hub: names without ``transformer.``, and the masks of attention beside the weights."""
    tensors = {key.removeprefix("transformer."): value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 256, 256).tril() for i in range(4)}
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((folder / name).read_bytes())
    save_file({**tensors, **masks}, base / "model.safetensors", metadata={"format": "pt"})
    asked = {"modules": ANSWERED, "learning_rate": 1e-3, "edits_per_turn": 4, "group_size": 2, "join": "none", "device": "cpu"}
    found, expected = (Editor.from_pretrained(path, **asked) for path in (base, folder))
    for editor in (found, expected):
        editor.apply(requests(), measure=False)
    assert found.digests() == expected.digests()
    found.save(tmp_path / "edited")
    assert load_file(tmp_path / "edited" / "model.safetensors").keys() == {*tensors, *masks}
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "edited").eval()), logits(expected.model))
