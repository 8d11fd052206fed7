"""Whether the model still does what it did: fixed questions and a fixed text that no edit is about.

Both go through the frozen prefix once, when the model is loaded. A measurement costs one pass of them through the suffix.
"""

import json
from dataclasses import asdict, dataclass
from importlib import resources

from editing.editor import Editor
from editing.model.joining import Joiner
from editing.model.prefix import perplexity, predict
from editing.model.tokenization import AnswerSequence, encode
from editing.monitoring.watch import Watch
from editing.turn import PreparedTurn

_PROBES = resources.files("editing.probes")
_WATCHED = ("efficacy", "generalization", "specificity", "locality_retention", "efficacy_before", "generalization_before", "specificity_before")


@dataclass(frozen=True, slots=True)
class Vitals:
    """Measurements of the model after a turn. Shares are from 0 to 1.

    Attributes:
        efficacy_after: Share of right answer tokens on a sample of the turn's own edits.
        perplexity: Perplexity on the fixed text.
        perplexity_growth: The same as a multiple of the unedited model's.
        probe_retention: Share of fixed probes whose answer is still the unedited model's.
        watch_efficacy: Share of right answer tokens on the watched sample of all edits applied so far.
        watch_generalization: The same on their rephrased prompts.
        watch_specificity: The same on their locality probes.
        watch_locality_retention: Share of their locality probes whose answer is still the unedited model's.
        perplexity_before: Perplexity of the unedited model on the fixed text.
        watch_efficacy_before: Share of right answer tokens of the unedited model on the watched sample.
        watch_generalization_before: The same on the rephrased prompts.
        watch_specificity_before: The same on the locality probes.
    """

    efficacy_after: float
    perplexity: float
    perplexity_growth: float
    probe_retention: float
    watch_efficacy: float | None
    watch_generalization: float | None
    watch_specificity: float | None
    watch_locality_retention: float | None
    perplexity_before: float | None = None
    watch_efficacy_before: float | None = None
    watch_generalization_before: float | None = None
    watch_specificity_before: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Measurements by name."""
        return asdict(self)


class Health:
    """Measures a model.

    Args:
        editor: The editor whose model is measured. It may have been edited already.
        watch: The sample of applied edits.
        turn_sample: Number of a turn's edits whose efficacy is measured after it.
    """

    def __init__(self, editor: Editor, watch: Watch, *, turn_sample: int = 20) -> None:
        self._editor, self._watch, self._turn_sample = editor, watch, turn_sample
        sequences = [*_read_probes(editor), fixed_text(editor.joiner, editor.decoder.max_tokens)]
        fixed = editor.run_prefix(sequences, dtype="same")
        last = len(fixed.sequences) - 1
        self._probes, self._text = fixed.select(range(last)), fixed.select([last])
        with editor.unedited():
            self._answers = self._predict()
            self._perplexity = self._measure_text()

    def measure(self, prepared: PreparedTurn) -> Vitals:
        """Measure after a turn was applied."""
        found = self._measure_text()
        watched = self._watch.measure()
        return Vitals(
            efficacy_after=self._editor.efficacy(prepared, self._turn_sample),
            perplexity=found,
            perplexity_growth=found / self._perplexity,
            probe_retention=self.probe_retention(),
            perplexity_before=self._perplexity,
            **{f"watch_{name}": watched.get(name) for name in _WATCHED},
        )

    def probe_retention(self) -> float:
        """Share of the fixed probes whose answer is still the unedited model's."""
        kept = [now == before for now, before in zip(self._predict(), self._answers, strict=True)]
        return sum(kept) / len(kept)

    def _predict(self) -> list[tuple[int, ...]]:
        editor = self._editor
        return predict(editor.decoder, self._probes, start=editor.start, batch_tokens=editor.config.batch_tokens)

    def _measure_text(self) -> float:
        editor = self._editor
        return perplexity(editor.decoder, self._text, start=editor.start, batch_tokens=editor.config.batch_tokens)


def _read_probes(editor: Editor) -> list[AnswerSequence]:
    lines = (_PROBES / "facts.jsonl").read_text(encoding="utf-8").splitlines()
    return [encode(editor.joiner, probe["prompt"], probe["answer"]) for probe in map(json.loads, lines)]


def fixed_text(joiner: Joiner, max_tokens: int | None) -> AnswerSequence:
    """The fixed text as one sequence, as long as the model's context has room for it; every token but the first is a row."""
    ids = joiner.as_typed.prompt_ids((_PROBES / "text.txt").read_text(encoding="utf-8").strip())[:max_tokens]
    return AnswerSequence(ids[:-1], ids[1:])
