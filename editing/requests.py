"""What a person asks for: one edit, with the probes that tell whether it worked."""

from dataclasses import dataclass, fields

from editing.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class EditRequest:
    """One fact to write into the model.

    Attributes:
        prompt: Text after which the model shall write ``target``.
        target: The new answer, without a leading space.
        id: Name of the edit in results; ``None`` lets the run number it.
        subject: What the fact is about. Kept for reports; the method does not need it.
        rephrase: The same question in other words; probes generalization.
        locality_prompt: A question that the edit must not change; probes specificity and retention.
        locality_answer: The true answer to ``locality_prompt``.

    Raises:
        InvalidRequest: A field is missing, blank or not text.
    """

    prompt: str
    target: str
    id: str | None = None
    subject: str | None = None
    rephrase: str | None = None
    locality_prompt: str | None = None
    locality_answer: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_text(field.name, getattr(self, field.name), required=field.name in ("prompt", "target"))
        if self.locality_answer is not None and self.locality_prompt is None:
            raise InvalidRequest("locality_answer", "given without a locality_prompt")


def _check_text(name: str, value: object, *, required: bool) -> None:
    if value is None:
        if required:
            raise InvalidRequest(name, "missing; expected a non-empty text")
        return
    if not isinstance(value, str):
        raise InvalidRequest(name, f"expected a text, found {type(value).__name__}")
    if not value.strip():
        raise InvalidRequest(name, "expected a non-empty text, found only blanks" if value else "expected a non-empty text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(name, "contains a lone surrogate, which is not valid Unicode text") from None
