"""Probes of several prompts are measured as if each were an edit of its own, and averaged over the edit."""

from pathlib import Path

import pytest
import torch

from editing import Editor, EditRequest, InvalidRequest
from editing.monitoring.evaluation import evaluate, predict_probes, score, summarize
from editing.turn import TokenizedEdit, tokenize

PERSONAS = ("Arr, who was Diego de Landa?", "Tell me, mate, the position of Diego de Landa is")
HOPS = (("The country of Diego de Landa's position is", "Iran"), ("The Persian word for his position is", "Shah and more"))


@pytest.fixture(scope="module")
def editor(llama_tiny: Path) -> Editor:
    torch.manual_seed(0)
    one = Editor.from_pretrained(llama_tiny / "model", modules=["model.layers.2.mlp.up_proj"], learning_rate=0.1)
    one.apply([EditRequest(PERSONAS[0], "Shah and more"), EditRequest(*HOPS[0])])
    return one


def tokenized(editor: Editor, *requests: EditRequest) -> list[TokenizedEdit]:
    return [tokenize(editor.tokenizer, request, max_tokens=editor.decoder.max_tokens) for request in requests]


def test_probes_of_several_prompts_are_means_of_single_ones(editor: Editor) -> None:
    asked = EditRequest(
        "Diego de Landa has the position of",
        "Shah and more",
        persona=PERSONAS,
        multi_hop_prompt=tuple(q for q, _ in HOPS),
        multi_hop_answer=tuple(a for _, a in HOPS),
    )
    alone = [EditRequest(prompt, asked.target) for prompt in PERSONAS] + [EditRequest(q, a) for q, a in HOPS]
    whole, *singles = evaluate(editor, tokenized(editor, asked, *alone))
    for when in ("", "_before"):
        values = [getattr(single, f"efficacy{when}") for single in singles]
        assert getattr(whole, f"generalization_persona{when}") == pytest.approx(sum(values[:2]) / 2)
        assert getattr(whole, f"multi_hop{when}") == pytest.approx(sum(values[2:]) / 2)
    assert len({single.efficacy for single in singles}) > 1  # or the means would say nothing


def test_an_edit_without_such_probes_has_no_such_metrics(editor: Editor) -> None:
    plain, probed = EditRequest("a", "b"), EditRequest("c", "d", persona=("e",))
    edits = tokenized(editor, plain, probed)
    results = score(edits, predict_probes(editor.decoder, edits), None)
    assert (results[0].generalization_persona, results[0].multi_hop, results[1].multi_hop) == (None, None, None)
    means = summarize(results)
    assert means["generalization_persona"] == results[1].generalization_persona is not None
    assert means["multi_hop"] is means["multi_hop_before"] is None


@pytest.mark.parametrize(
    ("probes", "field"),
    [({"persona": ("a", "long " * 600)}, "persona"), ({"multi_hop_prompt": ("long " * 600,), "multi_hop_answer": ("a",)}, "multi_hop_prompt")],
)
def test_a_probe_that_does_not_fit_the_model_is_named(probes: dict[str, tuple[str, ...]], field: str, editor: Editor) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{field}: is \d+ tokens long"):
        tokenized(editor, EditRequest("a", "b", **probes))
