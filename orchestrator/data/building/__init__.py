"""Edit sets from triples: an edit prompt, an equivalent prompt and an unrelated probe for each fact.

triples --sources--> ids --naming: subject, object--> names --pools--> possible targets
                                                        \\--edits, a bucket of facts at a time--> parts, data card
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from editing.datasets.parts import Part
from editing.errors import InputError
from orchestrator.data.building.card import Counts, write_card
from orchestrator.data.building.edits import by_fact, make_edits
from orchestrator.data.building.folder import new_folder
from orchestrator.data.building.local import LocalStages
from orchestrator.data.building.naming import by_object, by_subject, name_objects, name_subjects
from orchestrator.data.building.pools import Pools, sample_objects
from orchestrator.data.building.rows import Row
from orchestrator.data.building.sources import find_files, names_relations, read_names, read_triples, stretches
from orchestrator.data.building.stages import Stages
from orchestrator.data.building.templates import SHIPPED, Templates, load_templates

logger = logging.getLogger("ultraedit")

_TRIPLES_IN_PART = 50_000
"""Triples in a bucket of facts, about; a bucket is held in memory, and is one part of the set."""

_BUCKET_BYTES = 2**22
"""Bytes of the inputs whose names are held in memory together, about."""

_WORKER_BYTES = 2**24
"""Bytes of the inputs for which another process is worth its start."""


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What to build.

    Attributes:
        triples: Files or folders of triples.
        output: Folder to make.
        templates: Templates of the relations.
        aliases: Alias files of entities and relations; without any, triples hold names.
        seed: Of every choice; the same seed and triples give the same rows.
        probe_share: Share of the facts that are never edited, and serve as unrelated probes.
        strict: Stop at the first triple that cannot be used.
        workers: Processes on this machine; ``None`` for one a core, where there is work for them.
        ray_address: Build on this Ray cluster instead.
    """

    triples: tuple[Path, ...]
    output: Path
    templates: Path = SHIPPED
    aliases: tuple[Path, ...] = ()
    seed: int = 0
    probe_share: float = 0.2
    strict: bool = False
    workers: int | None = None
    ray_address: str | None = None


def build(config: BuildConfig) -> Counts:
    """Build an edit set.

    Returns:
        What was counted.

    Raises:
        InputError: An input is not usable, ``output`` is there already, or no edit comes of it.
    """
    with new_folder(config.output) as folder:
        scratch = folder / "_scratch"
        scratch.mkdir()
        files = find_files(config.triples)
        alias_files = find_files(config.aliases)
        of_relations = [file for file in alias_files if names_relations(file)]
        templates = _templates(config, of_relations)
        counts = Counts()
        with closing(_stages(config, scratch, sum(file.num_bytes for file in (*files, *alias_files)))) as stages:
            _run(config, stages, folder, files, [file for file in alias_files if file not in of_relations], templates, counts)
        for left in scratch.iterdir():
            left.unlink()
        scratch.rmdir()
        write_card(folder / "README.md", config, templates, [*files, *alias_files], counts)
    return counts


def _run(
    config: BuildConfig, stages: Stages[Any], folder: Path, files: list[Part], of_entities: list[Part], templates: Templates, counts: Counts
) -> None:
    """The stages, one after the other."""
    logger.info("reading   %d files of triples, %d of names", len(files), len(of_entities))
    rows = stages.read(stretches(files), partial(read_triples, templates=templates, named=bool(of_entities), strict=config.strict))
    if of_entities:
        names = stages.read(stretches(of_entities), partial(read_names, strict=config.strict))
        num_buckets = 1 + sum(file.num_bytes for file in (*files, *of_entities)) // _BUCKET_BYTES
        rows = stages.regroup([names, rows], by_subject, num_buckets, partial(name_subjects, strict=config.strict))
        rows = stages.regroup([names, rows], by_object, num_buckets, partial(name_objects, strict=config.strict))
    pools = Pools(config.seed)
    for row in stages.gather(rows, partial(sample_objects, seed=config.seed)):
        pools.add(row) if row.note is None else counts.add(row)
    num_triples = counts.total("usable triple")
    logger.info("making    edits of %d triples", num_triples)
    make = partial(make_edits, folder=folder, templates=templates, pools=pools.all(), seed=config.seed, probe_share=config.probe_share)
    made = stages.regroup([rows], partial(by_fact, seed=config.seed), 1 + num_triples // _TRIPLES_IN_PART, make)
    for row in stages.gather(made, _unchanged):
        counts.add(row)
    if not counts.total("edit"):
        raise InputError(f"triples: no edit comes of {counts.total('triple')} triples; {'; '.join(counts.reasons()) or 'the files are empty'}")


def _unchanged(rows: Iterable[Row]) -> Iterator[Row]:
    yield from rows


def _templates(config: BuildConfig, of_relations: list[Part]) -> Templates:
    templates = load_templates(config.templates)
    named = (row for stretch in stretches(of_relations) for row in read_names(stretch, strict=config.strict) if row.names)
    return templates.with_names({str(row.subject): row.names or () for row in named})


def _stages(config: BuildConfig, scratch: Path, num_bytes: int) -> Stages[Any]:
    cores = os.cpu_count() or 1
    if config.ray_address is None:
        return LocalStages(scratch, config.workers or min(cores, 1 + num_bytes // _WORKER_BYTES))
    try:
        from orchestrator.data.building.on_ray import RayStages
    except ImportError as error:
        raise InputError(f"ray-address: {error.name} is not installed; install ultraedit-orchestrator[distributed]") from None
    return RayStages(config.ray_address, config.workers or cores)
