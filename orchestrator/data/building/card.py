"""What a build counted, and the data card that tells of it."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from editing.datasets.parts import Part
from orchestrator.data.building.edits import EDITS
from orchestrator.data.building.pools import POOL_SIZE
from orchestrator.data.building.rows import Row, add_note
from orchestrator.data.building.sources import find_files
from orchestrator.data.building.templates import Templates

if TYPE_CHECKING:
    from orchestrator.data.building import BuildConfig

SET_ASIDE = {
    "malformed": "triples that are none",
    "no template": "triples of a relation without a template",
    "one template": "triples of a relation with fewer than two templates",
    "no name": "triples with an entity that has no name",
    "malformed alias line": "lines of an alias file without an id and a name",
    "entity named twice": "further lines of an entity in the alias files",
    "duplicate": "triples that say again what another says",
    "no target": "facts for which no other object of the relation and type is known",
    "no probe": "facts beside which no probe of another subject and relation was found",
}
"""What is set aside, in words; some is set aside before facts are made of triples, some after."""

_RULES = """\
* A *fact* is a subject, a relation and every object that the triples give it; spellings that differ in case or blanks alone are one name.
* Each edit asks for a fact in the words of one template, the equivalent prompt in those of another template of the same relation.
* `ans` is an object of the same relation (and type, where the triples tell types). It is none of the fact's true objects, by any name
  of theirs, nor its subject. It is drawn from a sample of at most {pool:,} objects of each relation and type.
* `loc` asks for a fact of another subject and another relation, and `loc_ans` is its true and only object. Such facts are kept for
  this, a share of {share:g} of all with one object: none of them is edited anywhere in the set. One may serve several edits.
* Every choice is a digest of the seed and the fact. The rows do not depend on the order of the triples, nor on how many processes
  or machines built them.
"""


class Counts:
    """Notes of a build, added up."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, str | None], Row] = {}

    def add(self, row: Row) -> None:
        add_note(self._notes, row)

    def total(self, note: str, relation: str | None = None) -> int:
        """How often something was noted, at all or of one relation."""
        return sum(row.number or 0 for (kind, of), row in self._notes.items() if kind == note and relation in (None, of))

    def example(self, note: str) -> str:
        return min((row.object for (kind, _), row in self._notes.items() if kind == note and row.object), default="")

    def relations(self, note: str) -> list[str]:
        """The relations of which something was noted, the most frequent first."""
        found = [(-(row.number or 0), of) for (kind, of), row in self._notes.items() if kind == note and of is not None]
        return [of for _, of in sorted(found)]

    def set_aside(self) -> dict[str, int]:
        """How many were set aside, by the reason."""
        return {note: total for note in SET_ASIDE if (total := self.total(note))}

    def reasons(self) -> list[str]:
        """What was set aside, in words, each with an example."""
        return [f"{total:,} {SET_ASIDE[note]} (one is {self.example(note)})" for note, total in self.set_aside().items()]


def write_card(path: Path, config: "BuildConfig", templates: Templates, files: Sequence[Part], counts: Counts) -> None:
    """Write the data card. The same inputs and options give the same card, wherever they lie."""
    path.write_text("\n".join(_card(config, templates, [*files, *find_files([config.templates])], counts)) + "\n", encoding="utf-8")


def _card(config: "BuildConfig", templates: Templates, files: Sequence[Part], counts: Counts) -> Iterable[str]:
    yield f"# {counts.total('edit'):,} edits\n"
    options = f"with seed {config.seed} and a probe share of {config.probe_share:g}"
    yield f"Built by `ultraedit data build` from {counts.total('triple'):,} triples, {options}."
    yield f"The rows are in `part-*.parquet`, in an order drawn with the seed: {', '.join(f'`{name}`' for name in EDITS.names)}."
    yield "`ultraedit edit --edits` reads this folder.\n"
    yield "## Rules\n"
    yield _RULES.format(pool=POOL_SIZE, share=config.probe_share)
    yield "## Set aside\n"
    yield from _table(["what", "how many", "for example"], [[SET_ASIDE[k], f"{n:,}", counts.example(k)] for k, n in counts.set_aside().items()])
    if missing := counts.relations("no template"):
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        yield f"Relations without a template, the most frequent first: {', '.join(missing[:20])}{more}.\n"
    yield "## Relations\n"
    relations = sorted({*counts.relations("edit"), *counts.relations("probe")}, key=lambda r: (-counts.total("edit", r), r))
    rows = [[r, templates.labels.get(r, r), *(f"{counts.total(n, r):,}" for n in ("edit", "probe", "no target", "no probe"))] for r in relations]
    yield from _table(["relation", "label", "edits", "facts kept as probes", "without a target", "without a probe"], rows)
    yield "## Inputs\n"
    yield from _table(["file", "bytes", "SHA-256"], [[file.path.name, f"{file.num_bytes:,}", _digest(file.path)] for file in files])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    if not rows:
        yield "None.\n"
        return
    yield from ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [head, ["---"] * len(head), *rows])
    yield ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
