"""Thin factors of a change: right against the singular values of an independent oracle, whatever the shape."""

import pytest
import torch
from torch import Tensor

from editing.low_rank import factor, rounding


def of_rank(d_out: int, d_in: int, rank: int, *, seed: int = 0) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(d_out, rank, generator=dice, dtype=torch.float64) @ torch.randn(rank, d_in, generator=dice, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (40, 40), (1, 30), (30, 1)], ids=str)
def test_a_matrix_is_its_factors_at_its_own_rank(shape: tuple[int, int]) -> None:
    matrix = of_rank(*shape, rank=5)
    found = factor(matrix)
    assert found.rank == min(5, *shape)
    assert found.left.shape == (shape[0], found.rank)
    assert (found.dense() - matrix).norm() < 1e-6 * matrix.norm()


@pytest.mark.parametrize("shape", [(50, 30), (1100, 1300)], ids=str)
def test_what_is_lost_is_the_rest_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = of_rank(*shape, rank=20)  # the large one goes through random projections
    values = torch.linalg.svdvals(matrix)
    found = factor(matrix, rank=7)
    assert found.rank == 7
    assert found.lost == pytest.approx(float(values[7:].norm()), rel=1e-6)
    assert found.kept == pytest.approx(1 - float(values[7:].square().sum() / values.square().sum()), abs=1e-12)


def test_the_tolerance_takes_the_fewest_directions_that_stay_below_it() -> None:
    matrix = of_rank(40, 60, rank=12)
    values = torch.linalg.svdvals(matrix)
    found = factor(matrix, tolerance=1.001 * float(values[9:].norm()))
    assert found.rank == 9


def test_rounding_in_float32_is_no_direction_of_a_shift() -> None:
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(1))
    edited = weight + 0.01 * of_rank(200, 300, rank=20).float()
    assert factor(edited - weight, tolerance=rounding(edited)).rank == 20
    assert factor(edited - weight).rank > 100


def test_more_directions_filled_up_with_zeros_change_nothing() -> None:
    found = factor(of_rank(20, 30, rank=3))
    padded = found.padded(8)
    assert padded.rank == 8
    assert torch.equal(padded.dense(), found.dense())


def test_nothing_is_one_direction_of_zeros_and_loses_nothing() -> None:
    found = factor(torch.zeros(6, 4))
    assert (found.rank, found.kept, found.error) == (1, 1.0, 0.0)
    assert not found.dense().any()
