"""A line of JSON is one that every reader of JSON takes, whatever a model that broke is measured as."""

import json
import math
from pathlib import Path

import numpy as np

from orchestrator.jsonl import LineFile, without_infinities


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def test_a_number_that_is_none_is_written_as_null(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "lines", 0)
    values = {
        "vitals": {"perplexity": math.inf, "growth": -math.inf, "loss": math.nan, "kept": 0.5},
        "shares": [1, math.nan, (2.0, math.inf)],
        "name": "inf",
    }
    file.add({**values, "of_numpy": np.float64("inf")})
    file.close()
    found = json.loads((tmp_path / "lines").read_text(), parse_constant=refuse)
    assert found["vitals"] == {"perplexity": None, "growth": None, "loss": None, "kept": 0.5}
    assert found["shares"] == [1, None, [2.0, None]]
    assert (found["name"], found["of_numpy"]) == ("inf", None)


def test_all_else_stays_as_it_is() -> None:
    values = {"a": [True, None, 10**30, "NaN", 1e308]}
    assert without_infinities(values) == values
