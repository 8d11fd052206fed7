"""The search for modules and a learning rate: its parts, and as a whole on the tiny Llama."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from editing import Editor, EditorConfig, InputError
from editing.datasets import EditFile
from editing.files import pretrained
from editing.monitoring.evaluation import evaluate, summarize
from editing.turn import in_turns
from orchestrator.tune.search import (
    Candidate,
    Objective,
    TrialResult,
    candidates,
    count_entrants,
    families,
    mlp_outputs,
    rung_sizes,
    search,
    variants,
)
from orchestrator.tune.trial_log import TrialLog
from orchestrator.tune.trials import Trials, draw_sample
from tests.support.command_line import Outcome

Ultraedit = Callable[..., Outcome]
CPU = torch.device("cpu")


def linears(num_layers: int, *kinds: str) -> list[str]:
    return [f"model.layers.{i}.{kind}" for i in range(num_layers) for kind in kinds]


LLAMA = linears(4, "self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def test_families_are_found_by_meaning() -> None:
    found = families(LLAMA, "model.layers")
    assert {name: layers[2] for name, layers in found.items()} == {
        "mlp-out": ["model.layers.2.mlp.down_proj"],
        "mlp-in": ["model.layers.2.mlp.gate_proj", "model.layers.2.mlp.up_proj"],
        "attention-out": ["model.layers.2.self_attn.o_proj"],
    }
    gptj = [f"transformer.h.{i}.{kind}" for i in range(2) for kind in ("attn.out_proj", "mlp.fc_in", "mlp.fc_out")]
    assert {name: layers[1] for name, layers in families(gptj, "transformer.h").items()} == {
        "mlp-out": ["transformer.h.1.mlp.fc_out"],
        "mlp-in": ["transformer.h.1.mlp.fc_in"],
        "attention-out": ["transformer.h.1.attn.out_proj"],
    }
    own = families(LLAMA, "model.layers", ("o_proj+q_proj",))
    assert own["o_proj+q_proj"][0] == ["model.layers.0.self_attn.o_proj", "model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize("num_layers", [1, 2, 4, 18, 80])
def test_candidates_are_different_lie_in_the_model_and_share_prefixes(num_layers: int) -> None:
    made = candidates(families(linears(num_layers, "mlp.down_proj"), "model.layers"), num_layers, (0.1, 0.2))
    assert len({c.name for c in made}) == len(made) >= 2
    assert all(0 <= c.layers[0] <= c.layers[1] < num_layers and len(c.modules) == c.layers[1] - c.layers[0] + 1 for c in made)
    assert any(c.layers[1] == num_layers - 1 for c in made)
    starts = [c.layers[0] for c in made]
    assert starts == sorted(starts)


def test_refined_candidates_may_write_where_the_mlps_around_their_lowest_layer_do() -> None:
    names = linears(8, "mlp.down_proj", "mlp.up_proj")
    found = families(names, "model.layers")
    made = candidates(found, 8, (0.1,), mlp_outputs(names, "model.layers"))
    for candidate in made:
        first = candidate.layers[0]
        own = [first - 1] if candidate.family == "mlp-out" else [first - 1, first]  # no module is edited twice
        assert candidate.subjects == tuple(f"model.layers.{layer}.mlp.down_proj" for layer in own)
        published, refined, at_subjects = variants(candidate)
        assert published == candidate
        assert at_subjects.options == {**refined.options, "subject_modules": list(candidate.subjects), "subject_scale": 0.05}
        assert len({c.name for c in (published, refined, at_subjects)}) == 3
    assert mlp_outputs(linears(2, "mlp.weird"), "model.layers") == {}
    assert [c.variant for c in variants(candidates(found, 8, (0.1,))[0])] == ["published", "refined"]


def test_the_objective_wants_all_of_its_parts() -> None:
    balanced = {"efficacy": 0.5, "generalization": 0.5, "locality_retention": 0.5}
    broken = {"efficacy": 1.0, "generalization": 1.0, "locality_retention": 0.0}
    assert Objective().score(balanced, 100) == pytest.approx(0.5)
    assert Objective().score(broken, 100) < 0.05
    assert Objective(retention=0).score(broken, 10**6) == pytest.approx(1.0, abs=1e-5)
    weighted = Objective(generalization=0, retention=3).score({"efficacy": 0.2, "locality_retention": 0.6}, 10**9)
    assert weighted == pytest.approx(4 / (1 / 0.2 + 3 / 0.6))
    assert Objective().score({"efficacy": 0.5, "generalization": None, "locality_retention": None}, 8) == pytest.approx(0.5)
    assert Objective().score({}, 10) == 0


def test_few_edits_say_little() -> None:
    lucky = {"efficacy": 0.7, "generalization": 0.1, "locality_retention": 0.3}
    steady = {"efficacy": 1.0, "generalization": 0.0, "locality_retention": 0.7}
    assert Objective().score(lucky, 10) / Objective().score(steady, 10) < 1.5
    assert Objective().score(lucky, 1000) / Objective().score(steady, 1000) > 5


def test_weights_are_read_from_text() -> None:
    assert Objective.parse("retention=2, efficacy=0") == Objective(efficacy=0, retention=2)


def test_halving_keeps_the_best_third_and_doubles_the_edits() -> None:
    made = [Candidate("f", (i, i), (f"m{i}",), 0.1) for i in range(12)]
    asked: list[tuple[int, int]] = []

    def measure(candidate: Candidate, edits: int) -> TrialResult:
        layer = candidate.layers[0]
        asked.append((layer, edits))
        # with few edits layer 7 looks best, with more layer 9, and without a measurement nothing could be known of either
        value = 0.9 if layer == (7 if edits == 10 else 9) else layer / 100
        return TrialResult(candidate, edits, 1.0, {"efficacy": value}, value + (0.5 if candidate.variant == "refined" else 0))

    table = search(made, rung_sizes(40, 3), measure)
    assert [len(rung) for rung in table] == count_entrants(made, 3) == [12, 4, 2]
    assert [(rung[0].candidate.layers[0], rung[0].edits) for rung in table] == [(7, 10), (9, 20), (9, 40)]
    assert sorted(layer for layer, edits in asked if edits == 20) == [7, 9, 10, 11]
    refined = search(made, [10, 20], measure, refine=True)
    assert [len(rung) for rung in refined] == count_entrants(made, 2, refine=True) == [12, 8]
    assert refined[-1][0].candidate.variant == "refined"
    with_subjects = [replace(candidate, subjects=("m",)) for candidate in made]
    assert [len(rung) for rung in search(with_subjects, [10, 20], measure, refine=True)] == count_entrants(with_subjects, 2, refine=True) == [12, 12]
    assert rung_sizes(3, 5) == [1, 3]


@pytest.fixture(scope="module")
def edits_file(llama_tiny: Path) -> Path:
    return llama_tiny / "edits.json"


def test_a_trial_is_what_an_editor_does_and_leaves_no_trace(llama_tiny: Path, edits_file: Path) -> None:
    model, tokenizer = pretrained.load(llama_tiny / "model", device=CPU, dtype="bfloat16")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    edits = draw_sample(EditFile(edits_file), tokenizer, 30, seed=1, max_tokens=None)
    trials = Trials(model, tokenizer, edits, edits_per_turn=10)
    both = [Candidate("down", (i, 2), tuple(f"model.layers.{k}.mlp.down_proj" for k in range(i, 3)), 0.3) for i in (1, 2)]
    rates = [trials.rate(candidate) for candidate in both]
    found = [trials.measure(c, rate, n) for c, rate in zip(both, rates, strict=True) for n in (20, 30)]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())

    editor = Editor(model, tokenizer, EditorConfig(modules=both[0].modules, learning_rate=rates[0], edits_per_turn=10))
    weights = {name: weight.float().norm() for name, weight in editor.weights.items()}
    reports = [editor.apply_turn(turn, measure=False) for turn in editor.prepare(list(in_turns(edits[:20], 10)))]
    shift = torch.tensor(list(reports[0].shift_norms.values())).norm() / torch.stack(list(weights.values())).norm()
    assert float(shift) == pytest.approx(0.3, rel=1e-3)
    assert summarize(evaluate(editor, edits[:20])) == found[0]
    assert found[0] != found[1]


def test_a_trial_has_its_candidates_variant(llama_tiny: Path, edits_file: Path) -> None:
    model, tokenizer = pretrained.load(llama_tiny / "model", device=CPU)
    edits = draw_sample(EditFile(edits_file), tokenizer, 20, seed=1, max_tokens=None)
    trials = Trials(model, tokenizer, edits, edits_per_turn=10)
    subjects = ("model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj")
    for candidate in variants(Candidate("up", (2, 2), ("model.layers.2.mlp.up_proj",), 0.3, subjects=subjects)):
        editor = Editor(model, tokenizer, EditorConfig(modules=candidate.modules, learning_rate=0.01, edits_per_turn=10, **candidate.options))
        for turn in editor.prepare(list(in_turns(edits, 10))):
            editor.apply_turn(turn, measure=False)
        expected = summarize(evaluate(editor, edits))
        assert ("model.layers.1.mlp.down_proj" in editor.modules) == (candidate.variant == "refined at subjects")
        editor.restore()
        assert trials.measure(candidate, 0.01, 20) == expected


def test_a_draw_is_a_sample_of_the_whole_file_decided_by_the_seed(tmp_path: Path, llama_tiny: Path, write_jsonl: Callable[..., Path]) -> None:
    records: list[Any] = [{"prompt": f"Question {i // 2}", "target": f"answer {i}"} for i in range(200)]
    path = write_jsonl(tmp_path / "edits.jsonl", [*records[:50], {"prompt": "no target"}, *records[50:]])
    tokenizer = pretrained.load_tokenizer(llama_tiny / "model")
    drawn = [[edit.record for edit in draw_sample(EditFile(path), tokenizer, 40, seed=seed, max_tokens=None)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != sorted(drawn[0])
    assert min(drawn[0]) < 50
    assert max(drawn[0]) > 150
    all_of_it = draw_sample(EditFile(path), tokenizer, 1000, seed=0, max_tokens=None)
    assert len({edit.request.prompt for edit in all_of_it}) == len(all_of_it) == 100


def test_the_log_of_trials_outlives_a_torn_line_and_refuses_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with TrialLog(path, {"seed": 0}) as log:
        log.put("metrics", "a", "10", value=1.5)
    path.write_bytes(path.read_bytes() + b'{"key": ["metrics", "b", "10"], "va')
    with TrialLog(path, {"seed": 0}) as log:
        assert (log.get("metrics", "a", "10"), log.get("metrics", "b", "10")) == ({"value": 1.5}, None)
        log.put("metrics", "b", "10", value=2.5)
    with TrialLog(path, {"seed": 0}) as log:
        assert len(log) == 2
    with pytest.raises(InputError, match=r"was measured with seed 0, now 1; choose another --output, or give --overwrite"):
        TrialLog(path, {"seed": 1})
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(InputError, match="line 1 is no measurement"):
        TrialLog(path, {"seed": 0})


@pytest.fixture(scope="module")
def flags(llama_tiny: Path, edits_file: Path) -> list[object]:
    kinds = ["--families", "mlp-in,q_proj", "--strengths", "0.001,1", "--sample", "16", "--rungs", "2", "--objective", "retention=0"]
    return ["tune", "--model", llama_tiny / "model", "--edits", edits_file, *kinds]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, ultraedit: Ultraedit, flags: list[object]) -> tuple[Path, Outcome, str]:
    """A complete search. Read it; a test that changes it takes a copy."""
    folder = tmp_path_factory.mktemp("tuned")
    uri = f"sqlite:///{folder}/mlflow.db"
    return folder / "out", ultraedit(*flags, "--output", folder / "out", "--tracking-uri", uri), uri


def keys(folder: Path) -> list[tuple[str, ...]]:
    return [tuple(json.loads(line).get("key", ())) for line in (folder / "measurements.jsonl").read_text().splitlines()]


def test_the_better_candidates_win_and_the_preset_edits(
    tuned: tuple[Path, Outcome, str], tmp_path: Path, ultraedit: Ultraedit, llama_tiny: Path, edits_file: Path
) -> None:
    folder, outcome, _ = tuned
    assert outcome.code == 0, outcome.stderr
    preset = yaml.safe_load((folder / "preset.yaml").read_text())
    assert all(name.endswith(("gate_proj", "up_proj")) for name in preset["modules"])  # attention's queries hardly move an answer
    assert "@1" in preset["source"]
    assert "has the highest score after 16 edits" in outcome.stdout
    edit = ["edit", "--model", llama_tiny / "model", "--edits", edits_file, "--limit", "16", "--output", tmp_path / "run", "--tracking-uri", "none"]
    run = ultraedit(*edit, "--preset", folder / "preset.yaml", "--generate", "0")
    assert run.code == 0, run.stderr
    worker = json.loads((tmp_path / "run" / "run.json").read_text())
    assert preset["learning_rate"] in _values(worker)
    assert preset["modules"] in _values(worker)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["efficacy"] > metrics["efficacy_before"] + 0.2


def _values(nested: Any) -> list[Any]:
    if not isinstance(nested, dict):
        return [nested]
    return [value for inner in nested.values() for value in _values(inner)]


def test_a_search_that_was_stopped_measures_nothing_twice(
    tuned: tuple[Path, Outcome, str], tmp_path: Path, ultraedit: Ultraedit, flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tuned[0]
    out, measure, made = tmp_path / "out", Trials.measure, []

    def stopping(self: Trials, candidate: Candidate, rate: float, edits: int) -> Any:
        if len(made) == 10:
            raise KeyboardInterrupt
        made.append((candidate.name, edits))
        return measure(self, candidate, rate, edits)

    monkeypatch.setattr(Trials, "measure", stopping)
    again = [*flags, "--output", out, "--tracking-uri", "none"]
    assert ultraedit(*again).code == 130
    first = list(made)
    assert not (out / "preset.yaml").exists()
    made.clear()
    monkeypatch.setattr(Trials, "measure", lambda self, c, rate, n: made.append((c.name, n)) or measure(self, c, rate, n))
    assert ultraedit(*again).code == 0
    assert len(first) == 10
    assert not set(first) & set(made)
    assert len(first) + len(made) == sum(key[0] == "metrics" for key in keys(whole) if key)
    of = [yaml.safe_load((folder / "preset.yaml").read_text()) for folder in (whole, out)]
    assert of[0] == of[1]
    assert len(set(keys(out))) == len(keys(out))


def test_every_candidate_is_a_run_within_the_searchs_own(tuned: tuple[Path, Outcome, str]) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    folder, _, uri = tuned
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "ultraedit"]
    runs = client.search_runs([experiment])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    measured = [key for key in keys(folder) if key and key[0] == "metrics"]
    assert set(nested) == {name for _, name, _ in measured}
    name, edits = measured[-1][1:]
    steps = {metric.step: metric.value for metric in client.get_metric_history(nested[name].info.run_id, "score")}
    assert max(steps) == int(edits) == 16
    assert len(steps) == 2
    assert nested[name].info.status == parent.info.status == "FINISHED"
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {"preset.yaml", "measurements.jsonl"}


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--families", "mlp-middle"], "error: families: the model has no mlp-middle; expected mlp-out, mlp-in"),
        (["--strengths", "0.1,zero"], "error: strengths: expected numbers like 0.01,0.02, found '0.1,zero'"),
        (["--strengths", "0.1,-1"], "error: strengths: expected a finite number above 0, found -1.0"),
        (["--strengths", "0.1,0.1"], "error: strengths: expected distinct values, found 0.1, 0.1"),
        (["--objective", "beauty=1"], "error: objective: expected weights like"),
        (["--objective", "efficacy=0,generalization=0"], "error: objective: expected a weight above 0, found none"),
        (["--edits", "nowhere.json"], "error: nowhere.json: no such file"),
        (["--strengths", "1e-9"], "so no preset is written; try larger --strengths"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, ultraedit: Ultraedit, flags: list[object], more: list[str], line: str) -> None:
    objective = [] if "--objective" not in more else ["--objective", more[more.index("--objective") + 1] + ",retention=0"]
    outcome = ultraedit(*flags, "--sample", "4", "--rungs", "1", "--output", tmp_path / "out", "--tracking-uri", "none", *more, *objective)
    assert outcome.code != 0
    assert len(outcome.errors) == 1
    assert line in outcome.errors[0]
    assert not (tmp_path / "out" / "preset.yaml").exists()


def test_a_folder_of_something_else_or_of_another_search_is_left_alone(
    tuned: tuple[Path, Outcome, str], tmp_path: Path, ultraedit: Ultraedit, flags: list[object]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    outcome = ultraedit(*flags, "--output", tmp_path, "--tracking-uri", "none")
    assert "already exists and holds no search" in outcome.errors[0]
    copy = tmp_path / "copy"
    shutil.copytree(tuned[0], copy)
    outcome = ultraedit(*flags, "--seed", "3", "--output", copy, "--tracking-uri", "none")
    assert outcome.code == 1
    assert "was measured with seed 0, now 3" in outcome.errors[0]
    assert keys(copy) == keys(tuned[0])


def test_edits_without_probes_are_told(tmp_path: Path, ultraedit: Ultraedit, flags: list[object], write_jsonl: Callable[..., Path]) -> None:
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"prompt": f"Fact {i} is", "target": f"answer {i}"} for i in range(6)])
    outcome = ultraedit(*flags, "--edits", bare, "--rungs", "1", "--families", "mlp-in", "--output", tmp_path / "out", "--tracking-uri", "none")
    assert outcome.code == 0, outcome.stderr
    assert "generalization is not measured" in outcome.stderr
    assert "locality retention is not measured" in outcome.stderr


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("modules: [a", "expected a preset with modules"),
        ("[1, 2]", "expected a preset with modules"),
        ("modules: [a]\nlearning_rate: fast\nsource: me", "learning_rate: expected a finite number above 0, found 'fast'"),
        ("modules: [a]\nlearning_rate: 1.0\nsource: me\npasses: 0", "passes: expected a whole number"),
        ("modules: [a]\nlearning_rate: 1.0\nsource: me\nlerning_rate: 1", "lerning_rate"),
        ("learning_rate: 1.0\nsource: me", "modules"),
        ("modules: layers.1.mlp.up_proj\nlearning_rate: 1.0\nsource: me", "modules: expected a list of names, found 'layers.1"),
    ],
)
def test_a_preset_file_that_is_none_is_one_line(
    tmp_path: Path, ultraedit: Ultraedit, llama_tiny: Path, edits_file: Path, text: str | None, why: str
) -> None:
    path = tmp_path / "preset.yaml"
    if text is not None:
        path.write_text(text)
    outcome = ultraedit("edit", "--model", llama_tiny / "model", "--edits", edits_file, "--output", tmp_path / "run", "--preset", path)
    assert outcome.code == 1
    assert len(outcome.errors) == 1
    assert outcome.errors[0].startswith(f"error: preset: {path}: ")
    assert why in outcome.errors[0]
    assert not (tmp_path / "run").exists()
