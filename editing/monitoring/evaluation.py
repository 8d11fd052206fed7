"""Whether edits worked, and what else they changed.

Teacher-forced metrics compare the model's likeliest token at every row with the expected one. The share of right tokens is
averaged over edits, as in the published evaluation:

    efficacy                prompt            against the target
    held                    prompt            share of edits whose every token of the target is right
    generalization          rephrased prompt  against the target
    generalization_persona  persona prompts   against the target; the mean over an edit's prompts
    multi_hop               multi-hop prompts against their answers, which follow from the edit; the mean over an edit's prompts
    portability             portability prompts against their answers, which the edit changes too; the mean over an edit's prompts
    specificity             locality prompt   against the locality answer, which the unedited model may not know either
    locality_retention      locality prompt   share of probes where every token is still the unedited model's choice

What text that the model generates says is told in :mod:`editing.monitoring.texts`.

Where prompts and answers meet by the published rule (:mod:`editing.model.joining`), the metrics named ``..._as_typed`` are the
same of the text as a person types it. Generated text always follows a prompt as typed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from editing.config import DEFAULT_BATCH_TOKENS
from editing.editor import Editor
from editing.model.decoder import Decoder
from editing.model.prefix import Prefixed, predict, run_prefix
from editing.model.tokenization import AnswerSequence
from editing.turn import TYPED, TokenizedEdit

METRIC_OF = {
    "sequence": "efficacy",
    "rephrase": "generalization",
    "persona": "generalization_persona",
    "multi_hop": "multi_hop",
    "portability": "portability",
    "locality": "specificity",
}
"""Metric of each kind of probe."""

AS_TYPED = {"sequence": "efficacy_as_typed", "rephrase": "generalization_as_typed", "locality": "specificity_as_typed"}
"""The metric that a kind of probes gives as it is typed, where the edits are not."""

Answers = dict[str, tuple[int, ...]]
"""Per probe of an edit, by its name, the likeliest token at each row."""

Predictions = list[Answers]
"""Those of several edits."""

Owners = list[tuple[int, str]]
"""Per sequence, the position of its edit and the name of the probe."""


@dataclass(frozen=True, slots=True)
class EditResult:
    """Metrics of one edit; ``None`` if the request has no such probe, or there is no unedited model to compare with."""

    efficacy: float
    generalization: float | None
    specificity: float | None
    locality_retained: bool | None
    efficacy_before: float | None
    generalization_before: float | None
    specificity_before: float | None
    generalization_persona: float | None = None
    multi_hop: float | None = None
    generalization_persona_before: float | None = None
    multi_hop_before: float | None = None
    portability: float | None = None
    portability_before: float | None = None
    efficacy_as_typed: float | None = None
    generalization_as_typed: float | None = None
    specificity_as_typed: float | None = None


def evaluate(editor: Editor, edits: Sequence[TokenizedEdit]) -> list[EditResult]:
    """Metrics of edits with the editor's model as it was before the first edit and as it is now."""
    return evaluate_beside(editor, edits, None)[0]


def evaluate_beside(editor: Editor, edits: Sequence[TokenizedEdit], known: Sequence[Answers | None] | None) -> tuple[list[EditResult], Predictions]:
    """Metrics of edits with the editor's model as it was before the first edit and as it is now. The prefix runs once for both.

    Args:
        editor: The editor.
        edits: The edits.
        known: What the unedited model predicts on an edit's probes, where that is known; it is asked about the others only.

    Returns:
        The metrics, and the predictions of the unedited model.
    """
    owners, prefixed = run_probe_prefix(editor.decoder, edits, editor.start, editor.config.batch_tokens)
    after = predict_prefixed(editor, owners, prefixed, len(edits))
    before = [answers or {} for answers in known or [None] * len(edits)]
    new = [j for j, (i, _) in enumerate(owners) if not before[i]]
    if new:
        with editor.unedited():
            found = predict_prefixed(editor, [owners[j] for j in new], prefixed.select(new), len(edits))
        before = [answers or predicted for answers, predicted in zip(before, found, strict=True)]
    return score(edits, after, before), before


def predict_probes(decoder: Decoder, edits: Sequence[TokenizedEdit], *, batch_tokens: int = DEFAULT_BATCH_TOKENS) -> Predictions:
    """Predictions of a model on all probes of edits; it needs no editor."""
    owners, prefixed = run_probe_prefix(decoder, edits, 0, batch_tokens)
    return _by_edit(owners, predict(decoder, prefixed, start=0, batch_tokens=batch_tokens), len(edits))


def predict_prefixed(editor: Editor, owners: Owners, prefixed: Prefixed, count: int) -> Predictions:
    """Predictions of the editor's model as it is now, on probes that have gone through the prefix.

    Args:
        editor: The editor.
        owners: The edit and probe of each sequence.
        prefixed: The sequences.
        count: Number of edits.
    """
    tokens = predict(editor.decoder, prefixed, start=editor.start, batch_tokens=editor.config.batch_tokens)
    return _by_edit(owners, tokens, count)


