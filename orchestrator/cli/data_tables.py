"""What a person sees of an edit set: what it holds, and what was written."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.tables import Column, Sheet

if TYPE_CHECKING:
    from orchestrator.data.inspection import Inspection
    from orchestrator.data.selection import Written

_SUMMARY = ("min", "mean", "median", "p95", "max")


def written_table(written: "Written", outputs: list[Path]) -> Sheet:
    """How many edits went into which file."""
    table = Sheet(Column("edits", right=True), Column("file", text=True))
    for count, output in zip(written.counts, outputs, strict=True):
        table.add(f"{count:,}", str(output))
    if written.num_rejected:
        table.add(f"{written.num_rejected:,}", f"{written.rejected} (bad records, with reasons)")
    return table


def inspection_parts(found: "Inspection") -> Iterator[Any]:
    """What was found, as a person reads it, with an empty line after each part."""
    files = f", {found.parts} parts" if found.parts > 1 else ""
    yield from (f"{found.path}: format {found.format}{files}", _counts(found), "")
    for table in (_lengths(found), _findings(found), _bad_records(found), _conflicts(found)):
        yield from (table, "") if table.rows else ()
    preview = _preview(found)
    yield from (preview,) if preview.rows else ()


def _counts(found: "Inspection") -> Sheet:
    values = found.as_dict()
    table = Sheet("", Column("edits", right=True))
    for name in ("records", "usable", "duplicates", "conflicts"):
        table.add(name, f"{values[name]:,}")
    for name, count in values["with"].items():
        each = found.probes[name.removesuffix("_prompt")]
        table.add(f"with {name}", f"{count:,}" + (f" ({each:,} prompts)" if each > count else ""))
    return table


def _lengths(found: "Inspection") -> Sheet:
    values = found.as_dict()
    table = Sheet("", *(Column(name, right=True) for name in _SUMMARY), title="Lengths")
    for unit in ("characters", "tokens"):
        for name, summary in values.get(unit, {}).items():
            if summary:
                table.add(f"{name}, {unit}", *(f"{summary[key]:,}" for key in _SUMMARY))
    return table


def _findings(found: "Inspection") -> Sheet:
    """What else a person should know, the worst first."""
    findings = found.findings
    table = Sheet(Column("count", right=True), Column("first", right=True), Column("what", text=True), title="What to know")

    def add(count: int, first: object, what: str) -> None:
        table.add(f"{count:,}", str(first), what)

    for name, tally in findings.unread.items():
        near = f"; did you mean {tally.near}?" if tally.near else ""
        add(tally.count, tally.first_record, f"{name}: unread, no field of the format{near}")
    for remark, tally in findings.no_change.items():
        add(tally.count, tally.first_record, f"changes nothing: {remark}")
    if findings.repeated_id is not None:
        name, earlier, later = findings.repeated_id
        add(findings.repeated_ids, later, f"id of an earlier edit; the first is {name!r} of record {earlier}")
    if (missing := findings.subject_not_in_prompt) is not None:
        add(missing.count, missing.first_record, "the subject does not stand in the prompt")
    for name, tally in findings.not_asked.items():
        add(tally.count, tally.first_record, f"{name}: further questions, which are not asked")
    if findings.unused:
        counts, firsts = zip(*((tally.count, tally.first_record) for tally in findings.unused.values()), strict=True)
        add(max(counts), min(firsts), f"known, and no edit needs them: {', '.join(findings.unused)}")
    return table


def _bad_records(found: "Inspection") -> Sheet:
    table = Sheet(Column("count", right=True), Column("first", right=True), Column("reason", text=True), title="Bad records")
    for entry in found.bad.values():
        table.add(f"{entry['count']:,}", str(entry["first_record"]), entry["reason"])
    return table


def _conflicts(found: "Inspection") -> Sheet:
    texts = (Column("prompt", text=True), Column("target", text=True))
    table = Sheet(Column("record", right=True), *texts, Column("other target in record", right=True), title="The first conflicts")
    for example in found.conflict_examples:
        table.add(str(example["record"]), _short(example["prompt"]), _short(example["target"]), str(example["earlier_record"]))
    return table


def _preview(found: "Inspection") -> Sheet:
    table = Sheet("field", Column("text", text=True), title="The first edits")
    for number, request in enumerate(found.as_dict()["preview"]):
        if number:
            table.add("", "")
        for name, value in request.items():
            for text in value if isinstance(value, list) else [value]:
                table.add(name, _short(text))
    return table


def _short(text: str) -> str:
    line = " ".join(text[:400].split())
    return line if len(line) <= 120 else line[:119].rstrip() + "…"
