"""Vitals are those of the model: whole before the first edit, worse for a model that was broken on purpose."""

import json

import pytest
import torch

from editing.monitoring.health import Health
from editing.monitoring.watch import Watch
from editing.turn import in_turns
from tests.support.small_editor import editor, edits_with_probes


def measured(one: object) -> tuple[Health, object]:
    turn = next(in_turns(edits_with_probes(one), 6))
    (prepared,) = one.prepare([turn])
    return Health(one, Watch(one, size=4)), prepared


def test_an_unedited_model_has_all_it_began_with() -> None:
    one = editor()
    health, prepared = measured(one)
    vitals = health.measure(prepared)
    assert (vitals.probe_retention, vitals.perplexity_growth) == (1.0, 1.0)
    assert vitals.watch_efficacy is None


def test_perplexity_is_that_of_the_plain_model() -> None:
    from editing.monitoring import health as module

    one = editor()
    health, prepared = measured(one)
    one.apply_turn(prepared)
    ids = torch.tensor([one.tokenizer((module._PROBES / "text.txt").read_text().strip())["input_ids"]])[:, : one.decoder.max_tokens]
    with torch.no_grad():
        expected = one.model(input_ids=ids, labels=ids).loss.exp().item()
    assert health.measure(prepared).perplexity == pytest.approx(expected, rel=1e-4)


def test_a_broken_model_shows_in_every_vital() -> None:
    one = editor()
    health, prepared = measured(one)
    one.apply_turn(prepared)
    whole = health.measure(prepared)
    for module in one.modules.values():
        module.weight.data.normal_(std=30.0, generator=torch.Generator().manual_seed(0))
    broken = health.measure(prepared)
    assert broken.perplexity_growth > 1.1 * whole.perplexity_growth
    assert broken.probe_retention < whole.probe_retention


def test_vitals_of_an_editor_that_was_edited_before_are_against_the_unedited_model() -> None:
    one = editor()
    health, prepared = measured(one)
    one.apply_turn(prepared)
    assert Health(one, Watch(one, size=4)).measure(prepared) == health.measure(prepared)


def test_growth_and_condition_are_those_of_float64() -> None:
    one = editor()
    before = {name: m.weight.double().norm() for name, m in one.modules.items()}
    (report,) = one.apply([e.request for e in edits_with_probes(one)])
    for name, module in one.modules.items():
        assert report.weight_growth[name] == pytest.approx(float(module.weight.double().norm() / before[name] - 1), rel=1e-3, abs=1e-7)
        assert report.conditions[name] >= 1
    json.dumps(report.conditions)
