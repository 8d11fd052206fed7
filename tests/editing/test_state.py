"""A stored state brings an editor back bit for bit, and refuses what is not its own."""

from pathlib import Path

import pytest
import torch

from editing import InputError
from editing.state import load_state, save_state
from tests.support.small_editor import editor, requests


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_and_loaded_goes_on_as_if_nothing_had_happened(dtype: str, tmp_path: Path) -> None:
    whole, first, second = (editor(edits_per_turn=2, dtype=dtype) for _ in range(3))
    whole.apply(requests())
    first.apply(requests(4))
    save_state(first, tmp_path / "state")
    load_state(second, tmp_path / "state")
    assert second.turns == first.turns
    second.apply(requests()[4:])
    assert second.digests() == whole.digests()
    for shape, moments in whole.moments.items():
        assert torch.equal(second.moments[shape].sum_of_squares, moments.sum_of_squares)
    for name, master in whole.weights.masters.items():
        assert torch.equal(second.weights.masters[name], master)


@pytest.mark.parametrize("options", [{"preserve": "exact", "whiten": True, "passes": 2}, {"preserve": "sketch", "preserve_rank": 8}], ids=str)
def test_second_moments_and_sketches_are_stored_too(options: dict[str, object], tmp_path: Path) -> None:
    whole, first, second = (editor(edits_per_turn=2, **options) for _ in range(3))
    whole.apply(requests())
    first.apply(requests(4))
    save_state(first, tmp_path / "state")
    load_state(second, tmp_path / "state")
    second.apply(requests()[4:])
    assert second.digests() == whole.digests()


@pytest.mark.parametrize(("written", "read"), [({"preserve": "exact"}, {}), ({}, {"preserve": "sketch"}), ({"whiten": True}, {})])
def test_a_state_of_other_options_is_refused(written: dict[str, object], read: dict[str, object], tmp_path: Path) -> None:
    one = editor(**written)
    one.apply(requests(2))
    save_state(one, tmp_path / "state")
    other = editor(**read)
    digests = other.digests()
    with pytest.raises(InputError, match=r"was written with.* (preserve|whiten); give the options"):
        load_state(other, tmp_path / "state")
    assert other.digests() == digests


def test_a_fresh_editor_has_a_state_too(tmp_path: Path) -> None:
    one = editor()
    digests = one.digests()
    save_state(one, tmp_path / "state")
    one.apply(requests())
    load_state(one, tmp_path / "state")
    assert one.digests() == digests
    assert one.moments == {}


def test_another_precision_is_refused(tmp_path: Path) -> None:
    save_state(editor(), tmp_path / "state")
    with pytest.raises(InputError, match="another precision"):
        load_state(editor(dtype="bfloat16"), tmp_path / "state")


@pytest.mark.parametrize("damage", ["truncate", "text"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(editor(), path)
    path.write_bytes(path.read_bytes()[:1000] if damage == "truncate" else b"{}")
    with pytest.raises(InputError, match="damaged"):
        load_state(editor(), path)
