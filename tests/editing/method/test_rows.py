"""Rows of a turn are updated, gathered and checked by their place in the turn, at each site."""

import pytest
import torch

from editing.method.rows import Site, TurnRows
from editing.sharding.shards import LinearShard
from tests.support.emulated_workers import EmulatedWorker, run_workers

SHARDS = {"a": LinearShard((3, 2)), "s": LinearShard((2, 2))}
SITES: dict[str, Site] = {"s": "subject"}
OWNERS: dict[Site, torch.Tensor] = {"answer": torch.tensor([0, 0, 1, 2]), "subject": torch.tensor([0, 2])}


def rows(num_answer: int = 4, num_subject: int = 2, *, first: float = 0.0) -> TurnRows:
    """Row ``i`` of every tensor is full of ``first + i``."""
    found = TurnRows.empty(SHARDS, SITES, {"answer": num_answer, "subject": num_subject}, num_tokens=5)
    for values in (*found.keys.values(), *found.value_gradients.values(), *found.tokens.values()):
        values[:] = first + torch.arange(len(values)).unsqueeze(1)
    found.losses[:] = first + torch.arange(num_answer)
    found.correct[:], found.pending[:] = False, True
    return found


def test_modules_have_as_many_rows_as_their_site() -> None:
    found = rows()
    assert {name: tuple(keys.shape) for name, keys in found.keys.items()} == {"a": (4, 3), "s": (2, 2)}
    assert (found.site("a"), found.site("s")) == ("answer", "subject")


def test_a_later_pass_replaces_keys_and_gradients_but_not_the_losses_before_the_shift() -> None:
    old, newer = rows(), rows(2, 1, first=70.0)
    newer.pending[:] = torch.tensor([True, False])
    found = old.updated({"answer": torch.tensor([1, 3]), "subject": torch.tensor([1])}, newer)
    assert found.keys["a"][:, 0].tolist() == [0, 70, 2, 71]
    assert found.value_gradients["s"][:, 0].tolist() == [0, 70]
    assert found.pending.tolist() == [True, True, True, False]
    assert torch.equal(found.losses, old.losses)
    assert old.keys["a"][:, 0].tolist() == [0, 1, 2, 3]  # the shifts of the first pass hold them


@pytest.mark.parametrize(("name", "row", "sequence"), [("a", 2, 1), ("a", 1, 0), ("s", 1, 2)])
@pytest.mark.parametrize("what", ["keys", "value_gradients"])
def test_a_number_that_is_not_finite_counts_for_its_sequence(what: str, name: str, row: int, sequence: int) -> None:
    found = rows()
    getattr(found, what)[name][row, 1] = torch.inf
    assert found.count_not_finite(OWNERS, 3).nonzero().flatten().tolist() == [sequence]


def test_a_loss_counts_for_its_sequence_and_a_token_for_all() -> None:
    found = rows()
    assert found.count_not_finite(OWNERS, 3).tolist() == [0, 0, 0]
    found.losses[3] = torch.nan
    assert found.count_not_finite(OWNERS, 3).tolist() == [0, 0, 1]
    found.tokens["a"][4, 0] = torch.nan
    assert found.count_not_finite(OWNERS, 3).tolist() == [1, 1, 2]


def test_rows_of_replicas_come_together_in_the_order_of_the_turn() -> None:
    shares: dict[Site, list[torch.Tensor]] = {
        "answer": [torch.tensor([0, 1, 3]), torch.tensor([2])],
        "subject": [torch.tensor([1]), torch.tensor([0])],
    }

    def gather(worker: EmulatedWorker) -> TurnRows:
        own = rows(len(shares["answer"][worker.replica]), 1, first=10.0 * worker.replica)
        own.correct[:] = worker.replica == 1
        own.pending[:] = worker.replica == 0
        return own.gathered(worker, shares)

    for found in run_workers(gather, num_replicas=2):
        assert found.losses.tolist() == [0, 1, 10, 2]
        assert found.keys["a"][:, 2].tolist() == [0, 1, 10, 2]
        assert found.value_gradients["s"][:, 1].tolist() == [10, 0]
        assert found.correct.tolist() == [False, False, True, False]
        assert found.pending.tolist() == [True, True, False, True]
