"""Adapters as ``peft`` loads them, on every kind of tiny model: fused, tied, with biases, uneven."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from editing.errors import InputError
from editing.files.adapter import CONFIG, WEIGHTS, read_adapter, write_adapter
from editing.low_rank import LowRank, factor
from editing.model.decoder import Decoder
from editing.model.modules import resolve
from editing.sharding.shards import LinearShard, linears_of, shard_of
from tests.support.tiny_models import GPT2, TINY, TinyModel

_IDS = torch.tensor([[5, 9, 33, 120, 7, 200, 64]])


@torch.no_grad()
@pytest.mark.parametrize("tiny", [*TINY, GPT2], ids=lambda tiny: tiny.name)
def test_a_model_with_its_adapter_has_the_edited_model_s_logits(tiny: TinyModel, tmp_path: Path) -> None:
    tiny.write(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    shifts: dict[str, LowRank] = {}
    before, edited = {}, model(input_ids=_IDS, use_cache=False).logits
    for k, (name, linear) in enumerate(resolve(Decoder(model), tiny.modules).items()):
        before[name] = linear.weight.clone()
        dice = torch.Generator().manual_seed(k)
        rank = 2 + k % 3  # different ranks, which are made one
        linear.weight += 0.1 * torch.randn(len(linear.weight), rank, generator=dice) @ torch.randn(rank, linear.weight.shape[1], generator=dice)
        shifts[name] = factor(shard_of(linear).turned(linear.weight - before[name]), tolerance=1e-5)
    unedited, edited = edited, model(input_ids=_IDS, use_cache=False).logits
    write_adapter(tmp_path / "adapter", shifts, linears_of(model, shifts), base=str(tmp_path / "model"))

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    with_adapter = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.allclose(with_adapter(input_ids=_IDS, use_cache=False).logits, edited, atol=1e-5 * float(edited.abs().max()))
    merged = with_adapter.merge_and_unload()
    assert torch.allclose(merged(input_ids=_IDS, use_cache=False).logits, edited, atol=1e-5 * float(edited.abs().max()))
    assert not torch.allclose(edited, unedited, atol=1e-2)
    assert read_adapter(tmp_path / "adapter").keys() == shifts.keys()


def test_the_scale_is_one_and_all_modules_have_one_rank(tmp_path: Path) -> None:
    shifts = {"a.x": factor(torch.ones(4, 6)), "b.y": factor(torch.eye(5))}
    assert write_adapter(tmp_path, shifts, {"a.x": LinearShard((6, 4)), "b.y": LinearShard((5, 5))}, base="base") == 5
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["r"] == config["lora_alpha"] == 5
    assert config["target_modules"] == ["a.x", "b.y"]
    assert {left.shape[1] for left, _ in read_adapter(tmp_path).values()} == {5}


def test_half_an_adapter_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path, {"a.x": factor(torch.ones(4, 6))}, {"a.x": LinearShard((6, 4))}, base="base")
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is no whole adapter"):
        read_adapter(tmp_path)
