"""What a person asks for: one edit, with the probes that tell whether it worked."""

from dataclasses import dataclass, fields

from editing.blanks import bare
from editing.errors import InvalidRequest

TEXT_LISTS = ("persona", "multi_hop_prompt", "multi_hop_answer", "portability_prompt", "portability_answer")
"""Fields that hold any number of texts; the others hold one or none."""

_MAX_CHARACTERS = 1_000_000
"""Far above any model's context; tokenizers take minutes over what is longer."""


@dataclass(frozen=True, slots=True)
class EditRequest:
    """One fact to write into the model. :data:`TEXT_LISTS` may be given as one text or as a list, and become tuples.

    Attributes:
        prompt: Text after which the model shall write ``target``.
        target: The new answer. Blanks at its edges and at the prompt's are kept here; what they say is in :mod:`editing.blanks`.
        id: Name of the edit in results; ``None`` lets the run number it.
        subject: What the fact is about, as it stands in the prompt. Edits at the subject need it; the published method does not.
        rephrase: The same question in other words; probes generalization.
        locality_prompt: A question that the edit must not change; probes specificity and retention.
        locality_answer: The true answer to ``locality_prompt``.
        persona: The same question as other people would ask it; probes generalization to them.
        multi_hop_prompt: Questions whose answers follow from the edit and from facts that the model knows.
        multi_hop_answer: Their answers once the edit holds, one a question.
        portability_prompt: Questions of any other kind that the edit changes too: by another name of the subject, the other way round.
        portability_answer: Their answers once the edit holds, one a question.

    Raises:
        InvalidRequest: A field is missing, blank, too long or not text.
    """

    prompt: str
    target: str
    id: str | None = None
    subject: str | None = None
    rephrase: str | None = None
    locality_prompt: str | None = None
    locality_answer: str | None = None
    persona: tuple[str, ...] = ()
    multi_hop_prompt: tuple[str, ...] = ()
    multi_hop_answer: tuple[str, ...] = ()
    portability_prompt: tuple[str, ...] = ()
    portability_answer: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in TEXT_LISTS:
                object.__setattr__(self, field.name, _texts(field.name, value))
            elif value is not None or field.name in ("prompt", "target"):
                _check_text(field.name, value)
        if self.locality_answer is not None and self.locality_prompt is None:
            raise InvalidRequest("locality_answer", "given without a locality_prompt")
        for kind in ("multi_hop", "portability"):
            asked, answered = len(getattr(self, f"{kind}_prompt")), len(getattr(self, f"{kind}_answer"))
            if asked != answered:
                raise InvalidRequest(f"{kind}_answer", f"expected one answer for each question, found {answered} for {asked}")

    def asks_as(self, other: "EditRequest") -> bool:
        """Whether another request has the same prompt, whatever blanks are at its edges."""
        return bare(self.prompt) == bare(other.prompt)

    def answers_as(self, other: "EditRequest") -> bool:
        """The same of its target."""
        return bare(self.target) == bare(other.target)


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts = () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for text in texts:
        _check_text(name, text)
    return texts


def _check_text(name: str, value: object) -> None:
    if value is None:
        raise InvalidRequest(name, "missing; expected a non-empty text")
    if not isinstance(value, str):
        raise InvalidRequest(name, f"expected a text, found {type(value).__name__}")
    if not bare(value):
        raise InvalidRequest(name, "expected a non-empty text, found only blanks" if value else "expected a non-empty text")
    if len(value) > _MAX_CHARACTERS:
        raise InvalidRequest(name, f"is {len(value):,} characters long; expected at most {_MAX_CHARACTERS:,}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(name, "contains a lone surrogate, which is not valid Unicode text") from None
