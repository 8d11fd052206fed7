"""What stands out in an edit's key, on keys of which it is known."""

import pytest
import torch

from editing import EditRequest
from editing.neighbours import read_others
from tests.benchmarks.distinct_keys import FIGURES, figures, prompts_of


def keys(distinct: float) -> torch.Tensor:
    """Prompts share a direction of length 1 and have one each of the length 0.1; the edit and its rephrased prompt another of the given length."""
    count = len(read_others()) + 3
    shared, own = torch.eye(count + 2)[-1], torch.eye(count, count + 2) * 0.1
    mark = torch.zeros(count, count + 2)
    mark[[0, -1], -2] = distinct
    return shared + own + mark


def test_a_key_that_stands_out_leaves_its_neighbours_alone_and_is_found_by_another_wording() -> None:
    of_far, of_near = (dict(zip(FIGURES, figures(keys(distinct)).tolist(), strict=True)) for distinct in (1.0, 0.0))
    assert of_far["own"] == pytest.approx(0.5, abs=0.02)
    assert of_far["rephrased"] > 0.95
    assert of_far["neighbour"] < 0.01
    assert of_near["own"] < 0.02
    assert of_near["neighbour"] > 10 * of_far["neighbour"]


def test_an_edit_whose_subject_is_not_in_its_prompt_is_left_out() -> None:
    assert prompts_of(EditRequest("It is", "Oslo", subject="Norway", rephrase="So it is", locality_prompt="And it is")) is None
