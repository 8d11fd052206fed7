"""``ultraedit tune``, from the options to a preset: load the model, draw a sample, search with every measurement on the disk, write the winner."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from editing import InputError, TurnRefused
from editing.config import check_number, check_whole
from editing.datasets import EditFile
from editing.files import pretrained
from editing.model.decoder import Decoder
from editing.model.joining import Joiner
from editing.model.modules import editable
from editing.presets import FORMAT
from orchestrator.digest import InputDigest
from orchestrator.progress import Progress
from orchestrator.tracking import Tracker
from orchestrator.tune.search import (
    STRENGTHS,
    Candidate,
    Objective,
    TrialResult,
    candidates,
    count_entrants,
    explain_winner,
    families,
    mlp_outputs,
    rung_sizes,
    search,
)
from orchestrator.tune.trial_log import TrialLog
from orchestrator.tune.trials import Trials, draw_sample

logger = logging.getLogger("ultraedit")

PRESET = "preset.yaml"
MEASUREMENTS = "measurements.jsonl"


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """A search for modules and a learning rate.

    Attributes:
        model: Folder or Hub id of the model.
        edits: File with edits, or folder of parts.
        output: Folder for the preset and the measurements.
        format: Record format of ``edits``.
        sample: Edits that are drawn.
        rungs: Rounds of the search; each has twice the edits of the one before.
        families: Families of modules, or modules as ``q_proj+v_proj``; by default those that the model has.
        strengths: Relative shifts of one turn that are tried.
        refine: In the last rung also try further passes, a preserving ridge and, where the edits have subjects, edits at the subjects.
        objective: What the candidates are scored by.
        edits_per_turn: Edits that share one shift per module.
        seed: Of the sample.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        overwrite: Discard the measurements that ``output`` already has.
    """

    model: str
    edits: str
    output: Path
    format: str = "auto"
    sample: int = 100
    rungs: int = 3
    families: tuple[str, ...] = ()
    strengths: tuple[float, ...] = STRENGTHS
    refine: bool = False
    objective: Objective = field(default_factory=Objective)
    edits_per_turn: int = 100
    seed: int = 0
    device: str = "auto"
    dtype: pretrained.DTypeName = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("sample", "rungs", "edits_per_turn"):
            check_whole(name, getattr(self, name))
        check_whole("seed", self.seed, at_least=0)
        for strength in self.strengths:
            check_number("strengths", strength)
        for name in ("families", "strengths"):
            values = getattr(self, name)
            if len(set(values)) != len(values) or (name == "strengths" and not values):
                raise InputError(f"{name}: expected distinct values, found {', '.join(map(str, values)) or 'none'}")
        folder = self.output
        if folder.exists() and not (folder.is_dir() and ((folder / MEASUREMENTS).is_file() or not any(folder.iterdir()))):
            raise InputError(f"output: {folder} already exists and holds no search; choose a new or empty folder, or that of an earlier search")


@dataclass(frozen=True, slots=True)
class TuneResult:
    """What a search found.

    Attributes:
        table: The measurements of every rung, best first.
        preset: The file that was written.
        measured: Number of measurements made now; the others were known.
        reason: Why the winner won.
    """

    table: list[list[TrialResult]]
    preset: Path
    measured: int
    reason: str


def tune(config: TuneConfig, tracker: Tracker, progress: Progress) -> TuneResult:
    """Search, and write the winner as a preset. A search that was stopped goes on where it was.

    Raises:
        UltraEditError: Model, edits or options cannot be used, the folder holds a search of another kind, or nothing that was
            tried teaches the model anything.
    """
    source = EditFile(config.edits, config.format, seed=config.seed)
    with InputDigest(source.path, source.parts) as digest:
        model, tokenizer = pretrained.load(config.model, device=pretrained.choose_device(config.device), dtype=config.dtype)
        decoder = Decoder(model)
        decoder.verify()
        found = families(editable(decoder), decoder.layers_path, config.families)
        joiner = Joiner(tokenizer, num_embeddings=decoder.config.vocab_size)
        edits = draw_sample(source, joiner, config.sample, seed=config.seed, max_tokens=decoder.max_tokens)
        written = mlp_outputs(editable(decoder), decoder.layers_path) if any(edit.sequence.rows("subject") for edit in edits) else {}
        entrants = candidates(found, decoder.num_layers, config.strengths, written)
        settings = {
            "model": pretrained.fingerprint(model.named_parameters()),
            "input": digest.result(),
            "format": source.format.name,
            **{name: getattr(config, name) for name in ("seed", "sample", "edits_per_turn")},
        }
    if len(edits) < config.sample:
        logger.info("sample    all %d usable edits; %d were requested", len(edits), config.sample)
    for metric, has_probes in (("generalization", any(e.rephrase for e in edits)), ("locality retention", any(e.locality for e in edits))):
        if not has_probes:
            logger.warning("%s is not measured, since the edits have no probes for it; the winner may be bad at it", metric)
    trials = Trials(model, tokenizer, edits, edits_per_turn=config.edits_per_turn)
    config.output.mkdir(parents=True, exist_ok=True)
    with TrialLog(config.output / MEASUREMENTS, settings, overwrite=config.overwrite) as log:
        searching = _TrackedSearch(config, trials, log, tracker)
        searching.track(settings)
        try:
            table = searching.run(entrants, rung_sizes(len(edits), config.rungs), progress)
            preset = _write(config, table, type(model).__name__, decoder.config, settings["input"])
        except BaseException:
            tracker.close("FAILED")
            raise
        searching.finish(table, preset)
        return TuneResult(table, preset, searching.measured, explain_winner(table))


class _TrackedSearch:
    """A search whose measurements are kept on the disk and tracked."""

    def __init__(self, config: TuneConfig, trials: Trials, log: TrialLog, tracker: Tracker) -> None:
        self._config, self._trials, self._log, self._tracker = config, trials, log, tracker
        self.measured = 0

    def track(self, settings: dict[str, Any]) -> None:
        """Open the tracked run, or go on in that of the same search."""
        config = self._config
        known = self._log.get("run")
        named = ("model", "edits", "sample", "rungs", "refine", "families", "strengths", "objective")
        params = {**settings, "fingerprint": settings["model"], **{name: getattr(config, name) for name in named}}
        self._tracker.start(f"tune {Path(config.model).name}", params, run_id=known["id"] if known else None)
        if not known and (run_id := self._tracker.run_id()):
            self._log.put("run", id=run_id)

    def run(self, entrants: list[Candidate], sizes: Sequence[int], progress: Progress) -> list[list[TrialResult]]:
        """All rungs."""
        config = self._config
        counts = count_entrants(entrants, len(sizes), refine=config.refine)
        rungs = ", ".join(f"{count} with {size} edits" for count, size in zip(counts, sizes, strict=True))
        logger.info("search    %d candidates; rungs: %s", len(entrants), rungs)
        with progress.bar("tuning", sum(count * size for count, size in zip(counts, sizes, strict=True))) as advance:
            return search(entrants, sizes, lambda c, n: self._measure(c, n, advance), refine=config.refine)

    def finish(self, table: Sequence[Sequence[TrialResult]], preset: Path) -> None:
        """Track the winner and the files."""
        best = table[-1][0]
        self._tracker.log({**best.metrics, "score": best.score, "learning_rate": best.learning_rate}, best.edits)
        self._tracker.artifact(preset)
        self._tracker.artifact(preset.with_name(MEASUREMENTS))
        self._tracker.close("FINISHED")

    def _measure(self, candidate: Candidate, num_edits: int, advance: Callable[[int], None]) -> TrialResult:
        rate = self._rate(candidate)
        known = self._log.get("metrics", candidate.name, str(num_edits))
        fresh = known is None
        if known is None:
            metrics = self._trials.measure(candidate, rate, num_edits) if rate else {}
            known = self._log.put("metrics", candidate.name, str(num_edits), learning_rate=rate, metrics=metrics)
            self.measured += 1
        result = TrialResult(candidate, num_edits, rate, known["metrics"], self._config.objective.score(known["metrics"], num_edits))
        if fresh:
            params = {"family": candidate.family, "modules": ", ".join(candidate.modules), "learning_rate": rate, **candidate.options}
            self._tracker.nested(candidate.name, params, {**result.metrics, "score": result.score}, num_edits)
        advance(num_edits)
        return result

    def _rate(self, candidate: Candidate) -> float:
        """The learning rate of a candidate; 0 if its modules cannot be shifted."""
        known = self._log.get("rate", candidate.window)
        if known is None:
            try:
                rate = self._trials.rate(replace(candidate, strength=1.0, variant="published"))
            except TurnRefused as error:
                logger.warning("%s: %s", candidate.window, error)
                rate = 0.0
            known = self._log.put("rate", candidate.window, learning_rate=rate)
        return float(f"{known['learning_rate'] * candidate.strength:.3g}")


def _write(config: TuneConfig, table: Sequence[Sequence[TrialResult]], architecture: str, text_config: Any, input_digest: str) -> Path:
    """Write the winner as a preset.

    Raises:
        InputError: It knows no more of the edits than the unedited model.
    """
    best = table[-1][0]
    learned = (best.metrics.get("efficacy") or 0.0) - (best.metrics.get("efficacy_before") or 0.0)
    if learned <= 0:
        raise InputError(
            f"{config.model}: none of {len(table[0])} candidates taught it anything of {config.edits}, so no preset is written; "
            "try larger --strengths, or other --families"
        )
    drawn = f"{best.edits} edits of {Path(config.edits).name} (SHA-256 {input_digest[:16]}), seed {config.seed}"
    about = f"ultraedit tune, {datetime.now(UTC):%Y-%m-%d}, {config.model}, {drawn}, turns of {config.edits_per_turn}"
    values = {
        **FORMAT.tag,
        "source": f"{about}: {explain_winner(table)}",
        "match": {
            "architectures": [architecture],
            **{name: getattr(text_config, name) for name in ("hidden_size", "num_hidden_layers")},
        },
        "modules": list(best.candidate.modules),
        "learning_rate": best.learning_rate,
        **best.candidate.options,
    }
    path = config.output / PRESET
    aside = path.with_name(f".partial-{PRESET}")
    aside.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=150), encoding="utf-8")
    return aside.replace(path)
