"""Value gradients whitened as a whole, rather than scaled feature by feature.

The published method divides each feature of a value gradient by its own deviation, which leaves features as correlated as they
were. Here the lifelong second moment ``Q = mean g g'`` of all rows' value gradients takes that place:

    g^ = (Q + e (tr Q / d_out) I)^-1/2 g            e = 0.01

The root of the inverse is symmetric, so ``g^`` still points downhill: ``g^' g > 0`` for every row, which centring would not
give. ``e`` keeps directions that few rows have seen from being blown up; without it the first turn's rows, fewer than ``d_out``,
would all become orthonormal, however small they were. With many rows the mean of ``||g^||^2`` is near ``d_out``, as with the
published scaling.

``Q`` is exact, ``d_out x d_out`` in float64, kept a module and not a shape, for its directions are the module's own. That and the
eigenvectors that each turn takes are for ``d_out`` up to :data:`MAX_FEATURES`; wider modules are refused. Where value gradients
are sliced over shards, those of the turn's rows travel, never ``Q``, and every shard keeps all of it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from editing.errors import InputError
from editing.method.second_moments import Features, SecondMoment
from editing.sharding.shards import LinearShard

MAX_FEATURES = 4096
"""128 MiB a module, and a minute of one core for the eigenvectors."""

_DAMPING = 0.01


def whiten(gradients: Tensor, moment: SecondMoment, features: Features) -> Tensor:
    """``g^`` of value gradients ``(n, held)``, in their dtype.

    Raises:
        torch.linalg.LinAlgError: Some value gradient is not finite.
    """
    mean = moment.mean()
    values, vectors = torch.linalg.eigh(mean)
    scales = (values.clamp(min=0) + _DAMPING * values.mean()).rsqrt()
    whitened = (features.whole(gradients).double() @ vectors) * scales @ vectors.T
    return features.held(features.broadcast(whitened)).to(gradients.dtype)


def check_width(shards: Mapping[str, LinearShard]) -> None:
    """Refuse modules whose second moment would be too large.

    Raises:
        InputError: Naming the first one.
    """
    for name, shard in shards.items():
        if shard.shape[1] > MAX_FEATURES:
            raise InputError(f"whiten: {name} has {shard.shape[1]} outputs, expected at most {MAX_FEATURES}; edit other modules, or do not whiten")
