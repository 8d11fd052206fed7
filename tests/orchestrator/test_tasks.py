"""Tasks of lm-evaluation-harness, on local files: the numbers are the harness's own with transformers, and every failure is one line."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from editing import InputError
from editing.files import pretrained
from editing.model.decoder import Decoder
from editing.model.prefix import Prefixed, log_likelihoods
from editing.model.tokenization import AnswerSequence
from orchestrator.cli.main import main
from orchestrator.cli.run_tables import task_rows
from orchestrator.tasks import Tasks
from tests.support.paths import PARITY

MODEL, EDITS = PARITY / "llama-tiny" / "model", PARITY / "llama-tiny" / "edits.json"
QUESTIONS = [
    {"question": "The capital of France is", "choices": ["Paris", "Lyon"], "answer": 0},
    {"question": "Water is made of hydrogen and", "choices": ["gold", "oxygen or some other thing"], "answer": 1},
    {"question": "The opposite of hot is", "choices": ["cold", "tall"], "answer": 0},
]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return pretrained.load(MODEL, device=torch.device("cpu"), dtype="float32")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks of three kinds over the same questions."""
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    shared = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test", "doc_to_text": "{{question}}"}
    kinds = {
        "tiny_choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}],
        },
        "tiny_text": {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 4, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    (tmp_path / "tasks").mkdir()
    for name, kind in kinds.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **shared, **kind}))
    return tmp_path / "tasks"


def test_log_likelihoods_are_those_of_the_logits(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    sequences = [AnswerSequence((5, 6, 7, 8), (8, 9)), AnswerSequence((3, 4), (11,)), AnswerSequence((1, 2, 3), (2, 3, 4))]
    likeliest = model(input_ids=torch.tensor([[3, 4]])).logits[0, -1].argmax().item()
    sequences.append(AnswerSequence((3, 4), (likeliest,)))
    found = log_likelihoods(Decoder(model), Prefixed(sequences, None), start=0, batch_tokens=8)
    for sequence, (nats, greedy) in zip(sequences, found, strict=True):
        logits = model(input_ids=torch.tensor([sequence.input_ids])).logits[0, sequence.first_row :].detach()
        answer = torch.tensor(sequence.answer_ids)
        expected = logits.log_softmax(-1).gather(1, answer.unsqueeze(1)).sum().item()
        assert nats == pytest.approx(expected, abs=1e-4)
        assert greedy == bool((logits.argmax(-1) == answer).all())
    assert found[-1][1]


def test_the_harness_gets_what_its_own_model_gives_it(loaded: tuple[Any, Any]) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    from orchestrator.harness_model import HarnessModel

    model, tokenizer = loaded
    ours, theirs = HarnessModel(Decoder(model), tokenizer), HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    pairs = [(question["question"], f" {choice}") for question in QUESTIONS for choice in question["choices"]] + [
        ("", "Paris"),
        ("Ends in a blank ", "here"),
    ]
    requests = [_asked("loglikelihood", *pair) for pair in pairs]
    for (nats, greedy), (expected, expected_greedy) in zip(ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True):
        assert nats == pytest.approx(expected, abs=1e-3)
        assert greedy == expected_greedy
    texts = [_asked("loglikelihood_rolling", " ".join(question["question"] for question in QUESTIONS))]
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), abs=1e-3)
    settings = {"until": ["a"], "max_gen_toks": 6, "do_sample": False}
    written = [_asked("generate_until", question["question"], dict(settings)) for question in QUESTIONS]
    assert ours.generate_until(written) == theirs.generate_until(written)


