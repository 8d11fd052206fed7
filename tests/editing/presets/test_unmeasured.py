"""A model that no preset fits is edited all the same, in terms without a scale."""

import math
from pathlib import Path
from typing import Any

import pytest

from editing import Editor, EditRequest, InputError
from editing.config import EditorConfig
from editing.model.decoder import Decoder
from editing.presets import unmeasured
from editing.state import load_state, save_state
from tests.support.paths import PARITY
from tests.support.tiny_models import GPT2, TINY, TinyModel

MODEL = PARITY / "llama-tiny" / "model"
FACTS = [EditRequest(f"The colour of number {i} is", f"blue {i}", subject=f"number {i}") for i in range(6)]
ONE_PASS: dict[str, Any] = {"small_turns": False, "passes": 1, "preserve": "off", "preserve_text": "none", "device": "cpu"}


@pytest.mark.parametrize("model", [*TINY, GPT2], ids=lambda model: model.name)
def test_every_family_is_edited_without_a_setting(model: TinyModel, tmp_path: Path) -> None:
    model.write(tmp_path)
    editor = Editor.from_pretrained(tmp_path, device="cpu")
    (first,), (again,) = editor.apply(FACTS, measure=False), editor.apply(FACTS, measure=False)
    assert editor.config.preset == unmeasured.NAME
    assert again.loss < first.loss - 0.05


@pytest.mark.parametrize("strength", [0.02, 0.3])
@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_the_first_turn_moves_the_weights_by_the_strength_whatever_their_size(strength: float, size: float) -> None:
    editor = Editor.from_pretrained(MODEL, modules=["layers.{1,2}.mlp.down_proj"], strength=strength, **ONE_PASS)
    for weight in editor.weights.values():
        weight.mul_(size)
    editor = Editor(editor.model, editor.tokenizer, editor.config)
    norms = editor.weights.norms()
    (report,) = editor.apply(FACTS, measure=False)
    assert math.hypot(*report.shift_norms.values()) == pytest.approx(strength * math.hypot(*norms.values()), rel=1e-4)


def test_the_rate_of_the_first_turn_serves_all_later_ones_and_gives_what_it_would_give_by_itself() -> None:
    found = Editor.from_pretrained(MODEL, modules=["layers.1.mlp.down_proj"], strength=0.1, edits_per_turn=3, **ONE_PASS)
    first, second = found.apply(FACTS, measure=False)
    assert first.rate == second.rate == found.lifelong.rate
    given = Editor.from_pretrained(MODEL, modules=["layers.1.mlp.down_proj"], learning_rate=first.rate, edits_per_turn=3, **ONE_PASS)
    given.apply(FACTS, measure=False)
    assert given.digests() == found.digests()


def test_a_stored_state_knows_the_rate_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = Editor.from_pretrained(MODEL, device="cpu", edits_per_turn=3)
    whole.apply(FACTS, measure=False)
    first = Editor.from_pretrained(MODEL, device="cpu", edits_per_turn=3)
    first.apply(FACTS[:3], measure=False)
    save_state(first, tmp_path / "state")
    later = Editor.from_pretrained(MODEL, device="cpu", edits_per_turn=3)
    load_state(later, tmp_path / "state")
    assert later.lifelong.rate == first.lifelong.rate
    later.apply(FACTS[3:], measure=False)
    assert later.digests() == whole.digests()


def test_who_restores_the_model_has_the_rate_found_anew() -> None:
    editor = Editor.from_pretrained(MODEL, device="cpu")
    editor.apply(FACTS, measure=False)
    once = editor.digests()
    editor.restore()
    assert editor.lifelong.rate is None
    editor.apply(FACTS, measure=False)
    assert editor.digests() == once


def test_layers_lie_below_five_sixths_of_the_depth_and_subjects_below_them() -> None:
    editor = Editor.from_pretrained(MODEL, device="cpu")  # of four layers
    at_answers, at_subjects = unmeasured.modules_for(Decoder(editor.model))
    assert at_answers == [f"model.layers.{i}.self_attn.o_proj" for i in range(3)]
    assert at_subjects == []  # nothing is below the first layer


def test_modules_or_a_rate_that_are_given_stay_as_they_are() -> None:
    modules = Editor.from_pretrained(MODEL, modules=["layers.1.mlp.down_proj"], device="cpu")
    assert (list(modules.modules), modules.config.strength) == (["model.layers.1.mlp.down_proj"], unmeasured.STRENGTH)
    rate = Editor.from_pretrained(MODEL, learning_rate=1e-3, device="cpu")
    assert (rate.config.learning_rate, rate.config.strength) == (1e-3, None)


def test_a_strength_that_is_given_is_taken_as_it_is_and_a_goal_beside_it_is_not_forgotten() -> None:
    assert Editor.from_pretrained(MODEL, device="cpu").config.strength_goal == unmeasured.GOAL
    assert Editor.from_pretrained(MODEL, strength=0.2, device="cpu").config.strength_goal == 0
    assert Editor.from_pretrained(MODEL, strength=0.2, strength_goal=0.9, device="cpu").config.strength_goal == 0.9
    assert Editor.from_pretrained(MODEL, learning_rate=1e-3, device="cpu").config.strength_goal == 0
    with pytest.raises(InputError, match=r"strength_goal: expected a share from 0 to 1, found 1.5"):
        EditorConfig(modules=("m",), strength=0.1, strength_goal=1.5)


def test_a_strength_and_a_rate_are_not_given_together() -> None:
    with pytest.raises(InputError, match="strength: takes the place of learning_rate; give one of them"):
        EditorConfig(modules=("m",), learning_rate=1e-3, strength=0.1)
    with pytest.raises(InputError, match="strength: takes the place of learning_rate; give one of them"):
        Editor.from_pretrained(MODEL, modules=["layers.1.mlp.down_proj"], learning_rate=1e-3, strength=0.1, device="cpu")
    with pytest.raises(InputError, match="strength_goal: is what a strength is raised to, and a learning rate is taken as it is"):
        Editor.from_pretrained(MODEL, learning_rate=1e-3, strength_goal=0.5, device="cpu")
    with pytest.raises(InputError, match=r"strength: expected a finite number above 0, found 0.0"):
        EditorConfig(modules=("m",), strength=0.0)
    with pytest.raises(InputError, match="learning_rate: expected a finite number above 0, found None"):
        EditorConfig(modules=("m",))
