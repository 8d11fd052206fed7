"""An editor's lifelong state as one safetensors file: edited weights, their float32 masters, and statistics of all edits.

    weight.MODULE  master.MODULE                 (d_out, d_in), whole, of a Conv1D (d_in, d_out); the master in float32, if there is one
    mean.SHAPE  sum_of_squares.SHAPE             (d_in + d_out,) float64 moments; of modules edited at subjects, ``subject.SHAPE``
    preserved.MODULE  sketch.MODULE              (d_in, d_in) or (up to rank + 1, d_in) float64, what the preserving ridge knows
    remembered.MODULE  remembered-sketch.MODULE  the same of the keys of all edits, where targets are solved
    whitening.MODULE                             (d_out, d_out) float64, second moment of value gradients
    metadata                                     ``turns``; ``counts``: rows or tokens behind each of the statistics; and ``rate``, the
                                                 learning rate that the first turn found, if it was to find one

SHAPE is ``640x2048``: ``d_in`` and ``d_out``. The file is small beside the model: prefix, head and all other weights are the base
model's and are not stored.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editing.editor import Editor
from editing.errors import InputError
from editing.method.features import Features
from editing.method.lifelong import LifelongStatistics
from editing.method.moments import Moments
from editing.method.preserve import ExactRidge, SketchRidge
from editing.method.second_moments import SecondMoment
from editing.sharding.shards import Shape

_PRESERVED, _REMEMBERED = ("preserved", "sketch"), ("remembered", "remembered-sketch")
"""First words of the keys of ridges: in the exact form, and of a sketch."""

_AT_SUBJECTS = "subject."
"""Comes before the shape in keys of modules that are edited at the subjects."""


def save_state(editor: Editor, path: Path) -> None:
    """Write the state of an editor to a file. All shards call this; the first one writes for all, and the weights are whole."""
    tensors = {f"weight.{name}": weight.cpu() for name, weight in editor.weights.whole()}
    tensors |= {f"master.{name}": master.cpu() for name, master in editor.weights.whole_masters()}
    counts = {}
    for prefix, held in (("", editor.lifelong.moments), (_AT_SUBJECTS, editor.lifelong.subject_moments)):
        for shape, moments in held.items():
            key = prefix + _key(shape)
            counts[key] = moments.count
            tensors |= {f"mean.{key}": moments.mean, f"sum_of_squares.{key}": moments.sum_of_squares}
    for key, count, tensor in _second_moments(editor):
        counts[key] = count
        tensors[key] = tensor
    metadata = {"turns": str(editor.turns), "counts": json.dumps(counts)}
    if editor.lifelong.rate is not None:
        metadata |= {"rate": repr(editor.lifelong.rate), "rate_is_provisional": str(int(editor.lifelong.is_provisional))}
    editor.collectives.run_on_first(
        lambda: save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    )


def load_state(editor: Editor, path: Path) -> None:
    """Put an editor into a stored state, bit for bit.

    Raises:
        InputError: The file is damaged, or belongs to other modules or another precision.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            counts: dict[str, Any] = json.loads(metadata["counts"])
            turns = int(metadata["turns"])
            _check_same(path, editor, {name: s for name, s in slices.items() if name.startswith(("weight.", "master."))})
            held = {kind: {name: editor.shards[name].slice(slices[f"{kind}.{name}"]) for name in names} for kind, names in _held(editor).items()}
            rate = float(metadata["rate"]) if "rate" in metadata else None
            lifelong = replace(_lifelong(editor, slices, counts), rate=rate, is_provisional=metadata.get("rate_is_provisional") == "1")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: is damaged, or not a stored state ({error}); resume from another checkpoint") from None
    _check_options(path, editor, lifelong, turns)
    for kind, targets in _held(editor).items():
        for name, target in targets.items():
            target.copy_(held[kind][name])
    editor.lifelong, editor.turns = lifelong, turns


def stored_weights(path: Path, *, exact: bool = False) -> dict[str, Tensor]:
    """The whole edited weights of a stored state, by module name; with ``exact``, their float32 masters where there are such."""
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        names = [key.removeprefix("weight.") for key in file.keys() if key.startswith("weight.")]  # noqa: SIM118
        return {name: file.get_tensor(f"{'master' if exact and f'master.{name}' in keys else 'weight'}.{name}") for name in names}


