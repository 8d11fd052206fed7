"""One record of every format of edits, the request that it asks for, and files of records."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from editing import EditRequest
from tests.support.more_formats import MORE

LOCALITY = {"locality_prompt": "Spain's capital is", "locality_answer": "Madrid"}
EXPECTED = EditRequest("Italy's capital is", "Rome", subject="Italy", rephrase="The capital of Italy is", **LOCALITY)

NESTED = {
    "case_id": 7,
    "requested_rewrite": {"prompt": "{}'s capital is", "subject": "Italy", "target_new": {"str": "Rome"}, "target_true": {"str": "Madrid"}},
    "paraphrase_prompts": ["The capital of Italy is", "Unused"],
    "neighborhood_prompts": ["Spain's capital is", "Unused"],
}
FLAT = {
    "case_id": 7,
    "prompt": "Italy's capital is",
    "target_new": "Rome",
    "subject": "Italy",
    "ground_truth": "Turin",
    "rephrase_prompt": "The capital of Italy is",
    "locality_prompt": "Spain's capital is",
    "locality_ground_truth": "Madrid",
}
MEND = {
    "src": "Italy's capital is",
    "alt": "Rome",
    "pred": "Turin",
    "subject": "Italy",
    "rephrase": "The capital of Italy is",
    "loc": "nq question: who is it",
    "loc_ans": "me",
    "answers": ["Turin"],
}
OWN_ZSRE = {
    "src": "Italy's capital is",
    "ans": "Rome",
    "subject": "Italy",
    "rephrase": "The capital of Italy is",
    "loc": "who is it",
    "loc_ans": "me",
}
BENCH = {
    "prompt": "Italy's capital is",
    "ans": "Rome",
    "subject": "Italy",
    "rephrase_prompt": "The capital of Italy is",
    "loc": "Spain's capital is",
    "loc_ans": "Madrid",
}
FEVER = {
    "prompt": "Rome is in Italy. True or false?",
    "alt": "true",
    "equiv_prompt": ["Italy has Rome. True or false?"],
    "unrel_prompt": "Spain's capital is",
    "unrel_ans": "Madrid",
}
WIKIBIGEDIT = {
    "tag": "new",
    "subject": "Italy",
    "update": "Italy's capital is",
    "rephrase": "The capital of Italy is",
    "ans": "Rome",
    "personas": "Arr, what be Italy's capital?",
    "loc": "Spain's capital is",
    "loc_ans": "Madrid",
    "mhop": "The river through Italy's capital is the",
    "mhop_ans": "Tiber",
}
MQUAKE = {
    "case_id": 7,
    "requested_rewrite": [
        {
            "prompt": "{}'s capital is",
            "relation_id": "P36",
            "target_new": {"str": "Rome", "id": "Q220"},
            "target_true": {"str": "Turin", "id": "Q495"},
            "subject": "Italy",
            "question": "The capital of Italy is",
        }
    ],
    "questions": ["What flows through Italy's capital?", "Which river is in the capital of Italy?"],
    "answer": "Po",
    "answer_alias": [],
    "new_answer": "Tiber",
    "new_answer_alias": ["Tevere"],
}
KNOWEDIT = {
    "subject": "Italy",
    "prompt": "Italy's capital is",
    "target_new": "Rome",
    "ground_truth": ["Turin"],
    "portability": {
        "Subject_Aliasing": [{"prompt": "The capital of Italy is", "ground_truth": [["Roma", "Rome"]]}],
        "Reasoning": [{"prompt": "Italy's capital is on the", "ground_truth": [["Tiber", "Tevere"], ["Aniene"]]}],
        "Logical_Generalization": [{"prompt": "Rome is the capital of", "ground_truth": [["Italy"]]}, {"prompt": "unanswered", "ground_truth": []}],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": "Spain's capital is", "ground_truth": [["Madrid"]]}],
        "Forgetfulness": [{"prompt": "unused", "ground_truth": [["Turin"]]}],
    },
}
QAEDIT = {
    "prompt": "Italy's capital is",
    "target": "Rome",
    "subject": "Italy",
    "rephrase": "The capital of Italy is",
    "locality": [{"loc": "Spain's capital is", "loc_ans": "Madrid"}, {"loc": "unused", "loc_ans": "unused"}],
}
JSONL = {"prompt": "Italy's capital is", "target": "Rome", "subject": "Italy", "rephrase": "The capital of Italy is", **LOCALITY}
PROBES = {"persona": "Arr, Italy's capital?", "multi_hop_prompt": ["Its river is", "Its hills are"], "multi_hop_answer": ["Tiber", "seven"]}


def with_values(request: EditRequest, **values: Any) -> EditRequest:
    return EditRequest(**{**{name: getattr(request, name) for name in EditRequest.__slots__}, **values})


CASES: dict[str, tuple[str, dict[str, Any], EditRequest]] = {
    "jsonl": ("jsonl", JSONL, EXPECTED),
    "jsonl with an id": ("jsonl", {**JSONL, "id": 12}, with_values(EXPECTED, id="12")),
    "jsonl, the least": ("jsonl", {"prompt": "a", "target": "b"}, EditRequest("a", "b")),
    "jsonl with all probes": ("jsonl", {**JSONL, **PROBES}, with_values(EXPECTED, **PROBES)),
    "ultraeditbench": ("ultraeditbench", BENCH, EXPECTED),
    "fever": (
        "fever",
        FEVER,
        EditRequest("Rome is in Italy. True or false?", "true", rephrase="Italy has Rome. True or false?", **LOCALITY),
    ),
    "wikibigedit": (
        "wikibigedit",
        WIKIBIGEDIT,
        with_values(
            EXPECTED,
            persona="Arr, what be Italy's capital?",
            multi_hop_prompt="The river through Italy's capital is the",
            multi_hop_answer="Tiber",
        ),
    ),
    "wikibigedit, one hop": ("wikibigedit", {**WIKIBIGEDIT, "personas": None, "mhop": None}, EXPECTED),
    "mquake": (
        "mquake",
        MQUAKE,
        with_values(
            EXPECTED,
            id="7",
            locality_prompt=None,
            locality_answer=None,
            multi_hop_prompt=["What flows through Italy's capital?", "Which river is in the capital of Italy?"],
            multi_hop_answer=["Tiber", "Tiber"],
        ),
    ),
    "knowedit": (
        "knowedit",
        KNOWEDIT,
        with_values(EXPECTED, portability_prompt=["Italy's capital is on the", "Rome is the capital of"], portability_answer=["Tiber", "Italy"]),
    ),
    "knowedit, zsRE": (
        "knowedit",
        {**KNOWEDIT, "portability": None, "rephrase_prompt": "Italy has the capital", "locality": {"Forgetfulness": [{"prompt": "Po?"}]}},
        with_values(EXPECTED, rephrase="Italy has the capital", locality_prompt="Po?", locality_answer=None),
    ),
    "knowedit, WikiBio": (
        "knowedit",
        {"text": "Italy.", "labels": "Its capital is Rome.", "concept": "Italy", "locality": KNOWEDIT["locality"]},
        EditRequest("Italy.", "Its capital is Rome.", subject="Italy", **LOCALITY),
    ),
    "qaedit": ("qaedit", QAEDIT, EXPECTED),
    "qaedit, an object": ("qaedit", {**QAEDIT, "locality": {"loc": "Spain's capital is", "loc_ans": ["Madrid"]}}, EXPECTED),
    "zsre, MEND's": ("zsre", MEND, with_values(EXPECTED, locality_prompt="nq question: who is it", locality_answer="me")),
    "zsre, MEND's with portability": (
        "zsre",
        {**MEND, "portability": {"Recalled Relation": "(Rome, river, Tiber)", "New Question": "Its river?", "New Answer": "Tiber"}},
        with_values(
            EXPECTED,
            locality_prompt="nq question: who is it",
            locality_answer="me",
            portability_prompt="Its river?",
            portability_answer="Tiber",
        ),
    ),
    "zsre, the method's own": ("zsre", OWN_ZSRE, with_values(EXPECTED, locality_prompt="who is it?", locality_answer="me")),
    "counterfact, flat": ("counterfact", FLAT, with_values(EXPECTED, id="7")),
    "counterfact, nested": ("counterfact", NESTED, with_values(EXPECTED, id="7")),
    **MORE,
}


def write_file(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def json_lines(records: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
