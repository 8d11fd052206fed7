"""Modules that are edited where the subject ends: the right token, the right shift, and nothing where there is no subject."""

from pathlib import Path
from typing import Any

import pytest
import torch

from editing import Editor, EditRequest, InputError
from editing.method.rows import TurnRows
from editing.model.row_positions import row_owners
from editing.model.tokenization import encode
from editing.state import load_state, save_state
from editing.turn import Turn, tokenize
from tests.support.oracles import ridge_in_float64
from tests.support.small_editor import SUBJECTS, editor, requests

AT_SUBJECTS = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj")
ANSWERED = "model.layers.2.mlp.up_proj"  # of the same shape as two of those


def with_subjects(**options: Any) -> Editor:
    return Editor.from_pretrained(
        editor().model.name_or_path,
        **{"modules": [ANSWERED], "learning_rate": 1e-3, "subject_modules": AT_SUBJECTS, "subject_scale": 0.5, **options},
    )


@pytest.mark.parametrize(
    ("prompt", "subject", "ends"),
    [
        ("The river Struma flows into", "Struma", "Struma"),
        ("Struma", "Struma", "Struma"),
        ("The Struma, not the old Struma, flows into", "Struma", "old Struma"),
        ("THE RIVER STRUMA flows into", "river struma", "RIVER STRUMA"),
        ("Zürich’s Grossmünster is in", "Grossmünster", "Grossmünster"),
        ("Željava is in", "Željava", "Željava"),
        ("東京は", "東京", "東京"),
        ("Windows98 is", "Windows", "Windows"),
    ],
)
def test_the_row_is_the_last_token_that_touches_the_subject(prompt: str, subject: str, ends: str) -> None:
    """By the tokenizer's own account of where its tokens stand in the text."""
    tokenizer = editor().tokenizer
    end = prompt.rindex(ends) + len(ends)
    spans = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    touching = [i for i, (a, b) in enumerate(spans) if a < end and b > end - len(subject)]
    assert encode(tokenizer, prompt, "x", subject=subject).subject == touching[-1]


@pytest.mark.parametrize("subject", [None, "Danube"])
def test_a_subject_that_is_not_in_the_prompt_has_no_row(subject: str | None) -> None:
    sequence = encode(editor().tokenizer, "The river Struma flows into", "the sea", subject=subject)
    assert sequence.subject is None
    assert len(sequence.rows("subject")) == 0


@pytest.mark.parametrize("passes", [1, 2])
def test_the_shift_solves_for_the_rows_at_the_subjects_with_moments_of_their_own(passes: int) -> None:
    """By hand: normal equations in float64, with the mean and the scale of these rows alone."""
    harder = {"modules": ["model.layers.2.mlp.{gate,up,down}_proj"], "learning_rate": 3e-3}
    before, once, more = with_subjects(**harder), with_subjects(**harder), with_subjects(**harder, passes=passes)
    turn = before.prepare([Turn.of([tokenize(before.tokenizer, request, max_tokens=None) for request in requests()])])[0]
    once.apply_turn(turn)
    more.apply_turn(turn)
    start = before if passes == 1 else once
    rows = start.capture(turn)
    sequences = turn.turn.sequences
    owners = row_owners(sequences)
    edits = torch.zeros(len(sequences), dtype=torch.bool)
    edits[owners["answer"][rows.pending]] = True
    pending = edits[owners["subject"]]
    assert passes == 1 or len(pending) > pending.sum() > 0
    for name in AT_SUBJECTS:
        (d_in, d_out), keys = start.shards[name].shape, rows.keys[name].double()
        assert len(keys) == sum(subject is not None for subject in SUBJECTS) - 1
        moments = once.lifelong.subject_moments[d_in, d_out]
        assert moments.count == len(keys) * (2 if "up_proj" in name else 1)  # two modules of one shape share them
        normal = (torch.cat((keys, rows.value_gradients[name].double()), 1) - moments.mean) / moments.std
        goal = -1.5e-3 * normal[:, :d_in].square().sum(1, keepdim=True) * normal[:, d_in:]
        if passes > 1:
            goal[~pending] = 0
        change = (more.weights[name] - start.weights[name]).T.double()
        expected = ridge_in_float64(keys, goal, 1.0)
        assert (change - expected).norm() / expected.norm() < 1e-3


