"""Record formats of edit files: how each field of a record becomes a field of an edit request."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from editing.errors import InvalidRequest
from editing.requests import EditRequest

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Format:
    """One record format.

    Attributes:
        name: Name for ``--format``.
        signature: Fields whose presence tells this format from the others.
        convert: Turns a record into a request; raises :class:`InvalidRequest`.
    """

    name: str
    signature: frozenset[str]
    convert: Callable[[Record], EditRequest]

    def fits(self, record: Record) -> bool:
        return self.signature <= record.keys()


def _flat(**fields: str) -> Callable[[Record], EditRequest]:
    """A converter that renames fields; errors name the record's own field."""

    def convert(record: Record) -> EditRequest:
        values: dict[str, Any] = {ours: record.get(theirs) for ours, theirs in fields.items()}
        if values.get("id") is not None and not isinstance(values["id"], str):
            values["id"] = str(values["id"])
        if not values.get("locality_prompt"):
            values.pop("locality_answer", None)
        try:
            return EditRequest(**values)
        except InvalidRequest as error:
            raise InvalidRequest(fields.get(error.field, error.field), error.reason) from None

    return convert


def _ultraeditbench(record: Record) -> EditRequest:
    return _flat(prompt="prompt", target="ans", subject="subject", rephrase="rephrase_prompt", locality_prompt="loc", locality_answer="loc_ans")(
        record
    )


def _zsre(record: Record) -> EditRequest:
    """Both variants: the method's own (``ans``; its locality questions lack their question mark) and MEND's (``alt``)."""
    target = "ans" if "ans" in record else "alt"
    loc = record.get("loc")
    if target == "ans" and isinstance(loc, str) and loc.strip():
        record = {**record, "loc": loc + "?"}
    return _flat(prompt="src", target=target, subject="subject", rephrase="rephrase", locality_prompt="loc", locality_answer="loc_ans")(record)


_counterfact_flat = _flat(
    id="case_id",
    prompt="prompt",
    target="target_new",
    subject="subject",
    rephrase="rephrase_prompt",
    locality_prompt="locality_prompt",
    locality_answer="locality_ground_truth",
)


def _counterfact(record: Record) -> EditRequest:
    """Flat (EasyEdit's) or nested (the original's: the first paraphrase and the first neighbour are the probes)."""
    if "requested_rewrite" not in record:
        return _counterfact_flat(record)
    rewrite = record["requested_rewrite"]
    if not isinstance(rewrite, Mapping):
        raise InvalidRequest("requested_rewrite", f"expected an object, found {type(rewrite).__name__}")
    prompt, subject = rewrite.get("prompt"), rewrite.get("subject")
    filled = prompt.replace("{}", subject) if isinstance(prompt, str) and isinstance(subject, str) else prompt
    flat = {
        "case_id": record.get("case_id"),
        "prompt": filled,
        "target_new": _text_of(rewrite, "target_new"),
        "subject": subject,
        "rephrase_prompt": _first(record, "paraphrase_prompts"),
        "locality_prompt": _first(record, "neighborhood_prompts"),
        "locality_ground_truth": _text_of(rewrite, "target_true"),
    }
    return _counterfact_flat(flat)


def _text_of(rewrite: Record, name: str) -> Any:
    value = rewrite.get(name)
    return value.get("str") if isinstance(value, Mapping) else value


def _first(record: Record, name: str) -> Any:
    values = record.get(name)
    return values[0] if isinstance(values, list) and values else None


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("counterfact", frozenset({"target_new"}), _counterfact),
        Format("ultraeditbench", frozenset({"prompt", "ans"}), _ultraeditbench),
        Format("zsre", frozenset({"src"}), _zsre),
        Format(
            "jsonl",
            frozenset({"prompt", "target"}),
            _flat(**{n: n for n in ("id", "prompt", "target", "subject", "rephrase", "locality_prompt", "locality_answer")}),
        ),
    )
}


def recognise(record: Record) -> Format | None:
    """The format that a record's fields tell, or ``None``."""
    if "requested_rewrite" in record:
        return FORMATS["counterfact"]
    return next((f for f in FORMATS.values() if f.fits(record)), None)
