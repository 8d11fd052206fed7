"""How often a run opens its input: the first look goes on into the warm-up and the turns, beside one thread for the SHA-256."""

import gzip
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from editing.datasets import BadRecord, EditFile
from orchestrator.progress import Progress
from orchestrator.run import intake as intake_module
from orchestrator.run.coordinator import Coordinator
from orchestrator.run.intake import FirstLook
from orchestrator.run.run_config import RunConfig
from orchestrator.tracking import NoTracker
from tests.support.scripted_worker import ScriptedWorker, read_metrics


class Warmed(ScriptedWorker):
    """Notes the records that the warm-up shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.observed: list[int] = []

    def observe(self, prepared: Any) -> None:
        self.observed += [edit.record for edit in prepared.turn.in_request_order]


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was opened for reading, by name."""
    counts: Counter[str] = Counter()
    plain = io.open

    def counting(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "r" in mode:
            counts[Path(str(file)).name] += 1
        return plain(file, mode, *args, **kwargs)

    monkeypatch.setattr(io, "open", counting)
    return counts


def start(edits: Path, out: Path, **options: Any) -> tuple[Warmed, Path]:
    config = RunConfig(model="m", edits=str(edits), output=str(out), edits_per_turn=2, eval=False, **options)
    file, worker = config.edit_file(), Warmed()
    coordinator = Coordinator(config.with_dataset(file), worker, NoTracker(), Progress(Console(quiet=True), enabled=False), file)
    return worker, coordinator.run()


def records(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"p{i}", "target": str(i)} for i in range(1, count + 1)]


@pytest.mark.parametrize("warm_up", [5, 50])
def test_a_run_with_a_warm_up_reads_its_input_once_and_hashes_it_once(
    warm_up: int, tmp_path: Path, write_jsonl: Callable[..., Path], openings: Counter[str]
) -> None:
    edits = write_jsonl(tmp_path / "edits.jsonl", records(9))
    worker, out = start(edits, tmp_path / "out", warm_up=warm_up)
    assert openings["edits.jsonl"] == 4  # its first bytes, which tell what it is; its first record, which tells the format; records; SHA-256
    assert worker.observed == list(range(1, min(warm_up, 9) + 1))
    assert read_metrics(out)["edits"] == 9


@pytest.mark.thorough
@pytest.mark.parametrize(("warm_up", "num_readings"), [(1500, 2), (0, 1), (500, 1)])
def test_a_long_input_too_unless_its_warm_up_is_longer_than_the_first_look(
    warm_up: int, num_readings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "_READ_WHOLE_BYTES", 0)
    edits = tmp_path / "edits.jsonl"
    edits.write_text("".join(json.dumps(record) + "\n" for record in records(2500)))
    begun: list[int] = []
    plain = EditFile.records

    def noting(self: EditFile, *, after: int = 0) -> Iterator[Any]:
        begun.append(after)
        return plain(self, after=after)

    monkeypatch.setattr(EditFile, "records", noting)
    worker, out = start(edits, tmp_path / "out", warm_up=warm_up)
    assert begun == [0, 1000][:num_readings]
    assert worker.observed == list(range(1, warm_up + 1))
    assert read_metrics(out)["edits"] == 2500


@pytest.mark.parametrize("kept_characters", [intake_module._KEPT_CHARACTERS, 300])
@pytest.mark.parametrize("whole", [True, False], ids=["read to its end", "of unknown length"])
@pytest.mark.parametrize("count", [5, 999, 1000, 1001, 2300])
def test_every_reader_gets_every_record_once(count: int, whole: bool, kept_characters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_KEPT_CHARACTERS", kept_characters)
    lines = [b'{"prompt": ""}' if k % 7 == 3 else json.dumps(record).encode() for k, record in enumerate(records(count))]
    path = tmp_path / "edits"
    path.write_bytes(b"\n".join(lines) if whole else gzip.compress(b"\n".join(lines)))
    look = FirstLook(EditFile(path))
    num_usable = sum(not isinstance(record, BadRecord) for record in EditFile(path))
    assert look.num_edits(None) == (num_usable if whole or count < 1000 else None)
    halfway = look.records()
    begun = [next(halfway).number for _ in range(count // 2)]
    for after in (0, 3, count // 2, count - 1, count):
        assert [record.number for record in look.records(after=after)] == list(range(after + 1, count + 1))
    assert begun + [record.number for record in halfway] == list(range(1, count + 1))


def test_a_long_warm_up_is_repeated_in_the_first_turns_of_the_same_records(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    mixed = [{"prompt": "", "target": "bad"} if k % 4 == 0 else record for k, record in enumerate(records(20))]
    worker, out = start(write_jsonl(tmp_path / "edits.jsonl", mixed), tmp_path / "out", warm_up=6, limit=8)
    assert worker.observed == [2, 3, 4, 6, 7, 8]
    assert (read_metrics(out)["edits"], read_metrics(out)["rejected"]) == (8, 3)
