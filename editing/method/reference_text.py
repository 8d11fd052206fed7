"""Text that no edit is about, whose keys the preserving ridge knows before the first edit.

Prompts of edits are all alike: a ridge that has seen nothing else lets a shift change freely what the model does with other
text. A few thousand tokens of that are enough to tell (docs/LOG.md, "Everyday text").
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editing.config import EVERYDAY, NONE, MethodOptions
from editing.errors import InputError
from editing.method.preserve import PreservingRidge, begin
from editing.method.second_moments import Features
from editing.model.capture import at_positions
from editing.model.decoder import Decoder
from editing.model.joining import Joiner
from editing.model.matmul import full_speed
from editing.model.prefix import Carried, Prefixed, PutAside
from editing.model.tokenization import AnswerSequence, Batch
from editing.sharding.collectives import Collectives
from editing.sharding.shards import LinearShard, shard_of

_MAX_TOKENS = 512
"""Tokens of a passage; a longer one is cut into several."""

PORTION = 2048
"""Tokens whose keys are in memory together."""


def read_text(source: str) -> str:
    """The text of that name or in that file, UTF-8.

    Raises:
        InputError: There is no such file, or it is not text.
    """
    if source == NONE:
        return ""
    if source == EVERYDAY:
        return resources.files("editing.probes").joinpath("passages.txt").read_text(encoding="utf-8")
    try:
        text = Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"preserve_text: {source}: {error.strerror or error}; expected a text file, {EVERYDAY} or {NONE}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"preserve_text: {source}: is no UTF-8 text (byte {error.start}); expected passages with empty lines between them") from None
    if not text.strip():
        raise InputError(f"preserve_text: {source}: is empty; expected passages with empty lines between them")
    return text


def text_digest(text: str) -> str:
    """SHA-256 of a text, or the name of none."""
    return hashlib.sha256(text.encode()).hexdigest() if text else NONE


def passages(tokenizer: Any, text: str, max_tokens: int | None) -> list[AnswerSequence]:
    """Token sequences of the passages of a text, which have empty lines between them."""
    width = min(_MAX_TOKENS, max_tokens or _MAX_TOKENS)
    pieces: list[AnswerSequence] = []
    for passage in text.split("\n\n"):
        ids = Joiner.of(tokenizer).as_typed.prompt_ids(passage.strip()) if passage.strip() else ()
        pieces += [AnswerSequence(tuple(ids[a : a + width]), (0,)) for a in range(0, len(ids), width)]
    return pieces


@torch.no_grad()
def observe_text(
    decoder: Decoder,
    modules: Mapping[str, nn.Linear],
    shards: Mapping[str, LinearShard],
    prefixed: Prefixed,
    options: MethodOptions,
    collectives: Collectives,
    *,
    start: int,
    batch_tokens: int,
) -> dict[str, PreservingRidge]:
    """Run the suffix up to the highest edited module over a text, and take up the keys of all its tokens. All workers call this.

    Args:
        decoder: The model.
        modules: The edited modules by name.
        shards: What this worker holds of each of them.
        prefixed: All passages of the text, the same on every replica.
        options: In which form keys are kept.
        collectives: How partial results become whole.
        start: First layer of the suffix.
        batch_tokens: Padded tokens in one batch.

    Returns:
        By module, what the keys have left.
    """
    features = {name: Features(shard, "keys", collectives) for name, shard in shards.items()}
    found = {name: begin(options.preserve, of_keys, options.preserve_rank, decoder.device) for name, of_keys in features.items()}
    for portion in map(prefixed.select, _portions(prefixed.sequences)):
        inputs = portion.batches(batch_tokens=batch_tokens, device=decoder.device)
        for name, keys in _keys(decoder, modules, inputs, start=start, num_tokens=sum(len(s.input_ids) for s in portion.sequences)):
            everyone = [torch.arange(len(keys)), *[torch.arange(0)] * (collectives.num_replicas - 1)]
            common = collectives.all_gather_rows(keys[: len(everyone[collectives.replica])], everyone)  # the first replica's bits
            found[name] = found[name].update(common, features[name])
    return found


def _portions(sequences: Sequence[AnswerSequence]) -> Iterator[range]:
    """Consecutive passages whose keys are in memory together."""
    begin, used = 0, 0
    for i, sequence in enumerate(sequences):
        if i > begin and used + len(sequence.input_ids) > PORTION:
            yield range(begin, i)
            begin, used = i, 0
        used += len(sequence.input_ids)
    yield range(begin, len(sequences))


def _keys(decoder: Decoder, modules: Mapping[str, nn.Linear], inputs: Carried, *, start: int, num_tokens: int) -> Iterator[tuple[str, Tensor]]:
    """Each module with the keys ``(t, d_in)`` float32, or a shard's part of them, of all tokens in the order of the sequences."""
    stop = 1 + max(decoder.layer_of(name) for name in modules)
    with closing(decoder.residency.segments(start, stop)) as segments:
        for segment in segments:
            own = {name: module for name, module in modules.items() if decoder.layer_of(name) in segment}
            keys = {name: torch.empty(num_tokens, shard_of(module).num_keys, device=decoder.device) for name, module in own.items()}
            outputs = _recorded(decoder, own, inputs, segment, keys)
            if segment.stop < stop:
                inputs = PutAside(decoder, outputs)
            else:
                deque(outputs, maxlen=0)
            yield from keys.items()


def _recorded(
    decoder: Decoder, modules: Mapping[str, nn.Linear], inputs: Carried, layers: range, keys: Mapping[str, Tensor]
) -> Iterator[tuple[Batch, Tensor]]:
    """Run one segment over batches, and copy the keys of their tokens."""
    for batch, hidden in inputs:
        handles = [module.register_forward_pre_hook(partial(_record, keys[name], batch)) for name, module in modules.items()]
        try:
            with full_speed(decoder.device):
                output = decoder.span(batch.input_ids, hidden, layers.start, layers.stop)
        finally:
            for handle in handles:
                handle.remove()
        yield batch, output


def _record(keys: Tensor, batch: Batch, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    keys[batch.token_ids] = at_positions(inputs[0], batch.tokens)
