"""Value gradients whitened with their full second moment, instead of scaled feature by feature.

The published method divides each feature of a value gradient by its own deviation, and features stay as correlated as they were.
Here the lifelong second moment ``Q = mean g g'`` of all rows' value gradients takes the place of the deviations:

    g^ = (Q + e (tr Q / d_out) I)^-1/2 g            g (d_out,)     Q (d_out, d_out)     e = 0.01

The inverse root is symmetric, so ``g^`` still points downhill: ``g^' g > 0`` for every row. Centring would not give that. ``e``
limits the scale of directions that few rows have seen. Without it the rows of a first turn, fewer than ``d_out``, would all become
orthonormal, however small they were. With many rows the mean of ``||g^||^2`` is near ``d_out``, as with the published scaling.

``Q`` is exact, in float64, and kept per module, not per shape, since its directions are the module's own. Its memory and the
eigenvectors of each turn suit ``d_out`` up to :data:`MAX_FEATURES`; wider modules are refused. Where value gradients are sliced
over shards, those of the turn's rows travel, never ``Q``, of which every shard keeps a copy.

Differences from the published implementation
    * It has no whitening. Off by default.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from editing.errors import InputError
from editing.method.features import Features
from editing.method.second_moments import SecondMoment
from editing.sharding.shards import LinearShard

MAX_FEATURES = 4096
"""128 MiB a module, and a minute of one core for the eigenvectors."""

_DAMPING = 0.01


def whiten(gradients: Tensor, moment: SecondMoment, features: Features) -> Tensor:
    """``g^`` of value gradients ``(n, held)``, in their dtype.

    Args:
        gradients: ``(n, held)``.
        moment: ``Q``, with those of this turn.
        features: The module's value gradients, of which this worker may hold a slice.

    Raises:
        torch.linalg.LinAlgError: Some value gradient is not finite.
    """
    mean = moment.mean()
    values, vectors = torch.linalg.eigh(mean)
    scales = (values.clamp(min=0) + _DAMPING * values.mean()).rsqrt()
    whitened = (features.all_gather(gradients).double() @ vectors) * scales @ vectors.T
    return features.slice(features.broadcast(whitened)).to(gradients.dtype)


def check_width(shards: Mapping[str, LinearShard]) -> None:
    """Refuse modules whose second moment would be too large.

    Raises:
        InputError: A module has too many outputs; names the first one.
    """
    for name, shard in shards.items():
        if shard.shape[1] > MAX_FEATURES:
            raise InputError(f"whiten: {name} has {shard.shape[1]} outputs, expected at most {MAX_FEATURES}; edit other modules, or do not whiten")
