"""The shift solves the ridge problem, in both forms, to float32 rounding."""

import pytest
import torch

from editing.method.shift import Shift, gram_matrix, solve_features, solve_rows, targets
from tests.support.oracles import ridge_in_float64


@pytest.mark.parametrize("form", ["row", "d_in"])
@pytest.mark.parametrize(("n", "d_in"), [(1, 40), (7, 40), (40, 40), (90, 40)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("ridge", [1.0, 50.0])
def test_shift_solves_the_ridge_problem(form: str, n: int, d_in: int, scale: float, ridge: float) -> None:
    generator = torch.Generator().manual_seed(n * d_in)
    keys = scale * torch.randn(n, d_in, generator=generator)
    goal = torch.randn(n, 12, generator=generator)
    shift = solve_rows(keys, gram_matrix(keys), goal, ridge) if form == "row" else solve_features(keys, goal, ridge)
    expected = ridge_in_float64(keys, goal, ridge)
    # with more rows than features the row form cancels large numbers, and "auto" does not take it
    tolerance = 1e-5 * max(1.0, scale**2) if form == "row" and n > d_in else 1e-5
    assert (shift.dense().double() - expected).norm() / expected.norm() < tolerance
    assert shift.norm() == pytest.approx(float(expected.norm()), rel=2 * tolerance)


def test_factors_are_thin() -> None:
    keys, goal = torch.randn(6, 50), torch.randn(6, 9)
    shift = solve_rows(keys, gram_matrix(keys), goal)
    assert shift.left.shape == (50, 6)
    assert shift.right.shape == (6, 9)


def test_shift_is_added_transposed() -> None:
    shift = Shift(torch.randn(5, 2), torch.randn(2, 3))
    weight = torch.randn(3, 5)
    expected = weight + shift.dense().T
    shift.add_to(weight)
    torch.testing.assert_close(weight, expected)


def test_gram_of_key_slices_sums_to_the_whole() -> None:
    keys = torch.randn(8, 30)
    torch.testing.assert_close(gram_matrix(keys[:, :11]) + gram_matrix(keys[:, 11:]), gram_matrix(keys))


def test_targets_go_against_the_gradient_in_proportion_to_the_squared_key_norm() -> None:
    gradients = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    torch.testing.assert_close(targets(torch.tensor([4.0, 10.0]), gradients, 0.1), torch.tensor([[-0.4, 0.8], [-0.5, 0.0]]))


def test_keys_that_are_not_finite_break_the_solve() -> None:
    keys = torch.full((2, 3), float("nan"))
    assert solve_rows(keys, gram_matrix(keys), torch.ones(2, 2)).right.isnan().all()
    assert solve_features(keys, torch.ones(2, 2)).left.isnan().all()


def test_a_system_that_is_not_positive_definite_gives_no_number() -> None:
    keys, goal = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.ones(2, 2)
    assert solve_rows(keys, -2 * gram_matrix(keys), goal).right.isnan().all()
    assert solve_rows(keys, gram_matrix(keys), goal).right.isfinite().all()


@pytest.mark.parametrize(("n", "d_in"), [(7, 40), (40, 7), (1, 5)])
def test_the_condition_is_that_of_the_system_to_its_first_digit(n: int, d_in: int) -> None:
    keys, goal = torch.randn(n, d_in, generator=torch.Generator().manual_seed(1)), torch.randn(n, 3)
    row = solve_rows(keys, gram_matrix(keys), goal).condition
    features = solve_features(keys, goal).condition
    wide = keys.double()
    assert row == pytest.approx(float(torch.linalg.cond(wide @ wide.T + torch.eye(n))), rel=0.2)
    assert features == pytest.approx(float(torch.linalg.cond(wide.T @ wide + torch.eye(d_in))), rel=0.2)


@pytest.mark.parametrize("rows", [1, 64, 65, 200])
def test_a_change_in_any_row_is_seen_and_none_is_not(rows: int) -> None:
    weight = torch.ones(rows, 4)
    nothing = torch.zeros(1, rows)
    assert not Shift(torch.ones(4, 1), nothing).changes(weight, weight)
    assert not Shift(torch.ones(4, 1), nothing + 1e-9).changes(weight, weight)
    last = nothing.clone()
    last[0, -1] = 1e-3
    assert Shift(torch.ones(4, 1), last).changes(weight, weight)
    assert not Shift(torch.ones(4, 1), last).changes(weight, weight.bfloat16())
