"""What goes wrong in a person's hands: each mistake costs one clear line, and never a file of theirs."""

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

from editing import editor as editor_module
from editing import turn_capture
from editing.files import pretrained
from editing.method.shift import Shift
from orchestrator.run import finish
from orchestrator.run.directory import JOURNAL, RunDirectory
from tests.support.command_line import MODULES, FinishedRun, Outcome
from tests.support.forked import ForkedRun
from workers.worker import LocalWorker

Ultraedit = Callable[..., Outcome]
WriteJsonl = Callable[..., Path]

GOOD = {"prompt": "The capital of Kiribati is", "target": "Tarawa", "rephrase": "Kiribati, whose capital is"}


def entries(folder: Path) -> dict[str, str]:
    """Everything below a folder, with a digest of each file; but for what an unfinished run can be resumed from."""
    paths = [p for p in folder.rglob("*") if not any(part.startswith(".out.partial-") for part in p.parts)]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder" for p in paths}


def check_kept_aside(folder: Path) -> None:
    """What an unfinished run leaves has a checkpoint, and nothing besides what it is resumed from."""
    for left in folder.rglob(".out.partial-*"):
        assert list(left.glob("checkpoints/turn-*"))
        assert {p.name for p in left.iterdir()} <= JOURNAL


@pytest.fixture
def edits(tmp_path: Path, write_jsonl: WriteJsonl) -> Path:
    return write_jsonl(tmp_path / "edits.jsonl", [GOOD, {**GOOD, "prompt": "The capital of Tuvalu is", "target": "Funafuti"}])


@pytest.fixture
def refused(tmp_path: Path, ultraedit: Ultraedit, edit_flags: list[str]) -> Callable[..., str]:
    """Runs a command line that must be refused: one line of error with the given words, a non-zero exit, and nothing written."""

    def run(*flags: object, words: Sequence[str] = (), only_line: bool = True) -> str:
        before = entries(tmp_path)
        outcome = ultraedit(*edit_flags, "--output", tmp_path / "made" / "out", *flags)
        assert outcome.code not in (0, None)
        assert len(outcome.errors) == 1, outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert not only_line or outcome.stderr.splitlines() == outcome.errors
        assert [word for word in words if word not in outcome.errors[0]] == [], outcome.errors[0]
        assert entries(tmp_path) == before
        check_kept_aside(tmp_path)
        return outcome.errors[0]

    return run


# --- the file of edits


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(None, ["no such file"], id="missing"),
        pytest.param(b"", ["is empty"], id="empty"),
        pytest.param(b" \n\n", ["is empty"], id="blank"),
        pytest.param(b"[]", ["holds no record"], id="empty array"),
        pytest.param(b"prompt of target\na of b\n", ["record 1", "is not JSON", "JSON lines, a JSON array, CSV, Parquet or Arrow"], id="not JSON"),
        pytest.param(b"\x89PNG\r\n\x1a\n", ["record 1", "not valid UTF-8"], id="binary"),
        pytest.param(b'[{"prompt": "a", "target": "b"}, {"prompt": "c"', ["record 2", "breaks off"], id="array that breaks off"),
        pytest.param(b'[{"prompt": "a", "target": "b"}, ', ["record 2", "breaks off"], id="array that breaks off at a comma"),
        pytest.param(b'[{"prompt": "a", "target": "b"}] and more', ["after the JSON array", "'and more'"], id="text after the array"),
        pytest.param(gzip.compress(b'{"prompt": "a", "target": "b"}')[:-9], ["gzip stream", "damaged or cut off"], id="gzip that is cut off"),
        pytest.param(gzip.compress(b""), ["is empty"], id="empty gzip"),
        pytest.param(b"\x28\xb5\x2f\xfd and more", ["zstd stream", "damaged or cut off"], id="not quite zstd"),
        pytest.param(b"PAR1 and more", ["Parquet file", "damaged or cut off"], id="not quite Parquet"),
        pytest.param(b"42", ["record 1", "expected a JSON object, found int"], id="scalar"),
        pytest.param(b'{"question": "a"}', ["no known format", "'question'", "prompt and target"], id="unknown fields"),
        pytest.param(b'{"prompt": "a", "ans": null}', ["no usable edit", "record 1", "ans", "missing"], id="null target"),
        pytest.param(b'{"target": "a", "rephrase": "b"}', ["no known format", "prompt and target"], id="no prompt"),
        pytest.param(b'{"prompt": "a", "target": ""}', ["no usable edit", "record 1", "target"], id="empty target"),
        pytest.param(b'{"prompt": "a", "target": " \\t"}', ["no usable edit", "record 1", "target", "blanks"], id="blank target"),
        pytest.param(
            b'{"prompt": "a", "target": 7}', ["no usable edit", "record 1", "target", "expected a non-empty string, found int"], id="number as target"
        ),
        pytest.param(b'{"prompt": "a", "target": "\xff"}', ["record 1", "not valid UTF-8"], id="invalid UTF-8 in a line"),
        pytest.param(b'[{"prompt": "a", "target": "\xff"}]', ["record 1", "not valid UTF-8"], id="invalid UTF-8 in an array"),
    ],
)
def test_an_unusable_file_of_edits_is_refused_with_its_name(
    content: bytes | None, words: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = tmp_path / "edits.json"
    if content is not None:
        path.write_bytes(content)
    refused("--edits", path, words=[str(path), *words])


def test_a_folder_without_parts_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "edits").mkdir()
    refused("--edits", tmp_path / "edits", words=[str(tmp_path / "edits"), "is a folder without files", "Parquet"])
    (tmp_path / "edits" / "part").mkdir()
    refused("--edits", tmp_path / "edits", words=[str(tmp_path / "edits" / "part"), "is a folder"])


