"""Lifelong moments of keys and value gradients, kept for the model's whole life.

One :class:`Moments` serves all modules of one shape ``(d_in, d_out)``. Its features are ``z = [K | G]``, so there are
``d_in + d_out`` of them. A group of ``m`` rows is the unit: it has a mean and a scatter (its sum of squared
deviations), and units merge by the parallel-variance rule (Chan, Golub, LeVeque 1979):

    delta = mean_b - mean_a
    n     = n_a + n_b
    mean  = mean_a + delta * n_b / n
    S     = S_a + S_b + delta^2 * n_a * n_b / n

    a, b   two sets of rows     n (rows)     mean (f,)     S (f,) sum of squared deviations     f = d_in + d_out

which is associative: any batching, any order and any distribution over workers gives the same moments.

Differences from the published implementation
    * Its scatter of a group is ``m`` times the *unbiased* variance, ``m / (m - 1)`` times too large. That is
      ``rule="published"``, the default, for parity. ``rule="exact"`` uses the scatter itself, which makes the result
      the moments of all rows, whatever the groups.
    * A group of one row has no unbiased variance, and the published statistics are NaN from then on. Here it adds 0.
    * After a single row there is no deviation to divide by. Normalized features would all be 0, and a first turn of one
      row would change nothing. Then, and only then, features are measured from 0: they become their signs, which have
      the same unit scale as in later turns.
    * The state is float64 and the count an integer: in float32 a count stops growing at 2**24 rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from editing.config import MomentRule

EPSILON = torch.finfo(torch.float32).eps
"""Added to the standard deviation and to the degrees of freedom, as published."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squares of ``f`` features. Immutable: an update is a new object.

    Attributes:
        count: Rows so far.
        mean: ``(f,)`` float64.
        sum_of_squares: ``(f,)`` float64, squared deviations from the mean, summed.
    """

    count: int
    mean: Tensor
    sum_of_squares: Tensor

    @classmethod
    def empty(cls, num_features: int, device: torch.device | str = "cpu") -> "Moments":
        """Of no rows."""
        zeros = torch.zeros(num_features, dtype=torch.float64, device=device)
        return cls(0, zeros, zeros.clone())

    @classmethod
    def of_groups(cls, rows: Tensor, group_sizes: list[int], rule: MomentRule = "published") -> "Moments":
        """Moments of consecutive groups of rows.

        Args:
            rows: ``(n, f)``, group after group.
            group_sizes: Rows of each group: none is 0, and their sum is ``n``.
            rule: How the scatter of a group is counted.
        """
        rows = rows.double()
        result = cls.empty(rows.shape[1], rows.device)
        for group in rows.split(group_sizes):
            result = result.merge(cls._of_group(group, rule))
        return result

    @classmethod
    def _of_group(cls, group: Tensor, rule: MomentRule) -> "Moments":
        m = len(group)
        mean = group.mean(0)
        scatter = (group - mean).square_().sum(0)
        if rule == "published" and m > 1:
            scatter *= m / (m - 1)
        return cls(m, mean, scatter)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets of rows together."""
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        between = delta.square() * (self.count * other.count / count)
        return Moments(count, mean, self.sum_of_squares + other.sum_of_squares + between)

    def filled_up(self, prior: "Moments") -> "Moments":
        """Moments of at least as many rows as a prior: the rows that are missing are the prior's, and none where there are enough."""
        missing = prior.count - self.count
        return self if missing <= 0 else self.merge(Moments(missing, prior.mean, prior.sum_of_squares * (missing / prior.count)))

    @property
    def std(self) -> Tensor:
        """``(f,)`` float64, the deviations that features are divided by."""
        return (self.sum_of_squares / (self.count - 1 + EPSILON)).sqrt()

    def of_features(self, features: Tensor | slice) -> "Moments":
        """Moments of chosen features only, given their positions or where they stand together."""
        features = features if isinstance(features, slice) else features.to(self.mean.device)
        return Moments(self.count, self.mean[features], self.sum_of_squares[features])

    def normalize(self, rows: Tensor) -> Tensor:
        """``(rows - mean) / (std + eps)`` in the dtype of ``rows``, which is ``(n, f)``."""
        mean, std = self.mean, self.std
        if self.count == 1:
            mean, std = torch.zeros_like(mean), mean.abs()
        return (rows - mean.to(rows.dtype)) / (std + EPSILON).to(rows.dtype)
