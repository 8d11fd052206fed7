"""Greedy tokens after many prompts at once.

    prompts --in batches, a beginning that many share once--> keys and values of each, final state of its last token
    up to 256 of them --head in blocks--> a token of each --all layers--> final state of it --head--> the next ...

A text that has ended leaves its batch: in chat most have after a few tokens, and one goes on.
"""

from collections.abc import Collection, Iterator, Sequence

import torch

from editing.config import DEFAULT_BATCH_TOKENS
from editing.model.continuation import Read, read_sequences
from editing.model.decoder import Decoder
from editing.model.matmul import full_speed
from editing.model.past import Past, padded
from editing.model.prefix import Prefixed, parts_of
from editing.model.tokenization import AnswerSequence

_MOST_BYTES = 2**28
"""Of keys and values of the texts that are written together, unless one alone has more."""


@torch.no_grad()
def greedy_tokens(decoder: Decoder, prompts: Sequence[list[int]], *, max_new_tokens: int, ends: Collection[int], at_once: int) -> list[list[int]]:
    """The likeliest token after each prompt, the likeliest after that, and so on, up to one that ends the text.

    Args:
        decoder: The model, all of whose layers are in memory, and whose texts can be continued
            (:func:`editing.model.continuation.can_continue`).
        prompts: Tokens of each prompt; at least one.
        max_new_tokens: Tokens written at the most.
        ends: Tokens that end a text.
        at_once: Texts that are written together, at the most.
    """
    written: list[list[int]] = [[] for _ in prompts]
    prefixed = Prefixed([AnswerSequence(tuple(ids), (0,)) for ids in prompts], None)
    parts = parts_of(decoder, prefixed.sequences, 0, decoder.num_layers)
    read = read_sequences(decoder, prefixed, parts, start=0, batch_tokens=DEFAULT_BATCH_TOKENS)
    for several in _together(read, max_new_tokens, at_once):
        with full_speed(decoder.device, decoder.model):
            for numbers, tokens in _write(decoder, several, max_new_tokens, ends):
                for number, token in zip(numbers, tokens, strict=True):
                    written[number].append(token)
    return written


def _together(prompts: Iterator[Read], max_new_tokens: int, at_once: int) -> Iterator[list[Read]]:
    """Prompts whose texts are written together."""
    several: list[Read] = []
    used = 0
    for one in prompts:
        size = _size(one, max_new_tokens)
        if several and (len(several) == at_once or used + size > _MOST_BYTES):
            yield several
            several, used = [], 0
        several.append(one)
        used += size
    if several:
        yield several


def _write(decoder: Decoder, several: list[Read], max_new_tokens: int, ends: Collection[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Numbers of the prompts whose texts go on, with a token of each; again and again."""
    numbers, finals = [one.number for one in several], torch.stack([one.final for one in several])
    lengths = torch.tensor([one.length for one in several]).to(decoder.device)
    of_each_layer = zip(*(one.layers for one in several), strict=True)
    layers = [(padded([keys for keys, _ in of_one]), padded([values for _, values in of_one])) for of_one in of_each_layer]
    several.clear()  # whose keys and values are in the layers now
    for _ in range(max_new_tokens - 1):
        likeliest = decoder.likeliest(finals)
        tokens = likeliest.tolist()
        yield numbers, tokens
        going_on = [b for b, token in enumerate(tokens) if token not in ends]
        if not going_on:
            return
        if len(going_on) < len(tokens):
            chosen = torch.tensor(going_on).to(decoder.device)
            numbers, likeliest, lengths = [numbers[b] for b in going_on], likeliest[chosen], lengths[chosen]
            layers = [(keys[chosen], values[chosen]) for keys, values in layers]
        attention = Past(layers, lengths, 0).arguments(decoder.body, 1)
        finals = decoder.span(likeliest.unsqueeze(1), None, 0, decoder.num_layers, attention)[:, 0]
        layers, lengths = [(layer.keys, layer.values) for layer in attention["past_key_values"].layers], lengths + 1
    yield numbers, decoder.likeliest(finals).tolist()


def _size(one: Read, max_new_tokens: int) -> int:
    """Bytes of its keys and values, with those of the tokens to come."""
    of_a_token = sum(part.element_size() * part.shape[0] * part.shape[2] for layer in one.layers for part in layer)
    return of_a_token * (one.length + max_new_tokens)
