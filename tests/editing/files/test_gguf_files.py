"""GGUF files, read back by the ``gguf`` package: names, shapes, order of rows, and a copy that differs in the edited matrices alone."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from editing.errors import ModelError
from editing.files.gguf_files import GgufNames, write_edited_gguf, write_gguf_adapter
from editing.low_rank import factor
from tests.support.paths import PARITY

CONFIG = AutoConfig.from_pretrained(PARITY / "llama-tiny" / "model")
DOWN, QUERY = "model.layers.1.mlp.down_proj", "model.layers.2.self_attn.q_proj"


def weights(seed: int) -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    width, inner = CONFIG.hidden_size, CONFIG.intermediate_size
    return {DOWN: torch.randn(width, inner, generator=dice), QUERY: torch.randn(width, width, generator=dice)}


def write_base(path: Path, held: dict[str, torch.Tensor], names: GgufNames) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for name, weight in held.items():
        quantized = gguf.quants.quantize(names.rows(name, weight).contiguous().numpy(), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(names.tensor(name), quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order, row by row: of each head the first of both halves, then the second of both."""
    size = len(weight) // heads
    rows = [head * size + half * size // 2 + i for head in range(heads) for i in range(size // 2) for half in range(2)]
    return weight[rows]


def test_an_adapter_has_llama_cpp_s_names_shapes_and_scale(tmp_path: Path) -> None:
    names = GgufNames(CONFIG, "tiny")
    shifts = {name: factor(weight, rank=rank) for (name, weight), rank in zip(weights(0).items(), (6, 3), strict=True)}
    assert write_gguf_adapter(tmp_path / "a.gguf", shifts, names) == 6
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama", "adapter.lora.alpha": 6.0}.items() <= fields.items()
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    for key, name in (("blk.1.ffn_down.weight", DOWN), ("blk.2.attn_q.weight", QUERY)):
        left, right = found[f"{key}.lora_b"], found[f"{key}.lora_a"]
        scaled = 6.0 / left.shape[1] * left @ right  # alpha over the tensor's own rank, as llama.cpp scales
        expected = shifts[name].dense()
        assert torch.allclose(scaled, permuted(expected, CONFIG.num_attention_heads) if name == QUERY else expected, atol=1e-5)


def test_a_copy_differs_from_its_base_in_the_edited_matrices_alone(tmp_path: Path) -> None:
    names, before, after = GgufNames(CONFIG, "tiny"), weights(0), weights(1)
    write_base(tmp_path / "base.gguf", before, names)
    write_edited_gguf(tmp_path / "edited.gguf", tmp_path / "base.gguf", {DOWN: after[DOWN]}, before, names)
    base, edited = gguf.GGUFReader(tmp_path / "base.gguf"), gguf.GGUFReader(tmp_path / "edited.gguf")
    assert {k: f.contents() for k, f in edited.fields.items()} == {k: f.contents() for k, f in base.fields.items()}
    for one, two in zip(base.tensors, edited.tensors, strict=True):
        assert one.name == two.name
        if one.name == "blk.1.ffn_down.weight":
            assert torch.equal(torch.from_numpy(two.data.copy()), after[DOWN])
        else:
            assert one.data.tobytes() == two.data.tobytes()


@pytest.mark.parametrize("wrong", ["another model", "no gguf"])
def test_a_base_that_is_not_the_run_s_model_is_one_line(wrong: str, tmp_path: Path) -> None:
    names = GgufNames(CONFIG, "tiny")
    if wrong == "another model":
        write_base(tmp_path / "base.gguf", weights(5), names)
    else:
        (tmp_path / "base.gguf").write_bytes(b"no such file format, and long enough to be read")
    with pytest.raises(ModelError, match="--base-gguf"):
        write_edited_gguf(tmp_path / "edited.gguf", tmp_path / "base.gguf", weights(1), weights(0), names)
    assert not (tmp_path / "edited.gguf").exists()


def test_an_architecture_whose_layout_is_not_known_is_refused() -> None:
    with pytest.raises(ModelError, match="GGUF's layout of gptj is not known here"):
        GgufNames(AutoConfig.for_model("gptj"), "a model")
