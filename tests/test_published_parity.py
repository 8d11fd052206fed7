"""The command line reproduces the published implementation's numbers (tests/data/README.md)."""

from pathlib import Path

import pytest

from editing.config import EditorConfig
from tests.support.published import FIXTURES, errors_by_turn, errors_of_run, worst


@pytest.mark.parametrize(
    "options",
    [[], ["--batch-tokens", "64", "--lookahead", "1"], ["--lookahead", "3"], pytest.param(["--batch-tokens", "1"], marks=pytest.mark.thorough)],
    ids=" ".join,
)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_command_line_reproduces_published_shifts_and_metrics(fixture: str, options: list[str], tmp_path: Path) -> None:
    errors = errors_of_run(fixture, tmp_path / "run", *options)
    assert worst(errors.metrics) <= 1e-6
    assert worst(errors.shifts) < 1e-4


@pytest.mark.parametrize("solve", ["row", "d_in"])
@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_turn_matches_in_shift_and_statistics_with_both_solve_forms(fixture: str, solve: str) -> None:
    for errors in errors_by_turn(fixture, solve=solve):
        # later turns start from weights that already differ by rounding
        assert worst(errors.shifts) < (1e-5 if errors.turn == 0 else 1e-3)
        assert worst(errors.statistics) < 1e-3
        assert errors.counts_agree


def test_the_fixtures_are_the_default_configuration_otherwise() -> None:
    config = EditorConfig(modules=("x",), learning_rate=1.0)
    assert (config.edits_per_turn, config.group_size, config.moments, config.ridge) == (100, 10, "published", 1.0)
