"""Whatever ends a run, going on with it gives the bits of a run that nothing disturbed."""

import errno
import gzip
import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.command_line import FinishedRun, Outcome
from tests.support.forked import ForkedRun
from tests.support.paths import PARITY
from tests.support.tiny_runs import MODEL, PER_TURN, SOLVED, TURNS, arguments, digests, ledger

METHODS = [
    ["--passes", "3", "--margin", "0.1", "--ridge", "2", "--preserve", "exact", "--preserve-text", "everyday", "--whiten", "--warm-up", "9"],
    ["--preserve", "sketch", "--preserve-rank", "8", "--preserve-weight", "20", "--passes", "2", "--subject-modules", "model.layers.0.mlp.down_proj"],
    SOLVED,
]


DAILY_FAULTS = {(1, "disk-full"), (5, "disk-broken"), (10, "disk-full"), (16, "disk-broken"), (20, "disk-full")}
"""From which sync on the disk fails in every run of the tests, and how; the other ways are thorough."""


def start(args: list[str]) -> ForkedRun:
    return ForkedRun(args)


def finish(args: list[str], *, fails_at: tuple[int, int] | None = None) -> int | None:
    """The exit code of a run, whose disk may fail from a sync on with an error (:func:`tests.support.failing_disk.fail_syncs`)."""
    process = ForkedRun(args, before=fails_at and ("tests.support.failing_disk:fail_syncs", *fails_at))
    process.communicate(timeout=300)
    return process.returncode


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edits") / "edits.jsonl"
    records = json.loads((PARITY / "llama-tiny" / "edits.json").read_text())[: TURNS * PER_TURN]
    records.insert(7, {"prompt": "", "ans": "bad"})
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture(scope="module")
def undisturbed(edits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert finish(arguments(edits, out)) == 0
    return out


def assert_same(out: Path, undisturbed: Path) -> None:
    assert digests(out) == digests(undisturbed)
    assert ledger(out) == ledger(undisturbed)
    for name in ("rejected.jsonl",):
        assert (out / name).read_text() == (undisturbed / name).read_text()
    turns = [json.loads(line) for line in (out / "turns.jsonl").read_text().splitlines()]
    assert [row["turn"] for row in turns] == list(range(1, TURNS + 1))
    same = [json.loads(line) for line in (undisturbed / "turns.jsonl").read_text().splitlines()]
    assert [(r["loss"], r["shift_norms"], r["vitals"]) for r in turns] == [(r["loss"], r["shift_norms"], r["vitals"]) for r in same]


@pytest.mark.long
@pytest.mark.thorough
def test_fifty_kills_at_random_moments_end_in_the_undisturbed_bits(edits: Path, undisturbed: Path, tmp_path: Path) -> None:
    began = time.perf_counter()
    assert finish(arguments(edits, tmp_path / "timed")) == 0
    duration = time.perf_counter() - began
    dice, kills, attempt = random.Random(7), 0, 0
    while kills < 50:
        out, attempt = tmp_path / f"out{attempt}", attempt + 1
        for _ in range(4):  # the same run is killed several times
            process = start(arguments(edits, out, "--resume", "auto"))
            if process.wait(dice.uniform(0.0, 1.1 * duration)) is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        assert finish(arguments(edits, out, "--resume", "auto")) == 0
        assert_same(out, undisturbed)
        assert not list(tmp_path.glob(f".{out.name}.*"))


@pytest.mark.parametrize(
    ("count", "number"),
    [
        pytest.param(count, number, id=f"from-sync-{count}-{name}", marks=[] if (count, name) in DAILY_FAULTS else pytest.mark.thorough)
        for count in (1, 3, 5, 8, 10, 13, 16, 20)
        for name, number in (("disk-full", errno.ENOSPC), ("disk-broken", errno.EIO))
    ],
)
def test_a_write_that_fails_anywhere_loses_nothing_that_was_checkpointed(
    count: int, number: int, edits: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert finish(arguments(edits, out), fails_at=(count, number)) == 1
    assert not out.exists()
    assert finish(arguments(edits, out, "--resume", "auto")) == 0
    assert_same(out, undisturbed)


def interrupted(edits: Path, out: Path, *more: object) -> Path:
    """An unfinished run with two checkpoints: killed by a disk that fails at the third."""
    assert finish(arguments(edits, out, *more), fails_at=(15, errno.EIO)) == 1
    (left,) = out.parent.glob(f".{out.name}.partial-*")
    assert len(list((left / "checkpoints").glob("turn-*"))) == 2
    return left


@pytest.fixture(scope="module")
def interrupted_once(edits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a run, made once. Tests take a copy."""
    return interrupted(edits, tmp_path_factory.mktemp("interrupted") / "out")


@pytest.fixture
def left(interrupted_once: Path, tmp_path: Path) -> Path:
    """The folder aside of an unfinished run ``out``."""
    return shutil.copytree(interrupted_once, tmp_path / interrupted_once.name)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes({"truncated": data[:middle], "flipped": flipped, "empty": b"", "torn": data[:middle] + bytes(len(data) - middle)}[how])


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("truncated", "manifest.json"),
        ("flipped", "state.safetensors"),
        ("empty", "manifest.json"),
        pytest.param("truncated", "state.safetensors", marks=pytest.mark.thorough),
        pytest.param("flipped", "manifest.json", marks=pytest.mark.thorough),
        pytest.param("empty", "state.safetensors", marks=pytest.mark.thorough),
        pytest.param("torn", "state.safetensors", marks=pytest.mark.thorough),
        pytest.param("torn", "manifest.json", marks=pytest.mark.thorough),
    ],
)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    name: str, how: str, left: Path, edits: Path, undisturbed: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]
) -> None:
    newest = max((left / "checkpoints").glob("turn-*"))
    damage(newest / name, how)
    outcome = ultraedit(*arguments(edits, tmp_path / "out", "--resume", "auto"))
    assert outcome.code == 0
    assert f"{newest.name} skipped" in "".join(outcome.stderr.split("\n")) or "skipped" in outcome.stderr
    assert_same(tmp_path / "out", undisturbed)


@pytest.mark.usefixtures("left")
def test_an_unfinished_run_is_not_begun_anew_by_accident(edits: Path, undisturbed: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    out = tmp_path / "out"
    refused = ultraedit(*arguments(edits, out))
    assert refused.code == 1
    assert "--resume auto, or --overwrite" in refused.errors[0]
    assert ultraedit(*arguments(edits, out, "--overwrite")).code == 0
    assert_same(out, undisturbed)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(METHODS[0], id="refined"),
        pytest.param(METHODS[1], id="at-subjects", marks=pytest.mark.thorough),
        pytest.param(METHODS[2], id="solved", marks=pytest.mark.thorough),
    ],
)
def test_a_resumed_run_ends_in_the_same_bits_whatever_the_method(
    options: list[str], edits: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert ultraedit(*arguments(edits, whole, *options)).code == 0
    assert finish(arguments(edits, out, *options), fails_at=(15, errno.EIO)) == 1
    assert ultraedit(*arguments(edits, out, *options, "--resume", "auto")).code == 0
    assert_same(out, whole)


@pytest.mark.usefixtures("left")
def test_resume_by_folder_takes_the_runs_own_options(undisturbed: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    out = tmp_path / "out"
    assert ultraedit("edit", "--resume", out).code == 0
    assert_same(out, undisturbed)


@pytest.mark.usefixtures("left")
def test_a_run_resumed_with_another_lookahead_ends_in_the_same_bits(
    edits: Path, undisturbed: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]
) -> None:
    out = tmp_path / "out"
    assert ultraedit(*arguments(edits, out, "--resume", "auto", "--lookahead", "3")).code == 0
    assert_same(out, undisturbed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--learning-rate", "2e-3"], "learning_rate was 0.001 in the run that is there, now it is 0.002"),
        (["--edits-per-turn", "5"], "edits_per_turn was 6"),
        (["--moments", "exact"], "moments was 'published'"),
        (["--passes", "2"], "passes was 1"),
        (["--preserve", "exact"], "preserve was 'off'"),
        (["--warm-up", "5"], "warm_up was 0"),
        (["--model", str(PARITY / "gptj-tiny" / "model"), "--modules", "transformer.h.1.mlp.fc_out"], "modules was"),
    ],
    ids=["learning-rate", "edits-per-turn", "moments", "passes", "preserve", "warm-up", "model"],
)
def test_other_settings_are_refused_with_the_difference(
    change: list[str], says: str, left: Path, edits: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]
) -> None:
    outcome = ultraedit(*arguments(edits, tmp_path / "out", "--resume", "auto", *change))
    assert outcome.code == 1
    assert says in outcome.errors[0]
    assert any(p.name.startswith(".out.partial") for p in left.parent.iterdir())  # it can still be resumed as it was


def test_a_text_that_has_changed_is_refused(edits: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the sea is cold in winter")
    flags = ["--preserve", "exact", "--preserve-text", str(text)]
    interrupted(edits, tmp_path / "out", *flags)
    text.write_text("the sea is warm in summer")
    outcome = ultraedit(*arguments(edits, tmp_path / "out", "--resume", "auto", *flags))
    assert outcome.code == 1
    assert "preserve_text_sha256 was" in outcome.errors[0]


@pytest.mark.usefixtures("left")
def test_another_base_model_is_refused(edits: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(MODEL, tmp_path / "other")
    file = next(other.glob("*00001*.safetensors"))
    tensors = load_file(file)
    tensors = {name: t + 0.001 if i == 0 else t for i, (name, t) in enumerate(tensors.items())}
    save_file(tensors, file, metadata={"format": "pt"})
    outcome = ultraedit(*arguments(edits, tmp_path / "out", "--resume", "auto", "--model", other))
    assert outcome.code == 1
    assert "base model is not the one" in outcome.errors[0]


@pytest.mark.usefixtures("left")
def test_a_changed_input_is_refused(edits: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    changed = tmp_path / "changed.jsonl"
    changed.write_text(edits.read_text().replace("capital", "Capital"))
    outcome = ultraedit(*arguments(changed, tmp_path / "out", "--resume", "auto"))
    assert outcome.code == 1
    assert "has not finished its input" in outcome.errors[0]


def wrap(edits: Path, container: str, path: Path) -> Path:
    """The same edits in another container."""
    lines = edits.read_text().splitlines(keepends=True)
    if container == "gzip":
        path.write_bytes(gzip.compress("".join(lines).encode()))
    elif container == "Parquet":
        pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines]), path, row_group_size=7)
    else:
        path.mkdir()
        for part, a in enumerate(range(0, len(lines), 10)):
            (path / f"part-{part}.json").write_text(f"[{','.join(lines[a : a + 10])}]")
    return path


@pytest.mark.parametrize("container", ["Parquet", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("gzip", "folder"))])
def test_a_resumed_run_over_another_container_ends_in_the_same_bits(container: str, edits: Path, undisturbed: Path, tmp_path: Path) -> None:
    wrapped, out = wrap(edits, container, tmp_path / "edits"), tmp_path / "out"
    interrupted(wrapped, out)
    assert finish(arguments(wrapped, out, "--resume", "auto")) == 0
    assert_same(out, undisturbed)


def test_a_folder_whose_part_was_renamed_is_another_input(edits: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    wrapped = wrap(edits, "folder", tmp_path / "edits")
    interrupted(wrapped, tmp_path / "out")
    (wrapped / "part-6.json").rename(wrapped / "part-7.json")
    outcome = ultraedit(*arguments(wrapped, tmp_path / "out", "--resume", "auto"))
    assert outcome.code == 1
    assert "has not finished its input" in outcome.errors[0]


def test_appending_to_a_finished_run_equals_one_run_over_both(
    edits: Path, undisturbed: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]
) -> None:
    """Four turns, then six more: the weights of ten turns at once, since the windows are the same."""
    lines = edits.read_text().splitlines(keepends=True)
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("".join(lines[: 4 * PER_TURN + 1]))  # and the bad record
    second.write_text("".join(lines[4 * PER_TURN + 1 :]))
    out = tmp_path / "out"
    assert ultraedit(*arguments(first, out)).code == 0
    appended = ultraedit("edit", "--resume", out, "--edits", second)
    assert appended.code == 0
    assert digests(out) == digests(undisturbed)
    assert [turn for turn, _, _ in ledger(out)] == [turn for turn, _, _ in ledger(undisturbed)]
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["edits"], metrics["turns"], metrics["rejected"]) == (TURNS * PER_TURN, TURNS, 1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--learning-rate", "0.5"], "learning_rate was"), (["--strict"], "record 2: prompt: expected a non-empty string")],
    ids=["other settings", "a bad record"],
)
def test_appending_that_is_refused_leaves_the_finished_run_alone(
    options: list[str], reason: str, finished_run: FinishedRun, tmp_path: Path, ultraedit: Callable[..., Outcome]
) -> None:
    out, more = shutil.copytree(finished_run.path, tmp_path / "out"), tmp_path / "more.jsonl"
    more.write_text('{"prompt": "The capital of France is", "target": "Lyon"}\n{"prompt": "", "target": "Lyon"}\n')
    outcome = ultraedit("edit", "--resume", out, "--edits", more, "--tracking-uri", "none", *options)
    assert outcome.code == 1
    assert reason in outcome.errors[0]
    assert "kept up to its last checkpoint" not in outcome.stderr
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "more.jsonl"}
    assert (out / "run.json").read_bytes() == (finished_run.path / "run.json").read_bytes()


def test_resuming_what_is_complete_changes_nothing(edits: Path, tmp_path: Path, ultraedit: Callable[..., Outcome]) -> None:
    out = tmp_path / "out"
    assert ultraedit(*arguments(edits, out)).code == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    outcome = ultraedit(*arguments(edits, out, "--resume", "auto"))
    assert outcome.code == 0
    assert "nothing to do" in outcome.stderr
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.long
@pytest.mark.thorough
def test_a_soak_in_small_holds(tmp_path: Path) -> None:
    from tests.benchmarks.soak import soak

    found = soak(tmp_path, count=3000, kills=1, start=lambda arguments, log: start(arguments))
    timing = {name for name in found if name.startswith("processor")}  # 30 turns are too few to tell
    assert [name for name, (_, holds) in found.items() if not holds and name not in timing] == []
