"""The output side solves the problem that it states, with the sensitivity that the model really has."""

import pytest
import torch

from editing.errors import InputError
from editing.method.features import Features
from editing.method.output_side import OutputSide
from editing.method.shift import solve_rows
from editing.reference_text import PREDICTED_TOKENS
from editing.sharding.collectives import SingleWorker
from editing.sharding.shards import LinearShard
from tests.support.small_editor import editor, requests

D_IN, D_OUT, ROWS = 11, 6, 5
FEATURES = Features(LinearShard((D_IN, D_OUT)), "values", SingleWorker())


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_side(gradients: torch.Tensor, share: float) -> torch.Tensor:
    second = gradients.double().T @ gradients.double()
    values, vectors = torch.linalg.eigh((1 - share) * torch.eye(second.shape[0]).double() + share * second / second.diagonal().mean())
    return vectors @ (values.clamp(min=0.4).unsqueeze(1) * vectors.T)


def solved(side: OutputSide, moment: torch.Tensor, keys: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    left = torch.linalg.solve(moment, keys.T).T
    return side.solve(left, keys @ left.T, goal, FEATURES).dense()


@pytest.mark.parametrize("count", [3, 40], ids=["fewer rows than outputs", "more rows than outputs"])
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_the_shift_is_that_of_one_large_system_over_both_sides(count: int, share: float) -> None:
    gradients = drawn(count, D_OUT, seed=0) * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1, 0.01])
    factor, keys, goal = drawn(D_IN, D_IN, seed=1), drawn(ROWS, D_IN, seed=2), drawn(ROWS, D_OUT, seed=3)
    moment = factor @ factor.T + torch.eye(D_IN).double()
    found = solved(OutputSide.of_gradients(gradients, share, FEATURES), moment, keys, goal)
    system = torch.kron(keys.T @ keys, torch.eye(D_OUT).double()) + torch.kron(moment, dense_side(gradients, share))
    expected = torch.linalg.solve(system, (keys.T @ goal).flatten()).view(D_IN, D_OUT)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_with_a_share_of_nothing_it_is_the_ridge_alone() -> None:
    keys, goal = drawn(ROWS, D_IN, seed=2), drawn(ROWS, D_OUT, seed=3)
    found = solved(OutputSide.of_gradients(drawn(3, D_OUT, seed=0), 0.0, FEATURES), torch.eye(D_IN).double(), keys, goal)
    torch.testing.assert_close(found, solve_rows(keys, keys @ keys.T, goal, ridge=1.0).dense())


def test_a_gradient_that_is_not_finite_has_no_solution() -> None:
    keys, goal = drawn(ROWS, D_IN, seed=2), drawn(ROWS, D_OUT, seed=3)
    keys[0, 0] = torch.nan
    with pytest.raises(torch.linalg.LinAlgError):  # upon which the solver refuses the turn
        solved(OutputSide.of_gradients(drawn(3, D_OUT, seed=0), 0.5, FEATURES), torch.eye(D_IN).double(), keys, goal)


def test_the_gradients_are_those_of_the_texts_own_loss_in_the_unedited_model() -> None:
    options = {"preserve": "exact", "preserve_text": "everyday", "preserve_outputs": 0.5}
    one = editor(**options)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in one.modules}
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, output: torch.Tensor) -> torch.Tensor:
        outputs[name] = output.detach().requires_grad_() if not output.requires_grad else output
        outputs[name].retain_grad()
        return outputs[name]

    hooks = [m.register_forward_hook(lambda _m, _in, out, name=name: keep(name, out)) for name, m in one.modules.items()]
    for passage in one.preserved.text.predicted:
        rows = len(passage.answer_ids)
        logits = one.model(input_ids=torch.tensor([passage.input_ids])).logits[0, -rows:]
        torch.nn.functional.cross_entropy(logits, torch.tensor(passage.answer_ids), reduction="sum").backward()
        for name, output in outputs.items():
            assert output.grad is not None
            seen[name].append(output.grad[0, -rows:])
    for hook in hooks:
        hook.remove()
    one.apply(requests())
    assert abs(sum(len(passage.answer_ids) for passage in one.preserved.text.predicted) - PREDICTED_TOKENS) < 0.1 * PREDICTED_TOKENS
    for name, side in one.preserved.of_outputs().items():
        found = side.rest * torch.eye(side.directions.shape[1]).double() + side.directions.T * (side.values - side.rest) @ side.directions
        torch.testing.assert_close(found, dense_side(torch.cat(seen[name]), 0.5), rtol=1e-3, atol=1e-4)
        assert side.values.max() > 2  # or there is nothing to tell apart


def test_what_the_text_depends_on_changes_less() -> None:
    options = {"preserve": "exact", "preserve_weight": 300.0, "preserve_text": "everyday"}
    plain, weighing = editor(**options), editor(**options, preserve_outputs=0.9)
    for one in (plain, weighing):
        one.apply(requests())
    for name, side in weighing.preserved.of_outputs().items():
        sensitive = side.directions[side.values > 1]

        def share(weight: torch.Tensor, name: str = name, directions: torch.Tensor = sensitive) -> float:
            change = (weight - plain.weights.originals[name]).double()
            return float((directions @ change).norm() / change.norm())

        assert share(weighing.weights[name]) < 0.9 * share(plain.weights[name])


def test_where_nothing_depends_on_the_outputs_all_are_held_alike() -> None:
    side = OutputSide.of_gradients(torch.zeros(3, D_OUT), 0.5, FEATURES)
    keys, goal = drawn(ROWS, D_IN, seed=2), drawn(ROWS, D_OUT, seed=3)
    torch.testing.assert_close(solved(side, torch.eye(D_IN).double(), keys, goal), solve_rows(keys, keys @ keys.T, goal, ridge=0.5).dense())


def test_a_share_is_below_one() -> None:
    with pytest.raises(InputError, match=r"preserve_outputs: expected a share from 0 to below 1, found 1"):
        editor(preserve_outputs=1)
    with pytest.raises(InputError, match=r"preserve_outputs: expected a finite number of at least 0, found -1"):
        editor(preserve_outputs=-1)
