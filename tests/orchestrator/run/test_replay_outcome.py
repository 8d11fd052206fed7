"""What a replay leaves in a run's state: an outcome of its own beside the input's SHA-256, and a sign of one that was interrupted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.recorder import TurnRecorder
from tests.support.command_line import Outcome
from tests.support.tiny_runs import PER_TURN, RECORDS, digests, ledger, with_ids


def source(out: Path) -> dict[str, Any]:
    checkpoint = Checkpoints(out / "checkpoints").newest()
    assert checkpoint is not None
    return dict(checkpoint.state["source"])


def store_as_0_1_0_did(out: Path) -> None:
    """Put the outcome where version 0.1.0 put it: in the place of the SHA-256."""
    newest = Checkpoints(out / "checkpoints").newest()
    assert newest is not None
    before = {name: value for name, value in newest.state["source"].items() if name != "outcome"}
    old = {**newest.state, "source": {**before, "sha256": "rolled back"}}
    kept = newest.path.with_name("kept")
    newest.path.rename(kept)
    Checkpoints(out / "checkpoints").write(newest.turn, old, lambda path: shutil.copyfile(kept / "state.safetensors", path))
    shutil.rmtree(kept)


@pytest.mark.parametrize("stored", ["as an outcome", "as version 0.1.0 did"])
def test_after_a_rollback_the_same_file_may_be_given_again(
    stored: str,
    run: Callable[..., Path],
    ultraedit: Callable[..., Outcome],
    tmp_path: Path,
) -> None:
    out = run("out", RECORDS[: 3 * PER_TURN])
    sha256 = source(out)["sha256"]
    assert "outcome" not in source(out)
    assert ultraedit("rollback", out, "--to-turn", 1).code == 0
    assert (source(out)["sha256"], source(out)["outcome"]) == (sha256, "rolled back")
    assert json.loads((out / "run.json").read_text())["input"] == source(out)
    if stored != "as an outcome":
        store_as_0_1_0_did(out)
    again = ultraedit("edit", "--resume", out)
    assert again.code == 0, again.stderr
    assert [turn for turn, _, outcome in ledger(out) if outcome == "applied"][::PER_TURN] == [1, 2, 3, 4]
    assert "outcome" not in source(out)
    assert "nothing to do" in ultraedit("edit", "--resume", out).stderr


def test_after_a_removal_the_same_file_has_nothing_new(run: Callable[..., Path], ultraedit: Callable[..., Outcome]) -> None:
    out = run("out", with_ids(RECORDS[: 2 * PER_TURN]))
    assert ultraedit("remove", out, "--edit", "e3").code == 0
    assert source(out)["outcome"] == "applied"
    assert "nothing to do" in ultraedit("edit", "--resume", out).stderr


@pytest.mark.parametrize("command", [["rollback", "--to-turn", "9"], ["remove", "--edit", "e40"]], ids=["rollback", "remove"])
def test_an_interrupted_replay_is_not_taken_for_a_run(
    command: list[str],
    run: Callable[..., Path],
    ultraedit: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its checkpoints have the whole input behind them: going on from one would lose the edits that were still to run again."""
    out = run("out", with_ids(RECORDS), "--checkpoint-every", "2", "--keep", "1")  # so that it begins at the beginning and writes checkpoints
    before, uncut = digests(out), TurnRecorder.begin_turn

    def interrupted(self: TurnRecorder, turn: Any) -> None:
        if self.journal.state.num_turns == 5:
            raise KeyboardInterrupt
        uncut(self, turn)

    with monkeypatch.context() as patch:
        patch.setattr(TurnRecorder, "begin_turn", interrupted)
        assert ultraedit(command[0], out, *command[1:]).code == 130
    assert digests(out) == before
    refused = ultraedit("edit", "--resume", out)
    assert refused.code == 1
    assert "a rollback or removal of this run was interrupted; give that command again" in refused.errors[0]
    assert digests(out) == before
    assert ultraedit(command[0], out, *command[1:]).code == 0
    assert digests(out) != before