def _held(editor: Editor) -> dict[str, Mapping[str, Tensor]]:
    """This worker's slices of the tensors that a state stores whole, by kind and module name."""
    return {"weight": editor.weights, "master": editor.weights.masters}


def _second_moments(editor: Editor) -> Iterator[tuple[str, int, Tensor]]:
    """Key, count and whole tensor of the statistics that are kept per module. The last row of a sketch is its squares."""
    for kinds, ridges in ((_PRESERVED, editor.lifelong.preserved), (_REMEMBERED, editor.lifelong.remembered)):
        for name, ridge in ridges.items():
            if isinstance(ridge, ExactRidge):
                yield f"{kinds[0]}.{name}", ridge.count, ridge.moment.total
            elif isinstance(ridge, SketchRidge):
                yield f"{kinds[1]}.{name}", ridge.count, _of_keys(editor, name).all_gather(torch.cat((ridge.directions, ridge.squares.unsqueeze(0))))
    for name, second in editor.lifelong.whitening.items():
        yield f"whitening.{name}", second.count, second.total


def _lifelong(editor: Editor, slices: dict[str, Any], counts: dict[str, int]) -> LifelongStatistics:
    """The stored statistics, of shapes and of modules."""
    device, lifelong = editor.decoder.device, LifelongStatistics()
    for key, count in counts.items():
        kind, _, name = key.partition(".")
        if not name:
            lifelong.moments[_shape(key)] = _moments(slices, key, count, device)
            continue
        if key.startswith(_AT_SUBJECTS):
            lifelong.subject_moments[_shape(name)] = _moments(slices, key, count, device)
            continue
        tensor = slices[key][:].to(device)
        if kind == "whitening":
            lifelong.whitening[name] = SecondMoment(count, tensor)
        else:
            ridges = lifelong.remembered if kind in _REMEMBERED else lifelong.preserved
            ridges[name] = _exact(count, tensor) if kind in (_PRESERVED[0], _REMEMBERED[0]) else _sketch(editor, name, count, tensor)
    return lifelong


def _exact(count: int, tensor: Tensor) -> ExactRidge:
    return ExactRidge(SecondMoment(count, tensor))


def _sketch(editor: Editor, name: str, count: int, tensor: Tensor) -> SketchRidge:
    directions, squares = _of_keys(editor, name).slice(tensor).split([len(tensor) - 1, 1])
    return SketchRidge(count, directions.contiguous(), squares[0].contiguous(), editor.config.preserve_rank)


def _of_keys(editor: Editor, name: str) -> Features:
    return Features(editor.shards[name], "keys", editor.collectives)


def _moments(slices: dict[str, Any], key: str, count: int, device: torch.device) -> Moments:
    return Moments(count, slices[f"mean.{key}"][:].to(device), slices[f"sum_of_squares.{key}"][:].to(device))


def _check_same(path: Path, editor: Editor, found: dict[str, Any]) -> None:
    expected = {f"{kind}.{name}": (editor.shards[name], t.dtype) for kind, held in _held(editor).items() for name, t in held.items()}
    for name in sorted(expected.keys() ^ found.keys()):
        raise InputError(f"{path}: {'has no' if name in expected else 'has a'} {name}, so it belongs to other modules or another precision")
    for name, (shard, dtype) in expected.items():
        shape, stored = shard.stored_shape, found[name][:0].dtype
        if tuple(found[name].get_shape()) != shape or stored != dtype:
            raise InputError(f"{path}: {name} is {tuple(found[name].get_shape())} {stored}; this model's is {shape} {dtype}")


def _check_options(path: Path, editor: Editor, lifelong: LifelongStatistics, turns: int) -> None:
    config = editor.config
    solved, gradient = config.solves_targets, bool(config.subject_modules) and not config.solves_targets
    expected = {"preserve": config.preserves, "whiten": config.whiten, "solved targets": solved, "subject_modules": gradient}
    found = {
        "preserve": bool(lifelong.preserved),
        "whiten": bool(lifelong.whitening),
        "solved targets": bool(lifelong.remembered) or (solved and not turns),  # rows that were only observed are not remembered
        "subject_modules": bool(lifelong.subject_moments),
    }
    for name in expected if lifelong.moments else ():
        if expected[name] != found[name]:
            raise InputError(f"{path}: was written {'without' if expected[name] else 'with'} {name}; give the options that its run began with")


def _key(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"


def _shape(key: str) -> Shape:
    d_in, _, d_out = key.partition("x")
    return int(d_in), int(d_out)
