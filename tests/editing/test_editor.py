"""A turn is exact, whole or not at all, the same bits each time, and right in its smallest cases."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import torch

from editing import Editor, EditRequest, InputError, TurnRefused
from editing.turn import Turn, in_turns, tokenize
from tests.support.small_editor import FACTS, MODEL, MODULES, editor, requests


def probability(of: Editor, request: EditRequest) -> float:
    edit = tokenize(of.tokenizer, request, max_tokens=None).sequence
    with torch.no_grad():
        logits = of.model(input_ids=torch.tensor([edit.input_ids])).logits[0, edit.first_row :]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(edit.answer_ids).unsqueeze(1)).mean().exp())


def test_same_input_gives_the_same_bits() -> None:
    digests = []
    for _ in range(2):
        one = editor(edits_per_turn=3)
        one.apply(requests())
        digests.append(one.digests())
    assert digests[0] == digests[1]


def test_lookahead_gives_the_same_bits() -> None:
    digests = []
    for lookahead in (1, 2, 4):
        one = editor(edits_per_turn=2)
        one.apply(requests(), lookahead=lookahead)
        digests.append(one.digests())
    assert digests == digests[:1] * 3


@pytest.mark.parametrize("num_replicas", [2, 3])
def test_turns_of_one_group_keep_all_replicas_busy_in_turn(num_replicas: int) -> None:
    one = editor()
    turns = in_turns((tokenize(one.tokenizer, r, max_tokens=None) for r in requests(6)), 1, before=4)
    busy = [[bool(share) for share in turn.shares(1, num_replicas)].index(True) for turn in turns]
    assert busy == [(4 + t) % num_replicas for t in range(6)]


@pytest.mark.parametrize(("per_turn", "group_size"), [(1, 1), (1, 10), (3, 2), (7, 10), (4, 3)])
def test_short_turns_and_groups_apply_every_edit(per_turn: int, group_size: int) -> None:
    one = editor(edits_per_turn=per_turn, group_size=group_size)
    reports = one.apply(requests())
    assert sum(r.edits for r in reports) == len(FACTS)
    assert [r.turn for r in reports] == list(range(1, -(-len(FACTS) // per_turn) + 1))
    assert all(m.weight.isfinite().all() for m in one.modules.values())
    assert all(norm > 0 for r in reports for norm in r.shift_norms.values())


def test_one_edit_with_one_answer_token_is_learned_by_a_fresh_model() -> None:
    one = editor(edits_per_turn=1)
    request = EditRequest("The colour of the sky is", "a")
    assert len(tokenize(one.tokenizer, request, max_tokens=None).sequence.answer_ids) == 1
    before = probability(one, request)
    (report,) = one.apply([request])
    assert report.rows == 1
    assert probability(one, request) > 1.3 * before


def test_reported_efficacy_and_loss_are_the_models() -> None:
    one = editor(edits_per_turn=len(FACTS))
    (first,) = one.apply(requests())
    (second,) = one.apply(requests())
    assert second.efficacy_before == first.efficacy_after
    assert second.loss < first.loss
    assert first.efficacy_after > first.efficacy_before


def test_shift_norms_are_those_of_the_weight_change() -> None:
    one = editor()
    before = {name: m.weight.clone() for name, m in one.modules.items()}
    (report,) = one.apply(requests())
    for name, module in one.modules.items():
        assert report.shift_norms[name] == pytest.approx(float((module.weight - before[name]).norm()), rel=1e-3)


def test_a_bfloat16_model_keeps_shifts_that_bfloat16_alone_would_lose() -> None:
    """20 turns of shifts far below bfloat16's resolution: a master adds them up, bare bfloat16 loses nearly all."""
    drift = {}
    for masters in (True, False):
        one = Editor.from_pretrained(MODEL, modules=MODULES, learning_rate=2e-7, dtype="bfloat16", masters=masters)
        assert one.uses_masters is masters
        before = {name: m.weight.clone() for name, m in one.modules.items()}
        turn = Turn.of([tokenize(one.tokenizer, r, max_tokens=None) for r in requests()])
        (prepared,) = one.prepare([turn])
        for _ in range(20):
            one.apply_turn(prepared, measure=False)
        drift[masters] = sum(float((m.weight.float() - before[name].float()).norm()) for name, m in one.modules.items())
    assert drift[True] > 2 * drift[False]


def test_unedited_shows_the_model_from_before_and_goes_back() -> None:
    one = editor()
    before = one.digests()
    one.apply(requests())
    after = one.digests()
    with one.unedited():
        assert one.digests() == before
    assert one.digests() == after != before


def test_restore_forgets_everything() -> None:
    one = editor()
    before = one.digests()
    one.apply(requests())
    once = one.digests()
    one.restore()
    assert one.digests() == before
    one.apply(requests())
    assert one.digests() == once


def test_a_saved_model_is_a_plain_model_with_the_edited_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    one = editor()
    one.apply(requests())
    one.save(tmp_path / "model")
    plain = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_modules())
    assert all(torch.equal(plain[name].weight, m.weight) for name, m in one.modules.items())


def test_only_the_named_modules_change() -> None:
    one = editor()
    before = {name: p.clone() for name, p in one.model.named_parameters()}
    one.apply(requests())
    changed = {name.removesuffix(".weight") for name, p in one.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(one.modules)


def test_a_turn_that_is_not_finite_leaves_weights_and_moments_alone() -> None:
    one = editor()
    one.apply(requests(2))
    digests, moments = one.digests(), dict(one.moments)
    poisoned = tokenize(one.tokenizer, EditRequest("Sony has its seat in", "Tokyo"), max_tokens=None).sequence.input_ids[-1]
    one.model.get_input_embeddings().weight.data[poisoned] = float("nan")
    with pytest.raises(TurnRefused, match="not finite") as caught:
        one.apply([*requests(2), EditRequest(*FACTS[6])])
    assert 2 in caught.value.culprits
    assert one.digests() == digests
    assert one.moments == moments
    assert one.turns == 1


def test_a_turn_that_would_change_nothing_is_refused() -> None:
    one = Editor.from_pretrained(MODEL, modules=MODULES, learning_rate=1e-320)
    with pytest.raises(TurnRefused, match="nothing would change"):
        one.apply(requests())


@pytest.mark.parametrize("passes", [1, 2])
def test_ctrl_c_during_the_commit_waits_for_its_end(passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, whole = editor(passes=passes), editor(passes=passes)
    whole.apply(requests())
    commit = one._commit

    def interrupted(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        commit(*args)

    monkeypatch.setattr(one, "_commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.apply(requests())
    assert one.digests() == whole.digests()
    assert one.turns == 1


@pytest.mark.parametrize("field", ["learning_rate", "ridge"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1e-3", True])
def test_settings_must_be_positive_numbers(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        dataclasses.replace(editor().config, **{field: value})


def test_nothing_is_kept_of_past_edits_but_moments_and_weights() -> None:
    """The editor's state after many edits is as large as after one."""

    def size(one: Editor) -> int:
        moments = sum(m.mean.numel() + m.sum_of_squares.numel() for m in one.moments.values())
        return moments + sum(p.numel() for p in one.model.parameters())

    one, many = editor(edits_per_turn=1), editor(edits_per_turn=1)
    one.apply(requests(1))
    many.apply(requests())
    assert size(one) == size(many)
    assert one.__dict__.keys() == many.__dict__.keys()
