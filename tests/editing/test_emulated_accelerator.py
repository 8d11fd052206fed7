"""On an accelerator a job gives what it gives on the CPU, bit for bit, and copies and waits no more than it must.

The accelerator is emulated (:mod:`tests.support.emulated_accelerator`): no tensor of the CPU can take part by mistake.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support import emulated_checks, emulated_jobs
from tests.support.forked import CONTEXT

Apart = Callable[..., Any]


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    """Runs a function in the one process that has the device."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT, initializer=emulated_jobs.prepare) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@pytest.mark.parametrize("check", emulated_checks.CHECKS, ids=lambda check: check.__name__)
def test_it_is_as_strict_as_a_gpu_and_counts(apart: Apart, check: Callable[[], None]) -> None:
    apart(check)


@pytest.mark.parametrize("name", emulated_jobs.OPTIONS)
def test_turns_give_the_cpus_bits_within_the_ceiling(apart: Apart, name: str) -> None:
    expected, _ = apart(emulated_jobs.edit, name, "cpu")
    found, taken = apart(emulated_jobs.edit, name, "emu")
    assert found == expected
    check_ceiling(taken)


@pytest.mark.parametrize(("num_edits", "batch_tokens"), [(3, 8192), (7, 8192), (7, 32)])
def test_copies_and_waits_grow_with_batches_alone(apart: Apart, num_edits: int, batch_tokens: int) -> None:
    _, taken = apart(emulated_jobs.edit, "published", "emu", num_edits, 7, batch_tokens)
    check_ceiling(taken)
    assert taken["captures"] == 1


def check_ceiling(taken: dict[str, int]) -> None:
    """Per batch that runs through layers: one copy to the device, and one wait, which is transformers' own. The rest per capture or turn."""
    runs, captures = taken["runs"], taken["captures"]
    print(taken)
    assert 0 < taken["to_device"] <= runs + 5 * captures
    assert 0 < taken["waits"] <= runs + 5 * captures
    assert 0 < taken["to_host"] <= 1 + 3 * captures


def test_what_comes_after_the_edits_is_the_same(apart: Apart, tmp_path: Path) -> None:
    folders = [tmp_path / device for device in ("cpu", "emu")]
    expected, found = [apart(emulated_jobs.live, _made(folder), folder.name) for folder in folders]
    assert found == expected


@pytest.mark.parametrize(("streamed", "pinned"), [(2, False), (4, True)])
def test_layers_stream_to_it(apart: Apart, streamed: int, pinned: bool) -> None:
    expected, found = [apart(emulated_jobs.stream, streamed, pinned, device) for device in ("cpu", "emu")]
    assert found == expected


def test_a_run_of_the_command_line_is_the_same(apart: Apart, tmp_path: Path) -> None:
    expected, found = [apart(emulated_jobs.run, _made(tmp_path / device), device) for device in ("cpu", "emu")]
    assert found[0] == [0, 0]
    assert found[1].endswith("float32 on emu:0")
    assert found[2:] == expected[2:]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
