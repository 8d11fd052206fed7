"""Whatever fails while a worker loads is what a person reads, and closing lets go of what had been opened by then."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from editing import InputError
from tests.support.command_line import Outcome
from workers.process_groups import GroupCollectives, Groups, Placement
from workers.protocol import WorkerSpec
from workers.worker import LocalWorker

MODULES = ("model.layers.1.mlp.down_proj",)


class Died(Exception):
    """What ended the others."""


def spec(model: Path, **changes: object) -> WorkerSpec:
    values = {"model": str(model), "device": "cpu", "modules": MODULES, "learning_rate": 1e-3, "options": {}, **changes}
    return WorkerSpec(**values)  # type: ignore[arg-type]


@pytest.fixture
def unhealthy(monkeypatch: pytest.MonkeyPatch) -> str:
    """The last step of loading fails, for this reason."""

    def fail(*_: object) -> None:
        raise InputError("the fixed probes cannot be read")

    monkeypatch.setattr("workers.worker.Health", fail)
    return "the fixed probes cannot be read"


@pytest.mark.parametrize("device_memory", [None, "8GiB"], ids=["whole", "streamed"])
def test_closing_after_a_load_that_failed_keeps_the_cause(device_memory: str | None, unhealthy: str, llama_tiny: Path) -> None:
    with pytest.raises(InputError, match=unhealthy), closing(LocalWorker(spec(llama_tiny / "model", device_memory=device_memory))) as worker:
        worker.load()


def test_a_run_whose_worker_cannot_load_says_why(
    unhealthy: str, llama_tiny: Path, tmp_path: Path, edit_flags: list[str], ultraedit: Callable[..., Outcome]
) -> None:
    outcome = ultraedit(*edit_flags, "--edits", llama_tiny / "edits.json", "--output", tmp_path / "out")
    assert outcome.errors == [f"error: {unhealthy}"]
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_was_never_loaded_or_was_closed_before_is_closed_in_silence(llama_tiny: Path) -> None:
    worker = LocalWorker(spec(llama_tiny / "model"))
    worker.close()
    worker.load()
    worker.close()
    worker.close()
    assert not hasattr(worker, "editor")


@pytest.mark.parametrize("step", ["the editor", "the health"])
def test_a_streamed_model_that_was_not_loaded_to_the_end_holds_no_file_open(step: str, llama_tiny: Path, request: pytest.FixtureRequest) -> None:
    gc.collect()  # what other tests of this process have left
    before = sorted(open_files(llama_tiny))  # and what they still hold
    options = {"group_size": 0} if step == "the editor" else {}  # which the editor refuses, once the files are open
    if step == "the health":
        request.getfixturevalue("unhealthy")
    worker = LocalWorker(spec(llama_tiny / "model", device_memory="8GiB", options=options))
    with pytest.raises(InputError):
        worker.load()
    assert len(list(open_files(llama_tiny))) > len(before), "nothing was open, so that closing is not tested"
    worker.close()
    assert sorted(open_files(llama_tiny)) == before


def open_files(folder: Path) -> Iterator[Path]:
    """Files in a folder that this process has open."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = Path(os.readlink(link))
        except OSError:  # the one that lists them
            continue
        if folder in target.parents:
            yield target


def test_a_first_worker_that_fails_says_why_though_the_others_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise Died

    monkeypatch.setattr("torch.distributed.broadcast", gone)
    nobody: Groups = None  # type: ignore[assignment]  # never reached
    collectives = GroupCollectives(Placement(num_replicas=2), Groups(nobody, nobody, nobody), torch.device("cpu"))  # type: ignore[arg-type]

    def write() -> None:
        raise InputError("the disk is full")

    with pytest.raises(InputError, match="the disk is full"):
        collectives.run_on_first(write)
    with pytest.raises(Died):
        collectives.run_on_first(lambda: None)


def test_a_cluster_that_is_gone_does_not_hide_why_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from workers import cluster

    def gone(*_: object) -> None:
        raise ConnectionError("the head node has died")

    shut: list[bool] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: shut.append(True))
    monkeypatch.setattr(cluster, "remove_placement_group", gone)
    left = object.__new__(cluster.Cluster)
    left._opened_here, left._placement_group = True, object()  # type: ignore[assignment]
    left.close()
    assert shut == [True]
