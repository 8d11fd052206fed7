"""How a prompt and its answer meet: the one place where both become token ids.

    raw        the text as a person types it: prompt, a blank where the script sets one, answer (the rule is in :mod:`editing.blanks`)
    none       the same, with nothing between them but the blanks that the prompt itself ends in
    published  the published code's tokens: ``tokenizer(prompt)``, then ``tokenizer(" " + target)`` without special tokens, whatever
               blanks and special tokens that puts between them

Of a text as typed, the model reads the prompt alone, as whoever asks it will feed it; the answer's ids are those that follow.

    begin      What the tokenizer puts before a text (BOS) is there once, also where the prompt brings it along, as one does that went
               through a chat template. After a special token that a prompt ends in there is no blank.
    end        What the tokenizer puts after a text (EOS) is left out: the prompt is not at its end.
    together   Prompt and answer are encoded together. Where this begins with the prompt's own ids, the answer's are the rest.
    apart      Where it does not, the prompt's ids stay those of the prompt alone. If a token begins where the prompt ends, the answer's
               ids are the tokens from there on; if one token lies over that border, the answer is encoded by itself, as a text that
               goes on. Such a sequence is not ``whole``, and runs say how many there are.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from editing.blanks import BLANKS, as_read, bare, between, joins_words
from editing.config import RAW, AnswerEnd, Join
from editing.messages import Asked
from editing.model.framing import Frame, describe_framings, frame, frame_of_chat
from editing.subjects import subject_span

Ids = tuple[int, ...]
Span = tuple[int, int]
"""The characters that a token is of, from the first to after the last."""

_BEFORE = ("\n", ".", "a")
"""Texts of one character; after one of them a tokenizer cuts, so that what follows is encoded as a text that goes on."""

_LETTERS = ("a", "the", "1", "的")
"""Texts one of which every tokenizer knows."""

_LANGUAGES = {
    "English": ("The capital of France is", "Lyon"),
    "French": ("« La capitale de la France », c'est", "Lyon"),
    "Russian": ("Столица Франции —", "Лион"),
    "Arabic": ("عاصمة فرنسا هي", "ليون"),
    "Hindi": ("फ़्रांस की राजधानी है", "ल्यों"),
    "Korean": ("프랑스의 수도는", "리옹"),
    "Chinese": ("法国的首都是", "里昂"),
    "Japanese": ("フランスの首都は", "リヨン"),
    "Thai": ("เมืองหลวงของฝรั่งเศสคือ", "ลียง"),
}
"""A prompt and an answer in several scripts, on which a tokenizer is tried when it is loaded."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A prompt with its answer as token ids.

    Attributes:
        prompt_ids: What is fed before the answer.
        answer_ids: The answer.
        whole: Whether prompt and answer encoded together, as typed, are these tokens.
    """

    prompt_ids: Ids
    answer_ids: Ids
    whole: bool


class Joiner:
    """Turns prompts and answers into token ids for one tokenizer.

    Args:
        tokenizer: A Hugging Face tokenizer.
        join: The rule.
        num_embeddings: Tokens that the model has embeddings for; ``None`` if that is not known.
        framings: The ways in which an edit is written; by default as it is typed. See :mod:`editing.model.framing`.
        answer_end: Where an edit writes what ends its answer too.
        finds_subjects: Whether the subject of an edit that comes without one is looked for in its prompt.

    Attributes:
        tokenizer: As given.
        join: As given.
        num_embeddings: As given.
        framings: As given, each a name or a definition.
        answer_end: As given.
        finds_subjects: As given.

    Raises:
        InputError: The tokenizer cannot write one of the framings.
    """

    def __init__(
        self,
        tokenizer: Any,
        join: Join = "raw",
        *,
        num_embeddings: int | None = None,
        framings: Sequence[str] = (RAW,),
        answer_end: AnswerEnd = "chat",
        finds_subjects: bool = False,
    ) -> None:
        self.tokenizer, self.join, self.num_embeddings = tokenizer, join, num_embeddings
        self.framings, self.answer_end, self.finds_subjects = tuple(framings), answer_end, finds_subjects
        self._frames = [frame(framing, tokenizer) for framing in self.framings]

    @classmethod
    def of(cls, tokenizer: Any) -> "Joiner":
        """A joiner as it is, or one with the default rule for a tokenizer."""
        return tokenizer if isinstance(tokenizer, cls) else cls(tokenizer)

    @cached_property
    def as_typed(self) -> "Joiner":
        """The joiner of the text as it is typed: this one, or for the published rule the raw one."""
        return Joiner(self.tokenizer, "raw", num_embeddings=self.num_embeddings) if self.join == "published" else self

    @cached_property
    def forms(self) -> "tuple[Joiner, ...]":
        """A joiner for each way in which an edit is written."""
        return tuple(self if one is None else FramedJoiner(self.as_typed, one) for one in self._frames)

    def framed(self, framing: str) -> "Joiner":
        """The joiner of one framing, whether edits are written so or not."""
        found = frame(framing, self.tokenizer)
        return self.as_typed if found is None else FramedJoiner(self.as_typed, found)

    def asking(self, asked: Asked) -> "tuple[Joiner, str]":
        """The joiner of a question, and its prompt: of a chat what the last message says, between what the model's template writes around it.

        Raises:
            InvalidRequest: It is a chat, and the model's template cannot write it.
        """
        return (self, asked) if isinstance(asked, str) else (FramedJoiner(self.as_typed, frame_of_chat(asked, self.tokenizer)), asked[-1].content)

    def forms_of(self, asked: Asked) -> "tuple[Joiner, ...]":
        """A joiner for each way in which an edit is written: a chat is written as it stands, and in no other way.

        Raises:
            InvalidRequest: As for :meth:`asking`.
        """
        return self.forms if isinstance(asked, str) else (self.asking(asked)[0],)

    def ending(self, form: "Joiner", answer: str) -> str:
        """What an edit writes after its answer in one of its forms."""
        return form.end(answer) if self.answer_end == "stop" or (self.answer_end == "chat" and form.is_chat) else ""

    @property
    def is_chat(self) -> bool:
        """Whether its texts are what a chat template writes."""
        return False

    def text(self, prompt: str) -> str:
        """The part of a prompt that is encoded."""
        return prompt if self.join == "published" else as_read(prompt)

    def place(self, prompt: str, subject: str) -> Span | None:
        """Where a subject stands in :meth:`text` of its prompt; ``None`` if it does not."""
        return subject_span(self.text(prompt), bare(subject))

    def end(self, answer: str) -> str:
        """What ends an answer: a full stop, or nothing where it ends a sentence by itself."""
        last = bare(answer)[-1:]
        return "" if unicodedata.category(last or " ") == "Po" else "。" if joins_words(last) else "."

    def prompt_ids(self, prompt: str) -> Ids:
        """What the model reads of a prompt before it writes, or of any other text."""
        return self._encode(self.text(prompt))[0]

    def joined(self, prompt: str, answer: str) -> Joined:
        """Ids of a prompt and its answer."""
        if self.join == "published":
            ids, answer_ids = self.prompt_ids(prompt), tuple(self.tokenizer(" " + answer, add_special_tokens=False)["input_ids"])
            return Joined(ids, answer_ids, ids + answer_ids == self.as_typed._together(prompt, answer)[1])
        text, together, spans = self._together(prompt, answer)
        ids = self._encode(text)[0]
        if together[: len(ids)] == ids and len(together) > len(ids):
            return Joined(ids, together[len(ids) :], True)
        rest = self._after(len(text), together, spans)
        return Joined(ids, self._continued(self._gap(prompt, answer) + bare(answer)) if rest is None else rest, False)

    def last_token(self, prompt: str, end: int) -> int | None:
        """Position of the token that a prompt's character before ``end`` is in, in :meth:`text` of the prompt."""
        text = self.text(prompt)
        ids, spans = self._encode(text)
        if spans is None or self.join == "published":  # which runs of earlier versions are replayed with, and so they placed it
            counted = len(self._encode(text[:end])[0]) - (len(self._around[1]) if self.join == "published" else 0)
            return min(counted, len(ids)) - 1
        return max((i for i, (a, b) in enumerate(spans) if a < min(end, b)), default=None)

    def without_embedding(self, ids: Iterable[int]) -> int | None:
        """The first of some ids that the model has no embedding for."""
        limit = self.num_embeddings
        return None if limit is None else next((i for i in ids if i >= limit), None)

    def findings(self) -> list[str]:
        """What this tokenizer does to a prompt and its answer, and what is done about it; a line each, none if it does nothing."""
        suffix = self._around[1]
        done = "it stays between prompt and answer" if self.join == "published" else "it is left out between prompt and answer"
        found = [f"the tokenizer ends every text with {self._named(suffix)}; {done}"] if suffix else []
        differing = [name for name, pair in _LANGUAGES.items() if not self._parts_agree(*pair)]
        if differing:
            done = "kept as published, with the metrics of the text as typed beside" if self.join == "published" else "both are encoded together"
            found.append(f"prompt and answer encoded together differ from their parts in {', '.join(differing)}; {done}")
        if self.framings != (RAW,):
            found.append(describe_framings(self.framings))
        return found

    def _parts_agree(self, prompt: str, answer: str) -> bool:
        """Whether a prompt's ids and an answer's ids, each encoded by itself, are those of both together."""
        gap = " " if self.join == "published" else self._gap(prompt, answer)
        parts = (*self.prompt_ids(prompt), *self.tokenizer(gap + answer, add_special_tokens=False)["input_ids"])
        return parts == self.as_typed._together(prompt, answer)[1]

    def _gap(self, prompt: str, answer: str) -> str:
        text = self.text(prompt)
        if self.join == "none":
            return prompt.lstrip(BLANKS)[len(text) :]
        return "" if text.endswith(self._specials) else between(text, bare(answer))

    def _together(self, prompt: str, answer: str) -> tuple[str, Ids, Sequence[Span] | None]:
        text = self.text(prompt)
        return text, *self._encode(text + self._gap(prompt, answer) + bare(answer))

    def _encode(self, text: str) -> tuple[Ids, Sequence[Span] | None]:
        """Ids of a text that goes on, and the characters of each where the tokenizer tells them."""
        encoded = self.tokenizer(text, **self._asked)
        ids, spans = tuple(encoded["input_ids"]), encoded.get("offset_mapping")
        if self.join == "published":
            return ids, spans
        prefix, suffix = self._around
        begin, end = 0, len(ids) - (len(suffix) if suffix and ids[-len(suffix) :] == suffix else 0)
        while prefix and ids[begin + len(prefix) : begin + 2 * len(prefix)] == prefix:
            begin += len(prefix)
        return ids[begin:end], spans and spans[begin:end]

    def _continued(self, text: str) -> Ids:
        """Ids of a text that goes on after something else."""
        for before in _BEFORE:
            rest = self._after(len(before), *self._encode(before + text))
            if rest:
                return rest
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @staticmethod
    def _after(border: int, ids: Ids, spans: Sequence[Span] | None) -> Ids | None:
        """The ids from a border between characters on, unless a token lies over it or nobody knows."""
        first = next((i for i, (_, end) in enumerate(spans or ()) if end > border), None)
        return None if first is None or spans is None or spans[first][0] < border else ids[first:]

    @cached_property
    def _asked(self) -> dict[str, bool]:
        """Tokenizers written in Python do not tell the characters of a token."""
        return {"return_offsets_mapping": True} if getattr(self.tokenizer, "is_fast", False) else {}

    @cached_property
    def _around(self) -> tuple[Ids, Ids]:
        """What the tokenizer puts before and after every text."""
        for text in _LETTERS:
            whole, own = (tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"]) for special in (True, False))
            at = next((i for i in range(len(whole)) if own and whole[i : i + len(own)] == own), None)
            if at is not None:
                return whole[:at], whole[at + len(own) :]
        return (), ()

    @cached_property
    def _specials(self) -> tuple[str, ...]:
        """Special tokens as text, none of which is a blank."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        return tuple(token.content for token in added if token.special and bare(token.content))

    def _named(self, ids: Ids) -> str:
        return " ".join(map(str, self.tokenizer.convert_ids_to_tokens(list(ids))))


class FramedJoiner(Joiner):
    """The joiner of prompts in a frame. What a chat template writes is encoded as it stands, as a serving engine does.

    Args:
        plain: The joiner of the text as it is typed.
        around: What is around the prompt.
    """

    def __init__(self, plain: Joiner, around: Frame) -> None:
        super().__init__(plain.tokenizer, plain.join, num_embeddings=plain.num_embeddings)
        self._frame = around

    @property
    def is_chat(self) -> bool:
        return self._frame.chat

    def text(self, prompt: str) -> str:
        framed = self._frame.before + bare(prompt) + self._frame.after
        return framed if self._frame.chat else as_read(framed)

    def place(self, prompt: str, subject: str) -> Span | None:
        before = self._frame.before if self._frame.chat else self._frame.before.lstrip(BLANKS)
        span = subject_span(bare(prompt), bare(subject))
        return span and (len(before) + span[0], len(before) + span[1])

    def end(self, answer: str) -> str:
        return self._frame.end if self._frame.chat else super().end(answer)

    def _gap(self, prompt: str, answer: str) -> str:
        return "" if self._frame.chat else super()._gap(prompt, answer)

    def _encode(self, text: str) -> tuple[Ids, Sequence[Span] | None]:
        if not self._frame.chat:
            return super()._encode(text)
        encoded = self.tokenizer(text, add_special_tokens=False, **self._asked)
        return tuple(encoded["input_ids"]), encoded.get("offset_mapping")
