"""Record formats of edit files: how each field of a record becomes a field of an edit request.

``docs/datasets.md`` says what each public data set holds, and what of it is asked.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from editing.datasets.questions import Question, answers, locality, portability
from editing.errors import InvalidRequest
from editing.requests import EditRequest

Record = Mapping[str, Any]

Converter = Callable[[Record, int], EditRequest]
"""Turns a record into a request, by a seed where there is a choice; raises :class:`InvalidRequest`."""


@dataclass(frozen=True, slots=True)
class Format:
    """One record format.

    Attributes:
        name: Name for ``--format``.
        signatures: Sets of fields; the presence of any one set tells this format from those after it in :data:`FORMATS`.
        convert: Turns a record into a request.
        split: Cuts a record that asks for several edits into records of one each; ``None`` where all ask for one.
    """

    name: str
    signatures: tuple[frozenset[str], ...]
    convert: Converter
    split: Callable[[Record], list[dict[str, Any]]] | None = None

    def fits(self, record: Record) -> bool:
        return any(signature <= record.keys() for signature in self.signatures)

    def __str__(self) -> str:
        return f"{self.name} ({' or '.join(', '.join(sorted(signature)) for signature in self.signatures)})"


def _request(values: dict[str, Any], **names: str) -> EditRequest:
    """A request; errors name the record's own fields.

    Args:
        values: By our names.
        names: Theirs.
    """
    values = {ours: _present(value) for ours, value in values.items()}
    values["id"] = _id(values.get("id"))
    if not values.get("locality_prompt"):
        values.pop("locality_answer", None)
    try:
        return EditRequest(**values)
    except InvalidRequest as error:
        raise InvalidRequest(names.get(error.field, error.field), error.reason) from None


def _flat(record: Record, **names: str) -> EditRequest:
    """A request whose fields a record has under other names."""
    return _request({ours: record.get(theirs) for ours, theirs in names.items()}, **names)


def _present(value: Any) -> Any:
    """A value, or ``None`` for NaN, which is how pandas writes a null."""
    return None if isinstance(value, float) and value != value else value


def _id(value: object) -> object:
    """A number becomes a text; Parquet's whole numbers are floats in a column that has nulls."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole else str(int(value)) if isinstance(value, float) and value.is_integer() else value


def _filled(rewrite: Record) -> Any:
    """The prompt of ROME's release with its subject put in."""
    prompt, subject = rewrite.get("prompt"), rewrite.get("subject")
    return prompt.replace("{}", subject) if isinstance(prompt, str) and isinstance(subject, str) else prompt


def _text_of(rewrite: Record, name: str) -> Any:
    value = rewrite.get(name)
    return value.get("str") if isinstance(value, Mapping) else value


def _first(record: Record, name: str) -> Any:
    values = record.get(name)
    return values[0] if isinstance(values, list) and values else None


def _rewrite(record: Record) -> Record:
    rewrite = record.get("requested_rewrite")
    if not isinstance(rewrite, Mapping):
        raise InvalidRequest("requested_rewrite", f"expected an object, found {type(rewrite).__name__}")
    return rewrite


_LOC = {"locality_prompt": "loc", "locality_answer": "loc_ans"}
_PORTABILITY = {"multi_hop_prompt": "portability", "multi_hop_answer": "portability"}


def _ultraeditbench(record: Record, _seed: int) -> EditRequest:
    return _flat(record, prompt="prompt", target="ans", subject="subject", rephrase="rephrase_prompt", **_LOC)


def _zsre(record: Record, _seed: int) -> EditRequest:
    """Both variants: the method's own (``ans``; its locality questions lack their question mark) and MEND's (``alt``)."""
    names = {"prompt": "src", "target": "ans" if "ans" in record else "alt", "subject": "subject", "rephrase": "rephrase", **_LOC}
    values = {ours: record.get(theirs) for ours, theirs in names.items()} | _asked(portability(record))
    loc = values["locality_prompt"]
    if "ans" in record and isinstance(loc, str) and loc.strip():
        values["locality_prompt"] = loc + "?"
    return _request(values, **names, **_PORTABILITY)


def _wikibigedit(record: Record, _seed: int) -> EditRequest:
    names = {"prompt": "update", "target": "ans", "subject": "subject", "rephrase": "rephrase", "persona": "personas", **_LOC}
    if _present(record.get("mhop")) is not None:
        names |= {"multi_hop_prompt": "mhop", "multi_hop_answer": "mhop_ans"}
    return _flat(record, **names)


