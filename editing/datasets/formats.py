"""Record formats of edit files: which fields tell each of them, which it reads, and which it knows and does not need.

``docs/datasets.md`` says what each public data set holds, and what of it is asked.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from editing.datasets import converters as to
from editing.datasets.fields import Fields, near
from editing.requests import EditRequest

Record = Mapping[str, Any]

Converter = Callable[[Fields, int], EditRequest]
"""Turns a record into a request, by a seed where there is a choice; raises :class:`editing.errors.InvalidRequest`."""


@dataclass(frozen=True, slots=True)
class Format:
    """One record format.

    Attributes:
        name: Name for ``--format``.
        signatures: Sets of fields; the presence of any one set tells this format from those after it in :data:`FORMATS`.
        convert: Turns a record into a request.
        known: Fields that the data set has and no edit needs: ids, relations, the answers from before.
        split: Cuts a record that asks for several edits into records of one each; ``None`` where all ask for one.
    """

    name: str
    signatures: tuple[frozenset[str], ...]
    convert: Converter
    known: frozenset[str] = frozenset()
    split: Callable[[Record], list[dict[str, Any]]] | None = None

    def fits(self, record: Record) -> bool:
        """Whether a record's fields are those of the format; one with several edits is one that can be split."""
        rewrites = record.get("requested_rewrite")
        if isinstance(rewrites, list) and len(rewrites) > 1:
            return self.split is not None
        return any(signature <= record.keys() for signature in self.signatures)

    def __str__(self) -> str:
        return f"{self.name} ({' or '.join(', '.join(sorted(signature)) for signature in self.signatures)})"


def _fields(*signatures: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(signature.split()) for signature in signatures)


def _known(*names: str) -> frozenset[str]:
    return frozenset(name for part in (_IDS, _BEFORE, *names) for name in part.split())


_IDS = "id case_id uuid known_id pararel_idx relation relation_id subject_id target_id"
_BEFORE = "ground_truth target_true target_old answers pred cond"
_NEIGHBOURS = "attribute_prompts generation_prompts"
_AKEW = (
    "prompt_full fact_new fact_new_uns question answer_new answer_new_alias answer_new_aliases answer_true answer_true_alias answer_true_aliases "
    "verify_unsfact_GPT unsfact_triplets_GPT time_true time_new"
)
_MQUAKE = "answer answer_alias new_answer_alias answer_extended new_answer_extended single_hops new_single_hops orig"
_BIZSRE = "subject rephrase loc loc_ans"
_MLAKE = "o_prompt o_answer o_answer_aliases e_prompt e_answer_aliases"
_RIPPLE = "example_type original_fact"

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("rippleedits", _fields("example_type edit", "edit Logical_Generalization", "edit Forgetfulness"), to.rippleedits, _known(_RIPPLE)),
        Format("bizsre", _fields("en zh"), to.bizsre, _known(_BIZSRE)),
        Format("bizsre-zh", _fields("zh en"), to.bizsre_zh, _known(_BIZSRE)),
        Format("mquake", _fields("requested_rewrite questions"), to.mquake, _known(_MQUAKE, _AKEW, _NEIGHBOURS), to.split_rewrites),
        Format("cknowedit", _fields("target_new target_old"), to.knowedit, _known()),
        Format("knowedit", _fields("target_new portability", "target_new locality", "text labels concept"), to.knowedit, _known()),
        Format("counterfact", _fields("target_new", "requested_rewrite"), to.counterfact, _known(_AKEW, _NEIGHBOURS)),
        Format("mlake", _fields("question e_answer", "question o_answer"), to.mlake, _known(_MLAKE)),
        Format("unke", _fields("question answer para_question", "question answer sub_question"), to.unke, _known("category")),
        Format("wikibigedit", _fields("update ans"), to.wikibigedit, _known("tag object mhop_ans")),
        Format("fever", _fields("prompt alt"), to.fever, _known()),
        Format("ultraeditbench", _fields("prompt ans"), to.ultraeditbench, _known()),
        Format("zsre", _fields("src"), to.zsre, _known()),
        Format("qaedit", _fields("prompt target locality"), to.qaedit, _known()),
        Format("jsonl", _fields("prompt target", "messages target"), to.jsonl, _known(_NEIGHBOURS)),
    )
}
"""By name, the special ones before the general ones, which their records fit too."""

_NO_EDITS = (
    ({"messages"}, "chats to train on; an edit has its messages up to the last one by the user, and the answer as target"),
    ({"sub_label", "obj_label"}, "facts of ParaRel or LAMA, of which 'ultraedit data build --triples' makes edits"),
    ({"pattern"}, "templates of ParaRel, by which 'ultraedit data build --templates' makes edits of facts"),
    ({"subject", "relation", "object"}, "triples, of which 'ultraedit data build --triples' makes edits"),
    ({"question", "answer"}, "questions with answers; '--format unke' takes the answers as targets"),
)
"""Records that are no edits, and what becomes of them."""

_RANK = {name: rank for rank, name in enumerate(FORMATS)}


def recognise(record: Record) -> Format | None:
    """The format that a record's fields tell, or ``None``."""
    return next((f for f in FORMATS.values() if f.fits(record)), None)


def hint(names: Collection[str]) -> str | None:
    """What records of no known format may be, by the names of their fields: something else that is known, or misspelt."""
    for fields, what in _NO_EDITS:
        if fields <= set(names):
            return what
    wanted = tuple(sorted({name for f in FORMATS.values() for signature in f.signatures for name in signature} - set(names)))
    found = [f"{name!r} for {meant}" for name in names if (meant := near(name, wanted))]
    return f"perhaps {', '.join(found)}" if found else None


def more_special(record: Record, format: Format) -> Format | None:
    """The format of a record that has fields which another format would leave unread."""
    found = recognise(record)
    return found if found is not None and _RANK[found.name] < _RANK[format.name] else None
