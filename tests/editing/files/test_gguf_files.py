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


@pytest.mark.parametrize(
    "kind",
    ["gptj", "gpt2", "gpt_neox", "falcon", "bloom", "opt", "mixtral", "qwen2_moe", "qwen3_moe", "phi", "smollm3", "granite", "cohere", "olmo2"],
)
def test_every_other_layout_is_refused_with_those_that_are_known(kind: str) -> None:
    known = "llama, mistral, qwen2, qwen3, gemma, gemma2, phi3, gemma3, gemma3_text"
    with pytest.raises(ModelError) as raised:
        GgufNames(AutoConfig.for_model(kind), "a model")
    assert str(raised.value) == f"a model: GGUF's layout of {kind} is not known here, only that of {known}; export --as checkpoint"


@pytest.mark.parametrize(
    ("kind", "module", "tensor"),
    [
        ("mistral", "model.layers.1.self_attn.k_proj", "blk.1.attn_k.weight"),
        ("qwen2", "model.layers.1.self_attn.q_proj", "blk.1.attn_q.weight"),
        ("qwen3", "model.layers.1.mlp.gate_proj", "blk.1.ffn_gate.weight"),
        ("gemma", "model.layers.1.self_attn.o_proj", "blk.1.attn_output.weight"),
        ("gemma2", "model.layers.1.mlp.up_proj", "blk.1.ffn_up.weight"),
        ("phi3", "model.layers.1.self_attn.qkv_proj", "blk.1.attn_qkv.weight"),
        ("phi3", "model.layers.1.mlp.gate_up_proj", "blk.1.ffn_up.weight"),
        ("gemma3_text", "model.layers.1.mlp.down_proj", "blk.1.ffn_down.weight"),
        ("gemma3", "model.language_model.layers.1.mlp.down_proj", "blk.1.ffn_down.weight"),
        ("gemma3", "language_model.model.layers.1.mlp.down_proj", "blk.1.ffn_down.weight"),
    ],
)
def test_the_known_layouts_have_the_names_of_llama_cpp(kind: str, module: str, tensor: str) -> None:
    names = GgufNames(AutoConfig.for_model(kind), "a model")
    assert names.tensor(module) == tensor
    weight = torch.arange(64.0).reshape(32, 2)
    assert torch.equal(names.rows(module, weight), weight) == (kind != "mistral")  # of these, llama.cpp orders the rows of Mistral's alone


def test_a_module_without_a_tensor_in_llama_cpp_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.other: llama.cpp's llama has no tensor for it; export --as checkpoint"):
        GgufNames(CONFIG, "tiny").tensor("model.layers.1.mlp.other")