def _asked(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_a_context_that_is_too_long_loses_its_beginning(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    from orchestrator.harness_model import HarnessModel

    model, tokenizer = loaded
    ours = HarnessModel(Decoder(model), tokenizer)
    monkeypatch.setattr(HarnessModel, "_window", 4)
    assert ours._loglikelihood_tokens([(None, [9] * 20 + [5, 6, 7], [8, 9])]) == ours._loglikelihood_tokens([(None, [5, 6, 7], [8, 9])])
    assert ours._loglikelihood_tokens([(None, [1], [2, 3, 4, 5, 6, 7])]) == ours._loglikelihood_tokens([(None, [3], [4, 5, 6, 7])])


def test_samples_are_refused_in_one_line(loaded: tuple[Any, Any]) -> None:
    pytest.importorskip("lm_eval")
    from orchestrator.harness_model import HarnessModel

    model, tokenizer = loaded
    with pytest.raises(InputError, match="texts are greedy here"):
        HarnessModel(Decoder(model), tokenizer).generate_until([SimpleNamespace(args=("a", {"do_sample": True}))])


@pytest.mark.thorough
def test_local_tasks_before_and_after(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    out, uri = folder.parent / "out.json", f"sqlite:///{folder.parent}/mlflow.db"
    flags = ["--edits", EDITS, "--limit", 2, "--generate", 1, "--tasks", "tiny_choice,tiny_text", "--task-path", folder, "--output", out]
    assert main(["evaluate", "--model", str(MODEL), "--base", str(MODEL), "--tracking-uri", uri, *map(str, flags)]) == 0
    metrics = json.loads(out.read_text())
    rows = {name: (before, now) for name, before, now, _ in task_rows(metrics)}
    assert rows.keys() == {"tiny_choice_acc", "tiny_text_exact_match"}
    assert all(before == now for before, now in rows.values())
    assert 0 <= metrics["task_tiny_choice_acc"] <= 1
    assert metrics["task_tiny_choice_acc_stderr"] >= 0
    assert "tiny_choice_acc" in capsys.readouterr().out
    import mlflow

    (run,) = mlflow.MlflowClient(uri).search_runs([e.experiment_id for e in mlflow.MlflowClient(uri).search_experiments()])
    assert run.data.metrics["task_tiny_choice_acc"] == metrics["task_tiny_choice_acc"]
    assert run.info.status == "FINISHED"


def test_a_task_is_scored_by_the_likelier_choice(folder: Path, loaded: tuple[Any, Any]) -> None:
    pytest.importorskip("lm_eval")
    model, tokenizer = loaded
    right = 0
    for question in QUESTIONS:
        nats = [_nats(model, tokenizer, str(question["question"]), f" {choice}") for choice in question["choices"]]  # type: ignore[attr-defined]
        right += nats.index(max(nats)) == question["answer"]
    found = Tasks(["tiny_choice"], folder=folder).measure(Decoder(model), tokenizer)
    assert found["task_tiny_choice_acc"] == pytest.approx(right / len(QUESTIONS))
    assert Tasks(["tiny_choice"], folder=folder, limit=1).measure(Decoder(model), tokenizer)["task_tiny_choice_acc"] in (0.0, 1.0)


def _nats(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    ids, start = tokenizer(context + continuation)["input_ids"], len(tokenizer(context)["input_ids"])
    logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(logits[k - 1, ids[k]] for k in range(start, len(ids))))


@pytest.mark.thorough  # the harness reads all of its tasks
def test_a_task_that_is_not_there_is_one_line(folder: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(InputError, match="'tiny_cohice' is no task of lm-evaluation-harness nor in "):
        Tasks(["tiny_choice", "tiny_cohice"], folder=folder)


def test_data_that_cannot_be_read_is_one_line(folder: Path, loaded: tuple[Any, Any]) -> None:
    pytest.importorskip("lm_eval")
    (folder.parent / "questions.jsonl").unlink()
    with pytest.raises(InputError, match="tasks: tiny_choice: cannot be measured: "):
        Tasks(["tiny_choice"], folder=folder).measure(Decoder(loaded[0]), loaded[1])


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert main(["evaluate", "--model", str(MODEL), "--edits", str(EDITS), "--tasks", "hellaswag"]) == 1
    said = capsys.readouterr().err.strip()
    assert said == "error: tasks: lm-evaluation-harness is not installed; install the extra [tasks]"


def test_a_folder_without_tasks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(MODEL), "--edits", str(EDITS)]
    assert main(["evaluate", *flags, "--task-path", str(tmp_path)]) == 1
    assert "name them by --tasks" in capsys.readouterr().err
    assert main(["evaluate", *flags, "--tasks", "x", "--task-path", str(tmp_path / "no")]) == 1
    assert "is no folder; expected one with a YAML file for each task" in capsys.readouterr().err
