"""Keys of a text, of all its tokens or of its rows: the inputs of the edited modules, from a forward pass without a graph.

    prefixed sequences --portion by portion--> layers up to the highest edited one --> keys (t, d_in) of each edited module

The layers above the highest edited module do not run. Where not all layers are in memory at once, a portion goes through them
segment by segment.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial

import torch
from torch import Tensor, nn

from editing.model.capture import at_positions
from editing.model.decoder import Decoder
from editing.model.matmul import full_speed
from editing.model.prefix import LayerInputs, Prefixed, StoredBatches, batches_of, parts_of
from editing.model.tokenization import Batch
from editing.sharding.shards import shard_of

PORTION_TOKENS = 2048
"""Tokens whose keys are in memory at the same time."""


@torch.no_grad()
def token_keys(
    decoder: Decoder, modules: Mapping[str, nn.Linear], prefixed: Prefixed, *, start: int, batch_tokens: int, of_rows: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Run the suffix up to the highest edited module.

    Args:
        decoder: The model.
        modules: The edited modules by name.
        prefixed: The sequences, with what layer ``start`` receives.
        start: First layer of the suffix.
        batch_tokens: Padded tokens in one batch.
        of_rows: Of the sequences' rows only, not of all their tokens.

    Yields:
        Per portion of the sequences, each module with the keys ``(t, d_in)`` float32 of these tokens in their order, or a shard's
        slice of them.
    """
    stop = 1 + max(decoder.layer_of(name) for name in modules)
    lengths = [len(s.answer_ids if of_rows else s.input_ids) for s in prefixed.sequences]
    for chosen in _portions(lengths):
        portion = prefixed.select(chosen)
        parts = parts_of(decoder, portion.sequences, start, stop)
        inputs = batches_of(portion, parts, batch_tokens=batch_tokens, device=decoder.device)
        num_tokens = sum(lengths[i] for i in chosen)
        yield from _portion_keys(decoder, modules, inputs, start=start, stop=stop, num_tokens=num_tokens, of_rows=of_rows)


def _portions(lengths: Sequence[int]) -> Iterator[range]:
    """Consecutive sequences of at most :data:`PORTION_TOKENS` tokens that are looked at, or a longer one by itself."""
    begin, used = 0, 0
    for i, length in enumerate(lengths):
        if i > begin and used + length > PORTION_TOKENS:
            yield range(begin, i)
            begin, used = i, 0
        used += length
    yield range(begin, len(lengths))


def _portion_keys(
    decoder: Decoder, modules: Mapping[str, nn.Linear], inputs: LayerInputs, *, start: int, stop: int, num_tokens: int, of_rows: bool
) -> Iterator[tuple[str, Tensor]]:
    with closing(decoder.residency.segments(start, stop)) as segments:
        for segment in segments:
            own = {name: module for name, module in modules.items() if decoder.layer_of(name) in segment}
            keys = {name: torch.empty(num_tokens, shard_of(module).num_keys, device=decoder.device) for name, module in own.items()}
            outputs = _run_and_record(decoder, own, inputs, segment, keys, of_rows=of_rows)
            if segment.stop < stop:
                inputs = StoredBatches(decoder, outputs)
            else:
                deque(outputs, maxlen=0)
            yield from keys.items()


def _run_and_record(
    decoder: Decoder, modules: Mapping[str, nn.Linear], inputs: LayerInputs, layers: range, keys: Mapping[str, Tensor], *, of_rows: bool
) -> Iterator[tuple[Batch, Tensor]]:
    """Run one segment over batches, and copy the keys of their tokens."""
    for batch, hidden in inputs:
        places = (batch.rows, batch.row_ids) if of_rows else (batch.tokens, batch.token_ids)
        handles = [module.register_forward_pre_hook(partial(_record, keys[name], *places)) for name, module in modules.items()]
        try:
            with full_speed(decoder.device, decoder.model):
                output = decoder.span(batch.input_ids, hidden, layers.start, layers.stop, decoder.after(batch.past, batch.input_ids.shape[1]))
        finally:
            for handle in handles:
                handle.remove()
        yield batch, output


def _record(keys: Tensor, positions: Tensor, numbers: Tensor, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    keys[numbers] = at_positions(inputs[0], positions)
