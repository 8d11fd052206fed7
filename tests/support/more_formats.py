"""Records as further data sets have them, and what each asks: layouts from their own files and documentation, facts of this project."""

from typing import Any

from editing import EditRequest

_ASKED = EditRequest("Italy's capital is", "Rome", subject="Italy", rephrase="The capital of Italy is")
_LOCALITY = {"locality_prompt": "Spain's capital is", "locality_answer": "Madrid"}


def _also(**values: Any) -> EditRequest:
    return EditRequest(**{**{name: getattr(_ASKED, name) for name in EditRequest.__slots__}, **values})


_QUESTION = {"query_type": "regular", "subject_id": "Q38", "relation": "CAPITAL", "target_ids": ["Q220"], "phrase": None}


def _test(prompt: str, *answers: str) -> dict[str, Any]:
    asked = {**_QUESTION, "prompt": prompt, "answers": [{"value": answers[0], "aliases": list(answers[1:])}] if answers else []}
    return {"test_queries": [asked], "test_condition": "OR", "condition_queries": [{**_QUESTION, "prompt": "a condition", "answers": []}]}


_FACT = {"prompt": "The name of the capital city of Italy is Rome.", "subject_id": "Q38", "relation": "CAPITAL", "target_id": "Q220"}
RIPPLE: dict[str, Any] = {
    "example_type": "popular",
    "edit": {**_FACT, "original_fact": {**_FACT, "prompt": "The name of the capital city of Italy is Rimini."}},
    "Relation_Specificity": [_test("The currency of Italy is", "euro", "EUR")],
    "Logical_Generalization": [_test("Rome is the capital of", "Italy")],
    "Subject_Aliasing": [_test("The capital of the Italian Republic is", "Roma", "Rome"), _test("The capital of Italia is", "Rome")],
    "Compositionality_I": [_test("The river through Italy's capital is", "Tiber", "Tevere")],
    "Compositionality_II": [_test("The capital of the country of pizza is", "Rome"), _test("unanswered")],
    "Forgetfulness": [_test("unused", "unused")],
}
_ZSRE_EN = {
    "subject": "Italy",
    "src": "Italy's capital is",
    "alt": "Rome",
    "rephrase": "The capital of Italy is",
    "loc": "Spain's capital is",
    "loc_ans": "Madrid",
    "portability": {"New Question": "Its river?", "New Answer": "Tiber"},
}
_ZSRE_ZH = {
    "subject": "意大利",
    "src": "意大利的首都是",
    "alt": "罗马",
    "rephrase": "意大利首都在",
    "loc": "西班牙的首都是",
    "loc_ans": "马德里",
    "portability": {"New Question": "那里的河是？", "New Answer": "台伯河"},
}
BIZSRE = {"en": _ZSRE_EN, "zh": _ZSRE_ZH}
CKNOWEDIT = {
    "prompt": "Italy's capital is",
    "target_old": "Turin",
    "target_new": "Rome",
    "subject": "Italy",
    "rephrase": ["The capital of Italy is", "unused"],
    "portability": [{"prompt": "Its river?", "answer": "Tiber"}],
    "locality": [{"prompt": "Spain's capital is", "answer": "Madrid"}],
}
UNKE = {
    "id": 7,
    "question": "Where is Rome?",
    "para_question": "Rome lies where?",
    "answer": "In Italy, on the Tiber.",
    "sub_question": ["In which country?", "On which river?"],
    "sub_answer": ["Italy", "the Tiber"],
}
MLAKE = {
    "question": "What is Italy's capital?",
    "o_prompt": "Italy's capital is Turin.",
    "o_answer": "Turin",
    "o_answer_aliases": ["Torino"],
    "e_prompt": "Italy's capital is Rome.",
    "e_answer": "Rome",
    "e_answer_aliases": [],
}
AKEW = {
    "case_id": 8,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "{}'s capital is",
        "relation_id": "P36",
        "target_new": {"str": "Rome", "id": "Q220"},
        "target_true": {"str": "Turin", "id": "Q495"},
        "subject": "Italy",
        "prompt_full": "Italy's capital is",
        "fact_new": "Italy's capital is Rome.",
        "question": "The capital of Italy is",
        "answer_new": "Rome",
        "fact_new_uns": "Rome has been the capital since 1871.",
        "verify_unsfact_GPT": True,
        "unsfact_triplets_GPT": [{"subject": "Rome", "prompt": "{} is", "target": "the capital"}],
    },
}