@pytest.mark.skipif(sys.platform != "linux", reason="names a pipe as Linux does")
def test_a_pipe_as_file_of_edits_is_refused_because_it_cannot_be_read_twice(refused: Callable[..., str]) -> None:
    reading, writing = os.pipe()
    os.write(writing, json.dumps(GOOD).encode())
    os.close(writing)
    refused("--edits", f"/dev/fd/{reading}", words=[f"/dev/fd/{reading}", "plain file"])
    os.close(reading)


# --- options


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        *((["--learning-rate", value], ["learning_rate", "above 0", value]) for value in ("0", "nan", "inf", "-0.5")),
        (["--learning-rate", "fast"], ["--learning-rate", "'fast'", "--help"]),
        (["--format", "csv"], ["--format", "'csv'", "counterfact"]),
        (["--limit", "0"], ["--limit", "0"]),
        (["--limit", "many"], ["--limit", "'many'"]),
        (["--edits-per-turn", "0"], ["edits_per_turn", "at least 1"]),
        (["--generate", "-1"], ["generate", "at least 0"]),
        (["--preset", "llama-9"], ["preset", "'llama-9'", "gemma-3-270m"]),
        (["--device", "nonsense"], ["device", "'nonsense'", "cuda:N"]),
        (["--device", "cuda:99"], ["device", "cuda:99", f"{torch.cuda.device_count()} CUDA devices"]),
        (["--modules", " , "], ["modules", "expected names"]),
        (["--preserve", "exact", "--preserve-text", "/no/such/text"], ["preserve_text", "/no/such/text", "No such file", "everyday"]),
        (["--preserve-text", os.devnull], ["preserve_text", os.devnull, "is empty"]),
        (["--preserve-text", os.path.realpath(sys.executable)], ["preserve_text", os.path.realpath(sys.executable), "no UTF-8 text"]),
        (["--subject-modules", "layers.1.mlp.upproj"], ["modules", "'layers.1.mlp.upproj'", "did you mean"]),
        (["--subject-modules", "model.layers.1.mlp.gate_proj"], ["subject_modules", "model.layers.1.mlp.gate_proj", "among modules too"]),
        (["--subject-scale", "0"], ["subject_scale", "above 0", "0"]),
        (["--colour", "red"], ["--colour", "--help"]),
        (["--edits"], ["--edits", "requires an argument"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_an_unusable_option_is_refused_by_name(flags: list[str], words: list[str], edits: Path, refused: Callable[..., str]) -> None:
    refused("--edits", edits, *flags, words=words)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ("model.layers.1.mlp.gate_prj", ["'model.layers.1.mlp.gate_prj'", "did you mean", "model.layers.1.mlp.gate_proj"]),
        ("nothing_like_it", ["'nothing_like_it'", "modules that can be edited", "model.layers.{0..3}.mlp.up_proj (64 -> 160)"]),
        ("model.layers.1.mlp", ["model.layers.1.mlp is a LlamaMLP", "expected a Linear"]),
        ("lm_head", ["lm_head", "outside the decoder layers"]),
        ("model.layers.1.mlp.up_proj,model.layers.{1,2}.mlp.up_proj", ["model.layers.1.mlp.up_proj", "twice"]),
    ],
)
def test_modules_that_cannot_be_edited_are_refused_with_those_that_can(
    modules: str, words: list[str], edits: Path, refused: Callable[..., str]
) -> None:
    refused("--edits", edits, "--modules", modules, words=["modules", *words])


