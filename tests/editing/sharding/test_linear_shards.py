"""Parts of a linear, however they are cut, are the whole."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from editing.ranges import consecutive
from editing.sharding.shards import LinearShard, shard_of

KEYS = tuple((r,) for r in consecutive([3, 0, 4]))
VALUES = tuple((r,) for r in consecutive([1, 3, 2]))
FUSED = ((range(1), range(4, 6)), (range(1, 4),), (range(6, 6),))  # two projections of 4 and 2 outputs
CUTS = {"keys": ("keys", KEYS), "values": ("values", VALUES), "fused": ("values", FUSED), "whole": (None, ())}


def parts(cut: str) -> list[LinearShard]:
    axis, held = CUTS[cut]
    return [LinearShard((7, 6), axis, held, shard) for shard in range(max(1, len(held)))]


@pytest.mark.parametrize("cut", CUTS)
def test_cut_and_joined_is_the_whole_from_memory_and_from_a_file(cut: str, tmp_path) -> None:
    weight = torch.randn(6, 7)
    save_file({"w": weight}, tmp_path / "w")
    with safe_open(tmp_path / "w", "pt") as file:
        for source in (weight, file.get_slice("w")):
            pieces = [part.slice(source) for part in parts(cut)]
            assert [tuple(p.shape) for p in pieces] == [(part.num_values, part.num_keys) for part in parts(cut)]
            assert torch.equal(parts(cut)[0].gather(pieces), weight)


@pytest.mark.parametrize("cut", CUTS)
def test_spread_features_add_up_to_all_features(cut: str) -> None:
    z = torch.randn(2, 13)
    held = [z[:, torch.cat((part.key_features, part.value_features))] for part in parts(cut)]
    assert torch.equal(sum(part.scatter(values) for part, values in zip(parts(cut), held, strict=True)), z)


def test_a_linear_without_a_part_is_whole() -> None:
    part = shard_of(torch.nn.Linear(7, 6))
    assert (part.shape, part.num_keys, part.num_values) == ((7, 6), 7, 6)
