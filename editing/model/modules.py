"""Names of modules: patterns to names, names to linears, and what a model offers to edit."""

import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import cast

from torch import nn

from editing.errors import InputError, ModelError
from editing.model.decoder import Decoder
from editing.sharding.shards import is_linear, shard_of

_BRACES = re.compile(r"\{([^{}]*)\}")
_WRAPPERS = {"model", "base_model", "transformer", "language_model", "text_model", "decoder"}
"""Names of modules that may contain a language model's layers. Those of a vision tower are not among them."""

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(pattern: str) -> list[str]:
    """The names that a pattern matches: ``a.{2..3}.{x,y}`` gives ``a.2.x``, ``a.2.y``, ``a.3.x``, ``a.3.y``.

    Raises:
        InputError: A range is empty.
    """
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    choices: list[str] = []
    for choice in found[1].split(","):
        span = _RANGE.fullmatch(choice.strip())
        if span and int(span[1]) > int(span[2]):
            raise InputError(f"modules: the range {choice.strip()} in {pattern} is empty; expected the smaller number first")
        choices += [str(i) for i in range(int(span[1]), int(span[2]) + 1)] if span else [choice.strip()]
    return [name for choice in choices for name in expand(pattern[: found.start()] + choice + pattern[found.end() :])]


def split_patterns(text: str) -> list[str]:
    """The patterns of a comma-separated list. Commas inside braces separate nothing."""
    return [pattern.strip() for pattern in re.split(r",(?![^{}]*\})", text) if pattern.strip()]


def resolve(decoder: Decoder, patterns: Iterable[str]) -> dict[str, nn.Linear]:
    """The linears that patterns name, in the order of the patterns; of a sharded model, this shard's slices of them.

    What comes before the list of layers may be left out, or be as in another version of the model's class: ``layers.3.mlp.up_proj``
    and ``language_model.model.layers.3.mlp.up_proj`` both name ``model.language_model.layers.3.mlp.up_proj``.

    Args:
        decoder: The model.
        patterns: Names or patterns, as for :func:`expand`.

    Raises:
        InputError: A name is unknown, is not a linear, is given twice, or is outside the decoder layers.
    """
    known, shared = dict(decoder.model.named_modules()), _shared(decoder)
    resolved: dict[str, nn.Linear] = {}
    for name in (_as_in_model(name, decoder, known) for pattern in patterns for name in expand(pattern)):
        if name in resolved:
            raise InputError(f"modules: {name} is named twice; name each module once")
        if name not in known:
            raise InputError(f"modules: the model has no module {name!r}; {_suggest(name, decoder)}")
        module = known[name]
        if not is_linear(module):
            raise InputError(f"modules: {name} is a {type(module).__name__}, expected a Linear or Conv1D; {_suggest(name, decoder)}")
        try:
            decoder.layer_of(name)
        except ModelError as error:
            raise InputError(f"modules: {error}") from None
        if others := [other for other in shared.get(id(module.weight), ()) if other != name]:
            raise InputError(f"modules: {name} has its weight in common with {others[0]}, so that an edit would change both; name another")
        resolved[name] = cast(nn.Linear, module)  # or a shard of one, or a Conv1D: only shard_of asks which
    if not resolved:
        raise InputError("modules: expected at least one module name")
    return resolved


def _as_in_model(name: str, decoder: Decoder, known: Collection[str]) -> str:
    """A module's name in this model. A name that matches no module of its decoder layers is returned as it is."""
    own = decoder.layers_path.rpartition(".")[2]
    found = re.fullmatch(rf"((?:\w+\.)*)(?:layers|{own})\.(\d+\..+)", name)
    if name in known or not found or not set(found[1].split(".")) <= {*_WRAPPERS, ""}:
        return name
    full = f"{decoder.layers_path}.{found[2]}"
    return full if full in known else name


def editable(decoder: Decoder) -> list[str]:
    """Names of all linears inside the decoder layers whose weight is their own."""
    shared = {name for names in _shared(decoder).values() for name in names}
    names = (f"{decoder.layers_path}.{name}" for name, module in decoder.layers.named_modules() if is_linear(module))
    return [name for name in names if name not in shared]


def _shared(decoder: Decoder) -> dict[int, list[str]]:
    """Names of the linears that have their weight in common with another, by the weight's identity; as those of Zamba's shared block."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, module in decoder.layers.named_modules(remove_duplicate=False):
        if is_linear(module):
            names[id(module.weight)].append(f"{decoder.layers_path}.{name}")
    return {weight: several for weight, several in names.items() if len(several) > 1}


def describe_editable(decoder: Decoder) -> str:
    """One line with every linear of the decoder layers, layers folded: ``layers.{0..17}.mlp.up_proj (640 -> 2048)``."""
    layers: dict[str, list[int]] = defaultdict(list)
    modules = dict(decoder.model.named_modules())
    for name in editable(decoder):
        index, _, rest = name.removeprefix(decoder.layers_path + ".").partition(".")
        d_in, d_out = shard_of(modules[name]).shape
        layers[f"{rest} ({d_in} -> {d_out})"].append(int(index))
    if not layers:
        kinds = sorted({type(m).__name__ for m in decoder.layers.modules() if any(p.dim() == 2 for p in m.parameters(recurse=False))})
        return f"none of its own: its layers hold no Linear or Conv1D, only {', '.join(kinds) or 'modules without a matrix'}, which is not supported"
    return "; ".join(f"{decoder.layers_path}.{{{min(i)}..{max(i)}}}.{rest}" for rest, i in layers.items())


def _suggest(name: str, decoder: Decoder) -> str:
    close = difflib.get_close_matches(name, editable(decoder), n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else f"modules that can be edited: {describe_editable(decoder)}"
