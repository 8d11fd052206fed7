"""A run takes the modules that a preset has for its data set, says so, and keeps to them whatever is appended."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import Outcome
from tests.support.tiny_models import TINY

FEVER = [
    {
        "prompt": f"Number {i} is blue",
        "equiv_prompt": ["So it is", "And so"],
        "alt": "true" if i % 2 else "false",
        "unrel_prompt": "nq: who",
        "unrel_ans": "me",
    }
    for i in range(4)
]
ZSRE = [{"src": f"What is number {i}?", "rephrase": f"Which is {i}?", "ans": f"red {i}", "loc": "nq who is it", "loc_ans": "me"} for i in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gptj")
    gptj = next(model for model in TINY if model.name == "gptj")
    replace(gptj, changes={"n_layer": 28}).write(folder)
    return folder


@pytest.fixture
def edit(
    model: Path, tmp_path: Path, ultraedit: Callable[..., Outcome], write_jsonl: Callable[..., Path]
) -> Callable[..., tuple[dict[str, Any], Outcome]]:
    """Runs ``ultraedit edit`` with some records; ``run.json`` and what was printed."""

    def run(records: list[dict[str, Any]], *flags: object, out: str = "out") -> tuple[dict[str, Any], Outcome]:
        edits = write_jsonl(tmp_path / "edits.jsonl", records)
        given = ["--learning-rate", "1e-2", "--tracking-uri", "none", "--no-eval", "--generate", "0", *flags]
        where = [] if "--resume" in flags else ["--model", model, "--output", tmp_path / out]
        outcome = ultraedit("edit", "--edits", edits, *where, *given)
        assert outcome.code == 0, outcome.stderr
        return json.loads((tmp_path / out / "run.json").read_text()), outcome

    return run


def fc_out(first: int, last: int) -> list[str]:
    return [f"transformer.h.{i}.mlp.fc_out" for i in range(first, last + 1)]


def test_the_format_of_the_edits_chooses_and_a_run_stays_with_it(edit: Callable[..., Any], tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    run, outcome = edit(FEVER, "--preset", "gpt-j-6b")
    assert run["model"]["modules"] == list(run["digests_after"]) == fc_out(25, 26)
    assert (run["model"]["preset"], run["config"]["dataset"]) == ("gpt-j-6b/fever", "fever")
    assert "preset    gpt-j-6b/fever" in outcome.stderr
    appended, _ = edit(ZSRE, "--resume", tmp_path / "out")
    assert appended["model"]["modules"] == fc_out(25, 26)
    assert appended["input"]["format"] == "zsre"
    assert ultraedit("rollback", tmp_path / "out", "--to-turn", "1").code == 0
    back = json.loads((tmp_path / "out" / "run.json").read_text())
    assert back["digests_after"] == run["digests_after"] != appended["digests_after"]


@pytest.mark.parametrize(
    ("records", "flags", "expected"),
    [
        (ZSRE, ["--preset", "gpt-j-6b"], fc_out(18, 26)),
        (FEVER, ["--preset", "gpt-j-6b/published"], fc_out(18, 26)),
        (ZSRE, ["--preset", "gpt-j-6b/fever"], fc_out(25, 26)),
        (ZSRE, ["--preset", "gpt-j-6b", "--dataset", "wikibigedit"], fc_out(19, 26)),
        (FEVER, ["--preset", "gpt-j-6b", "--modules", "layers.{3,4}.mlp.fc_in"], [f"transformer.h.{i}.mlp.fc_in" for i in (3, 4)]),
    ],
)
def test_what_is_named_wins(edit: Callable[..., Any], records: list[dict[str, Any]], flags: list[str], expected: list[str]) -> None:
    assert edit(records, *flags)[0]["model"]["modules"] == expected
