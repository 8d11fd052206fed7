"""One function a format: how a record's fields become a request. What all formats may have is in ``drafts.py``."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from editing.datasets.drafts import Draft
from editing.datasets.fields import Fields, identifier, text_of
from editing.datasets.questions import Question, answers, questions
from editing.errors import InvalidRequest
from editing.requests import EditRequest

Record = Mapping[str, Any]

_LOC = {"locality_prompt": "loc", "locality_answer": "loc_ans"}
_COUNTERFACT = {
    "id": "case_id",
    "prompt": "prompt",
    "target": "target_new",
    "rephrase": "rephrase_prompt",
    "locality_prompt": "locality_prompt",
    "locality_answer": "locality_ground_truth",
}


def jsonl(fields: Fields, _seed: int) -> EditRequest:
    """The common schema."""
    return Draft(fields, prompt="prompt", target="target", messages="messages").request()


def ultraeditbench(fields: Fields, _seed: int) -> EditRequest:
    return Draft(fields, prompt="prompt", target="ans", rephrase="rephrase_prompt", **_LOC).request()


def zsre(fields: Fields, _seed: int) -> EditRequest:
    """Both variants: the method's own (``ans``; its locality questions lack their question mark) and MEND's (``alt``)."""
    return _zsre(fields).request()


def _zsre(fields: Fields) -> Draft:
    own = "ans" in fields
    draft = Draft(fields, prompt="src", target="ans" if own else "alt", **_LOC)
    draft.take("locality_prompt")
    loc = draft["locality_prompt"]
    if own and isinstance(loc, str) and loc.strip():
        draft.put("locality_prompt", loc + "?", "loc")
    return draft


def bizsre(fields: Fields, _seed: int, *, edited: str = "en") -> EditRequest:
    """The edit in one language; its question and its portability question in the other are asked as portability."""
    other = "zh" if edited == "en" else "en"
    inner, across = fields.object(edited), fields.object(other)
    if inner is None:
        raise InvalidRequest(edited, f"expected an object, found {type(fields.peek(edited)).__name__}")
    draft = _zsre(inner)
    if across is not None:
        asked = Question(across.get("src"), answers(f"{other}.alt", across.get("alt")))
        draft.ask("portability", [asked, *questions(across, "portability")], other)
    return draft.request()


def bizsre_zh(fields: Fields, seed: int) -> EditRequest:
    """The same, edited in Chinese."""
    return bizsre(fields, seed, edited="zh")


def wikibigedit(fields: Fields, _seed: int) -> EditRequest:
    names = {"persona": "personas", "multi_hop_prompt": "mhop", "multi_hop_answer": "mhop_ans"}
    draft = Draft(fields, prompt="update", target="ans", **names, **_LOC)
    if fields.peek("mhop") is None:
        draft.put("multi_hop_answer", None, "mhop_ans")
    return draft.request()


def fever(fields: Fields, seed: int) -> EditRequest:
    """One of the equivalent prompts is the rephrase, told by the seed and the claim: the same in every part and every resume."""
    draft = Draft(fields, prompt="prompt", target="alt", locality_prompt="unrel_prompt", locality_answer="unrel_ans")
    equivalent = fields.get("equiv_prompt")
    if isinstance(equivalent, list):
        digest = hashlib.blake2b(f"{seed}:{fields.peek('prompt')}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        equivalent = equivalent[int.from_bytes(digest) % len(equivalent)] if equivalent else None
    draft.put("rephrase", equivalent, "equiv_prompt")
    return draft.request()


def counterfact(fields: Fields, _seed: int) -> EditRequest:
    """Flat, as EasyEdit's files and ROME's requests, or nested, as ROME's and AKEW's releases."""
    nested = fields.peek("requested_rewrite") is not None
    return (_rewrite(fields) if nested else Draft(fields, **_COUNTERFACT)).request()


def mquake(fields: Fields, _seed: int) -> EditRequest:
    """One of its edits; the multi-hop questions, against the new answer, go with the last."""
    draft, asked = _rewrite(fields), fields.get("questions")
    asked = asked if isinstance(asked, list) else [] if asked is None else [asked]
    answer = fields.get("new_answer")
    if asked:
        draft.put("multi_hop_prompt", asked, "questions")
        draft.put("multi_hop_answer", [answer] * len(asked), "new_answer")
    return draft.request()


def split_rewrites(record: Record) -> list[dict[str, Any]]:
    """One record for each edit; what is asked beside them, which needs all of them, goes with the last."""
    rewrites = record.get("requested_rewrite")
    if not isinstance(rewrites, list) or not rewrites:
        return [dict(record)]
    case = identifier(record.get("case_id"))
    ids = [case] if len(rewrites) == 1 or not isinstance(case, str) else [f"{case}-{i}" for i in range(1, len(rewrites) + 1)]
    parts = [{"case_id": ids[min(i, len(ids) - 1)], "requested_rewrite": rewrite} for i, rewrite in enumerate(rewrites)]
    parts[-1] = {**record, **parts[-1]}
    return parts


def _rewrite(fields: Fields) -> Draft:
    """The edit of a ``requested_rewrite``: its prompt has room for the subject by definition."""
    inner = fields.object("requested_rewrite")
    if inner is None:
        raise InvalidRequest("requested_rewrite", f"expected an object, found {type(fields.peek('requested_rewrite')).__name__}")
    draft = Draft(fields, id="case_id")
    draft.about = inner
    prompt_name, prompt = inner.find("prompt", "prompt_full")
    subject = text_of("subject", inner.get("subject"))
    if isinstance(prompt, str) and isinstance(subject, str) and subject.strip():
        prompt = prompt.replace("{}", subject)
    draft.put("prompt", prompt, prompt_name)
    draft.put("subject", subject, "subject")
    name, target = inner.find("target_new", "answer_new", "target")
    draft.put("target", target, name)
    draft.take("rephrase")
    if draft["rephrase"] is None:
        draft.put("rephrase", inner.get("question"), "question")
    return draft


def knowedit(fields: Fields, _seed: int) -> EditRequest:
    """Records of facts, and of WikiBio (``text``, ``labels``, ``concept``)."""
    if "target_new" not in fields:
        return Draft(fields, prompt="text", target="labels", subject="concept").request()
    return Draft(fields, **_COUNTERFACT).request()


def qaedit(fields: Fields, _seed: int) -> EditRequest:
    draft = Draft(fields, prompt="prompt", target="target")
    draft.take("locality_prompt")
    if draft["locality_prompt"] is None:
        draft.put_locality(questions(fields, "locality", bare=True, expected="objects with loc and loc_ans"), "locality")
    return draft.request()


def unke(fields: Fields, _seed: int) -> EditRequest:
    """The whole answer is the target; the questions about parts of it are asked as portability."""
    draft = Draft(fields, prompt="question", target="answer", rephrase="para_question")
    draft.put("portability_prompt", fields.get("sub_question"), "sub_question")
    draft.put("portability_answer", fields.get("sub_answer"), "sub_answer")
    return draft.request()


def mlake(fields: Fields, _seed: int) -> EditRequest:
    """A single-hop record; the multi-hop files hold questions about edits, and no edits."""
    if fields.peek("e_answer") is None or fields.peek("o_answer") is None:
        raise InvalidRequest("question", "is MLaKE's multi-hop question about an edit, not an edit; the edits are in the files of single_hop")
    return Draft(fields, prompt="question", target="e_answer").request()


_VERB = re.compile(r" (?:is followed by|follows|is|are) ")
"""What all of RippleEdits' statements have before their object."""


