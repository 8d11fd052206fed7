"""Placeholders of the field's formats: filled, or refused in one line; and ordinary text with braces in it is left alone."""

import pytest

from editing import InvalidRequest
from editing.datasets.placeholders import fill


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("The mayor of {} is", "The mayor of Lisbon is"),
        ("The mayor of {0} is", "The mayor of Lisbon is"),
        ("The mayor of {subject} is", "The mayor of Lisbon is"),
        ("The mayor of {Subject} is", "The mayor of Lisbon is"),
        ("The mayor of {{ subject }} is", "The mayor of Lisbon is"),
        ("The mayor of {{subject}} is", "The mayor of Lisbon is"),
        ("[X] has as its mayor", "Lisbon has as its mayor"),
        ("The mayor of [SUBJECT] is", "The mayor of Lisbon is"),
        ("The mayor of <subject> is", "The mayor of Lisbon is"),
        ("The mayor of [ENTITY], or of [ENTITY]'s council, is", "The mayor of Lisbon, or of Lisbon's council, is"),
        ("{}的市长是", "Lisbon的市长是"),
        ("{}'s mayor is", "Lisbon's mayor is"),
        ("Wer regiert {}s Rathaus?", "Wer regiert Lisbons Rathaus?"),
        ("{} (city) has the mayor", "Lisbon (city) has the mayor"),
        ('The song "{}" is by', 'The song "Lisbon" is by'),
        ("Who runs (in {}) the town hall?", "Who runs (in Lisbon) the town hall?"),
        ("Simon & {} was founded in", "Simon & Lisbon was founded in"),
    ],
)
def test_a_placeholder_is_filled_with_the_subject(text: str, filled: str) -> None:
    assert fill(text, "Lisbon", "prompt") == filled


@pytest.mark.parametrize("subject", ["Lisbon", None])
@pytest.mark.parametrize(
    "text",
    [
        "In Python, x = {} makes x a",
        "In JavaScript, [] == {} is",
        "What does `{}` create?",
        'In JSON, {"a": {}} is an',
        'The JSON {"name": "Ada"} has the key',
        "function main() {} is written in",
        "print({}) prints",
        "f(x) = {x | x > 0} is a",
        r"\frac{}{} in LaTeX is a",
        r"The set \{0\} has",
        "<p><subject>Maths</subject></p> is",
        "a[X] = 1 sets the",
        "C++ code: vector<int> v{}; is",
        "The list [1, 2] has",
        "Youth and Sex, ltd., 1932 [Am. Partitio can be found in",
        "{| class=wikitable",
        "The regular expression a{2} matches",
        "{\n  return 1\n} returns",
        "He said <b>no</b> to",
        "[INST] Who is it? [/INST]",
    ],
)
def test_code_json_and_mathematics_are_left_alone(text: str, subject: str | None) -> None:
    assert fill(text, subject, "prompt") == text


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("In Python, {} makes a", "Python"),
        ("What does {} make?", "{}"),
        ("The set {0} has", "set"),
        ("The variable {country} of Lisbon is", "Lisbon"),
        ("The variable {country} is", None),
        ("{}s are", None),
    ],
)
def test_a_subject_that_stands_in_the_text_says_that_it_is_written_out(text: str, subject: str | None) -> None:
    assert fill(text, subject, "prompt") == text


@pytest.mark.parametrize(
    ("text", "subject", "reason"),
    [
        ("The mayor of {} is", None, "prompt: holds the placeholder {}, and the record has no subject to put there; give one"),
        ("The mayor of {subject} is", " ", "prompt: holds the placeholder {subject}, and the record has no subject"),
        ("[X] has the mayor", None, "prompt: holds the placeholder [X], and the record has no subject"),
        ("{}的市长是", None, "prompt: holds the placeholder {}, and the record has no subject"),
        ("{} and {} are run by", "Lisbon", "prompt: holds {} and {}, and the record has one subject; write out"),
        ("{} and [X] are run by", "Lisbon", "prompt: holds {} and [X], and the record has one subject"),
        ("{0} and {1} are run by", "Lisbon", "prompt: holds {1}, and the subject 'Lisbon' does not stand in it"),
        ("The mayor of {city} is", "Lisbon", "prompt: holds {city}, and the subject 'Lisbon' does not stand in it; write {} where"),
        ("[X] is run by [Y] .", "Lisbon", "prompt: holds the placeholder [Y], which stands for the answer; end the prompt where"),
        ("Lisbon is run by [MASK].", "Lisbon", "prompt: holds the placeholder [MASK], which stands for the answer"),
    ],
)
def test_a_placeholder_that_cannot_be_filled_is_refused_in_one_line(text: str, subject: str | None, reason: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        fill(text, subject, "prompt")
    assert str(error.value).startswith(reason)
    assert len(str(error.value).splitlines()) == 1
