"""What all peers share: a model with its text, and what a peer makes of it.

A peer is a function: it changes the model's weights, or not, and says what the model is asked in place of a prompt.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editing import EditRequest
from editing.config import AUTO, DEFAULT_BATCH_TOKENS, EVERYDAY, RAW, MethodOptions
from editing.model.decoder import Decoder
from editing.model.framing import has_template, resolve_framings
from editing.model.joining import Joiner
from editing.model.matmul import full_speed
from editing.model.prefix import Prefixed
from editing.model.token_keys import token_keys
from editing.model.tokenization import AnswerSequence, encode
from editing.reference_text import ReferenceText, read_text
from editing.turn import TokenizedEdit, framed, tokenize

Ask = Callable[[str], str]
"""From a prompt to what the model is asked."""

EDITS_PER_TURN = 100


@dataclass
class Bench:
    """A model that is edited in place and given back as it was. One with a chat template is taught every fact raw and in chat.

    Attributes:
        model: A Hugging Face causal language model.
        tokenizer: Its tokenizer.
        text: A text file, or ``everyday``: what every peer that preserves text preserves.
        written: Keys ``(d_in, d_in)`` of earlier turns' edits, summed as ``K'K``, by the linear that was written with them.
        found: What several peers or settings need and what does not depend on them, with the processor seconds that it took.
        borrowed: Processor seconds that a peer did not spend, since another had found the same, less those that are not its own.
    """

    model: Any
    tokenizer: Any
    text: str = EVERYDAY
    written: dict[str, Tensor] = field(default_factory=dict)
    found: dict[Any, tuple[Any, float]] = field(default_factory=dict)
    borrowed: float = 0.0

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        self.decoder = Decoder(self.model)
        self.framings = resolve_framings((AUTO,), chats=has_template(self.tokenizer))
        self.joiner = Joiner(self.tokenizer, num_embeddings=self.decoder.config.vocab_size, framings=self.framings)
        self.asked_in = {framing: self.joiner.framed(framing) for framing in self.framings}
        self._weights = {name: tensor.detach().clone() for name, tensor in self.model.named_parameters()}

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the weights from before the first edit."""
        self.model.requires_grad_(False)
        for name, tensor in self.model.named_parameters():
            tensor.copy_(self._weights[name])
        self.written = {}

    def once(self, key: Any, compute: Callable[[], Any], *, of_edits: bool = False) -> Any:
        """What was computed under a key before, or now. What is of the edits counts as a peer's time, what is of the model and the text does not."""
        is_new = key not in self.found
        if is_new:
            began = time.process_time()
            value = compute()
            self.found[key] = value, time.process_time() - began
        value, seconds = self.found[key]
        if of_edits != is_new:
            self.borrowed += seconds if of_edits else -seconds
        return value

    def linear(self, name: str) -> nn.Linear:
        """A linear by its name below the decoder layers, such as ``4.mlp.down_proj``."""
        found: nn.Linear = self.model.get_submodule(f"{self.decoder.layers_path}.{name}")
        return found

    def tokenized(self, edit: TokenizedEdit) -> TokenizedEdit:
        """An edit in the ways in which this bench's facts are written."""
        return tokenize(self.joiner, edit.request, max_tokens=None, record=edit.record)

    def turns(self, edits: Sequence[TokenizedEdit]) -> Iterator[Sequence[TokenizedEdit]]:
        """Edits in the turns in which they come."""
        return (edits[a : a + EDITS_PER_TURN] for a in range(0, len(edits), EDITS_PER_TURN))

    def forms(self, edit: TokenizedEdit, context: str = "") -> list[AnswerSequence]:
        """An edit as it is written, each with a subject: where it does not stand in the prompt, the prompt's last token is taken for its end."""
        return [_with_subject(form) for form in framed(self.joiner, edit.request, None, context=context)]

    def sequence(self, prompt: str, answer: str | None, subject: str | None) -> AnswerSequence:
        """A prompt as typed with its answer, and with a subject as in :meth:`forms`."""
        return _with_subject(encode(self.joiner, prompt, answer, subject=subject))

    def passages(self) -> list[AnswerSequence]:
        """The text as sequences."""
        return ReferenceText.of(MethodOptions(preserve="exact", preserve_text=self.text), self.joiner, None).passages

    def second_moment(self, name: str) -> Tensor:
        """Mean of ``k k'`` over the tokens of the text, ``(d_in, d_in)`` float64, of the model as it is now."""
        module = {f"{self.decoder.layers_path}.{name}": self.linear(name)}
        total, count = torch.zeros(()), 0
        passages = Prefixed(self.passages(), None)
        for _, keys in token_keys(self.decoder, module, passages, start=0, batch_tokens=DEFAULT_BATCH_TOKENS):
            total, count = total + keys.double().T @ keys.double(), count + len(keys)
        return total / count


def _with_subject(sequence: AnswerSequence) -> AnswerSequence:
    return sequence if sequence.subject is not None else replace(sequence, subject=sequence.first_row)


def as_asked(edit: TokenizedEdit, ask: Ask, bench: Bench, framing: str = RAW) -> TokenizedEdit:
    """An edit whose prompts are what a peer asks in their place, in a framing."""
    r: EditRequest = edit.request
    joiner = bench.asked_in[framing]
    return replace(
        edit,
        sequence=encode(joiner, ask(r.prompt), r.target),
        rephrase=encode(joiner, ask(r.rephrase), r.target) if r.rephrase else None,
        locality=encode(joiner, ask(r.locality_prompt), r.locality_answer) if r.locality_prompt else None,
        persona=(),
        multi_hop=(),
        portability=(),
        typed=None,
        forms=(),
    )


def write_own_text(bench: Bench, path: Path, *, tokens: int, seed: int = 0) -> None:
    """The everyday text, and what the model writes by itself after the first words of each of its passages, sampled with a seed."""
    everyday = read_text(EVERYDAY)
    begins = [" ".join(passage.split()[:6]) for passage in everyday.split("\n\n") if passage.strip()]
    texts = sample(bench, begins, tokens=tokens, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join([everyday.strip(), *(" ".join(text.split()) for text in texts)]) + "\n", encoding="utf-8")


@torch.no_grad()
def sample(bench: Bench, begins: Sequence[str], *, tokens: int, seed: int) -> list[str]:
    """Texts with their beginnings, sampled from the model's own distribution, with no end before ``tokens``."""
    encoded = [list(bench.joiner.as_typed.prompt_ids(text)) for text in begins]
    width = max(map(len, encoded))
    input_ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in encoded])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in encoded])
    torch.manual_seed(seed)
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "min_new_tokens": tokens, "max_new_tokens": tokens, "pad_token_id": 0}
    with full_speed(bench.decoder.device, bench.model):
        output = bench.model.generate(input_ids=input_ids, attention_mask=mask, **options)
    return [bench.tokenizer.decode(ids[width - len(own) :], skip_special_tokens=True) for ids, own in zip(output.tolist(), encoded, strict=True)]
