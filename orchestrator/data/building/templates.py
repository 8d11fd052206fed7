"""Relation templates: how a fact is asked for, in several wordings."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from editing.errors import InputError
from orchestrator.data.building.rows import same, tidy

logger = logging.getLogger("ultraedit")

SHIPPED = Path(__file__).with_name("templates.yaml")
"""Questions about Wikidata's relations that come with the project."""

PLACE = "{subject}"


@dataclass(frozen=True)
class Templates:
    """The templates of every relation.

    Attributes:
        texts: By relation id; each holds the place of the subject.
        labels: The name of a relation for people, by its id.
        ids: By the id or label that triples use.
    """

    texts: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, str] = field(default_factory=dict)
    ids: Mapping[str, str] = field(default_factory=dict)

    def find(self, relation: str) -> str | None:
        """The id of the relation that triples call so; ``None`` if there is no template for it."""
        return relation if relation in self.texts else self.ids.get(same(relation))

    def with_names(self, names: Mapping[str, Iterable[str]]) -> "Templates":
        """The same templates, found under an id too of which one name is a relation's label."""
        more = {same(id): found for id, others in names.items() for found in map(self.find, others) if found is not None}
        return Templates(self.texts, self.labels, {**more, **self.ids})

    def fill(self, relation: str, number: int, subject: str) -> str:
        """A template of a relation, counted around from any number, with its subject."""
        texts = self.texts[relation]
        return texts[number % len(texts)].replace(PLACE, subject)


def load_templates(path: Path) -> Templates:
    """Read templates.

    Args:
        path: YAML: a mapping from a relation to ``label`` and ``templates``, each with ``{subject}``, or to the templates alone. Or JSON
            lines as ParaRel has them, named after their relation, or a folder of such files: ``pattern`` with ``[X]`` for the subject and
            ``[Y]`` for the object; those that end in the object, and are of one relation alone, are used.

    Raises:
        InputError: The file is none of these, a template lacks its place, or two relations of a YAML file share one.
    """
    files = sorted(p for p in path.iterdir() if not p.name.startswith((".", "_"))) if path.is_dir() else [path]
    texts: dict[str, tuple[str, ...]] = {}
    patterns: dict[str, tuple[str, ...]] = {}
    labels: dict[str, str] = {}
    for file in files:
        if file.suffix in (".jsonl", ".json"):
            patterns[file.stem] = _read_patterns(file)
        else:
            for relation, entry in _read_yaml(file).items():
                texts[relation], labels[relation] = _entry(file, relation, entry)
    texts |= _unshared(path, patterns)
    if not texts:
        raise InputError(f"{path}: holds no template")
    _check_apart(path, texts)
    return Templates(texts, labels, {same(name): relation for relation in texts for name in (relation, labels.get(relation, relation))})


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(entries, dict) or not all(isinstance(relation, str) for relation in entries):
        raise InputError(f"{file}: expected a mapping from relations to templates, found {type(entries).__name__}")
    return entries


def _entry(file: Path, relation: str, entry: Any) -> tuple[tuple[str, ...], str]:
    found = entry.get("templates") if isinstance(entry, dict) else entry
    label = entry.get("label", relation) if isinstance(entry, dict) else relation
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found) or not isinstance(label, str):
        raise InputError(f"{file}: relation {relation}: expected a list of templates, or a mapping with label and templates")
    if wrong := next((text for text in found if PLACE not in text), None):
        raise InputError(f"{file}: relation {relation}: template {wrong!r} lacks {PLACE}, the place of the subject")
    return tuple(dict.fromkeys(map(tidy, found))), label


def _read_patterns(file: Path) -> tuple[str, ...]:
    texts = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            pattern = json.loads(line)["pattern"].rstrip(" .")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise InputError(f"{file}: line {number}: expected a JSON object with a pattern") from None
        before = pattern.removesuffix("[Y]")
        if before != pattern and "[X]" in before and "[Y]" not in before:
            texts.append(tidy(before.replace("[X]", PLACE)))
    return tuple(dict.fromkeys(texts))


def _unshared(path: Path, patterns: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Patterns of one relation alone: some of ParaRel's are of two."""
    owners = Counter(same(text) for texts in patterns.values() for text in texts)
    if shared := [text for text, number in owners.items() if number > 1]:
        logger.warning("%s: %d patterns are of several relations and are left out; one is %r", path, len(shared), min(shared))
    return {relation: tuple(text for text in texts if owners[same(text)] == 1) for relation, texts in patterns.items()}


def _check_apart(path: Path, texts: Mapping[str, Iterable[str]]) -> None:
    """One question about two relations would have two true answers."""
    owners: dict[str, str] = {}
    for relation, templates in texts.items():
        for text in templates:
            if (other := owners.setdefault(same(text), relation)) != relation:
                raise InputError(f"{path}: relations {other} and {relation} share the template {text!r}; word it differently")
