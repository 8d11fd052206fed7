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
from editing.model.prefix import LayerInputs, Prefixed, StoredBatches
from editing.model.tokenization import AnswerSequence, Batch
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
    for portion in map(prefixed.select, _portions(prefixed.sequences)):
        inputs = portion.batches(batch_tokens=batch_tokens, device=decoder.device)
        num_tokens = sum(len(s.answer_ids if of_rows else s.input_ids) for s in portion.sequences)
        yield from _portion_keys(decoder, modules, inputs, start=start, num_tokens=num_tokens, of_rows=of_rows)


def _portions(sequences: Sequence[AnswerSequence]) -> Iterator[range]:
    """Consecutive sequences of at most :data:`PORTION_TOKENS` tokens, or a longer one by itself."""
    begin, used = 0, 0
    for i, sequence in enumerate(sequences):
        if i > begin and used + len(sequence.input_ids) > PORTION_TOKENS:
            yield range(begin, i)
            begin, used = i, 0
        used += len(sequence.input_ids)
    yield range(begin, len(sequences))


def _portion_keys(
    decoder: Decoder, modules: Mapping[str, nn.Linear], inputs: LayerInputs, *, start: int, num_tokens: int, of_rows: bool
) -> Iterator[tuple[str, Tensor]]:
    stop = 1 + max(decoder.layer_of(name) for name in modules)
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
                output = decoder.span(batch.input_ids, hidden, layers.start, layers.stop)
        finally:
            for handle in handles:
                handle.remove()
        yield batch, output


def _record(keys: Tensor, positions: Tensor, numbers: Tensor, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    keys[numbers] = at_positions(inputs[0], positions)
