"""Settings for a model that nobody has measured, in terms that have no scale: where a module lies, and how far a turn moves it.

    modules     what attention writes, in four layers that end at five sixths of the depth
    subjects    what the MLPs of the two layers below those write
    strength    the first turn shifts the weights by this share of their norm; its learning rate serves all later turns

They were found on Gemma 3 270M and tried on SmolLM2-135M-Instruct: docs/LOG.md, "A model without a setting".
"""

import re
from typing import Any

from editing.model.decoder import Decoder
from editing.model.modules import editable

NAME = "unmeasured"

STRENGTH = 0.1

GOAL = 0.7
"""Share of the first turn's questions that are to be answered right: the same strength teaches one model half of what it teaches another."""

OPTIONS: dict[str, Any] = {
    "small_turns": True,
    "passes": 4,
    "preserve": "auto",
    "preserve_weight": 300.0,
    "preserve_text": "everyday",
    "preserve_neighbours": 4,
}
"""Further options of the method."""

SUBJECT_SCALE = 0.05

_ATTENTION = ("o_proj", "out_proj", "dense", "c_proj", "wo", "linear_out")
_MLP = ("down_proj", "fc_out", "dense_4h_to_h", "fc2", "c_proj", "w2", "output_linear")
"""Last names of linears that write into the residual stream."""

_SIZE, _DEPTH = 4, 5 / 6


def modules_for(decoder: Decoder) -> tuple[list[str], list[str]]:
    """Names of the linears to edit at the answers, and at the subjects; none where the model has none of a known kind."""
    attention, mlp = _written(decoder, _ATTENTION, is_mlp=False), _written(decoder, _MLP, is_mlp=True)
    last = max(1, round(_DEPTH * decoder.num_layers))
    first = max(0, last - _SIZE)
    at_answers = [name for layer in range(first, last) for name in (attention.get(layer) or mlp.get(layer) or [])]
    at_subjects = [name for layer in range(max(0, first - 2), first) for name in mlp.get(layer, [])]
    return at_answers, at_subjects


def _written(decoder: Decoder, names: tuple[str, ...], *, is_mlp: bool) -> dict[int, list[str]]:
    """By layer, the linears with one of the names whose place in the layer is, or is not, in an MLP. Experts are left out."""
    found: dict[int, list[str]] = {}
    for name in editable(decoder):
        layer, _, rest = name.removeprefix(decoder.layers_path + ".").partition(".")
        parts = rest.split(".")
        if parts[-1] in names and "experts" not in parts and bool(re.search(r"mlp|ffn|feed_forward|fc", rest)) == is_mlp:
            found.setdefault(int(layer), []).append(name)
    return found
