"""The edited weights: shifts are added, seen, measured, taken back and gathered, with and without masters and shards."""

from pathlib import Path

import pytest
import torch
from torch import nn

from editing.edited_weights import EditedWeights
from editing.method.shift import Shift
from editing.ranges import consecutive
from editing.sharding.collectives import SingleWorker
from editing.sharding.shards import LinearShard
from tests.support.emulated_workers import EmulatedWorker, run_workers

D_IN, D_OUT = 8, 6


def linears(dtype: torch.dtype = torch.float32) -> dict[str, nn.Linear]:
    modules = {name: nn.Linear(D_IN, D_OUT, bias=False, dtype=dtype).requires_grad_(False) for name in ("a", "b")}
    generator = torch.Generator().manual_seed(0)  # of its own, since threads build the same ones at once
    for module in modules.values():
        module.weight.uniform_(-0.3, 0.3, generator=generator)
    return modules


def shifts(scale: float = 0.1) -> dict[str, Shift]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return {name: Shift(scale * draw(D_IN, 2), draw(2, D_OUT)) for name in ("a", "b")}


def test_they_are_a_mapping_of_the_models_own_tensors() -> None:
    modules = linears()
    weights = EditedWeights(modules, SingleWorker())
    assert list(weights) == ["a", "b"]
    assert all(weights[name].data_ptr() == module.weight.data_ptr() for name, module in modules.items())


def test_a_shift_is_added_transposed() -> None:
    modules = linears()
    before = {name: module.weight.clone() for name, module in modules.items()}
    EditedWeights(modules, SingleWorker()).add(shifts())
    for name, shift in shifts().items():
        torch.testing.assert_close(modules[name].weight.data, before[name] + shift.dense().T)


@pytest.mark.parametrize("masters", [True, False])
def test_masters_add_up_what_bfloat16_alone_loses(masters: bool) -> None:
    modules = linears(torch.bfloat16)
    weights = EditedWeights(modules, SingleWorker(), masters=masters)
    before = {name: weight.clone() for name, weight in weights.items()}
    small = shifts(1e-4)
    for _ in range(300):
        weights.add(small)
    for name, shift in small.items():
        found, expected = weights[name].float() - before[name].float(), 300 * shift.dense().T
        assert ((found - expected).norm() < 0.05 * expected.norm()) == masters


@pytest.mark.parametrize(("dtype", "masters"), [(torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False)])
def test_masters_are_kept_for_lower_precision_only(dtype: torch.dtype, masters: bool) -> None:
    assert bool(EditedWeights(linears(dtype), SingleWorker(), masters=masters).masters) == (masters and dtype != torch.float32)
    assert not EditedWeights(linears(), SingleWorker(), masters=True).masters


@pytest.mark.parametrize(("scale", "changes"), [(1e-2, True), (1e-9, False)])
def test_a_shift_that_rounding_loses_would_change_nothing(scale: float, changes: bool) -> None:
    weights = EditedWeights(linears(torch.bfloat16), SingleWorker())
    digests = weights.digests()
    assert weights.would_change(shifts(scale)) == changes
    assert weights.digests() == digests
    assert not weights.would_change({})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_weights_are_those_from_before(dtype: torch.dtype) -> None:
    weights = EditedWeights(linears(dtype), SingleWorker())
    digests, masters = weights.digests(), {name: master.clone() for name, master in weights.masters.items()}
    weights.add(shifts())
    assert weights.digests() != digests
    weights.restore()
    assert weights.digests() == digests
    assert all(torch.equal(weights.masters[name], master) for name, master in masters.items())


def test_unedited_is_left_even_by_an_error() -> None:
    modules = linears()
    weights = EditedWeights(modules, SingleWorker())
    before = weights.digests()
    weights.add(shifts())
    after = weights.digests()

    def fail() -> None:
        with weights.unedited():
            assert weights.digests() == before
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail()
    assert weights.digests() == after


def test_originals_may_be_read_from_elsewhere_each_time() -> None:
    modules, stored = linears(), {name: 2 * module.weight.clone() for name, module in linears().items()}
    weights = EditedWeights(modules, SingleWorker(), originals=stored)
    with weights.unedited():
        assert all(torch.equal(weights[name], stored[name]) for name in weights)
    assert weights.growth()["a"] == pytest.approx(-0.5)


def test_growth_is_that_of_the_frobenius_norm() -> None:
    modules = linears()
    weights = EditedWeights(modules, SingleWorker())
    before = {name: float(weight.double().norm()) for name, weight in weights.items()}
    assert weights.growth() == dict.fromkeys(before, 0.0)
    weights.add(shifts())
    for name, growth in weights.growth().items():
        assert growth == pytest.approx(float(modules[name].weight.double().norm()) / before[name] - 1, rel=1e-4)


def sharded(axis: str, rank: int, dtype: torch.dtype) -> dict[str, nn.Linear]:
    """Slices of the same linears, uneven ones."""
    held = tuple((r,) for r in consecutive([3, 5] if axis == "keys" else [4, 2]))
    shard = LinearShard((D_IN, D_OUT), axis, held, rank)
    parts = {}
    for name, whole in linears(dtype).items():
        parts[name] = nn.Linear(shard.num_keys, shard.num_values, bias=False, dtype=dtype).requires_grad_(False)
        parts[name].weight.data = shard.slice(whole.weight).clone()
        parts[name].shard = shard
    return parts


@pytest.mark.parametrize("axis", ["keys", "values"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_shards_together_are_the_whole(axis: str, dtype: torch.dtype) -> None:
    whole = EditedWeights(linears(dtype), SingleWorker())
    whole.add(shifts())

    def run(worker: EmulatedWorker) -> tuple[dict[str, str], dict[str, torch.Tensor], dict[str, float], list[bool]]:
        weights = EditedWeights(sharded(axis, worker.shard, dtype), worker)
        shard = weights.shards["a"]
        own = {n: Shift(s.left[shard.key_features], s.right[:, shard.value_features - D_IN]) for n, s in shifts().items()}
        one_changes = {"a": own["a"]} if worker.shard == 0 else {}
        decided = [weights.would_change(own), weights.would_change(one_changes), weights.would_change({})]
        weights.add(own)
        return weights.digests(), dict(weights.whole_masters()), weights.growth(), decided

    (first, masters, growth, decided), second = run_workers(run, num_shards=2)
    assert (first, growth, decided) == (second[0], second[2], second[3])
    assert decided == [True, True, False]
    assert masters.keys() == whole.masters.keys()
    for name in whole:
        assert growth[name] == pytest.approx(whole.growth()[name], rel=1e-4, abs=1e-6)
        if dtype == torch.bfloat16:
            torch.testing.assert_close(masters[name], whole.masters[name])


def test_digests_are_those_of_the_stored_bytes(tmp_path: Path) -> None:
    import hashlib

    modules = linears()
    expected = {name: hashlib.sha256(module.weight.numpy().tobytes()).hexdigest() for name, module in modules.items()}
    assert EditedWeights(modules, SingleWorker()).digests() == expected
