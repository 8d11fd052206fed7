"""Runs on text with blank edges, and with tokenizers that put something of their own between prompt and answer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from editing.files import pretrained
from editing.model.decoder import Decoder
from editing.presets.resolve import resolve_settings
from tests.support.command_line import Outcome
from tests.support.paths import PARITY, ROOT

COUNT = 12
CLEAN = [
    {"prompt": e["prompt"], "target": e["ans"], "rephrase": e["rephrase_prompt"], "locality_prompt": e["loc"], "locality_answer": e["loc_ans"]}
    for e in json.loads((PARITY / "llama-tiny" / "edits.json").read_text())[:COUNT]
]
BLANKS = [{**CLEAN[0], "target": f" {CLEAN[0]['target']}\n"}, {**CLEAN[1], "prompt": f"{CLEAN[1]['prompt']} "}, *CLEAN[2:]]
FLAGS = ["--modules", "model.layers.{1,2}.mlp.{gate,up}_proj", "--learning-rate", "3e-3", "--edits-per-turn", "6", "--tracking-uri", "none"]


@pytest.fixture
def run(tmp_path: Path, ultraedit: Callable[..., Outcome], write_jsonl: Callable[..., Path]) -> Callable[..., tuple[Path, Outcome]]:
    """Runs an edit set and gives the run's folder; each with a name of its own."""

    def go(name: str, records: list[dict[str, Any]], *flags: object, model: Path = PARITY / "llama-tiny" / "model") -> tuple[Path, Outcome]:
        edits = write_jsonl(tmp_path / f"{name}.jsonl", records)
        outcome = ultraedit("edit", "--model", model, "--edits", edits, "--output", tmp_path / name, *FLAGS, *flags)
        assert outcome.code == 0, outcome.stderr
        return tmp_path / name, outcome

    return go


@pytest.fixture
def with_tokenizer(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """The tiny Llama with a changed tokenizer."""

    def change(how: Callable[[dict[str, Any]], None]) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(PARITY / "llama-tiny" / "model", folder)
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        how(tokenizer)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        return folder

    return change


def end_with_eos(tokenizer: dict[str, Any]) -> None:
    bos, eos = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("<s>", "</s>"))
    single = [bos, {"Sequence": {"id": "A", "type_id": 0}}, eos]
    known = {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in enumerate(("<s>", "</s>"))}
    tokenizer["post_processor"] |= {"single": single, "special_tokens": known}


def add_pad(tokenizer: dict[str, Any]) -> None:
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 640, "content": "<pad>"})


def digests(out: Path) -> dict[str, str]:
    return dict(json.loads((out / "run.json").read_text())["digests_after"])


def metrics(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "metrics.json").read_text()))


def test_blank_edges_change_neither_weights_nor_metrics(run: Callable[..., tuple[Path, Outcome]]) -> None:
    clean, blanks = run("clean", CLEAN)[0], run("blanks", BLANKS)[0]
    assert digests(blanks) == digests(clean)
    names = ("efficacy", "generalization", "specificity", "efficacy_generated", "generalization_generated", "otherwise_tokenized")
    assert [metrics(blanks)[name] for name in names] == [metrics(clean)[name] for name in names]
    assert metrics(clean)["otherwise_tokenized"] == 0
    assert metrics(clean)["efficacy_as_typed"] is None


def test_the_published_rule_keeps_them_and_says_so_with_the_metrics_of_the_text_as_typed(run: Callable[..., tuple[Path, Outcome]]) -> None:
    out, outcome = run("blanks", BLANKS, "--join", "published")
    found = metrics(out)
    assert digests(out) != digests(run("clean", CLEAN, "--join", "published")[0]) == digests(run("raw", CLEAN)[0])
    said = "2 of 12 edits: the published tokens are not those of the text as typed; the metrics named as_typed are of that text"
    assert f"text: {said}" in outcome.stderr
    assert "efficacy_as_typed" in outcome.stdout
    assert found["otherwise_tokenized"] == 2
    rows = pq.read_table(out / "edits.parquet").to_pylist()
    assert [row["efficacy_as_typed"] for row in rows[2:]] == [row["efficacy"] for row in rows[2:]]
    assert found["efficacy_as_typed"] == pytest.approx(sum(row["efficacy_as_typed"] for row in rows) / COUNT)
    assert found["efficacy_as_typed"] != found["efficacy"]
    assert found["specificity_as_typed"] == found["specificity"]


def test_a_prompt_that_ends_in_a_blank_is_the_same_prompt_for_conflicts(run: Callable[..., tuple[Path, Outcome]]) -> None:
    first = CLEAN[0]
    same_turn = {**first, "prompt": first["prompt"] + " ", "target": "Zn"}
    later = {**first, "prompt": " " + first["prompt"] + "\n", "target": "Cu"}
    again = {**first, "target": "Cu "}
    out, outcome = run("out", [first, same_turn, *CLEAN[2:7], later, again])
    assert metrics(out)["conflicts"] == 2
    assert outcome.stderr.count("conflict: ") == 2
    rows = pq.read_table(out / "edits.parquet").to_pylist()
    overwritten = [row["record"] for row in rows if row["applied"] and row["overwritten"]]
    assert overwritten == [2]


