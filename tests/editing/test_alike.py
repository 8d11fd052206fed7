"""Which names are like a subject: by direction from the mean, in units of spread, hubs put back."""

import pytest
import torch

from editing.alike import Likeness, question_about, read_names
from tests.support.small_editor import editor, requests

PRESERVING = {"preserve": "exact", "preserve_neighbours": 3, "preserve_alike": True, "preserve_weight": 3.0}


def test_names_are_many_and_each_is_there_once() -> None:
    assert len(set(read_names())) == len(read_names()) > 200
    assert all(name == name.strip() and name for name in read_names())


def test_a_subject_is_ranked_by_its_direction_not_by_its_size() -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 32, generator=generator)
    names = torch.cat([kind + 0.1 * torch.randn(6, 32, generator=generator) for kind in kinds])
    subjects = kinds * torch.tensor([[1.0], [1.5], [0.8]])
    for kind, order in enumerate(Likeness(names).ranked(subjects)):
        assert {number // 6 for number in order[:6]} == {kind}
        assert sorted(order) == list(range(18))


def test_one_dimension_that_is_large_for_all_decides_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    names = torch.randn(12, 8, generator=generator)
    names[:, 0] = 1000 + 100 * torch.randn(12, generator=generator)
    plain = Likeness(names[:, 1:]).ranked(names[:, 1:])
    assert [order[0] for order in Likeness(names).ranked(names)] == [order[0] for order in plain] == list(range(12))


def test_a_name_that_is_near_to_everything_is_put_back() -> None:
    """Against the formula, written out name by name in double precision."""
    generator = torch.Generator().manual_seed(2)
    shared = torch.randn(1, 6, generator=generator)
    names = torch.cat([torch.randn(20, 6, generator=generator), shared + 0.4 * torch.randn(10, 6, generator=generator)])
    subjects = shared + torch.randn(8, 6, generator=generator)
    apart = (names.double() - names.double().mean(dim=0)) / names.double().std(dim=0)
    asked = (subjects.double() - names.double().mean(dim=0)) / names.double().std(dim=0)
    crowded = [sum(sorted((_cosine(one, other) for k, other in enumerate(apart) if k != i), reverse=True)[:9]) / 9 for i, one in enumerate(apart)]
    plain = [sorted(range(30), key=lambda i: -_cosine(apart[i], subject)) for subject in asked]
    expected = [sorted(range(30), key=lambda i: crowded[i] - 2 * _cosine(apart[i], subject)) for subject in asked]
    assert Likeness(names).ranked(subjects) == expected
    assert plain != expected


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def test_the_frozen_layers_alone_decide_so_edits_change_no_choice() -> None:
    one = editor(**PRESERVING)
    subjects = ["Kiribati", "Danielle Darrieux", "a red car"]
    before = one.preserved._alike(subjects)
    one.apply(requests(4))
    assert one.preserved._alike(subjects) == before
    assert one.preserved._alike(subjects[1:2]) == before[1:2]
    assert all(sorted(order) == sorted(read_names()) for order in before)


def test_a_state_is_that_of_the_questions_last_token() -> None:
    one = editor(**PRESERVING)
    (state,) = one.preserved._states(["Kiribati"])
    ids = torch.tensor([one.joiner.prompt_ids(question_about("Kiribati"))])
    with torch.no_grad():
        hidden = one.model(input_ids=ids, output_hidden_states=True).hidden_states[one.start][0, -1]
    torch.testing.assert_close(state, hidden.float())


@pytest.mark.parametrize("alike", [True, False])
def test_a_name_counts_by_what_is_told_of_it(alike: bool) -> None:
    one, other = (editor(**PRESERVING | {"preserve_alike": choice}) for choice in (alike, True))
    for each in (one, other):
        each.apply(requests(4))
    assert (one.digests() == other.digests()) == alike
