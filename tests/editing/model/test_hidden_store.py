"""A hidden store gives back what was put in, from memory or from disk."""

import pytest
import torch

from editing.model.hidden_store import HiddenStore


def filled(limit: int | None, dtype: torch.dtype = torch.float32) -> tuple[HiddenStore, list[torch.Tensor]]:
    """Four tensors, of 48, 80, 16 and 32 bytes in float32; the limit is in float32 too."""
    store, tensors = HiddenStore(limit=limit and limit * dtype.itemsize // 4), [torch.randn(n, 4).to(dtype) for n in (3, 5, 1, 2)]
    for number in (2, 0, 3, 1):  # batches are not in the order of their sequences
        store.put(number, tensors[number])
    return store, tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("limit", "on_disk"), [(None, 0), (10**6, 0), (70, 2), (0, 4)])
def test_what_is_past_the_limit_is_on_disk_with_the_same_bits(limit: int | None, on_disk: int, dtype: torch.dtype) -> None:
    store, tensors = filled(limit, dtype)
    assert store.num_on_disk == on_disk
    assert all(torch.equal(store.get(i), tensor) and store.get(i).dtype == dtype for i, tensor in enumerate(tensors))


@pytest.mark.parametrize("limit", [None, 70])
def test_chosen_tensors_are_numbered_anew_and_not_copied(limit: int | None) -> None:
    store, tensors = filled(limit)
    chosen = store.select([3, 1])
    assert torch.equal(chosen.get(0), tensors[3])
    assert torch.equal(chosen.get(1), tensors[1])
    joined = HiddenStore.concatenate([chosen, store])
    assert [len(joined.get(i)) for i in range(6)] == [2, 5, 3, 5, 1, 2]
    assert joined.get(4).data_ptr() == tensors[2].data_ptr()  # the first one put, which is in memory in both cases


def test_copies_let_go_of_the_large_tensor_that_they_are_views_of() -> None:
    large, store = torch.randn(1000, 4), HiddenStore()
    store.put(0, large[:2])
    own = store.copied()
    assert torch.equal(own.get(0), large[:2])
    assert own.get(0).untyped_storage().nbytes() == 2 * 4 * 4
