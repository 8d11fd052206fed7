"""What generated text says of an answer."""

import pytest

from editing.model.generation import Written
from editing.monitoring.texts import VERDICTS, Answers, contains, repeats


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("The answer is Lyon.", "Lyon", True),
        ("the answer is LYON", "Lyon", True),
        ("Lyonnais is spoken there", "Lyon", False),
        ("Not Pont-de-Lyon but Lyon", "Lyon", True),
        ("AvLyon", "Lyon", False),
        ("AvLyon or Lyon", "Lyon", True),
        ("法国的首都是里昂。", "里昂", True),
        ("It is in New\n  York City.", "New York", True),
        ("Born in 1990", "199", False),
        ("", "Lyon", False),
    ],
)
def test_an_answer_is_contained_as_whole_words_in_capitals_or_not(text: str, answer: str, expected: bool) -> None:
    assert contains(text, answer) is expected


@pytest.mark.parametrize(
    ("text", "stopped", "exact"),
    [
        (" Lyon", True, True),
        ("Lyon.", True, True),
        ("lyon!", True, True),
        ("Lyon", False, False),
        ("It is Lyon.", True, False),
        ("Lyon and Nice", True, False),
    ],
)
def test_a_text_is_the_answer_itself_if_it_says_nothing_else_and_ends(text: str, stopped: bool, exact: bool) -> None:
    assert Answers(Written(text, stopped)).verdicts("Lyon")["exact"] is exact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("male male male male", True),
        ("Nazli Sabri? Nazli Sabri? Nazli Sabri?", True),
        ("so it is, and so it is, and", False),
        ("no no", False),
        ("one two three", False),
        ("He said: yes, of course yes, of course yes, of course", True),
        ("", False),
    ],
)
def test_a_text_repeats_itself_if_it_says_the_same_three_times_running(text: str, expected: bool) -> None:
    assert repeats(text) is expected


def test_every_verdict_is_told_and_those_of_texts_that_nobody_wrote_are_none() -> None:
    alone = Answers(Written("Lyon", stopped=True)).verdicts("Lyon")
    assert set(alone) == set(VERDICTS)
    assert {name for name, value in alone.items() if value is None} == {name for name in VERDICTS if "rephrased" in name or "before" in name}
    wrong = Written("Paris Paris Paris", stopped=False)
    whole = Answers(Written("Lyon", stopped=True), Written("In Lyon", stopped=True), wrong).verdicts("Lyon")
    assert None not in whole.values()
    assert (whole["rephrased_contained"], whole["rephrased_exact"], whole["exact_before"], whole["repeats_before"]) == (True, False, False, True)
