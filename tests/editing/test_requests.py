"""What a request accepts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editing import EditRequest, InvalidRequest

OPTIONAL = ("id", "subject", "rephrase", "locality_prompt")


@pytest.mark.parametrize("field", ["prompt", "target"])
@pytest.mark.parametrize("value", [None, "", " ", "\n\t", 3, ["Rome"], b"Rome", "\ud800"])
def test_prompt_and_target_must_be_texts_with_something_in_them(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: ") as caught:
        EditRequest(**{"prompt": "Italy's capital is", "target": "Rome", field: value})
    assert caught.value.field == field


@pytest.mark.parametrize("field", OPTIONAL)
@pytest.mark.parametrize("value", ["", "  ", 3, "\udfff"])
def test_a_probe_may_be_absent_but_not_unusable(field: str, value: object) -> None:
    assert getattr(EditRequest("Italy's capital is", "Rome"), field) is None
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        EditRequest("Italy's capital is", "Rome", **{field: value})


def test_a_locality_answer_needs_its_question() -> None:
    with pytest.raises(InvalidRequest, match="locality_answer: given without a locality_prompt"):
        EditRequest("Italy's capital is", "Rome", locality_answer="Paris")


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_any_other_text_is_kept_to_the_letter(prompt: str, target: str) -> None:
    request = EditRequest(prompt, target)
    assert (request.prompt, request.target) == (prompt, target)
