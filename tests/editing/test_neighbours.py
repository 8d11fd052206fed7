"""Neighbours: the prompt about other subjects, in every framing, and held where its answer would begin."""

import copy

import pytest
import torch

from editing import EditRequest, InputError
from editing.alike import read_names
from editing.messages import Message
from editing.model.joining import Joiner
from editing.neighbours import neighbours_of, read_others
from editing.turn import Turn, tokenize
from tests.support.small_editor import editor, requests

PRESERVING = {"preserve": "exact", "preserve_weight": 3.0}


def _texts(joiner: Joiner, asked: list[EditRequest], count: int, max_tokens: int | None = None) -> list[list[str]]:
    turn = Turn.of([tokenize(joiner, request, max_tokens=None) for request in asked])
    found = neighbours_of(turn, joiner, count, max_tokens)
    assert all(len(sequence.answer_ids) == 1 for several in found for sequence in several)
    in_order = {turn.edits[i].request.prompt: several for several, (i, _) in zip(found, turn.places, strict=True)}
    return [[joiner.tokenizer.decode(sequence.input_ids, skip_special_tokens=True) for sequence in in_order[request.prompt]] for request in asked]


@pytest.fixture(scope="module")
def joiner() -> Joiner:
    return editor().joiner


def test_a_neighbour_is_the_prompt_about_another_subject(joiner: Joiner) -> None:
    (found,) = _texts(joiner, [EditRequest("The capital of Kiribati is", "Oslo", subject="Kiribati")], 3)
    assert len(set(found)) == 3
    assert all(text.removeprefix("The capital of ").removesuffix(" is") in read_others() for text in found)


def test_an_edit_has_the_same_ones_in_every_turn(joiner: Joiner) -> None:
    alone = [_texts(joiner, [request], 2) for request in requests(5)]
    assert [found for several in alone for found in several] == _texts(joiner, requests(5), 2)


def test_edits_whose_subject_is_not_found_have_none(joiner: Joiner) -> None:
    assert _texts(joiner, [EditRequest("it is perl that is", "old"), EditRequest("it is", "red", subject="Java")], 2) == [[], []]


def test_a_subject_that_is_not_given_is_found_in_the_prompt(joiner: Joiner) -> None:
    told, found = (_texts(joiner, [EditRequest("The capital of Kiribati is", "Oslo", subject=subject)], 3) for subject in ("Kiribati", None))
    assert told == found
    assert len(told[0]) == 3


def test_a_prompt_that_names_its_subject_twice_has_none(joiner: Joiner) -> None:
    assert _texts(joiner, [EditRequest("Kiribati: the capital of Kiribati is", "Oslo", subject="Kiribati")], 2) == [[]]


@pytest.mark.parametrize("subject", ["BBC", "Einstein", "Harvard", "Pelé", "simpsons"])
def test_no_neighbour_is_about_the_subject_by_another_name(joiner: Joiner, subject: str) -> None:
    (found,) = _texts(joiner, [EditRequest(f"People speak of {subject} as", "old", subject=subject)], len(read_others()))
    assert len(found) == len(read_others()) - 1


def test_prompts_that_the_turn_edits_are_left_out(joiner: Joiner) -> None:
    everywhere = [EditRequest(f"The capital of {other} is", "Oslo", subject=other) for other in read_others()]
    assert _texts(joiner, everywhere, len(read_others())) == [[]] * len(everywhere)


def test_the_likest_subjects_come_first_but_for_the_subject_itself(joiner: Joiner) -> None:
    about = {"Kiribati": "The capital of {} is", "Peru": "{} is"}
    asked = [EditRequest(prompt.format(subject), "Oslo", subject=subject) for subject, prompt in about.items()]
    turn = Turn.of([tokenize(joiner, request, max_tokens=None) for request in [*asked, EditRequest("I am", "red")]])
    told = {"Kiribati": ["Republic of Kiribati", "Norway", "Kenya", "Chess"], "Peru": ["Chess", "Kenya", "Norway"]}
    found = neighbours_of(turn, joiner, 2, None, lambda subjects: [told[subject] for subject in subjects])
    of_each = {turn.edits[i].request.subject: [one.input_ids for one in several] for several, (i, _) in zip(found, turn.places, strict=True)}
    expected = {"Kiribati": ("Norway", "Kenya"), "Peru": ("Chess", "Kenya")}
    prompts = {subject: [joiner.prompt_ids(about[subject].format(name)) for name in names] for subject, names in expected.items()}
    assert of_each == {**prompts, None: []}


def test_those_too_long_for_the_model_are_left_out(joiner: Joiner) -> None:
    assert _texts(joiner, [EditRequest("The capital of Kiribati is", "Oslo", subject="Kiribati")], 3, max_tokens=2) == [[]]


def test_each_framing_has_its_own() -> None:
    one = editor(framings=("raw", "question"), **PRESERVING)
    request = EditRequest("The capital of Kiribati is", "Oslo", subject="Kiribati")
    turn = Turn.of([tokenize(one.joiner, request, max_tokens=None)])
    found = neighbours_of(turn, one.joiner, 1, None)
    lengths = {form: len(several[0].input_ids) for several, (_, form) in zip(found, turn.places, strict=True)}
    assert lengths[1] > lengths[0]


def test_what_is_held_changes_less_and_the_edit_is_made() -> None:
    moved = {}
    for count in (0, 20):
        one = editor(preserve_neighbours=count, **PRESERVING)
        turn = Turn.of([tokenize(one.joiner, request, max_tokens=None) for request in requests(4)])
        held = [sequence for several in neighbours_of(turn, one.joiner, 20, None) for sequence in several]
        before = [_next_token(one, sequence.input_ids) for sequence in held]
        one.apply(requests(4))
        after = [_next_token(one, sequence.input_ids) for sequence in held]
        moved[count] = sum(float((b.exp() * (b - a)).sum()) for b, a in zip(before, after, strict=True))
        assert all(weight.isfinite().all() for _, weight in one.weights.whole())
    assert moved[20] < 0.5 * moved[0]


def _next_token(one: object, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return one.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def test_without_a_ridge_that_preserves_nothing_is_held() -> None:
    plain, other = editor(), editor(preserve_neighbours=3)
    for one in (plain, other):
        one.apply(requests())
    assert plain.digests() == other.digests()


def test_there_are_only_so_many_other_subjects() -> None:
    for alike, names in ((True, read_names()), (False, read_others())):
        with pytest.raises(InputError, match=f"preserve_neighbours: expected at most {len(names)}, found 1000"):
            editor(preserve_neighbours=1000, preserve_alike=alike, **PRESERVING)


def test_a_chat_has_neighbours_in_its_last_message(joiner: Joiner) -> None:
    asked = (Message("user", "The capital of Kiribati is"),)
    joiner = _chatting(joiner)
    request = EditRequest("The capital of Kiribati is", "Oslo", subject="Kiribati", messages=asked)
    turn = Turn.of([tokenize(joiner, request, max_tokens=None)])
    ((found,),) = neighbours_of(turn, joiner, 1, None)
    text = joiner.tokenizer.decode(found.input_ids)
    assert text.startswith("<user>The capital of ")
    assert text.endswith(" is<assistant>")
    assert "Kiribati" not in text


def _chatting(joiner: Joiner) -> Joiner:
    tokenizer = copy.deepcopy(joiner.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    return Joiner(tokenizer)