def probe_sequences(edits: Sequence[TokenizedEdit]) -> tuple[Owners, list[AnswerSequence]]:
    """All probes of edits, with the edit's position and the probe's name for each."""
    probes = [((i, name), sequence) for i, edit in enumerate(edits) for name, sequence in edit.probes.items()]
    return [owner for owner, _ in probes], [sequence for _, sequence in probes]


def run_probe_prefix(decoder: Decoder, edits: Sequence[TokenizedEdit], stop: int, batch_tokens: int) -> tuple[Owners, Prefixed]:
    """Run the prefix over all probes of edits."""
    owners, sequences = probe_sequences(edits)
    return owners, run_prefix(decoder, sequences, stop=stop, batch_tokens=batch_tokens)


def score(edits: Sequence[TokenizedEdit], after: Predictions, before: Predictions | None) -> list[EditResult]:
    """Compare predictions with the expected answers, and with each other.

    Args:
        edits: The edits.
        after: Predictions of the model now.
        before: Predictions of the unedited model, if there are any.
    """
    results = []
    for i, edit in enumerate(edits):
        kept = None if before is None or edit.locality is None else after[i]["locality"] == before[i]["locality"]
        rights = _rights(edit, after[i])
        now, then = _by_kind(rights), _by_kind(_rights(edit, before[i])) if before is not None else {}
        shares = {metric: now.get(kind) for kind, metric in METRIC_OF.items()}
        shares |= {f"{metric}_before": then.get(kind) for kind, metric in METRIC_OF.items()}
        if edit.typed is not None:
            typed = _by_kind(rights, typed=True)
            shares |= {metric: typed.get(kind) for kind, metric in AS_TYPED.items()}
        results.append(EditResult(locality_retained=kept, **shares))  # type: ignore[arg-type]
    return results


class Means:
    """Running means of fields over the rows that have them.

    Args:
        names: The fields.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.count = 0
        self._sums = {name: [0.0, 0] for name in names}

    def add(self, row: object) -> None:
        """Add the fields of a row. ``None`` counts as no value."""
        self.add_values({name: getattr(row, name) for name in self._sums})

    def add_values(self, values: Mapping[str, float | None]) -> None:
        """Add values by name; those that are missing, or ``None``, count as no value."""
        self.count += 1
        for name, sums in self._sums.items():
            if (value := values.get(name)) is not None:
                sums[0] += value
                sums[1] += 1

    def means(self) -> dict[str, float | None]:
        """Mean by field name; ``None`` if no row has the field."""
        return {name: total / count if count else None for name, (total, count) in self._sums.items()}


class Summary(Means):
    """Running means of each metric over the edits that have it."""

    def __init__(self) -> None:
        super().__init__((*EditResult.__slots__, "held", "held_before"))

    def add(self, row: object) -> None:
        values = {name: getattr(row, name) for name in EditResult.__slots__}
        shares = {"held": values["efficacy"], "held_before": values["efficacy_before"]}
        self.add_values(values | {name: None if share is None else float(share == 1) for name, share in shares.items()})

    def means(self) -> dict[str, float | None]:
        means = super().means()
        means["locality_retention"] = means.pop("locality_retained")
        return means


def summarize(results: Iterable[EditResult]) -> dict[str, float | None]:
    """Mean of each metric over the results that have it."""
    summary = Summary()
    for result in results:
        summary.add(result)
    return summary.means()


def _by_edit(owners: Owners, predictions: Sequence[tuple[int, ...]], count: int) -> Predictions:
    result: Predictions = [{} for _ in range(count)]
    for (i, probe), tokens in zip(owners, predictions, strict=True):
        result[i][probe] = tokens
    return result


def _rights(edit: TokenizedEdit, predictions: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Share of right tokens by probe."""
    probes = edit.probes
    rights: dict[str, float] = {}
    for name, tokens in predictions.items():
        if name.removeprefix(TYPED) == "locality" and edit.request.locality_answer is None:
            continue
        expected = probes[name].answer_ids
        rights[name] = sum(a == b for a, b in zip(tokens, expected, strict=True)) / len(expected)
    return rights


def _by_kind(rights: Mapping[str, float], *, typed: bool = False) -> dict[str, float]:
    """The mean over an edit's probes of each kind; with ``typed``, of those that are others as typed as they are typed."""
    own = {name: right for name, right in rights.items() if not name.startswith(TYPED)}
    if typed:
        own |= {name.removeprefix(TYPED): right for name, right in rights.items() if name.startswith(TYPED)}
    shares: dict[str, list[float]] = {}
    for name, right in own.items():
        shares.setdefault(name.partition(".")[0], []).append(right)
    return {kind: sum(values) / len(values) for kind, values in shares.items()}
