"""A model of a billion weights edited in a fifth of its size, in a process of its own."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tests.benchmarks.checkpoint import write_random
from tests.benchmarks.streamed import measure_apart

SHAPE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 56, "num_attention_heads": 10, "num_key_value_heads": 2}


@pytest.mark.long
@pytest.mark.thorough
def test_a_billion_weights_are_edited_in_a_fifth_of_their_memory(tmp_path: Path) -> None:
    write_random(tmp_path / "model", LlamaConfig(**SHAPE, vocab_size=16384), torch.float32)
    size = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    result = measure_apart(tmp_path / "model", str(size // 5), "model.layers.{53,54}.mlp.down_proj", windows=[1, 2], edits_per_turn=10)
    assert result["model"] > 5 * 2**30
    assert result["peak"] < size / 5
    one, two = result["windows"]
    prefix = 53 / 56 * result["model"]
    assert 0.9 * prefix < one["read"] < 1.3 * prefix  # once through the prefix, whatever the window, and the suffix of each turn
    assert two["read"] < one["read"] + 0.15 * prefix
    assert max(two["suffix"]) < 0.5 * two["prefix"]
