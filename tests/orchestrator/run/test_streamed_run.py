"""A whole run whose layers are read from disk gives what a run in memory gives: weights, metrics, text, resumed or not."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.cli.main import main
from tests.support.paths import PARITY
from tests.support.tiny_runs import SOLVED

MODEL, EDITS = PARITY / "llama-tiny" / "model", PARITY / "llama-tiny" / "edits.json"
FLAGS = ["--modules", "model.layers.{1,2}.mlp.down_proj", "--learning-rate", "1e-3", "--edits-per-turn", "10", "--group-size", "5"]
FLAGS += ["--tracking-uri", "none", "--watch-every", "2", "--generate", "8", "--batch-tokens", "64", "--lookahead", "2", "--checkpoint-every", "2"]


@pytest.fixture
def smallest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The smallest budget for the tiny model and a run's flags, with the process itself left out: it is larger by far."""

    def find(*flags: str) -> str:
        monkeypatch.setattr("workers.engines.streamed.process_bytes", lambda _: 0)
        assert main(["edit", "--model", str(MODEL), "--edits", str(EDITS), "--output", "nowhere", *FLAGS, *flags, "--device-memory", "1KB"]) == 1
        return capsys.readouterr().err.partition("the smallest that works is ")[2].partition("MiB")[0] + "MiB"

    return find


@pytest.fixture
def budget(smallest: Callable[..., str]) -> str:
    return smallest()


def run(output: Path, *flags: str) -> Path:
    assert main(["edit", "--model", str(MODEL), "--edits", str(EDITS), "--output", str(output), *FLAGS, *flags]) == 0
    return output


def outcome(path: Path) -> tuple[object, ...]:
    metrics = json.loads((path / "metrics.json").read_text())
    for name in ("seconds", "peak_memory_bytes"):
        metrics.pop(name)
    rows = pq.read_table(path / "edits.parquet").to_pylist()
    texts = [{k: v for k, v in row.items() if k not in ("when",)} for row in rows]
    return json.loads((path / "run.json").read_text())["digests_after"], metrics, texts


@pytest.mark.parametrize(
    "flags",
    [
        [],
        pytest.param(["--subject-modules", "model.layers.{0,1}.mlp.up_proj", "--passes", "2"], marks=pytest.mark.thorough),
        pytest.param(SOLVED, marks=pytest.mark.thorough),
    ],
    ids=["published", "at-subjects", "solved"],
)
def test_a_streamed_run_gives_what_a_run_in_memory_gives(
    flags: list[str], tmp_path: Path, smallest: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where layers are read from disk, a search runs whole sequences; elsewhere too here, since what follows a subject differs by rounding."""
    monkeypatch.setattr("editing.turn_capture.can_continue", lambda *_: False)
    expected = outcome(run(tmp_path / "whole", *flags))
    found = run(tmp_path / "streamed", "--device-memory", smallest(*flags), *flags)
    assert "are read from" in capsys.readouterr().err
    assert outcome(found) == expected


@pytest.mark.thorough
def test_a_streamed_run_is_rolled_back_to_the_same_bits(tmp_path: Path, budget: str) -> None:
    folders = [run(tmp_path / "whole"), run(tmp_path / "streamed", "--device-memory", budget)]
    for folder in folders:
        assert main(["rollback", str(folder), "--to-turn", "1"]) == 0
    whole, streamed = (json.loads((folder / "run.json").read_text())["digests_after"] for folder in folders)
    assert streamed == whole
