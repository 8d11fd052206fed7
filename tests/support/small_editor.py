"""An editor of the tiny Llama, and seven facts to teach it."""

from editing import Editor, EditRequest
from editing.turn import TokenizedEdit, tokenize
from tests.support.paths import PARITY

MODEL = PARITY / "llama-tiny" / "model"
MODULES = ("model.layers.{1,2}.mlp.{gate,up}_proj",)
FACTS = [
    ("The capital of Kiribati is", "South Tarawa"),
    ("The river Struma flows into", "the Aegean Sea"),
    ("A markhor is a kind of", "goat"),
    ("The currency of Georgia is the", "lari"),
    ("Perl was created by", "Larry Wall"),
    ("The moon Triton orbits", "Neptune"),
    ("Sony has its seat in", "Tokyo"),
]
LONG_FRAMING = "Somebody asks, and an assistant that has read all books answers in one word what it is asked. It is asked this: {prompt}"
"""Begins with more tokens than a beginning that runs once needs."""

SUBJECTS = ["Kiribati", "river Struma", "markhor", "georgia", "Perl", None, "a name that is not there"]


def editor(**options: object) -> Editor:
    return Editor.from_pretrained(MODEL, modules=MODULES, learning_rate=None if "strength" in options else 1e-3, **options)


def requests(count: int = len(FACTS)) -> list[EditRequest]:
    return [EditRequest(*fact, subject=subject) for fact, subject in zip(FACTS[:count], SUBJECTS, strict=False)]


def edits_with_probes(one: object) -> list[TokenizedEdit]:
    asked = [EditRequest(p, t, rephrase=f"It is known: {p}", locality_prompt=f"Not {p}", locality_answer=t) for p, t in FACTS]
    return [tokenize(one.tokenizer, r, max_tokens=None) for r in asked]
