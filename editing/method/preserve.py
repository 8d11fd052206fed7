"""The preserving ridge: it holds back change along the keys of tokens that the model is used for.

The published ridge ``r I`` holds back every direction of a key alike. The preserving one adds the lifelong second moment of
the keys ``k`` of *all* tokens that went through the edited module, prompts included. A reference text that no edit is about may
add its own (:mod:`editing.reference_text`):

    C = mean k k' + p mean k k'                    over all tokens so far, over the text's (d_in, d_in)
    S = argmin ||K S - T||^2 + r ||S||^2 + w (mean_tokens ||k S||^2 + p mean_text ||k S||^2)
      = (K'K + M)^-1 K'T                           M = r I + w C
      = M^-1 K' (K M^-1 K' + I)^-1 T               an n x n system again, once M is solved for the n keys of the rows

    K (n, d_in) keys of the turn's rows     T (n, d_out) targets     r ridge     w preserve_weight     p = 0.3, weight of the text

So a shift may change outputs freely where no token has been, and pays ``w`` times its mean squared change on the tokens seen.
Keys here are the module's inputs as they are, as in the solve: moments normalize keys for the *targets* only, so their changing
mean and scale do not touch ``C``. ``C`` is a mean, so ``w`` means the same after 10^2 and 10^6 tokens. The text has a mean of its
own, so it counts as much after 10^6 edits as before the first.

Two forms give ``M^-1 K'`` and ``K M^-1 K'``, in float64:

``exact``   stores the whole sum of ``k k'``, ``d_in x d_in``, and factors ``M`` by Cholesky each turn: ``M = L L'``, ``X = L^-1 K'``,
            ``M^-1 K' = L^-T X``, ``K M^-1 K' = X'X``. For small ``d_in``.
``sketch``  stores ``B (rank, d_in)``, a frequent-directions sketch of all keys ``A`` (Liberty 2013; Ghashami et al. 2016), and the
            exact diagonal of the sum ``A'A``. The residual ``A'A - B'B`` is positive semidefinite, and its norm is at most
            ``||A - A_k||_F^2 / (rank - k)`` for every ``k < rank``. Its diagonal is known exactly and is kept:

                C ~ (B'B + D) / N,   D = diag(A'A) - diag(B'B) >= 0
                M = E + V'V,         E = r I + w D / N diagonal,   V = sqrt(w / N) B
                M^-1 = E^-1 - E^-1 V' (I + V E^-1 V')^-1 V E^-1                              (Woodbury)

            so a turn solves a rank x rank and an n x n system. A text has its own ``V`` and ``D``, which are added to these.
            The sketch is exact until it has seen more than ``rank`` tokens.

Where keys are sliced over shards, the sketch's directions stay sliced by feature, like the keys. Only Gram matrices travel, of at
most ``2 rank`` and ``rank + n`` rows. In the exact form the keys of the turn's tokens travel, never the ``d_in x d_in`` sum, of
which every shard keeps a copy. Tokens are added in the turn's order in blocks of ``rank``, whatever the batches and replicas, so
every topology has the same sketch. Sketches can be merged: the directions of one are rows to another, with the same bound.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from editing.config import PreserveForm
from editing.method.features import Features
from editing.method.second_moments import SecondMoment
from editing.method.shift import cholesky

TEXT_WEIGHT = 0.3
"""``p``: weight of the reference text beside the tokens seen. At 1, retention loses more than perplexity gains (docs/LOG.md, "Everyday text")."""

_MAX_EXACT = 2048
"""Features up to which ``auto`` takes the exact form: 32 MiB a module, and a Cholesky of 3 GFLOP a turn."""


class System(Protocol):
    """``M`` of one module in one turn, ready to be solved for keys. All passes of the turn use the same one."""

    def solve(self, keys: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        """``(M^-1 K')'`` ``(n, held)`` and ``K M^-1 K'`` ``(n, n)``, both float64.

        Args:
            keys: ``K`` ``(n, held)``.
            features: The module's keys, of which this worker may hold a slice.

        Returns:
            NaN if some key is not finite.
        """
        ...


class PreservingRidge(Protocol):
    """The second moment of the keys of all tokens of one module, in either form. Immutable: an update is a new object.

    Attributes:
        count: Tokens so far.
    """

    @property
    def count(self) -> int: ...

    def update(self, tokens: Tensor, features: Features) -> "PreservingRidge":
        """With the keys ``(t, held)`` of further tokens."""
        ...

    def filled_up(self, prior: Self, features: Features) -> "PreservingRidge":
        """Of at least as many tokens as a prior, which is in the same form: the tokens that are missing are the prior's."""
        ...

    def system(self, *, ridge: float, weight: float, text: Self | None = None, rows: Self | None = None) -> System:
        """``M``.

        Args:
            ridge: ``r``.
            weight: ``w``.
            text: The second moment of a reference text, in the same form.
            rows: The second moment of further keys, in the same form, whose outputs are to stay: each counts as one row of the turn.
        """
        ...


@dataclass(frozen=True, slots=True)
class ExactRidge:
    """Exact form.

    Attributes:
        moment: Second moment of the keys of all tokens, whole on every shard.
    """

    moment: SecondMoment

    @property
    def count(self) -> int:
        return self.moment.count

    def update(self, tokens: Tensor, features: Features) -> "ExactRidge":
        return ExactRidge(self.moment.add(features.all_gather(tokens)))

    def filled_up(self, prior: Self, features: Features) -> "ExactRidge":
        return ExactRidge(self.moment.filled_up(prior.moment))

    def system(self, *, ridge: float, weight: float, text: Self | None = None, rows: Self | None = None) -> "ExactSystem":
        system = weight * self.moment.mean()
        if text is not None:
            system.add_(text.moment.mean(), alpha=TEXT_WEIGHT * weight)
        if rows is not None:
            system.add_(rows.moment.total)
        system.diagonal().add_(ridge)
        return ExactSystem(cholesky(system))


@dataclass(frozen=True, slots=True)
class ExactSystem:
    """``M = L L'``, by its Cholesky factor ``(d_in, d_in)``."""

    lower: Tensor

    def solve(self, keys: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        half = torch.linalg.solve_triangular(self.lower, features.all_gather(keys).double().T, upper=False)
        solved = torch.linalg.solve_triangular(self.lower.T, half, upper=True)
        return features.slice(solved.T), features.broadcast(half.T @ half)


@dataclass(frozen=True, slots=True)
class SketchRidge:
    """Sketch form.

    Attributes:
        count: Tokens so far.
        directions: ``(up to rank, held)`` float64, ``B``.
        squares: ``(held,)`` float64, the exact diagonal of the sum of ``k k'``.
        rank: Most directions that are kept.
    """

    count: int
    directions: Tensor
    squares: Tensor
    rank: int

    @classmethod
    def empty(cls, num_held: int, rank: int, device: torch.device | str = "cpu") -> "SketchRidge":
        zeros = torch.zeros(num_held, dtype=torch.float64, device=device)
        return cls(0, zeros.new_zeros(0, num_held), zeros, rank)

    def update(self, tokens: Tensor, features: Features) -> "SketchRidge":
        directions = self.directions
        for block in tokens.double().split(self.rank):
            directions = _shrink(torch.cat((directions, block)), self.rank, features)
        return SketchRidge(self.count + len(tokens), directions, self.squares + tokens.double().square().sum(0), self.rank)

    def filled_up(self, prior: Self, features: Features) -> "SketchRidge":
        missing = prior.count - self.count
        if missing <= 0:
            return self
        share = missing / prior.count
        directions = _shrink(torch.cat((self.directions, share**0.5 * prior.directions)), self.rank, features)
        return SketchRidge(prior.count, directions, self.squares + share * prior.squares, self.rank)

    def system(self, *, ridge: float, weight: float, text: Self | None = None, rows: Self | None = None) -> "SketchSystem":
        terms = [self._scaled(weight / max(1, self.count))]
        if text is not None:
            terms.append(text._scaled(TEXT_WEIGHT * weight / max(1, text.count)))
        if rows is not None:
            terms.append(rows._scaled(1.0))
        residual = torch.stack([residual for _, residual in terms]).sum(0)
        return SketchSystem(torch.cat([directions for directions, _ in terms]), ridge + residual)

    def _scaled(self, scale: float) -> tuple[Tensor, Tensor]:
        """``V`` and the diagonal ``D``, of a sum that is multiplied by ``scale``: ``w / N``, or 1 for a sum as it is."""
        return scale**0.5 * self.directions, scale * (self.squares - self.directions.square().sum(0)).clamp(min=0)


@dataclass(frozen=True, slots=True)
class SketchSystem:
    """``M = E + V'V``, by ``V`` ``(up to three times the rank, held)`` and the diagonal of ``E`` ``(held,)``."""

    directions: Tensor
    diagonal: Tensor

    def solve(self, keys: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        stacked = torch.cat((self.directions, keys.double()))
        gram, rank = features.gram(stacked / self.diagonal.sqrt()), len(self.directions)
        system = gram[:rank, :rank].clone()
        system.diagonal().add_(1.0)
        back = torch.cholesky_solve(gram[:rank, rank:], cholesky(system))
        solved = (stacked[rank:] - back.T @ stacked[:rank]) / self.diagonal
        return solved, gram[rank:, rank:] - gram[rank:, :rank] @ back


def _shrink(rows: Tensor, rank: int, features: Features) -> Tensor:
    """One step of frequent directions: at most ``rank`` rows ``B`` with ``B'B <= A'A`` for rows ``A``, made of its largest directions.

    Every squared length is reduced by that of the largest direction dropped. So a small change of ``A`` is a small change of ``B``.
    """
    if len(rows) <= rank:
        return rows
    values, vectors = torch.linalg.eigh(features.gram(rows))  # ascending
    values, vectors = values.flip(0), vectors.flip(1)[:, :rank]
    noise = values[0] * len(rows) * torch.finfo(values.dtype).eps
    kept, dropped = values[:rank], values[rank].clamp(min=0)
    factors = torch.where(kept > noise, ((kept - dropped) / kept.clamp(min=noise)).clamp(min=0).sqrt(), 0)
    return features.broadcast(factors.unsqueeze(1) * vectors.T) @ rows


def is_exact(form: PreserveForm, num_features: int) -> bool:
    """Whether keys of a number of features are stored in the exact form."""
    return form == "exact" or (form == "auto" and num_features <= _MAX_EXACT)


def empty_ridge(form: PreserveForm, features: Features, rank: int, device: torch.device | str = "cpu") -> PreservingRidge:
    """A ridge that has seen no token. Its form does not depend on how the model is sharded."""
    if is_exact(form, features.num_features):
        return ExactRidge(SecondMoment.empty(features.num_features, device))
    return SketchRidge.empty(features.num_held, rank, device)


def ridges_of_keys(
    keys: Iterable[tuple[str, Tensor]], features: Mapping[str, Features], form: PreserveForm, rank: int, device: torch.device | str = "cpu"
) -> dict[str, PreservingRidge]:
    """What ridges know of some keys, by module. All workers call this.

    Args:
        keys: Modules with keys ``(t, held)`` of tokens; a module may come several times, with further ones.
        features: The keys of each module, of which this worker may hold a slice.
        form: Form of the ridges.
        rank: Directions of a sketch.
        device: Where they are kept.
    """
    ridges = {name: empty_ridge(form, of_module, rank, device) for name, of_module in features.items()}
    for name, tokens in keys:
        ridges[name] = ridges[name].update(tokens, features[name])
    return ridges
