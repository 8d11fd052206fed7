"""Capture of a turn gives the same rows however the turn is dealt to replicas, and names the edits that are not finite."""

from typing import Any

import pytest
import torch

from editing import Editor, TurnRefused
from editing.files import pretrained
from editing.method.rows import TurnRows
from editing.model.row_positions import row_positions
from editing.turn import PreparedTurn, Turn, tokenize
from tests.support.emulated_workers import EmulatedWorker, run_workers
from tests.support.small_editor import MODEL, editor, requests

OPTIONS: dict[str, Any] = {
    "modules": ["model.layers.2.mlp.{gate,up}_proj"],
    "learning_rate": 1e-3,
    "group_size": 2,
    "subject_modules": ["model.layers.1.mlp.down_proj"],
    "preserve": "exact",
}


def prepared(one: Editor) -> PreparedTurn:
    return one.prepare([Turn.of([tokenize(one.tokenizer, request, max_tokens=None) for request in requests()])])[0]


def whole() -> Editor:
    return Editor.from_pretrained(MODEL, **OPTIONS)


def on_replicas(action: Any, num_replicas: int) -> list[Any]:
    """What an action gives on each replica's editor."""
    device = torch.device("cpu")
    loaded = [pretrained.load(MODEL, device=device) for _ in range(num_replicas)]  # one by one: loading is not for threads
    edit = lambda worker: action(Editor.of_loaded(*loaded[worker.replica], MODEL, collectives=worker, **OPTIONS))  # noqa: E731
    return run_workers(edit, num_replicas=num_replicas)


def assert_close(found: TurnRows, expected: TurnRows) -> None:
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.correct, expected.correct)
    assert torch.equal(found.pending, expected.pending)
    for held, other in ((found.keys, expected.keys), (found.tokens, expected.tokens)):
        assert held.keys() == other.keys()
        for name, values in held.items():
            torch.testing.assert_close(values, other[name], rtol=1e-4, atol=1e-5)
    for name, values in found.value_gradients.items():
        torch.testing.assert_close(values, expected.value_gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_replicas", [2, 3])
@pytest.mark.parametrize("chosen", [None, [0, 3, 4]])
def test_replicas_together_capture_what_one_captures(num_replicas: int, chosen: list[int] | None) -> None:
    one = whole()
    expected = one.capture(prepared(one), chosen, tokens=True)
    found = on_replicas(lambda other: other.capture(prepared(other), chosen, tokens=True), num_replicas)
    for rows in found:
        assert_close(rows, expected)
        assert all(torch.equal(rows.keys[name], keys) for name, keys in found[0].keys.items())


def test_replicas_make_the_same_turn() -> None:
    one = whole()
    one.apply_turn(prepared(one))

    def apply(other: Editor) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        other.apply_turn(prepared(other))
        return other.digests(), dict(other.weights)

    (first, weights), (second, _) = on_replicas(apply, 2)
    assert first == second
    for name, weight in one.weights.items():
        change = weight - one.weights.originals[name]
        assert float((weights[name] - weight).norm() / change.norm()) < 1e-3


def test_chosen_edits_have_the_rows_that_they_have_in_the_whole_turn() -> None:
    one = whole()
    turn, chosen = prepared(one), [1, 2, 5]
    everything, some = one.capture(turn), one.capture(turn, chosen)
    at = row_positions(chosen, turn.turn.sequences)
    assert len(some.losses) < len(everything.losses)
    torch.testing.assert_close(some.losses, everything.losses[at["answer"]])
    for name, gradients in some.value_gradients.items():
        torch.testing.assert_close(gradients, everything.value_gradients[name][at[one.sites[name]]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chosen", [None, [2, 4, 6]])
def test_what_is_not_finite_is_named_by_its_place_among_the_requests(chosen: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    one = editor()
    turn = prepared(one)
    bad = 1 if chosen else 4
    gathered = TurnRows.gathered

    def broken(rows: TurnRows, collectives: Any, shares: Any) -> TurnRows:
        rows.losses[row_positions([bad], turn.turn.sequences if chosen is None else [turn.turn.sequences[i] for i in chosen])["answer"]] = torch.nan
        return gathered(rows, collectives, shares)

    monkeypatch.setattr(TurnRows, "gathered", broken)
    with pytest.raises(TurnRefused, match="1 of its 7 edits are not finite") as refused:
        one.capture(turn, chosen)
    assert refused.value.culprits == (turn.turn.order[chosen[bad] if chosen else bad],)


def test_a_replica_without_a_group_has_nothing_to_capture_and_gets_all_rows() -> None:
    def few(other: Editor) -> tuple[int, int]:
        (turn,) = other.prepare([Turn.of([tokenize(other.tokenizer, request, max_tokens=None) for request in requests(2)])])
        return len(turn.prefixed.sequences), len(other.capture(turn).losses)

    counts = on_replicas(few, 2)
    assert sorted(own for own, _ in counts) == [0, 2]
    assert len({rows for _, rows in counts}) == 1


def test_emulated_workers_end_together_when_one_of_them_fails() -> None:
    def fail(worker: EmulatedWorker) -> None:
        if worker.rank:
            raise ValueError("this one")
        worker.broadcast(torch.ones(1))

    with pytest.raises(ValueError, match="this one"):
        run_workers(fail, num_replicas=2)
