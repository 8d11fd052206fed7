"""The folder of a run is there whole or not at all, whatever ends the run, and nothing of anybody else's ever goes."""

import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from editing import InputError
from orchestrator import heartbeat
from orchestrator.heartbeat import Owner
from orchestrator.run.directory import CONTENT, RunDirectory

DEAD = 2**22 + 1
"""Above the largest process id of Linux."""


def make_run(path: Path, mark: str = "old") -> Path:
    (path / "model").mkdir(parents=True)
    (path / "run.json").write_text(mark)
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write_run(path: Path, *, overwrite: bool = False) -> None:
    with RunDirectory(path, overwrite=overwrite) as out:
        out.write_json("run.json", {"mark": "new"})
        out.commit()


def fail_after(path: Path, *steps: Callable[[RunDirectory], object]) -> None:
    """A run that does these steps and then meets an error of its own."""
    with RunDirectory(path, overwrite=True) as out:
        for step in steps:
            step(out)
        raise Met


class Met(Exception):
    """The error."""


def is_new(path: Path) -> bool:
    return '"new"' in (path / "run.json").read_text()


def test_nothing_is_at_the_path_until_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with RunDirectory(path) as out:
        out.write_json("run.json", {})
        assert not path.exists()
        assert out.staging.parent == tmp_path  # the same file system, so that the rename is one step
        out.commit()
        assert names(path) == ["run.json"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("old", [False, True])
def test_leaving_without_a_commit_leaves_things_as_they_were(old: bool, tmp_path: Path) -> None:
    path = tmp_path / "out"
    if old:
        make_run(path)
    with pytest.raises(Met):
        fail_after(path, lambda out: out.write_json("run.json", {}))
    assert names(tmp_path) == (["out"] if old else [])
    assert not old or (path / "run.json").read_text() == "old"


def test_parents_are_made_and_go_again_with_a_run_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "out"
    with pytest.raises(Met):
        fail_after(path)
    assert names(tmp_path) == []
    write_run(path)
    assert is_new(path)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_run(tmp_path / "out")
    assert is_new(tmp_path / "out")


def test_overwrite_replaces_the_whole_of_an_earlier_run(tmp_path: Path) -> None:
    path = make_run(tmp_path / "out")
    with pytest.raises(InputError, match="already holds a run; choose a new folder or give --overwrite"):
        RunDirectory(path)
    write_run(path, overwrite=True)
    assert is_new(path)
    assert names(path) == ["run.json"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("foreign", ["notes.txt", ".hidden", "checkpoint"])
@pytest.mark.parametrize("run_beside", [False, True])
def test_what_no_run_wrote_is_never_replaced(foreign: str, run_beside: bool, tmp_path: Path) -> None:
    path = tmp_path / "out"
    if run_beside:
        make_run(path)
    (path / foreign).mkdir(parents=True)
    with pytest.raises(InputError, match=f"{foreign}.*no run of this program wrote"):
        RunDirectory(path, overwrite=True)


def test_a_folder_with_the_parts_of_a_run_but_no_run_json_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out" / "model").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no run\.json"):
        RunDirectory(tmp_path / "out", overwrite=True)


def test_what_appears_during_the_run_is_not_replaced_either(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with RunDirectory(path) as out:
        make_run(path)
        with pytest.raises(InputError, match="already holds a run"):
            out.commit()
    assert (path / "run.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_second_run_into_the_same_folder_is_refused_while_the_first_is_alive(tmp_path: Path) -> None:
    left = tmp_path / f".out.partial-{os.getppid()}"
    left.mkdir()
    with pytest.raises(InputError, match=f"process {os.getppid()}@.* is writing .* remove .*{left.name}"), RunDirectory(tmp_path / "out"):
        pytest.fail("it was entered")
    assert names(tmp_path) == [left.name]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder aside of a run on another machine that shares this storage; its process id means nothing here."""
    for name, seconds in (("_INTERVAL", 0.05), ("_TIMEOUT", 0.5)):
        monkeypatch.setattr(heartbeat, name, seconds)
    left = tmp_path / f".out.partial-{os.getppid()}@elsewhere"
    left.mkdir()
    return left


def test_a_run_on_another_machine_is_seen_while_it_lives(elsewhere: Path, tmp_path: Path) -> None:
    beat = heartbeat.Heartbeat(elsewhere)
    with pytest.raises(InputError, match=f"process {os.getppid()}@elsewhere is writing"), RunDirectory(tmp_path / "out"):
        pytest.fail("it was entered")
    beat.stop()
    assert names(tmp_path) == [elsewhere.name]


@pytest.mark.parametrize("beaten", [False, True])
def test_a_run_on_another_machine_that_died_is_swept(beaten: bool, elsewhere: Path, tmp_path: Path) -> None:
    if beaten:
        (elsewhere / "heartbeat").write_text("41")
    write_run(tmp_path / "out")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_begun_again_in_one_process_finds_its_own_checkpoint_if_it_resumes(resume: bool, tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "out") as out:
        (out.staging / "checkpoints" / "turn-1").mkdir(parents=True)
    with RunDirectory(tmp_path / "out", overwrite=True, resume=resume) as again:
        assert again.is_resumed == again.is_unfinished == resume


def test_a_finished_run_holds_no_sign_of_life(tmp_path: Path) -> None:
    write_run(tmp_path / "out")
    assert not (tmp_path / "out" / "heartbeat").exists()


def test_a_killed_run_is_swept_and_a_neighbour_is_not(tmp_path: Path) -> None:
    keep = ["out2", f".out2.partial-{DEAD}", ".out.partial-notes", ".out.partial-"]
    for name in [*keep, f".out.partial-{DEAD}", f".out.partial-{os.getpid()}", ".out.partial-99999999999999999999"]:
        make_run(tmp_path / name)
    write_run(tmp_path / "out")
    assert names(tmp_path) == sorted([*keep, "out"])


def test_a_name_is_not_a_pattern(tmp_path: Path) -> None:
    make_run(tmp_path / f".outa.partial-{DEAD}")
    make_run(tmp_path / f".out[ab].partial-{DEAD}")
    write_run(tmp_path / "out[ab]")
    assert names(tmp_path) == [f".outa.partial-{DEAD}", "out[ab]"]


def test_a_run_killed_between_its_two_renames_gives_the_old_folder_back(tmp_path: Path) -> None:
    path = make_run(tmp_path / "out")
    child = os.fork()
    if child == 0:
        rename = Path.rename

        def die_after(self: Path, target: Path) -> Path:
            rename(self, target)
            os.kill(os.getpid(), signal.SIGKILL)
            return target

        Path.rename = die_after  # type: ignore[method-assign]
        try:
            write_run(path, overwrite=True)
        finally:
            os._exit(1)  # not reached
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    owner = Owner(child, socket.gethostname())
    assert names(tmp_path) == [f".out.old-{owner}", f".out.partial-{owner}"]
    with pytest.raises(InputError, match="already holds a run"), RunDirectory(path):
        pytest.fail("it was entered")
    assert (path / "run.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_rename_that_fails_gives_the_old_folder_back(tmp_path: Path) -> None:
    path = make_run(tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        fail_after(path, lambda out: shutil.rmtree(out.staging), RunDirectory.commit)
    assert (path / "run.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_link_to_a_folder_stays_and_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "run")
    write_run(tmp_path / "out")
    write_run(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert is_new(tmp_path / "disk" / "run")
    assert names(tmp_path / "disk") == ["run"]


def test_a_path_may_be_relative_with_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_run(Path("../there/../out"))
    assert is_new(tmp_path / "out")


def test_space_is_asked_of_the_disk_that_will_hold_the_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "out") as out:
        out.require_space(0)
        with pytest.raises(InputError, match=r"needs 1000000000000 MB, .* has .* MB free"):
            out.require_space(10**18)


def test_a_control_c_during_the_commit_is_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    path = make_run(tmp_path / "out")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        signal.raise_signal(signal.SIGINT)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    write_run(path, overwrite=True)
    assert is_new(path)
    assert names(tmp_path) == ["out"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # it works again
    signal.signal(signal.SIGINT, before)


def test_a_run_writes_only_what_a_later_one_may_replace(finished_run: object) -> None:
    assert set(names(finished_run.path)) <= CONTENT  # type: ignore[attr-defined]
