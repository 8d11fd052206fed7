"""Where a subject stands in its prompt: in any script, any spelling, and whatever folding does to lengths."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editing.subjects import likely_subject, subject_span


@pytest.mark.parametrize(
    ("prompt", "subject", "before", "stands"),
    [
        ("The river Struma flows into", "Struma", "The river ", "Struma"),
        ("The Struma, not the old Struma, flows", "Struma", "The Struma, not the old ", "Struma"),
        ("THE RIVER STRUMA flows into", "river struma", "THE ", "RIVER STRUMA"),
        ("İİİ: the mayor of PARIS is", "Paris", "İİİ: the mayor of ", "PARIS"),
        ("İSTANBUL lies on", "İstanbul", "", "İSTANBUL"),
        ("i̇stanbul lies on", "İSTANBUL", "", "i̇stanbul"),
        ("Die HAUPTSTRASSE liegt in", "Hauptstraße", "Die ", "HAUPTSTRASSE"),
        ("Die Straße nach ZÜRICH liegt in", "Zürich", "Die Straße nach ", "ZÜRICH"),
        ("Cafe\u0301 Central is in", "Café Central", "", "Cafe\u0301 Central"),
        ("Café Central is in", "cafe\u0301 central", "", "Café Central"),
        ("ﬁnland borders on", "Finland", "", "ﬁnland"),
        ("ΣΊΣΥΦΟΣ was king of", "Σίσυφος", "", "ΣΊΣΥΦΟΣ"),
        ("한국의 수도는", unicodedata.normalize("NFD", "한국"), "", "한국"),
        ("東京は", "東京", "", "東京"),
        ("हिन्दी is spoken in", "हिन्दी", "", "हिन्दी"),
        ("Java is what JavaScript is not", "Java", "", "Java"),
        ("Windows98 is", "Windows", "", "Windows"),
        ("the art of Art started", "art", "the ", "art"),
        ("Rome is", " Rome ", "", "Rome"),
    ],
)
def test_the_place_is_that_of_the_prompts_own_characters(prompt: str, subject: str, before: str, stands: str) -> None:
    span = subject_span(prompt, subject)
    assert span is not None
    assert (prompt[: span[0]], prompt[span[0] : span[1]]) == (before, stands)


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The river Struma flows into", "Danube"),
        ("Cafe\u0301 is", "Cafe"),
        ("Café is", "Cafe"),
        ("한국의 수도는", "하"),
        ("a ß to", "s"),
        ("anything", " "),
        ("", "x"),
    ],
)
def test_what_does_not_stand_there_has_no_place(prompt: str, subject: str) -> None:
    assert subject_span(prompt, subject) is None


@given(st.text(max_size=8), st.text(min_size=1, max_size=5).filter(str.strip), st.text(max_size=8))
def test_a_subject_as_written_is_found_and_its_place_spells_it(left: str, subject: str, right: str) -> None:
    prompt = f"{left} {subject} {right}"
    span = subject_span(prompt, subject)
    if span is None:  # only where the text beside it changes a character of it
        assert unicodedata.combining(subject.strip()[0]) or unicodedata.combining((subject.rstrip() + "x")[0])
        return
    spelled, wanted = (
        unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold()) for text in (prompt[slice(*span)], subject.strip())
    )
    assert spelled == wanted


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
        ("Leon Breeden performs", "Leon Breeden"),
        ("The official religion of Bilal ibn Ribah is", "Bilal ibn Ribah"),
        ("What is the twin city of New York City and its port?", "New York City"),
        ("Bobby Moore's position on the field is", "Bobby Moore"),
        ("Which corporation created USS Leedstown (APA-56)?", "USS Leedstown (APA-56)"),
        ("Melbourne Football Club, which is named for", "Melbourne Football Club"),
        ("the 2002 Asian Games were held in", "2002 Asian Games"),
        ("The iPhone is made by", "iPhone"),
        ('The author of "the old man and the sea" is', "the old man and the sea"),
        ("Who wrote «Guerra e pace»?", "Guerra e pace"),
        ("In Paris, people speak", "Paris"),
        ("The capital is", None),
        ("the river flows into", None),
        ("法国的首都是", None),
        ("", None),
    ],
)
def test_what_a_prompt_is_about_is_its_quotation_or_its_longest_name(prompt: str, subject: str | None) -> None:
    assert likely_subject(prompt) == subject


@given(st.text(st.sampled_from("AB ab1.,:'\"“”()’s?ßİ "), max_size=30))
def test_what_is_found_stands_in_the_prompt(prompt: str) -> None:
    found = likely_subject(prompt)
    assert found is None or found in prompt