def test_a_tokenizer_that_ends_texts_edits_as_one_that_does_not(
    run: Callable[..., tuple[Path, Outcome]], with_tokenizer: Callable[..., Path]
) -> None:
    model = with_tokenizer(end_with_eos)
    raw, outcome = run("raw", CLEAN, model=model)
    published, warned = run("published", CLEAN, "--join", "published", model=model)
    assert "text      the tokenizer ends every text with </s>; it is left out between prompt and answer" in outcome.stderr
    assert "it stays between prompt and answer" in warned.stderr
    assert f"text: {COUNT} of {COUNT} edits: the published tokens are not those" in warned.stderr
    assert digests(raw) != digests(published)
    assert metrics(published)["efficacy_as_typed"] is not None
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer(CLEAN[0]["prompt"])["input_ids"][-1] == tokenizer.eos_token_id


def test_a_pad_without_an_embedding_ends_no_run(run: Callable[..., tuple[Path, Outcome]], with_tokenizer: Callable[..., Path]) -> None:
    model = with_tokenizer(add_pad)
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<pad>"}))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(3, 500)), "repetition_penalty": 1.5}))
    assert AutoTokenizer.from_pretrained(model).pad_token_id == 640
    out, outcome = run("out", [*CLEAN, {"prompt": "The <pad> is", "target": "Zn"}], "--generate", "12", model=model)
    assert digests(out) == digests(run("plain", CLEAN)[0])
    line = "record 13 set aside: prompt: holds '<pad>', token 640 of the tokenizer; the model has embeddings for the tokens below 640 only"
    assert line in outcome.stderr


def test_the_rule_is_recorded_and_cannot_change_within_a_run(run: Callable[..., tuple[Path, Outcome]], ultraedit: Callable[..., Outcome]) -> None:
    out, _ = run("out", CLEAN)
    assert json.loads((out / "run.json").read_text())["model"]["method"]["join"] == "raw"
    more = PARITY / "llama-tiny" / "edits.json"
    outcome = ultraedit("edit", "--resume", out, "--edits", more, "--limit", "3", "--join", "published")
    assert outcome.errors == ["error: resume: join was 'raw' in the run that is there, now it is 'published'; give the same, or --overwrite"]


OLD = ROOT / "tests" / "data" / "run-0.1.0"


@pytest.mark.parametrize("how", ["by folder", "auto"])
def test_a_run_from_before_the_rule_goes_on_as_published(how: str, tmp_path: Path, ultraedit: Callable[..., Outcome], monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)  # it was begun there, with paths from there
    out = tmp_path / "finished"
    shutil.copytree(OLD / "finished", out)
    stored = json.loads((out / "run.json").read_text())["config"]
    method = {name: stored[name] for name in ("learning_rate", "edits_per_turn", "lookahead", "passes", "preserve", "subject_scale", "warm_up")}
    flags = [f for name, value in method.items() for f in (f"--{name.replace('_', '-')}", value)]
    flags += ["--model", stored["model"], "--modules", stored["modules"][0], "--subject-modules", stored["subject_modules"][0], "--whiten"]
    flags += ["--output", out, "--resume", "auto", "--save", "delta", "--tracking-uri", "none"]
    asked = ["--resume", out] if how == "by folder" else flags
    outcome = ultraedit("edit", *asked, "--edits", PARITY / "llama-tiny" / "edits.json", "--limit", "3")
    assert outcome.code == 0, outcome.stderr
    run = json.loads((out / "run.json").read_text())
    assert run["model"]["method"]["join"] == run["config"]["join"] == "published"


@pytest.mark.parametrize(("preset", "join"), [("llama-3-8b-instruct/published", "published"), ("llama-3-8b-instruct", None), (None, None)])
def test_who_asks_for_the_published_preset_gets_the_published_tokens(preset: str | None, join: str | None) -> None:
    model, _ = pretrained.load(PARITY / "llama-tiny" / "model", device=pretrained.choose_device("cpu"))
    given: dict[str, Any] = {"modules": ["x"], "learning_rate": 1.0} if preset is None else {}
    _, _, options = resolve_settings(Decoder(model), "tiny", preset=preset, **given)
    assert options.get("join") == join


def test_a_model_is_measured_by_either_rule(tmp_path: Path, ultraedit: Callable[..., Outcome], write_jsonl: Callable[..., Path]) -> None:
    edits = write_jsonl(tmp_path / "edits.jsonl", BLANKS)
    found = {}
    for join in ("raw", "published"):
        asked = ("evaluate", "--model", PARITY / "llama-tiny" / "model", "--edits", edits, "--join", join, "--generate", "0")
        outcome = ultraedit(*asked, "--output", tmp_path / f"{join}.json")
        assert outcome.code == 0, outcome.stderr
        found[join] = json.loads((tmp_path / f"{join}.json").read_text())
    assert found["published"]["efficacy_as_typed"] == found["raw"]["efficacy"]
    assert found["published"]["otherwise_tokenized"] == 2
    assert found["raw"]["efficacy_as_typed"] is None
