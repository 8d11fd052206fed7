"""One measurement of edit quality: a setting, a number of edits in one order, and what became of the model.

Teacher-forced figures are the project's own (:mod:`editing.monitoring.evaluation`). Beside them what a person would see:

    exact, exact_rephrase   share of prompts after which the greedy text begins with the target, as whole words
    fluency                 entropy of 2- and 3-grams of words of the greedy text, (2/3 H_2 + 4/3 H_3) / 2 in bits, averaged over
                            texts: the measure of ROME (Meng et al. 2022), on greedy text where they sample. A text that
                            repeats itself is low.
    perplexity_growth       perplexity of a fixed text that no edit is about, as a multiple of the unedited model's
"""

import math
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from editing import Editor, EditorConfig, TurnRefused
from editing.model.generation import generate
from editing.monitoring.evaluation import evaluate, summarize
from editing.monitoring.health import Health
from editing.monitoring.texts import begins_with
from editing.monitoring.watch import Watch
from editing.turn import PreparedTurn, TokenizedEdit, in_turns

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Setting:
    """One way to edit.

    Attributes:
        name: Unique name.
        family: Which modules; settings are compared within one.
        method: ``published`` or ``refined``.
        options: Fields of :class:`editing.EditorConfig`.
    """

    name: str
    family: str
    method: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much of a run is looked at.

    Attributes:
        evaluated: Edits whose probes are measured, a seeded sample of those applied.
        generated: Of those, edits for which text is generated.
        text_tokens: Tokens of each text.
        lookahead: Turns that go through the frozen layers together.
    """

    evaluated: int = 500
    generated: int = 100
    text_tokens: int = 50
    lookahead: int = 4


Texts = list[tuple[str, str | None]]
"""Text after each edit's prompt, and after its rephrasing if it has one."""

UneditedTexts = dict[tuple[str, ...], Texts]
"""Texts of the unedited model, by the prompts: they do not depend on the setting."""


def measure(model: Any, tokenizer: Any, setting: Setting, edits: Sequence[TokenizedEdit], sizes: Sizes, unedited: UneditedTexts) -> dict[str, Any]:
    """Make edits in their order, measure, and give the model its weights back."""
    editor = Editor(model, tokenizer, EditorConfig(**setting.options))
    chosen = random.Random(0).sample(edits, min(sizes.evaluated, len(edits)))
    spoken = chosen[: sizes.generated]
    asked = tuple(edit.request.prompt for edit in spoken)
    before = unedited[asked] = unedited.get(asked) or _texts(editor, spoken, sizes)
    try:
        last, timing = _edit(editor, edits, sizes)
        vitals = Health(editor, Watch(editor, size=0)).measure(last)
        means = summarize(evaluate(editor, chosen))
        after = _texts(editor, spoken, sizes)
    finally:
        editor.restore()
    return {
        **{name: means[name] for name in ("efficacy", "generalization", "specificity", "locality_retention")},
        **_spoken(spoken, after),
        "fluency": _mean([ngram_entropy(t) for t, _ in after]),
        "fluency_before": _mean([ngram_entropy(t) for t, _ in before]),
        "perplexity_growth": vitals.perplexity_growth,
        "probe_retention": vitals.probe_retention,
        **timing,
        "samples": [
            {"prompt": e.request.prompt, "target": e.request.target, "before": b, "after": a}
            for e, (b, _), (a, _) in zip(spoken[:10], before, after, strict=False)
        ],
    }


def ngram_entropy(text: str) -> float:
    """Weighted entropy of a text's word 2- and 3-grams in bits; 0 where it has too few words."""
    words = _WORD.findall(text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return -sum(c / total * math.log2(c / total) for c in counts.values())


def _edit(editor: Editor, edits: Sequence[TokenizedEdit], sizes: Sizes) -> tuple[PreparedTurn, dict[str, Any]]:
    turns = in_turns(edits, editor.config.edits_per_turn)
    seconds: list[float] = []
    passes = refused = 0
    last: PreparedTurn | None = None
    while window := list(islice(turns, sizes.lookahead)):
        for prepared in editor.prepare(window):
            began = time.perf_counter()
            try:
                report = editor.apply_turn(prepared, measure=False)
            except TurnRefused:
                refused += 1
                continue
            last = prepared
            seconds.append(prepared.prefix_seconds + time.perf_counter() - began)
            passes += sum(1 for rows in report.num_pending_rows if rows) or 1
    if last is None:
        raise TurnRefused("every turn was refused, so there is nothing to measure")
    return last, {"seconds_a_turn": sorted(seconds)[len(seconds) // 2], "passes_a_turn": passes / len(seconds), "refused_turns": refused}


def _texts(editor: Editor, edits: Sequence[TokenizedEdit], sizes: Sizes) -> Texts:
    prompts = [e.request.prompt for e in edits]
    rephrased = [e.request.rephrase for e in edits if e.request.rephrase]
    texts = iter(generate(editor.decoder, editor.tokenizer, [*prompts, *rephrased], max_new_tokens=sizes.text_tokens))
    own = [next(texts) for _ in prompts]
    return [(text, next(texts) if edit.request.rephrase else None) for text, edit in zip(own, edits, strict=True)]


def _spoken(edits: Sequence[TokenizedEdit], texts: Texts) -> dict[str, float | None]:
    pairs = list(zip(edits, texts, strict=True))
    return {
        "exact": _mean([begins_with(text, e.request.target) for e, (text, _) in pairs]),
        "exact_rephrase": _mean([begins_with(text, e.request.target) for e, (_, text) in pairs if text is not None]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