def test_a_preset_for_another_model_is_refused_with_the_modules_that_this_one_has(
    tmp_path: Path, llama_tiny: Path, edits: Path, ultraedit: Ultraedit
) -> None:
    outcome = ultraedit(
        "edit", "--model", llama_tiny / "model", "--edits", edits, "--output", tmp_path / "out", "--tracking-uri", "none", "--preset", "refined"
    )
    assert outcome.code == 1
    assert all(
        word in outcome.errors[0]
        for word in ("no preset 'refined' fits", "modules", "learning rate", "model.layers.{0..3}.mlp.down_proj (160 -> 64)")
    )
    assert not (tmp_path / "out").exists()


def test_missing_options_are_named(ultraedit: Ultraedit) -> None:
    assert ultraedit("edit").stderr == "error: model: missing; give --model\n"


def test_no_command_at_all_shows_the_help(ultraedit: Ultraedit) -> None:
    outcome = ultraedit()
    assert outcome.code == 2
    assert outcome.stderr.startswith("Usage: ultraedit")


# --- the model


@pytest.fixture
def model(tmp_path: Path, llama_tiny: Path) -> Path:
    """A copy of the tiny Llama, in one weights file, to be damaged."""
    folder = shutil.copytree(llama_tiny / "model", tmp_path / "model")
    tensors = {name: tensor for part in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(part).items()}
    for part in folder.glob("model*"):
        part.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def change_tensors(model: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def only_pickle(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def index_naming(*shards: str) -> Callable[[Path], None]:
    """The weights in a first part, and an index that names these."""

    def change(model: Path) -> None:
        (model / "model.safetensors").rename(model / "part-1.safetensors")
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(shards))}))

    return change


def broken_index(model: Path) -> None:
    index_naming()(model)
    (model / "model.safetensors.index.json").write_text("[]")