def _fever(record: Record, seed: int) -> EditRequest:
    """One of the equivalent prompts is the rephrase, told by the seed and the claim: the same in every part and every resume."""
    equivalent = record.get("equiv_prompt")
    if isinstance(equivalent, list):
        digest = hashlib.blake2b(f"{seed}:{record.get('prompt')}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        equivalent = equivalent[int.from_bytes(digest) % len(equivalent)] if equivalent else None
    names = {"prompt": "prompt", "target": "alt", "rephrase": "equiv_prompt", "locality_prompt": "unrel_prompt", "locality_answer": "unrel_ans"}
    return _flat({**record, "equiv_prompt": equivalent}, **names)


_COUNTERFACT = {
    "id": "case_id",
    "prompt": "prompt",
    "target": "target_new",
    "subject": "subject",
    "rephrase": "rephrase_prompt",
    "locality_prompt": "locality_prompt",
    "locality_answer": "locality_ground_truth",
}


def _counterfact(record: Record, _seed: int) -> EditRequest:
    """Flat (EasyEdit's) or nested (the original's: the first paraphrase and the first neighbour are the probes)."""
    if "requested_rewrite" not in record:
        return _flat(record, **_COUNTERFACT)
    rewrite = _rewrite(record)
    values = {
        "id": record.get("case_id"),
        "prompt": _filled(rewrite),
        "target": _text_of(rewrite, "target_new"),
        "subject": rewrite.get("subject"),
        "rephrase": _first(record, "paraphrase_prompts"),
        "locality_prompt": _first(record, "neighborhood_prompts"),
        "locality_answer": _text_of(rewrite, "target_true"),
    }
    nested = {"rephrase": "paraphrase_prompts", "locality_prompt": "neighborhood_prompts", "locality_answer": "target_true"}
    return _request(values, **{**_COUNTERFACT, **nested})


def _mquake(record: Record, _seed: int) -> EditRequest:
    rewrite = _rewrite(record)
    questions = record.get("questions")
    asked = questions if isinstance(questions, list) else [] if questions is None else [questions]
    values = {
        "id": record.get("case_id"),
        "prompt": _filled(rewrite),
        "target": _text_of(rewrite, "target_new"),
        "subject": rewrite.get("subject"),
        "rephrase": rewrite.get("question"),
        "multi_hop_prompt": asked,
        "multi_hop_answer": [record.get("new_answer")] * len(asked),
    }
    names = {"id": "case_id", "target": "target_new", "rephrase": "question", "multi_hop_prompt": "questions", "multi_hop_answer": "new_answer"}
    return _request(values, **names)


def _split_mquake(record: Record) -> list[dict[str, Any]]:
    """One record for each edit; the questions, which need all of them, go with the last."""
    rewrites = record.get("requested_rewrite")
    if not isinstance(rewrites, list) or not rewrites:
        return [dict(record)]
    case = _id(record.get("case_id"))
    ids = [case] if len(rewrites) == 1 or not isinstance(case, str) else [f"{case}-{i}" for i in range(1, len(rewrites) + 1)]
    parts = [{"case_id": ids[min(i, len(ids) - 1)], "requested_rewrite": rewrite} for i, rewrite in enumerate(rewrites)]
    parts[-1] |= {name: record[name] for name in ("questions", "new_answer") if name in record}
    return parts


def _knowedit(record: Record, _seed: int) -> EditRequest:
    """Records of facts, and of WikiBio (``text``, ``labels``, ``concept``).

    A record without a rephrase of its own has one in the edited question with an alias of the subject.
    """
    names = _COUNTERFACT if "target_new" in record else {"prompt": "text", "target": "labels", "subject": "concept"}
    values = {ours: record.get(theirs) for ours, theirs in names.items()} | _asked(portability(record))
    names = {**names, **_PORTABILITY}
    for question in locality(record)[:1]:
        values |= {"locality_prompt": question.prompt, "locality_answer": question.answer}
        names |= {"locality_prompt": "locality", "locality_answer": "locality"}
    aliased = portability(record, "Subject_Aliasing")
    if values.get("rephrase") is None:
        values["rephrase"] = next((q.prompt for q in aliased if values["target"] in q.answers), None)
        names["rephrase"] = "portability"
    return _request(values, **names)


def _asked(questions: list[Question]) -> dict[str, list[Any]]:
    return {"multi_hop_prompt": [q.prompt for q in questions], "multi_hop_answer": [q.answer for q in questions]}


def _qaedit(record: Record, _seed: int) -> EditRequest:
    probes = record.get("locality")
    probe = (probes[0] if probes else None) if isinstance(probes, list) else probes
    if probe is not None and not isinstance(probe, Mapping):
        raise InvalidRequest("locality", f"expected objects with loc and loc_ans, found {type(probe).__name__}")
    loc_ans = next(iter(answers("loc_ans", (probe or {}).get("loc_ans"))), None)
    names = {name: name for name in ("id", "prompt", "target", "subject", "rephrase")}
    return _flat({**record, "loc": (probe or {}).get("loc"), "loc_ans": loc_ans}, **names, **_LOC)


def _jsonl(record: Record, _seed: int) -> EditRequest:
    return _flat(record, **{name: name for name in EditRequest.__slots__})


def _fields(*signatures: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(signature.split()) for signature in signatures)


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("mquake", _fields("requested_rewrite questions"), _mquake, _split_mquake),
        Format("knowedit", _fields("target_new portability", "target_new locality", "text labels concept"), _knowedit),
        Format("counterfact", _fields("target_new", "requested_rewrite"), _counterfact),
        Format("wikibigedit", _fields("update ans"), _wikibigedit),
        Format("fever", _fields("prompt alt"), _fever),
        Format("ultraeditbench", _fields("prompt ans"), _ultraeditbench),
        Format("zsre", _fields("src"), _zsre),
        Format("qaedit", _fields("prompt target locality"), _qaedit),
        Format("jsonl", _fields("prompt target"), _jsonl),
    )
}
"""By name, the special ones before the general ones, which their records fit too."""

_RANK = {name: rank for rank, name in enumerate(FORMATS)}


def recognise(record: Record) -> Format | None:
    """The format that a record's fields tell, or ``None``."""
    return next((f for f in FORMATS.values() if f.fits(record)), None)


def more_special(record: Record, format: Format) -> Format | None:
    """The format of a record that has fields which another format would leave unread."""
    found = recognise(record)
    return found if found is not None and _RANK[found.name] < _RANK[format.name] else None
