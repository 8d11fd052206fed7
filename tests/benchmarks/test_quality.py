"""The search in small: what was measured is not measured again, the parts do not mix, the measures are what they say."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from editing import EditRequest
from editing.turn import TokenizedEdit
from tests.benchmarks import quality
from tests.benchmarks.quality import Plan, Search, is_tuning, read_settings
from tests.benchmarks.quality_cell import Sizes, ngram_entropy
from tests.benchmarks.quality_report import choose
from tests.support.paths import PARITY


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    described = {
        "families": {"mlp": {"modules": ["model.layers.{1,2}.mlp.{gate,up}_proj"], "edits_per_turn": 25}},
        "settings": [
            {"family": "mlp", "method": "published", "learning_rate": [1.0e-4, 1.0e-3]},
            {"family": "mlp", "method": "refined", "learning_rate": 1.0e-3, "passes": 3, "preserve": "exact", "preserve_weight": 10.0},
        ],
    }
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(described))
    edits = json.loads((PARITY / "llama-tiny" / "edits.json").read_text())
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(edit) + "\n" for edit in edits))
    return Plan(
        model=str(PARITY / "llama-tiny" / "model"),
        data={"facts": tmp_path / "edits.jsonl"},
        settings=read_settings(tmp_path / "settings.yaml"),
        tune_sizes=(5, 10),
        sizes=(1000,),
        seeds=(0, 1),
        stages=("tune", "report"),
        look=Sizes(evaluated=6, generated=2, text_tokens=4),
    )


def test_a_report_of_what_was_not_tuned_says_so(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"results\.jsonl: no tuned setting of mlp on facts; run the stage tune first"):
        Search(replace(plan, stages=("report",)), tmp_path / "out").run()


@pytest.mark.thorough
def test_a_search_in_small(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(plan, tmp_path / "out")
    search.run()
    chosen = {(row["method"], row["setting"]) for row in search.of("report")}
    assert len(chosen) == 2
    assert chosen == {(row["method"], row["setting"]) for row in choose(row for row in search.of("tune") if row["size"] == 10)}
    assert len(search.of("tune")) == 12
    assert {(row["size"], row["seed"]) for row in search.of("report")} == {(held_back(search), seed) for seed in (0, 1)}
    refined = next(row for row in search.of("report") if row["method"] == "refined")
    assert 1 < refined["passes_a_turn"] <= 3
    text = (tmp_path / "out" / "quality.md").read_text()
    assert all(word in text for word in ("## tune", "## report", "| prompt | target | before | after |", "±"))
    assert (tmp_path / "out" / "report.png").stat().st_size > 5000
    lines = (tmp_path / "out" / "results.jsonl").read_text()

    def unexpected(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(quality, "measure", unexpected)
    again = Search(plan, tmp_path / "out")
    again.run()
    assert again.rows == search.rows
    assert (tmp_path / "out" / "results.jsonl").read_text() == lines


def held_back(search: Search) -> int:
    (edits,) = search._edits.values()
    return sum(not is_tuning(edit) for edit in edits)


def test_a_subject_is_in_one_part_only(plan: Plan) -> None:
    def edit(subject: str, prompt: str) -> TokenizedEdit:
        return TokenizedEdit(EditRequest(prompt, "x", subject=subject), None)  # type: ignore[arg-type]

    subjects = [f"subject {i}" for i in range(400)]
    tuning = [is_tuning(edit(subject, "a")) for subject in subjects]
    assert tuning == [is_tuning(edit(subject, "b")) for subject in subjects]
    assert 0.1 < sum(tuning) / 400 < 0.3


def test_the_entropy_of_a_text_is_that_of_its_words() -> None:
    distinct = "one two three four five"
    assert ngram_entropy(distinct) == pytest.approx((2 / 3 * math.log2(4) + 4 / 3 * math.log2(3)) / 2)
    assert ngram_entropy("no no no no no no") == 0
    assert ngram_entropy("a b a b a b a b") < ngram_entropy("a b c d e f g h")
    assert ngram_entropy("") == 0


def test_a_refined_setting_is_chosen_by_its_smallest_lead() -> None:
    def row(method: str, setting: str, *figures: float) -> dict[str, object]:
        named = zip(("efficacy", "generalization", "locality_retention", "exact"), figures, strict=True)
        return {"family": "mlp", "method": method, "setting": setting, **dict(named)}

    rows = [
        row("published", "weak", 0.2, 0.05, 0.8, 0.2),
        row("published", "best", 0.5, 0.10, 0.5, 0.5),
        row("refined", "strong", 0.99, 0.09, 0.6, 0.99),
        row("refined", "better in all", 0.7, 0.12, 0.51, 0.7),
        row("refined", "forgets", 0.9, 0.30, 0.2, 0.9),
    ]
    assert [found["setting"] for found in choose(rows)] == ["best", "better in all"]
    again = [
        row("published", "best", 0.5, 0.10, 0.5, 0.5),
        row("refined", "better in all", 0.5, 0.06, 0.41, 0.5),
        row("refined", "strong", 0.99, 0.12, 0.6, 0.9),
    ]
    assert [found["setting"] for found in choose([*rows, *again])] == ["best", "strong"]  # by the means of both orders


def test_peers_that_are_alike_in_chat_are_chosen_as_typed() -> None:
    def peer(setting: str, chat: float, kept_in_chat: float, efficacy: float, kept: float) -> dict[str, object]:
        figures = {
            "chat": chat,
            "chat_retention": kept_in_chat,
            "efficacy": efficacy,
            "locality_retention": kept,
            "generalization": 0.1,
            "exact": 0.1,
        }
        return {"family": "one", "method": "lora", "setting": setting, **figures}

    never = [peer("small", 0.0, 0.9, 0.1, 0.9), peer("large", 0.3, 0.0, 0.6, 0.5), peer("larger", 0.4, 0.0, 0.9, 0.1)]
    assert [row["setting"] for row in choose(never)] == ["large"]
    assert [row["setting"] for row in choose([*never, peer("sometimes", 0.1, 0.1, 0.0, 0.0)])] == ["sometimes"]