DAMAGES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no folder": (shutil.rmtree, ["expected a folder with a model, or a GGUF file, found nothing"]),
    "no config.json": (lambda m: (m / "config.json").unlink(), ["config.json"]),
    "a config.json that is not JSON": (lambda m: (m / "config.json").write_text("{"), ["configuration", "JSON"]),
    "a config.json of a wrong type": (lambda m: change_json(m / "config.json", hidden_size="wide"), ["configuration", "hidden_size"]),
    "an unknown architecture": (lambda m: change_json(m / "config.json", model_type="quux"), ["configuration", "`quux`"]),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), ["no safetensors weights"]),
    "pickled weights only": (only_pickle, ["no safetensors weights", "pickle files are not opened"]),
    "a shard that is missing": (index_naming("part-1.safetensors", "part-2.safetensors"), ["part-2.safetensors", "missing"]),
    "an index that is not one": (broken_index, ["index.json", "not a safetensors index"]),
    "truncated weights": (lambda m: truncate(m / "model.safetensors"), ["model.safetensors", "damaged"]),
    "a tensor that is missing": (lambda m: change_tensors(m, lambda t: t.pop("model.layers.3.mlp.up_proj.weight")), ["1 weights", "3.mlp.up_proj"]),
    "a head that is missing": (lambda m: change_tensors(m, lambda t: t.pop("lm_head.weight")), ["1 weights", "lm_head.weight"]),
    "weights of another size": (lambda m: change_json(m / "config.json", intermediate_size=96), ["wrong shape", "mlp"]),
    "quantized weights": (
        lambda m: change_json(m / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        ["is quantized (gptq); weights", "take the unquantized one, edit it, and quantize the result"],
    ),
    "no tokenizer": (lambda m: [p.unlink() for p in m.glob("tokenizer*")], ["tokenizer"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_model_folder_with(damage: str, model: Path, edits: Path, refused: Callable[..., str]) -> None:
    change, words = DAMAGES[damage]
    change(model)
    refused("--edits", edits, "--model", model, words=[str(model), *words])


def test_a_file_as_model_is_refused(edits: Path, refused: Callable[..., str]) -> None:
    refused("--edits", edits, "--model", edits, words=["expected a folder with a model, or a GGUF file, found another file"])


def test_a_name_that_is_no_folder_is_said_to_be_taken_for_a_hub_id(edits: Path, refused: Callable[..., str]) -> None:
    refused("--edits", edits, "--model", "no-such-model", words=["no-such-model", "no folder here", "Hub"])


def test_an_encoder_is_refused(tmp_path: Path, llama_tiny: Path, edits: Path, refused: Callable[..., str]) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 640}
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama_tiny / "model" / name, tmp_path / "bert")
    refused("--edits", edits, "--model", tmp_path / "bert", words=["encoder", "decoder-only"])


def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    change_json(model / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (model / "own.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\n")
    edits = tmp_path / "edits.jsonl"
    edits.write_text(json.dumps(GOOD))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    refused("--edits", edits, "--model", model, words=["custom code"])


# --- the output folder


def test_a_folder_with_a_run_is_kept_unless_overwrite_is_given(
    tmp_path: Path, finished_run: FinishedRun, edits: Path, edit_flags: list[str], ultraedit: Ultraedit, refused: Callable[..., str]
) -> None:
    out = shutil.copytree(finished_run.path, tmp_path / "out")
    (out / "model" / "of-the-old-run").touch()
    refused("--edits", edits, "--output", out, words=[str(out), "already holds a run", "--overwrite"])
    assert ultraedit(*edit_flags, "--edits", edits, "--output", out, "--overwrite", "--no-eval").code == 0
    assert json.loads((out / "metrics.json").read_text())["edits"] == 2
    assert not (out / "model" / "of-the-old-run").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edits.jsonl", "out"]


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors"])
def test_a_folder_with_files_of_somebody_else_is_never_replaced(
    name: str, tmp_path: Path, finished_run: FinishedRun, edits: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    refused("--edits", edits, "--output", tmp_path / "mine", "--overwrite", words=["mine", name])
    out = shutil.copytree(finished_run.path, tmp_path / "out")
    (out / name).write_text("mine")
    refused("--edits", edits, "--output", out, "--overwrite", words=[str(out), name])


def test_the_model_folder_is_not_taken_for_a_run(model: Path, edits: Path, refused: Callable[..., str]) -> None:
    refused("--edits", edits, "--model", model, "--output", model, "--overwrite", words=[str(model), "no run"])


def test_an_output_path_that_is_a_file_or_below_one_is_refused(edits: Path, refused: Callable[..., str]) -> None:
    refused("--edits", edits, "--output", edits, "--overwrite", words=[str(edits), "is a file"])
    refused("--edits", edits, "--output", edits / "out", words=[str(edits)])


def test_an_output_name_that_is_too_long_is_refused(tmp_path: Path, edits: Path, refused: Callable[..., str]) -> None:
    refused("--edits", edits, "--output", tmp_path / ("x" * 300), words=["File name too long"])


# --- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        if sys.platform != "linux" or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True).returncode:
            pytest.skip("no small disk can be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_too_small_for_the_model_is_refused_before_the_first_edit(
    edits: Path, small_disk: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    refused("--edits", edits, "--output", small_disk("512k") / "out", words=["needs 2 MB", "has 0 MB free"])


def test_too_little_space_is_refused_wherever_the_disk_says_so(edits: Path, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    refused("--edits", edits, words=["the edited model needs", "free"])


@pytest.mark.parametrize("size", [pytest.param("512k", id="while the model is saved"), pytest.param("1100k", id="while the rest is written")])
def test_a_disk_that_fills_up_leaves_nothing(
    size: str, edits: Path, small_disk: Callable[[str], Path], refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunDirectory, "require_space", lambda *_: None)
    refused("--edits", edits, "--output", small_disk(size) / "out", words=["No space left on device"], only_line=False)


@pytest.mark.parametrize(("verb", "where"), [("load", "error: out of memory: "), ("apply", "error: turn 1: out of memory: ")])
def test_memory_that_runs_out_is_one_line_with_advice(verb: str, where: str, edits: Path, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalWorker, verb, lambda *_: torch.empty(2**50))
    line = refused("--edits", edits, words=["can't allocate memory", "try a smaller --batch-tokens"], only_line=verb == "load")
    assert where in line


# --- records that cannot be used


TOO_LONG = {**GOOD, "prompt": "Kiribati and Tuvalu " * 200}
NO_TOKEN = {**GOOD, "target": "\u00ad"}
UNUSABLE: list[tuple[Any, str]] = [
    (b'{"prompt": "cut off', "is not JSON"),
    (b'{"prompt": "a", "target": "\xff"}', "not valid UTF-8"),
    ([1, 2], "expected a JSON object, found list"),
    ({"prompt": "no target"}, "target: missing"),
    ({**GOOD, "target": "  "}, "target: expected a non-empty string, found only blanks"),
    ({**GOOD, "rephrase": 3}, "rephrase: expected a non-empty string, found int"),
    (TOO_LONG, "tokens long with its answer; the model's context holds 256"),
    (NO_TOKEN, "target: '\\xad' gives no token"),
    ({**GOOD, "target": "\u200b"}, "target: expected a non-empty string, found only blanks"),
]


@pytest.fixture
def dropping(tmp_path: Path, llama_tiny: Path) -> Path:
    """The tiny Llama with a tokenizer that drops soft hyphens."""
    folder = shutil.copytree(llama_tiny / "model", tmp_path / "dropping")
    change_json(folder / "tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": " ?\u00ad"}, "content": ""})
    return folder


def test_bad_records_are_set_aside_with_number_reason_and_content_and_the_rest_goes_on(
    tmp_path: Path, dropping: Path, write_jsonl: WriteJsonl, edit_flags: list[str], ultraedit: Ultraedit
) -> None:
    records = [GOOD]  # every second record, from the second on, is bad
    for i, (bad, _) in enumerate(UNUSABLE):
        records += [bad, {**GOOD, "prompt": f"The capital of island {i} is"}]
    edits = write_jsonl(tmp_path / "edits.jsonl", records)
    outcome = ultraedit(*edit_flags, "--model", dropping, "--edits", edits, "--output", tmp_path / "out", "--generate", "0")
    assert outcome.code == 0, outcome.stderr
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [line["record"] for line in rejected] == list(range(2, 2 * len(UNUSABLE) + 1, 2))
    for line, (record, reason) in zip(rejected, UNUSABLE, strict=True):
        assert reason in line["reason"]
        content = record.decode(errors="replace") if isinstance(record, bytes) else record
        assert line["content"] in (content, isinstance(record, dict) and {"prompt": record["prompt"], "target": record.get("target")})
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["edits"], metrics["rejected"], metrics["refused"]) == (len(UNUSABLE) + 1, len(UNUSABLE), 0)
    assert pq.read_table(tmp_path / "out" / "edits.parquet")["record"].to_pylist() == list(range(1, 2 * len(UNUSABLE) + 2, 2))
    assert all(f"record {line['record']} set aside: {line['reason']}" in outcome.stderr.splitlines() for line in rejected)


@pytest.mark.parametrize("bad", [UNUSABLE[0], UNUSABLE[3], UNUSABLE[6]], ids=["not JSON", "no target", "too long"])
def test_strict_stops_at_the_first_bad_record_and_names_it(
    bad: tuple[Any, str], tmp_path: Path, write_jsonl: WriteJsonl, refused: Callable[..., str]
) -> None:
    edits = write_jsonl(tmp_path / "edits.jsonl", [GOOD, GOOD, bad[0], GOOD])
    refused("--edits", edits, "--strict", words=[str(edits), "record 3", bad[1]], only_line=False)


def test_edits_that_are_all_too_long_for_the_model_fail_the_run(tmp_path: Path, write_jsonl: WriteJsonl, refused: Callable[..., str]) -> None:
    refused("--edits", write_jsonl(tmp_path / "edits.jsonl", [TOO_LONG]), words=["no edit was applied", "1 records"], only_line=False)


def test_a_prompt_that_fills_the_context_can_still_be_edited(
    tmp_path: Path, gptj_tiny: Path, write_jsonl: WriteJsonl, edit_flags: list[str], ultraedit: Ultraedit
) -> None:
    tokenizer, prompt = AutoTokenizer.from_pretrained(gptj_tiny / "model"), "Tuvalu " * 200
    while len(tokenizer(prompt)["input_ids"]) > 253:
        prompt = prompt[:-1]
    edits = write_jsonl(tmp_path / "edits.jsonl", [{"prompt": prompt, "target": "A"}])
    flags = ["--model", gptj_tiny / "model", "--modules", "transformer.h.1.mlp.fc_out", "--edits", edits, "--output", tmp_path / "out"]
    assert ultraedit(*edit_flags, *flags).code == 0


# --- turns that are not finite


@pytest.fixture
def poisoned(model: Path) -> Path:
    """The tiny Llama with NaN in the embedding of a token that only "~" has."""
    (token,) = AutoTokenizer.from_pretrained(model)("~")["input_ids"]
    change_tensors(model, lambda tensors: tensors["model.embed_tokens.weight"][token].fill_(float("nan")))
    return model


def capitals(*names: str) -> list[dict[str, str]]:
    return [{"prompt": f"The capital of {name} is", "target": random.Random(name).choice(["Paris", "Rome", "Bonn"])} for name in names]


def digests(out: Path) -> dict[str, str]:
    return json.loads((out / "run.json").read_text())["digests_after"]


def test_a_turn_that_is_not_finite_is_refused_whole_and_leaves_weights_and_moments_alone(
    tmp_path: Path, poisoned: Path, write_jsonl: WriteJsonl, edit_flags: list[str], ultraedit: Ultraedit
) -> None:
    first, second = capitals("Tuvalu", "Fiji", "Samoa"), capitals("Tonga", "Palau", "Nauru")
    hit = capitals("Niue", "the ~ islands", "Guam")
    flags = [*edit_flags, "--model", poisoned, "--edits-per-turn", "3", "--lookahead", "1"]
    write_jsonl(tmp_path / "with.jsonl", [*first, *hit, *second])
    write_jsonl(tmp_path / "without.jsonl", [*first, *second])
    outcome = ultraedit(*flags, "--edits", tmp_path / "with.jsonl", "--output", tmp_path / "with")
    assert ultraedit(*flags, "--edits", tmp_path / "without.jsonl", "--output", tmp_path / "without", "--no-eval").code == 0
    assert outcome.code == 0, outcome.stderr
    assert digests(tmp_path / "with") == digests(tmp_path / "without")  # the moments shape the later turn, so they too are the same
    (line,) = [line for line in outcome.stderr.splitlines() if "refused" in line]
    assert "turn 2" in line
    assert "3 edits are not applied" in line
    assert "caused by 'The capital of the ~ islands is'" in line
    rejected = [json.loads(line) for line in (tmp_path / "with" / "rejected.jsonl").read_text().splitlines()]
    assert [(r["record"], r["content"]["prompt"]) for r in rejected] == [(4 + i, record["prompt"]) for i, record in enumerate(hit)]
    metrics = json.loads((tmp_path / "with" / "metrics.json").read_text())
    assert (metrics["edits"], metrics["turns"], metrics["refused"], metrics["rejected"]) == (6, 2, 3, 0)
    assert pq.read_table(tmp_path / "with" / "edits.parquet")["applied"].to_pylist() == [True] * 3 + [False] * 3 + [True] * 3


def test_a_run_of_which_no_turn_is_finite_fails_and_says_which_edits(
    tmp_path: Path, poisoned: Path, write_jsonl: WriteJsonl, refused: Callable[..., str]
) -> None:
    edits = write_jsonl(tmp_path / "edits.jsonl", capitals("the ~ islands", "~"))
    words = ["no edit was applied", "2 of its 2 edits are not finite", "'The capital of ~ is'"]
    refused("--edits", edits, "--model", poisoned, words=words, only_line=False)


# --- interruptions


@pytest.fixture(autouse=True)
def control_c_works() -> Iterator[None]:
    """A shell starts what it runs in the background deaf to Ctrl-C, these tests too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Press Ctrl-C when a function is entered for the first time."""
    original = getattr(owner, name)

    def entered(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(owner, name, original)
        signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, entered)


MOMENTS = {
    "the model is loaded": (pretrained, "load"),
    "gradients are captured": (turn_capture, "capture"),
    "a turn is committed": (Shift, "add_to"),
    "the sample is watched": (LocalWorker, "measure_health"),
    "the model is saved": (editor_module, "save_edited"),
    "edits are evaluated": (LocalWorker, "evaluate"),
    "text is generated": (LocalWorker, "write"),
    "plots are drawn": (finish, "plot_run"),
    "the run is about to be put in place": (RunDirectory, "commit"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupt_keeps_the_old_run_while(
    moment: str, tmp_path: Path, finished_run: FinishedRun, edits: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run.path, tmp_path / "out")
    interrupt_at(monkeypatch, *MOMENTS[moment])
    refused("--edits", edits, "--output", tmp_path / "out", "--overwrite", words=["interrupted"], only_line=False)


def test_an_interrupt_while_the_folder_is_put_in_place_comes_too_late(
    tmp_path: Path, finished_run: FinishedRun, edits: Path, edit_flags: list[str], ultraedit: Ultraedit, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run.path, tmp_path / "out")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if target.name == "out":
            signal.raise_signal(signal.SIGINT)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    assert ultraedit(*edit_flags, "--edits", edits, "--output", tmp_path / "out", "--overwrite", "--no-eval").code == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["edits"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edits.jsonl", "out"]


class Started:
    """A real run in a process of its own, long enough to be hit in the middle."""

    def __init__(self, folder: Path, llama_tiny: Path, flags: Sequence[object]) -> None:
        records = json.loads((llama_tiny / "edits.json").read_text()) * 10
        (folder / "many.json").write_text(json.dumps(records))
        self.folder = folder
        command = [*flags, "--edits", folder / "many.json", "--output", folder / "out", "--overwrite", "--generate", "600"]
        self.process = ForkedRun(command)

    def wait_for(self, name: str) -> None:
        """Wait until the run has begun to write a file."""
        deadline = time.monotonic() + 120
        while not any(p.stat().st_size for p in self.folder.glob(f".out.partial-*/{name}")):
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def hit(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        stderr = self.process.communicate(timeout=180)[1]
        return self.process.returncode or 0, stderr


@pytest.mark.parametrize(
    ("edits_per_turn", "written"),
    [
        (1, "turns.jsonl"),
        pytest.param(20, "edits.parquet", marks=pytest.mark.thorough),
        (20, "model/model-00001-of-00002.safetensors"),
    ],
)
def test_control_c_ends_a_real_run_in_one_line_with_nothing_half_written(
    edits_per_turn: int, written: str, tmp_path: Path, llama_tiny: Path, edit_flags: list[str]
) -> None:
    started = Started(tmp_path, llama_tiny, [*edit_flags, "--edits-per-turn", edits_per_turn])
    started.wait_for(written)
    code, stderr = started.hit(signal.SIGINT)
    assert code == 130, stderr
    assert [line for line in stderr.splitlines() if line.startswith("error:")] == ["error: interrupted"]
    assert "Traceback" not in stderr
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".out.partial-")] == ["many.json"]
    check_kept_aside(tmp_path)


def test_a_killed_run_keeps_the_old_one_and_the_next_run_tidies_up(
    tmp_path: Path, llama_tiny: Path, finished_run: FinishedRun, edit_flags: list[str], ultraedit: Ultraedit
) -> None:
    out = shutil.copytree(finished_run.path, tmp_path / "out")
    before = entries(out)
    started = Started(tmp_path, llama_tiny, [*edit_flags, "--edits-per-turn", 1])
    started.wait_for("turns.jsonl")
    assert started.hit(signal.SIGKILL)[0] == -signal.SIGKILL
    assert entries(out) == before
    assert len(list(tmp_path.glob(".out.partial-*"))) == 1
    flags = ["--edits", llama_tiny / "edits.json", "--output", out, "--limit", "2", "--no-eval", "--overwrite"]
    assert ultraedit(*edit_flags, *flags).code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["many.json", "out"]


# --- what a finished run holds


def test_the_saved_model_loads_without_this_project_and_is_the_edited_one(finished_run: FinishedRun, llama_tiny: Path) -> None:
    run = json.loads((finished_run.path / "run.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(finished_run.path / "model")
    AutoTokenizer.from_pretrained(finished_run.path / "model")
    parameters = dict(model.named_parameters())
    found = {name: hashlib.sha256(parameters[f"{name}.weight"].detach().numpy().tobytes()).hexdigest() for name in run["model"]["modules"]}
    assert found == run["digests_after"]
    original, _ = pretrained.load(llama_tiny / "model", device=torch.device("cpu"))
    for name, weight in original.named_parameters():
        assert torch.equal(weight, parameters[name]) == (name.removesuffix(".weight") not in found)


def test_run_json_says_what_was_done_with_what(finished_run: FinishedRun, llama_tiny: Path) -> None:
    run = json.loads((finished_run.path / "run.json").read_text())
    names = [f"model.layers.{i}.mlp.{kind}_proj" for i in (1, 2) for kind in ("gate", "up")]
    assert run["config"]["edits_per_turn"] == 20
    assert run["config"]["modules"] == [MODULES]
    assert run["input"]["sha256"] == hashlib.sha256((llama_tiny / "edits.json").read_bytes()).hexdigest()
    assert run["input"]["format"] == "ultraeditbench"
    assert run["versions"]["torch"] == torch.__version__
    assert {"python", "transformers", "safetensors"} <= run["versions"].keys()
    assert list(run["digests_before"]) == list(run["digests_after"]) == run["model"]["modules"] == names
    assert all(run["digests_before"][name] != run["digests_after"][name] for name in names)


def test_edits_parquet_has_one_row_an_edit(finished_run: FinishedRun, llama_tiny: Path) -> None:
    rows = pq.read_table(finished_run.path / "edits.parquet").to_pylist()
    records = json.loads((llama_tiny / "edits.json").read_text())
    assert [(row["record"], row["prompt"], row["target"]) for row in rows] == [(i, r["prompt"], r["ans"]) for i, r in enumerate(records, start=1)]
    assert [row["turn"] for row in rows] == [1] * 20 + [2] * 20 + [3] * 20
    assert sum(row["text_after"] is not None for row in rows) == 5
    assert all(row["applied"] and row["efficacy"] is not None and row["efficacy_before"] is not None for row in rows)


def test_a_finished_run_can_be_shown_again(finished_run: FinishedRun, ultraedit: Ultraedit) -> None:
    shown = ultraedit("show", finished_run.path)
    assert shown.code == 0
    assert shown.stdout == finished_run.outcome.stdout


def test_texts_with_brackets_are_shown_as_they_are(tmp_path: Path, write_jsonl: WriteJsonl, edit_flags: list[str], ultraedit: Ultraedit) -> None:
    edits = write_jsonl(tmp_path / "edits.jsonl", [{"prompt": "[/INST] It is :smile: [bold]", "target": "x[/y]"}])
    outcome = ultraedit(*edit_flags, "--edits", edits, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    assert "[/INST]" in outcome.stdout


@pytest.mark.parametrize("flags", [["--limit", "0"], ["--generate", "-1"], ["--output", "nowhere/metrics.json"], ["--device", "nonsense"]])
def test_evaluate_refuses_unusable_options_too(flags: list[str], llama_tiny: Path, edits: Path, ultraedit: Ultraedit) -> None:
    outcome = ultraedit("evaluate", "--model", llama_tiny / "model", "--edits", edits, *flags)
    assert outcome.code in (1, 2)
    assert len(outcome.stderr.splitlines()) == len(outcome.errors) == 1


def test_show_refuses_what_is_no_run(tmp_path: Path, ultraedit: Ultraedit) -> None:
    outcome = ultraedit("show", tmp_path)
    assert (outcome.code, len(outcome.errors)) == (1, 1)
    assert str(tmp_path) in outcome.stderr
