"""Frozen layers whose products are bfloat16: nearly the same edits, and measurements that do not know of it."""

import pytest
import torch

from editing import Editor, EditorConfig, InputError
from editing.files import pretrained
from editing.monitoring.held_out import perplexities
from editing.turn import in_turns, tokenize
from tests.support.small_editor import MODEL, requests

MODULE = "model.layers.3.mlp.down_proj"
TEXTS = ["a text about nothing"]


def _editor(**options: object) -> Editor:
    model, tokenizer = pretrained.load(MODEL, device="cpu", dtype="float32")
    return Editor(model, tokenizer, EditorConfig(modules=(MODULE,), learning_rate=1e-3, edits_per_turn=4, **options))


def _shift(**options: object) -> torch.Tensor:
    one = _editor(**options)
    before = one.weights[MODULE].clone()
    one.apply(requests())
    return one.weights[MODULE] - before


def test_shifts_are_nearly_those_of_full_precision() -> None:
    full, half = _shift(), _shift(prefix_dtype="bfloat16")
    assert 1e-5 < float((half - full).norm() / full.norm()) < 0.1


def test_hidden_states_keep_the_models_precision() -> None:
    one = _editor(prefix_dtype="bfloat16")
    (turn,) = in_turns((tokenize(one.joiner, request, max_tokens=None) for request in requests()), len(requests()))
    (prepared,) = one.prepare([turn])
    assert prepared.prefixed.hidden.get(0).dtype == torch.float32


def test_measurements_are_those_of_the_model_that_is_saved() -> None:
    assert perplexities(_editor(prefix_dtype="bfloat16"), TEXTS) == perplexities(_editor(), TEXTS)


def test_another_precision_is_refused() -> None:
    with pytest.raises(InputError, match=r"prefix_dtype: expected one of same, bfloat16, found 'float16'"):
        _editor(prefix_dtype="float16")
