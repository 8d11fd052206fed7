"""What an edit file holds, found in one pass at constant memory: ``ultraedit data inspect``."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from editing import EditRequest, InputError, InvalidRequest
from editing.datasets import BadRecord, EditFile
from editing.datasets.writing import request_row
from orchestrator.findings import Findings, refuse_unread
from orchestrator.run.conflicts import PromptIndex

_EXAMPLES = 5
_PREVIEW = 3
_REASONS = 50
"""Kinds of reasons that are told apart."""

_PROBES = ("id", "subject", "rephrase", "persona", "multi_hop_prompt", "portability_prompt", "locality_prompt", "locality_answer")
_LENGTHS = ("prompt", "target")


class Lengths:
    """How long texts are: a count for each length, of which a file has few."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, length: int) -> None:
        self._counts[length] += 1

    def summary(self) -> dict[str, float]:
        """Least, mean, median, 95th percentile and most; nothing of no texts."""
        total = self._counts.total()
        if not total:
            return {}
        mean = sum(length * count for length, count in self._counts.items()) / total
        return {"min": min(self._counts), "mean": round(mean, 2), "median": self._at(0.5), "p95": self._at(0.95), "max": max(self._counts)}

    def _at(self, share: float) -> int:
        left = share * self._counts.total()
        for length, count in sorted(self._counts.items()):
            left -= count
            if left <= 0:
                return length
        return max(self._counts)


@dataclass
class Inspection:
    """What an edit file holds.

    Attributes:
        path: The file or folder.
        format: Name of its records' format.
        parts: Number of files.
        records: Records, good and bad; one that asks for several edits counts as many times.
        usable: Requests among them.
        with_field: Usable requests that have a field, by field.
        probes: Prompts of each kind that may have several to a request.
        characters: Lengths of prompts and targets.
        tokens: The same in tokens of a model, if one was given.
        duplicates: Requests whose prompt had the same target before.
        conflicts: Requests whose prompt had another target before.
        conflict_examples: The first of them.
        bad: Number of bad records, and the first one, by kind of reason.
        findings: What else there is to say of the records.
        preview: The first usable requests.
    """

    path: str
    format: str
    parts: int
    records: int = 0
    usable: int = 0
    with_field: Counter[str] = field(default_factory=Counter)
    probes: Counter[str] = field(default_factory=Counter)
    characters: dict[str, Lengths] = field(default_factory=lambda: {name: Lengths() for name in _LENGTHS})
    tokens: dict[str, Lengths] = field(default_factory=lambda: {name: Lengths() for name in _LENGTHS})
    duplicates: int = 0
    conflicts: int = 0
    conflict_examples: list[dict[str, Any]] = field(default_factory=list)
    bad: dict[str, dict[str, Any]] = field(default_factory=dict)
    findings: Findings = field(default_factory=lambda: Findings(on_disk=True))
    preview: list[EditRequest] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        tokens = {name: lengths.summary() for name, lengths in self.tokens.items()}
        return {
            **{name: getattr(self, name) for name in ("path", "format", "parts", "records", "usable")},
            "with": {name: self.with_field[name] for name in _PROBES if self.with_field[name]},
            "probes": {kind: count for kind, count in self.probes.items() if count},
            "characters": {name: lengths.summary() for name, lengths in self.characters.items()},
            **({"tokens": tokens} if any(tokens.values()) else {}),
            **{name: getattr(self, name) for name in ("duplicates", "conflicts", "conflict_examples", "bad")},
            **self.findings.as_dict(),
            "preview": [request_as_dict(request) for request in self.preview],
        }

    def add_bad(self, bad: BadRecord) -> None:
        """Count a bad record under its reason, whatever numbers and quoted texts that holds."""
        kind = re.sub(r"\d[\d,]*", "N", re.sub(r"'.*'", "'...'", bad.reason, flags=re.DOTALL))
        if kind not in self.bad and len(self.bad) >= _REASONS:
            kind = "other reasons"
        entry = self.bad.setdefault(kind, {"count": 0, "first_record": bad.number, "reason": bad.reason[:300]})
        entry["count"] += 1

    def add_request(self, number: int, request: EditRequest, index: PromptIndex) -> None:
        """Count a usable request."""
        self.usable += 1
        self.with_field.update(name for name in _PROBES if getattr(request, name))
        self.probes.update({name: len(getattr(request, f"{name}_prompt", request.persona)) for name in ("persona", "multi_hop", "portability")})
        for name, lengths in self.characters.items():
            lengths.add(len(getattr(request, name)))
        if self.usable <= _PREVIEW:
            self.preview.append(request)
        before = index.see(request, number)
        if before is None:
            return
        self.duplicates += before.same_target
        self.conflicts += not before.same_target
        if not before.same_target and len(self.conflict_examples) < _EXAMPLES:
            example = {"record": number, "prompt": request.prompt, "target": request.target, "earlier_record": before.record}
            self.conflict_examples.append(example)


def inspect(
    source: EditFile,
    *,
    tokenizer: Any = None,
    max_tokens: int | None = None,
    limit: int | None = None,
    strict: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Inspection:
    """Read an edit file once.

    Args:
        source: The file.
        tokenizer: A model's, or its joiner, to count tokens too and to find what that model cannot take.
        max_tokens: That model's context length.
        limit: Look at the first so many records only.
        strict: Stop at the first bad record, and at the first field that nobody reads.
        advance: Called with 1 after each record.

    Raises:
        InputError: The file cannot be read, or is of no known format; or as ``strict`` says.
    """
    found, index = Inspection(str(source.path), source.format.name, len(source.parts)), PromptIndex(on_disk=True)
    for record in source:
        if found.records == limit:
            break
        found.records += 1
        advance(1)
        if strict:
            refuse_unread(source, record)
        if isinstance(record, BadRecord):
            if strict:
                raise InputError(f"{source.path}: record {record.number}: {record.reason}")
            found.add_bad(record)
            continue
        try:
            lengths = _token_lengths(tokenizer, record.request, max_tokens) if tokenizer is not None else ()
        except InvalidRequest as error:
            found.add_bad(BadRecord(record.number, str(error)))
            continue
        for name, length in zip(_LENGTHS, lengths, strict=False):
            found.tokens[name].add(length)
        found.findings.add(record)
        found.add_request(record.number, record.request, index)
    return found


def request_as_dict(request: EditRequest) -> dict[str, Any]:
    """The fields that a request has, as lists and texts."""
    values = request_row(request)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value}


def _token_lengths(tokenizer: Any, request: EditRequest, max_tokens: int | None) -> Iterator[int]:
    from editing.turn import tokenize  # and with it torch, which nothing else here needs

    edit = tokenize(tokenizer, request, max_tokens=max_tokens)
    answer = len(edit.sequence.answer_ids)
    return iter((len(edit.sequence.input_ids) - answer + 1, answer))
