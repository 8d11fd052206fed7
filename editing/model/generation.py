"""Greedy text after prompts: the likeliest token every time, whatever the model's own settings for serving say.

Where the whole model is in memory, keys and values of what is written so far are kept (:mod:`editing.model.greedy`); of a family whose
layers have states of another kind, by its own ``generate``. Else a token at a time would read the model from disk for every token,
so all prompts go through the layers together, each with a guess of all its coming tokens: what the model says after a right guess is
right too, so a pass settles at least one token of each prompt and often several (Jacobi decoding, Santilli et al. 2023). The text is the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from editing.config import DEFAULT_BATCH_TOKENS
from editing.messages import Asked
from editing.model.continuation import can_continue
from editing.model.decoder import Decoder
from editing.model.greedy import greedy_tokens
from editing.model.joining import Joiner
from editing.model.matmul import full_speed
from editing.model.prefix import Prefixed, predict
from editing.model.tokenization import AnswerSequence

_PAD = 0
"""What stands where no token is: any token that the model has an embedding for. The tokenizer's own pad may have none."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote.

    Attributes:
        text: The text, without what ends it.
        stopped: Whether the model ended it by itself.
    """

    text: str
    stopped: bool


def generate(decoder: Decoder, tokenizer: Any, prompts: Sequence[Asked], *, max_new_tokens: int = 12, batch_size: int = 256) -> list[str]:
    """The texts of :func:`write`."""
    return [written.text for written in write(decoder, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)]


@torch.no_grad()
def write(decoder: Decoder, tokenizer: Any, prompts: Sequence[Asked], *, max_new_tokens: int = 12, batch_size: int = 256) -> list[Written]:
    """What the model writes after each prompt, read as typed. Of a prompt that fills the context, the end is kept.

    Args:
        decoder: Runs the model.
        tokenizer: A joiner, or the model's tokenizer.
        prompts: The prompts. A chat is asked in the model's template.
        max_new_tokens: Tokens written at the most.
        batch_size: Prompts that are written after together, where the whole model is in memory.
    """
    joiner = Joiner.of(tokenizer).as_typed
    room = slice(None) if decoder.max_tokens is None else slice(-max(1, decoder.max_tokens - max_new_tokens), None)
    encoded = [list(own.prompt_ids(prompt)[room]) for own, prompt in map(joiner.asking, prompts)]
    ends = set(_end_tokens(decoder.model))
    if not decoder.residency.holds(0, decoder.num_layers):
        written = _guessed(decoder, encoded, max_new_tokens, ends)
    elif can_continue(decoder, 0) and not decoder.turns_by_length:
        written = greedy_tokens(decoder, encoded, max_new_tokens=max_new_tokens, ends=ends, at_once=batch_size)
    else:
        written = _by_the_model(decoder, encoded, max_new_tokens, batch_size)
    return [Written(joiner.tokenizer.decode(_until_end(ids, ends), skip_special_tokens=True), not ends.isdisjoint(ids)) for ids in written]


def _by_the_model(decoder: Decoder, encoded: list[list[int]], max_new_tokens: int, batch_size: int) -> list[list[int]]:
    device = decoder.device
    greedy = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=_end_tokens(decoder.model) or None, pad_token_id=_PAD)
    written: list[list[int]] = [[]] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    for a in range(0, len(order), batch_size):
        chosen = order[a : a + batch_size]
        width = max(len(encoded[i]) for i in chosen)
        pads = torch.tensor([width - len(encoded[i]) for i in chosen], device=device)
        input_ids = torch.tensor([[_PAD] * (width - len(encoded[i])) + encoded[i] for i in chosen], device=device)
        mask = (torch.arange(width, device=device) >= pads.unsqueeze(1)).long()  # generation needs pads at the left
        with full_speed(device, decoder.model), _settings(decoder.model, greedy):
            output = decoder.model.generate(input_ids=input_ids, attention_mask=mask, generation_config=greedy)
        for i, ids in zip(chosen, output[:, width:].tolist(), strict=True):
            written[i] = ids
    return written


@contextmanager
def _settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Let a model generate with these settings alone: its own ones would fill in whatever they leave open."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


@dataclass
class _Writing:
    """A prompt, a guess of the tokens after it, and how many of these are settled."""

    prompt: list[int]
    guess: list[int] = field(default_factory=list)
    settled: int = 0

    def sequence(self) -> AnswerSequence:
        return AnswerSequence(tuple(self.prompt + self.guess[:-1]), tuple(self.guess))

    def take(self, said: Sequence[int]) -> None:
        """Take what the model says at each place: it is right up to the first place where the guess was not."""
        wrong = next((j for j, (a, b) in enumerate(zip(self.guess, said, strict=True)) if a != b), len(said))
        self.guess, self.settled = list(said), min(wrong + 1, len(said))


def _guessed(decoder: Decoder, encoded: list[list[int]], max_new_tokens: int, ends: set[int]) -> list[list[int]]:
    writings = [_Writing(ids, [ids[-1]] * max_new_tokens) for ids in encoded]
    while open_ones := [w for w in writings if w.settled < max_new_tokens and not ends & set(w.guess[: w.settled])]:
        prefixed = Prefixed([w.sequence() for w in open_ones], None)
        for writing, said in zip(open_ones, predict(decoder, prefixed, start=0, batch_tokens=DEFAULT_BATCH_TOKENS), strict=True):
            writing.take(said)
    return [w.guess for w in writings]


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    return ids[: next((j for j, token in enumerate(ids) if token in ends), len(ids))]


def _end_tokens(model: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