def rippleedits(fields: Fields, _seed: int) -> EditRequest:
    """A statement is cut before its object, and every test is a probe by its criterion."""
    edit = fields.object("edit")
    if edit is None:
        raise InvalidRequest("edit", f"expected an object, found {type(fields.peek('edit')).__name__}")
    aliased, draft = _tests(fields, "Subject_Aliasing"), Draft(fields)
    draft.about = edit
    prompt, target = _cut(edit, [answer for question in aliased for answer in question.answers])
    draft.put("prompt", prompt, "edit.prompt")
    draft.put("target", target, "edit.prompt")
    draft.put("subject", edit.get("subject"), "edit.subject")
    if aliased:
        draft.put("rephrase", aliased[0].prompt, "Subject_Aliasing")
    draft.put_locality(
        [q for name in ("Relation_Specificity", "Relation_Specifity", "Forgetfulness") for q in _tests(fields, name)], "Relation_Specificity"
    )
    draft.ask("multi_hop", [q for name in ("Compositionality_I", "Compositionality_II") for q in _tests(fields, name)], "Compositionality_I")
    draft.ask("portability", [*_tests(fields, "Logical_Generalization"), *aliased[1:]], "Logical_Generalization")
    return draft.request()


def _cut(edit: Fields, objects: list[str]) -> tuple[str, str]:
    """A statement's prompt and object: an answer that it ends with, else what follows its last verb.

    Raises:
        InvalidRequest: It has no verb that is known.
    """
    statement = text_of("edit.prompt", edit.get("prompt"))
    if not isinstance(statement, str) or not statement.strip():
        raise InvalidRequest("edit.prompt", "missing; expected a statement")
    whole = statement.strip().removesuffix(".")
    for answer in sorted(objects, key=len, reverse=True):
        if whole.endswith(" " + answer):
            return whole[: -len(answer)].rstrip(), answer
    before = edit.peek("original_fact")
    old = before.get("prompt") if isinstance(before, Mapping) else None
    verbs = list(_VERB.finditer(whole))
    verbs = [verb for verb in verbs if isinstance(old, str) and old.startswith(whole[: verb.end()])] or verbs
    if not verbs:
        raise InvalidRequest("edit.prompt", f"no telling where the object begins in {statement[:100]!r}; expected a statement with 'is'")
    return whole[: verbs[-1].end()].rstrip(), whole[verbs[-1].end() :]


def _tests(fields: Fields, name: str) -> list[Question]:
    """The questions of a criterion's tests; the conditions under which the data set's own score counts them are not looked at."""
    tests = fields.get(name)
    if tests is None:
        return []
    if not isinstance(tests, list) or not all(isinstance(test, Mapping) for test in tests):
        raise InvalidRequest(name, f"expected a list of tests, found {type(tests).__name__}")
    return [question for test in tests for question in questions(Fields(test), "test_queries")]
