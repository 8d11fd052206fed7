"""On an accelerator a job gives what it gives on the CPU, bit for bit, and copies and waits no more than it must.

The accelerator is emulated (:mod:`tests.support.emulated_accelerator`): no tensor of the CPU can take part by mistake.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.support import emulated_checks, emulated_jobs

pytestmark = pytest.mark.long

CEILINGS = {
    "passes with a margin": (15, 13, 10),
    "preserve outputs": (3, 9, 3),
    "preserve sketch": (3, 9, 3),
    "whiten": (3, 9, 3),
    "alike": (3, 5, 4),
    "subject, solved": (29, 13, 8),
    "everything": (35, 17, 12),
}
"""Copies to the device, waits and copies to the host that a turn may take beside one copy and one wait for each batch that runs through layers.

The wait of a batch is transformers' own, and there is none where what follows the subjects is run. A further pass or a step of the solved
targets adds to them, edits and modules do not. But for eigenvectors, for which the host waits module by module, and for states of subjects, by which
the host chooses neighbours.
"""

ONE_PASS = (3, 5, 3)

Apart = Callable[..., Any]


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    """Runs a function in the one process that has the device."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=emulated_jobs.prepare) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@pytest.mark.parametrize("check", emulated_checks.CHECKS, ids=lambda check: check.__name__)
def test_it_is_as_strict_as_a_gpu_and_counts(apart: Apart, check: Callable[[], None]) -> None:
    apart(check)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.thorough) if n == "everything" else n for n in emulated_jobs.OPTIONS])
def test_turns_give_the_cpus_bits_within_the_ceiling(apart: Apart, name: str) -> None:
    expected, _ = apart(emulated_jobs.edit, name, "cpu")
    found, taken = apart(emulated_jobs.edit, name, "emu")
    assert found == expected
    check_ceiling(taken, CEILINGS.get(name, ONE_PASS))


@pytest.mark.parametrize(("num_edits", "batch_tokens"), [(3, 8192), (7, 8192), (7, 32)])
def test_copies_and_waits_grow_with_batches_alone(apart: Apart, num_edits: int, batch_tokens: int) -> None:
    _, taken = apart(emulated_jobs.edit, "published", "emu", num_edits, 7, batch_tokens)
    check_ceiling(taken)
    assert taken["captures"] == 1


def check_ceiling(taken: dict[str, int], ceiling: tuple[int, int, int] = ONE_PASS) -> None:
    found = (taken["to_device"] - taken["runs"], taken["waits"] - taken["runs"], taken["to_host"])
    assert min(taken.values()) > 0
    assert all(took <= at_most for took, at_most in zip(found, ceiling, strict=True)), f"found {found}, expected at most {ceiling}"


def test_what_comes_after_the_edits_is_the_same(apart: Apart, tmp_path: Path) -> None:
    folders = [tmp_path / device for device in ("cpu", "emu")]
    expected, found = [apart(emulated_jobs.live, _made(folder), folder.name) for folder in folders]
    assert found == expected


@pytest.mark.parametrize(("streamed", "pinned"), [(2, False), (4, True)])
def test_layers_stream_to_it(apart: Apart, streamed: int, pinned: bool) -> None:
    expected, found = [apart(emulated_jobs.stream, streamed, pinned, device) for device in ("cpu", "emu")]
    assert found == expected


@pytest.mark.thorough
def test_a_run_of_the_command_line_is_the_same(apart: Apart, tmp_path: Path) -> None:
    expected, found = [apart(emulated_jobs.run, _made(tmp_path / device), device) for device in ("cpu", "emu")]
    assert found[0].endswith("float32 on emu:0")
    assert found[1:] == expected[1:]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