MORE: dict[str, tuple[str, dict[str, Any], EditRequest]] = {
    "rippleedits": (
        "rippleedits",
        RIPPLE,
        EditRequest(
            "The name of the capital city of Italy is",
            "Rome",
            rephrase="The capital of the Italian Republic is",
            locality_prompt="The currency of Italy is",
            locality_answer="euro",
            multi_hop_prompt=("The river through Italy's capital is", "The capital of the country of pizza is"),
            multi_hop_answer=("Tiber", "Rome"),
            portability_prompt=("Rome is the capital of", "The capital of Italia is"),
            portability_answer=("Italy", "Rome"),
        ),
    ),
    "bizsre": (
        "bizsre",
        BIZSRE,
        _also(**_LOCALITY, portability_prompt=("意大利的首都是", "那里的河是？", "Its river?"), portability_answer=("罗马", "台伯河", "Tiber")),
    ),
    "cknowedit": ("cknowedit", CKNOWEDIT, _also(**_LOCALITY, portability_prompt="Its river?", portability_answer="Tiber")),
    "unke": (
        "unke",
        UNKE,
        EditRequest(
            "Where is Rome?",
            "In Italy, on the Tiber.",
            id="7",
            rephrase="Rome lies where?",
            portability_prompt=("In which country?", "On which river?"),
            portability_answer=("Italy", "the Tiber"),
        ),
    ),
    "mlake": ("mlake", MLAKE, EditRequest("What is Italy's capital?", "Rome")),
    "counterfact, AKEW's": ("counterfact", AKEW, _also(id="8")),
    "counterfact, ROME's request": (
        "counterfact",
        {"prompt": "{}'s capital is", "subject": "Italy", "relation_id": "P36", "target_new": {"str": "Rome"}, "target_true": {"str": "Turin"}},
        _also(rephrase=None),
    ),
    "jsonl, FastEdit's": (
        "jsonl",
        {"prompt": "{}'s capital is", "subject": "Italy", "target": "Rome", "queries": ["The capital of Italy is", "unused"]},
        _ASKED,
    ),
    "jsonl, EasyEdit's inputs": (
        "jsonl",
        {
            "prompt": "Italy's capital is",
            "subject": "Italy",
            "target": "Rome",
            "rephrase_prompts": ["The capital of [X] is"],
            "locality_inputs": {"neighborhood": {"prompt": ["Spain's capital is", "unused"], "ground_truth": ["Madrid", "unused"]}},
            "portability_inputs": {"synonym": {"prompt": "Its river?", "ground_truth": "Tiber"}, "one_hop": {"prompt": ["a"], "ground_truth": ["b"]}},
        },
        _also(**_LOCALITY, portability_prompt=("Its river?", "a"), portability_answer=("Tiber", "b")),
    ),
    "jsonl, kinds of one's own": (
        "jsonl",
        {
            "prompt": "{subject}'s capital is",
            "target": ["Rome"],
            "subject": {"text": "Italy"},
            "paraphrase_prompts": ["The capital of {subject} is"],
            "neighborhood_prompts": ["Spain's capital is", "unused"],
            "ground_truth": ["Madrid"],
            "portability": {"one_hop": [{"prompt": "Its river?", "answer": ["Tiber", "Tevere"]}], "two_hop": {"question": "a", "answer": "b"}},
            "portability_prompts": ["c"],
            "portability_answers": [["d", "an alias"]],
        },
        _also(**_LOCALITY, portability_prompt=("c", "Its river?"), portability_answer=("d", "Tiber"), multi_hop_prompt="a", multi_hop_answer="b"),
    ),
    "qaedit, kinds of one's own": (
        "qaedit",
        {"prompt": "Italy's capital is", "target": {"str": "Rome"}, "locality": {"neighborhood": ["Spain's capital is"]}},
        _also(subject=None, rephrase=None, locality_prompt="Spain's capital is"),
    ),
}