def test_edits_without_a_subject_leave_these_modules_alone() -> None:
    plain, one = Editor.from_pretrained(editor().model.name_or_path, modules=[ANSWERED], learning_rate=1e-3), with_subjects(passes=2)
    before = {name: weight.clone() for name, weight in one.weights.items()}
    nameless = [EditRequest(r.prompt.lower(), r.target) for r in requests()]
    plain.apply(nameless[:3])
    (report,) = with_subjects().apply(nameless[:3])
    assert report.shift_norms[ANSWERED] > 0
    reports = one.apply(nameless) + one.apply(requests()) + one.apply(nameless)
    assert [{name for name, norm in r.shift_norms.items() if norm} for r in reports] == [{ANSWERED}, {ANSWERED, *AT_SUBJECTS}, {ANSWERED}]
    assert all(not torch.equal(one.weights[name], before[name]) for name in AT_SUBJECTS)


def test_answers_are_edited_as_without_such_modules() -> None:
    """In the first turn: their rows and moments do not know of the subjects', even of modules of one shape."""
    plain, one = Editor.from_pretrained(editor().model.name_or_path, modules=[ANSWERED], learning_rate=1e-3, cache_prefix=False), with_subjects()
    plain.apply(requests())
    one.apply(requests())
    torch.testing.assert_close(one.weights[ANSWERED], plain.weights[ANSWERED], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"preserve": "exact", "passes": 2, "whiten": True}, {"preserve": "sketch", "preserve_rank": 8}], ids=str)
def test_stored_and_loaded_goes_on_as_if_nothing_had_happened(options: dict[str, Any], tmp_path: Path) -> None:
    whole, first, second = (with_subjects(edits_per_turn=2, **options) for _ in range(3))
    whole.apply(requests())
    first.apply(requests(4))
    save_state(first, tmp_path / "state")
    load_state(second, tmp_path / "state")
    assert second.lifelong.subject_moments.keys() == first.lifelong.subject_moments.keys() != set()
    second.apply(requests()[4:])
    assert second.digests() == whole.digests()


def test_a_state_of_the_same_modules_at_other_rows_is_refused(tmp_path: Path) -> None:
    one = with_subjects()
    one.apply(requests())
    save_state(one, tmp_path / "state")
    other = Editor.from_pretrained(editor().model.name_or_path, modules=[ANSWERED, *AT_SUBJECTS], learning_rate=1e-3)
    with pytest.raises(InputError, match="was written with subject_modules; give the options"):
        load_state(other, tmp_path / "state")


def test_what_is_not_finite_at_a_subject_refuses_the_turn_and_names_the_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    from editing import TurnRefused

    one = with_subjects()
    before, gathered = one.digests(), TurnRows.gathered

    def broken(rows: TurnRows, collectives: Any, shares: Any) -> TurnRows:
        rows.keys[AT_SUBJECTS[0]][-1] = torch.inf
        return gathered(rows, collectives, shares)

    monkeypatch.setattr(TurnRows, "gathered", broken)
    turn = Turn.of([tokenize(one.tokenizer, request, max_tokens=None) for request in requests()])
    with pytest.raises(TurnRefused, match="1 of its 7 edits are not finite") as refused:
        one.apply_turn(one.prepare([turn])[0])
    last = [i for i, s in enumerate(turn.sequences) if s.subject is not None][-1]
    assert refused.value.culprits == (turn.order[last],)
    assert one.digests() == before


def test_a_module_cannot_be_edited_at_both() -> None:
    with pytest.raises(InputError, match=r"subject_modules: model\.layers\.2\.mlp\.up_proj is among modules too"):
        with_subjects(subject_modules=[ANSWERED])


@pytest.mark.parametrize("value", ["model.layers.0.mlp.up_proj", 5, [5]])
def test_what_names_no_modules_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="subject_modules: expected names"):
        with_subjects(subject_modules=value)
