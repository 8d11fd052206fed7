"""From triples to edits, each with an equivalent prompt and an unrelated probe: the rules of the set.

A *fact* is a subject, a relation and all objects that the triples give it. A share of the facts is kept as probes and is
never edited; every other one becomes an edit. All that is chosen depends on the seed and the fact, not on the order of work.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.building.rows import Row, counted, digest, same
from orchestrator.data.building.templates import Templates

EDITS = pa.schema([(name, pa.string()) for name in ("prompt", "rephrase_prompt", "ans", "loc", "loc_ans", "subject", "relation", "ground_truth")])
"""UltraEditBench's fields, with the relation's id and the true object beside them."""

PoolsByKind = Mapping[tuple[str | None, str | None], Sequence[str]]
"""Objects by relation and type."""


@dataclass
class Fact:
    """A subject, a relation and what is true of them.

    Attributes:
        seed: Of the build.
        relation: Its id.
        subjects: Spellings of the subject.
        objects: Spellings of its objects, by what they have in common.
        types: Types of the objects, by the same.
        others: Other names of the objects.
    """

    seed: int
    relation: str
    subjects: set[str] = field(default_factory=set)
    objects: dict[str, str] = field(default_factory=dict)
    types: dict[str, str | None] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)

    def add(self, row: Row) -> bool:
        """Take in a triple; whether it said something new."""
        assert row.subject is not None
        assert row.object is not None
        object_ = same(row.object)
        is_new = object_ not in self.objects
        self.subjects.add(row.subject)
        self.objects[object_] = min(row.object, self.objects.get(object_, row.object))
        self.types[object_] = min(row.object_type, self.types.get(object_, row.object_type), key=str)  # two things of one name
        self.others.update(map(same, row.names or ()))
        return is_new

    @property
    def subject(self) -> str:
        return min(self.subjects)

    @cached_property
    def key(self) -> str:
        """What all spellings of the subject have in common."""
        return same(self.subject)

    @property
    def answer(self) -> str:
        """A true object."""
        return self.objects[min(self.objects)]

    @property
    def answer_type(self) -> str | None:
        return self.types[min(self.objects)]

    @cached_property
    def number(self) -> int:
        """Its place in the set."""
        return self.choose("place")

    def choose(self, what: str) -> int:
        """A number of 64 bits for one choice about this fact."""
        return digest(self.seed, what, self.relation, self.key)

    def is_probe(self, share: float) -> bool:
        """Whether it is kept as a probe. One with several true objects is not: a model would be right with another."""
        return len(self.objects) == 1 and self.choose("probe") < share * 2**64


def by_fact(row: Row, *, seed: int) -> int:
    """Brings a fact's triples together, and everything else anywhere."""
    return digest(seed, "bucket", row.relation, same(row.subject or ""))


def make_edits(
    bucket: int,
    rows: Iterable[Row],
    *,
    folder: Path,
    templates: Templates,
    pools: PoolsByKind,
    seed: int,
    probe_share: float,
) -> Iterator[Row]:
    """Make the edits of one bucket of facts and write them to a part of the set.

    Args:
        bucket: Number of the part.
        rows: All triples of the bucket's facts, in any order; anything else is passed over.
        folder: Where the parts go.
        templates: Of all relations in ``rows``.
        pools: Objects by relation and type.
        seed: Of the build.
        probe_share: Share of the facts that become probes.

    Yields:
        Notes of what was made and what was set aside.
    """
    facts: dict[tuple[str | None, str], Fact] = {}
    for row in rows:
        if row.is_triple:
            assert row.subject is not None
            assert row.relation is not None
            fact = facts.setdefault((row.relation, same(row.subject)), Fact(seed, row.relation))
            if not fact.add(row):
                yield counted("duplicate", row.relation, f"{row.subject}: {row.object}")
    ordered = sorted(facts.values(), key=attrgetter("number"))
    probes = Probes([fact for fact in ordered if fact.is_probe(probe_share)])
    edits: list[dict[str, str]] = []
    for fact in ordered:
        if fact.is_probe(probe_share):
            yield counted("probe", fact.relation)
            continue
        edit = _make_edit(fact, templates, pools, probes)
        if isinstance(edit, dict):
            edits.append(edit)
            edit = "edit"
        yield counted(edit, fact.relation, None if edit == "edit" else f"{fact.subject}: {fact.answer}")
    if edits:
        _write(folder / f"part-{bucket:05d}.parquet", edits)


class Probes:
    """Facts that stay as they are, to be asked for beside edits of other subjects and relations.

    Args:
        facts: In any fixed order.
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        self._facts = sorted(facts, key=attrgetter("relation"))

    def beside(self, fact: Fact) -> Fact | None:
        """A probe for an edit of this fact; ``None`` if all are about its subject or its relation."""
        first = bisect_left(self._facts, fact.relation, key=attrgetter("relation"))
        last = bisect_right(self._facts, fact.relation, key=attrgetter("relation"))
        num_others = len(self._facts) - (last - first)
        start = fact.choose("unrelated") if num_others else 0
        for step in range(num_others):
            at = (start + step) % num_others
            probe = self._facts[at if at < first else at + last - first]
            if probe.key != fact.key:
                return probe
        return None


def _make_edit(fact: Fact, templates: Templates, pools: PoolsByKind, probes: Probes) -> dict[str, str] | str:
    """An edit, or the reason why there is none."""
    if (target := _target(fact, pools)) is None:
        return "no target"
    if (probe := probes.beside(fact)) is None:
        return "no probe"
    first, second = fact.choose("template"), fact.choose("equivalent")
    step = 1 + second % (len(templates.texts[fact.relation]) - 1)
    return {
        "prompt": templates.fill(fact.relation, first, fact.subject),
        "rephrase_prompt": templates.fill(fact.relation, first + step, fact.subject),
        "ans": target,
        "loc": templates.fill(probe.relation, probe.choose("template"), probe.subject),
        "loc_ans": probe.answer,
        "subject": fact.subject,
        "relation": fact.relation,
        "ground_truth": fact.answer,
    }


def _target(fact: Fact, pools: PoolsByKind) -> str | None:
    """An object of the same relation and type that is not true of the fact, by any of its names, nor its subject."""
    pool = pools.get((fact.relation, fact.answer_type), ())
    start = fact.choose("target") if pool else 0
    for step in range(len(pool)):
        target = pool[(start + step) % len(pool)]
        if (found := same(target)) not in fact.objects and found not in fact.others and found != fact.key:
            return target
    return None


def _write(path: Path, edits: Sequence[Mapping[str, str]]) -> None:
    hidden = path.with_name(f".{path.name}")
    pq.write_table(pa.Table.from_pylist(edits, EDITS), hidden, compression="zstd")
    os.replace(hidden, path)  # a task that is done twice leaves the same file
