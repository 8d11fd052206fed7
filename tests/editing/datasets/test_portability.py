"""Portability is a metric of its own: what else the edit changes, beside what needs more than the edit."""

from pathlib import Path

import pytest
import torch

from editing import Editor, EditRequest, InvalidRequest
from editing.monitoring.evaluation import evaluate, summarize
from editing.turn import tokenize
from tests.editing.monitoring.test_evaluation import HOPS


def test_portability_is_the_mean_over_an_edits_questions_before_and_now(llama_tiny: Path) -> None:
    torch.manual_seed(0)
    one = Editor.from_pretrained(llama_tiny / "model", modules=["model.layers.2.mlp.up_proj"], learning_rate=0.1)
    questions, answers = zip(*HOPS, strict=True)
    asked = EditRequest("Diego de Landa has the position of", "Shah and more", portability_prompt=questions, portability_answer=answers)
    one.apply([asked, EditRequest(*HOPS[0])])
    whole, *singles = evaluate(one, [tokenize(one.tokenizer, r, max_tokens=None) for r in (asked, *(EditRequest(*pair) for pair in HOPS))])
    assert whole.portability == pytest.approx(sum(single.efficacy for single in singles) / 2)
    assert whole.portability_before == pytest.approx(sum(single.efficacy_before or 0.0 for single in singles) / 2)
    assert whole.multi_hop is None
    assert summarize([whole, *singles])["portability"] == whole.portability
    assert whole.portability != whole.portability_before  # or the mean would say nothing


def test_every_question_needs_its_answer() -> None:
    with pytest.raises(InvalidRequest, match="portability_answer: expected one answer for each question, found 1 for 2"):
        EditRequest("a", "b", portability_prompt=("c", "d"), portability_answer=("e",))
