"""Lifelong moments: right, mergeable in any order, and never NaN."""

import torch

from editing.method.moments import EPSILON, Moments


def rows(n: int, features: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed)) * 3 + 5


def assert_same(a: Moments, b: Moments) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.sum_of_squares, b.sum_of_squares, rtol=1e-12, atol=1e-12)


def test_exact_moments_are_those_of_all_rows_whatever_the_groups() -> None:
    data = rows(40)
    moments = Moments.of_groups(data, [1, 9, 3, 27], "exact")
    torch.testing.assert_close(moments.mean, data.double().mean(0))
    torch.testing.assert_close(moments.sum_of_squares / 39, data.double().var(0))


def test_published_rule_follows_its_formula_group_by_group() -> None:
    """Independent oracle: the formula of the published statistics, written out in a loop."""
    data, sizes = rows(30).double(), [5, 12, 2, 11]
    count, mean, squares = 0, torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for group in data.split(sizes):
        m, delta = len(group), group.mean(0) - mean
        squares = squares + m * group.var(0, unbiased=True) + count * m * delta**2 / (count + m)
        mean = mean + m * delta / (count + m)
        count += m
    moments = Moments.of_groups(data, sizes)
    assert moments.count == count
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(moments.sum_of_squares, squares)
    torch.testing.assert_close(moments.std, (squares / (count - 1 + EPSILON)).sqrt())


def test_merging_does_not_depend_on_order_or_grouping_into_workers() -> None:
    parts = [Moments.of_groups(rows(n, seed=n), [n]) for n in (3, 8, 1, 20)]
    one_by_one = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    two_workers = parts[3].merge(parts[1]).merge(parts[2].merge(parts[0]))
    assert_same(one_by_one, two_workers)


def test_single_row_group_stays_finite() -> None:
    moments = Moments.of_groups(rows(12), [11, 1])
    assert moments.sum_of_squares.isfinite().all()
    assert moments.normalize(rows(4, seed=1)).isfinite().all()


def test_the_very_first_row_alone_normalizes_to_signs() -> None:
    data = torch.tensor([[2.0, -0.5, 3.0]])
    normalized = Moments.of_groups(data, [1]).normalize(data)
    torch.testing.assert_close(normalized, torch.tensor([[1.0, -1.0, 1.0]]), rtol=1e-5, atol=1e-5)


def test_empty_moments_are_neutral() -> None:
    moments = Moments.of_groups(rows(9), [9])
    assert_same(Moments.empty(6).merge(moments), moments)
    assert_same(moments.merge(Moments.empty(6)), moments)
    assert Moments.empty(6).merge(Moments.empty(6)).count == 0


def test_counting_goes_on_past_two_to_the_24th_row() -> None:
    old = Moments(2**40, torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    assert old.merge(Moments.of_groups(rows(3, 2), [3])).count == 2**40 + 3


def test_normalizing_a_part_uses_that_parts_moments() -> None:
    data = rows(20)
    moments = Moments.of_groups(data, [20])
    whole = moments.normalize(data)
    torch.testing.assert_close(moments.of_features(torch.arange(4, data.shape[1])).normalize(data[:, 4:]), whole[:, 4:])
