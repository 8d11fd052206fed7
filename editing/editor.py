"""One model with its lifelong statistics, edited turn by turn.

    requests --tokenize, sort, group--> turn --prefix (frozen, many turns at once)--> hidden states
      --suffix forward, head on rows, suffix backward--> keys K, value gradients G of every edited module      capture
      --at subjects, if targets are solved: steps of a residual--> targets T                               targets
      --lifelong moments merged--> K^, G^ --> targets T --n x n system--> thin shift                            solve
      --the same with the shifted weights, for pending rows only, in up to ``passes`` passes--> shifts          refine
      --all or nothing--> weights, statistics                                                                   commit

All passes of a turn use the statistics of its first one. A turn is applied whole or not at all: if a number is not finite it is
refused, and weights and statistics are then what they were before it. What each step computes is in rooms of its own:
:mod:`editing.turn_capture`, :mod:`editing.preserved`, :mod:`editing.method.solver`, :mod:`editing.passes`, :mod:`editing.edited_weights`,
:mod:`editing.report`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editing.atomic import put_back, restored_unless, uninterrupted
from editing.config import EditorConfig, PrefixDType
from editing.edited_weights import EditedWeights
from editing.errors import InputError, ModelError, TurnRefused
from editing.files import pretrained
from editing.files.checkpoint_files import BaseFiles
from editing.files.saving import save_edited, save_plain
from editing.files.weights import keys_in_files
from editing.first_turn import ENOUGH, find_strength
from editing.method.lifelong import LifelongStatistics
from editing.method.moments import Moments
from editing.method.preserve import PreservingRidge
from editing.method.residuals import check_outputs
from editing.method.rows import SITES, Site, TurnRows
from editing.method.solver import Solution, TurnSolver
from editing.method.whitening import check_width
from editing.model.decoder import Decoder
from editing.model.framing import has_template, resolve_framings
from editing.model.joining import Joiner
from editing.model.modules import resolve
from editing.model.prefix import Prefixed, predict, run_prefix
from editing.model.tokenization import AnswerSequence
from editing.moment_prior import FULL_TURN, MomentPrior
from editing.passes import TurnPasses
from editing.preserved import Preserved
from editing.presets.resolve import resolve_settings
from editing.ranges import consecutive
from editing.report import PhaseClock, make_report, mean_accuracy
from editing.requests import EditRequest
from editing.sharding.collectives import Collectives, SingleWorker
from editing.sharding.shards import Shape
from editing.subject_targets import put_in_context, read_contexts, solve_targets
from editing.turn import PreparedTurn, Turn, TurnReport, in_turns, tokenize
from editing.turn_capture import TurnCapture


@dataclass(frozen=True, slots=True)
class _ObservedTurn:
    """What the shifts of a turn are found from.

    Attributes:
        rows: Its rows, with solved targets if these are solved.
        neighbours: What its ridge knows of its neighbours.
        num_settled: As in :class:`TurnReport`.
        statistics: The lifelong statistics with this turn's.
        filled: The same, filled up by the prior's; with the rate of the configured strength, if the turn finds it.
        seconds: Wall time by phase.
    """

    rows: TurnRows
    neighbours: dict[str, PreservingRidge]
    num_settled: int | None
    statistics: LifelongStatistics
    filled: LifelongStatistics
    seconds: dict[str, float]


class Editor:
    """A causal language model that can be edited.

    Args:
        model: A Hugging Face causal language model, or one shard of it. It is frozen, and edited in place.
        tokenizer: Its tokenizer.
        config: How edits are made.
        collectives: How partial results of several workers become whole; a single worker needs none. With several shards every
            method is called on all of them, with the same arguments and in the same order.
        decoder: Runs the model, if not all of it is in memory.
        originals: Weights of its modules from before the first edit, by name; by default they are copied now.

    Attributes:
        model: The model, edited by every :meth:`apply`; it stays a plain Hugging Face model.
        base: The files that it was loaded from, if there are any.
        decoder: The same model as prefix, suffix and head.
        joiner: Turns prompts and answers into its tokens.
        lifelong: Statistics of all edits so far.
        turns: Turns applied so far.
        modules: The edited modules by name.
        sites: At which rows each of them is edited.
        weights: Their weights, with float32 masters and the weights from before the first edit.
        start: First layer of the suffix: the lowest edited layer.
        collectives: As given.
        capture: Captures the rows of a turn.
        preserved: What edits must leave as it is.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: EditorConfig,
        collectives: Collectives | None = None,
        *,
        decoder: Decoder | None = None,
        originals: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.base = BaseFiles.of_model(model)
        self.tokenizer = tokenizer
        self.config = config = replace(config, framings=resolve_framings(config.framings, chats=has_template(tokenizer)))
        self.decoder = decoder or Decoder(model)
        self.joiner = Joiner(
            tokenizer,
            config.join,
            num_embeddings=self.decoder.config.vocab_size,
            framings=config.framings,
            answer_end=config.answer_end,
            finds_subjects=config.find_subjects and bool(config.subject_modules),
        )
        self.collectives = collectives or SingleWorker()
        self.modules, self.sites = _resolve_sites(self.decoder, config)
        self.start = min(self.decoder.layer_of(name) for name in self.modules) if config.cache_prefix else 0
        self.lifelong = LifelongStatistics()
        self.turns = 0
        self.weights = EditedWeights(self.modules, self.collectives, masters=config.masters, originals=originals)
        self.shards = self.weights.shards
        if config.whiten:
            check_width(self.shards)
        if config.solves_targets:
            check_outputs(self.shards, self.sites)
        self.capture = TurnCapture(self.decoder, self.modules, self.sites, self.start, config, self.collectives)
        self.preserved = Preserved(self.decoder, self.joiner, self.modules, self.sites, self.start, self.weights, config, self.collectives)
        self._contexts = read_contexts(config.subject_contexts)
        self._prior = MomentPrior.of(self.joiner, self.decoder.max_tokens, self.shards, self.sites) if config.small_turns else None
        self._of_prior: LifelongStatistics | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        modules: Sequence[str] | None = None,
        learning_rate: float | None = None,
        preset: str | None = None,
        dataset: str | None = None,
        device: str = "auto",
        dtype: pretrained.DTypeName = "auto",
        **options: Any,
    ) -> "Editor":
        """Load a model and get it ready to be edited.

        Args:
            name: A folder, or a repository id of the Hugging Face Hub.
            modules: Names or patterns of the linears to edit; by default the preset's.
            learning_rate: By default the preset's.
            preset: Name of a preset or of a variant; by default the one for the model's architecture and size.
            dataset: Format of the edits, where a preset has other modules for some data sets; by default those for the others.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: ``auto``, ``float32`` or ``bfloat16``.
            **options: Further fields of :class:`EditorConfig`; they win over the preset's.

        Raises:
            ModelError: The model cannot be loaded or is not supported.
            InputError: An option is not usable, or there is no preset and ``modules`` or ``learning_rate`` is not given.
        """
        model, tokenizer = pretrained.load(name, device=pretrained.choose_device(device), dtype=dtype)
        return cls.of_loaded(model, tokenizer, name, modules=modules, learning_rate=learning_rate, preset=preset, dataset=dataset, **options)

    @classmethod
    def of_loaded(
        cls,
        model: Any,
        tokenizer: Any,
        name: str | Path,
        *,
        modules: Sequence[str] | None = None,
        learning_rate: float | None = None,
        preset: str | None = None,
        dataset: str | None = None,
        collectives: Collectives | None = None,
        decoder: Decoder | None = None,
        originals: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> "Editor":
        """As :meth:`from_pretrained`, with a model that has been loaded: whole, one shard of it, or what a memory budget has room for."""
        decoder = decoder or Decoder(model)
        decoder.verify()
        modules, rate, found = resolve_settings(decoder, name, modules=modules, learning_rate=learning_rate, preset=preset, dataset=dataset)
        if options.get("strength") is not None:
            rate = learning_rate  # not the preset's; one that is given beside it is refused
            found.pop("strength_goal", None)
        config = EditorConfig(modules=modules, learning_rate=rate, **{**found, **options})
        return cls(model, tokenizer, config, collectives, decoder=decoder, originals=originals)

    @property
    def moments(self) -> dict[Shape, Moments]:
        """Lifelong moments of the modules edited at the answers, by their shape ``(d_in, d_out)``."""
        return self.lifelong.moments

    @property
    def text_sha256(self) -> str:
        """Digest of the reference text as it was read; ``none`` if there is none."""
        return self.preserved.text.sha256

    @property
    def uses_masters(self) -> bool:
        """Whether float32 copies of the edited modules are kept beside weights of lower precision."""
        return bool(self.weights.masters)

    def apply(self, requests: Iterable[EditRequest], *, measure: bool = True, lookahead: int = 4) -> list[TurnReport]:
        """Write facts into the model.

        Args:
            requests: Any number of edits; they are cut into turns of ``edits_per_turn``.
            measure: Also measure the efficacy of the edits after each turn.
            lookahead: Turns that go through the frozen layers in one pass.

        Returns:
            The report of each turn.

        Raises:
            InvalidRequest: A request cannot be tokenized for this model. Nothing was applied.
            TurnRefused: A turn was not finite. Earlier turns of this call stay applied; this one and later ones are not.
        """
        edits = [tokenize(self.joiner, request, max_tokens=self.decoder.max_tokens) for request in requests]
        turns = in_turns(edits, self.config.edits_per_turn, before=self.turns)
        reports = []
        while window := list(islice(turns, lookahead)):
            reports += [self._applied(prepared, measure) for prepared in self.prepare(window)]
        return reports

    def _applied(self, prepared: PreparedTurn, measure: bool) -> TurnReport:
        if not self.finds_rate(prepared.turn):
            return self.apply_turn(prepared, measure=measure)
        report = self.apply_gently(prepared, lambda: True, most_halvings=0)
        return replace(report, efficacy_after=self.efficacy(prepared)) if measure else report

    def prepare(self, turns: Sequence[Turn]) -> list[PreparedTurn]:
        """Run the prefix for several coming turns at once.

        The result stays valid whatever turns are applied. That of one turn does not depend on the others, to the last bit.
        """
        clock = PhaseClock()
        replica, count, row_cost = self.collectives.replica, self.collectives.num_replicas, self.decoder.row_cost(self.start)
        shares = [turn.shares(self.config.group_size, count, row_cost=row_cost) for turn in turns]
        own = [turn.sequences_at(of_turn[replica]) for turn, of_turn in zip(turns, shares, strict=True)]
        prefixed = self.run_prefix([sequence for sequences in own for sequence in sequences], apart=[len(sequences) for sequences in own])
        clock.lap("prefix")
        seconds = clock.seconds["prefix"] / max(1, len(turns))
        ranges = consecutive(len(sequences) for sequences in own)
        return [PreparedTurn(turn, prefixed.select(r), seconds, of_turn) for turn, r, of_turn in zip(turns, ranges, shares, strict=True)]

    def run_prefix(self, sequences: Sequence[AnswerSequence], *, apart: Sequence[int] | None = None, dtype: PrefixDType | None = None) -> Prefixed:
        """Run the layers below the lowest edited one: as edits are made, or for a measurement in the model's own precision, ``same``.

        Args:
            sequences: The sequences.
            apart: As for :func:`editing.model.beginnings.whole`.
            dtype: Precision of the products; by default the configured one.
        """
        dtype = dtype or self.config.prefix_dtype
        return run_prefix(self.decoder, sequences, stop=self.start, batch_tokens=self.config.batch_tokens, apart=apart, dtype=dtype)

    def finds_rate(self, turn: Turn) -> bool:
        """Whether a turn, if it is the next one, finds the learning rate, from the configured strength."""
        known = self.lifelong
        return self.config.strength is not None and (known.rate is None or (known.is_provisional and self._seeks_goal(turn)))

    def apply_gently(self, prepared: PreparedTurn, is_harmless: Callable[[], bool], *, most_halvings: int) -> TurnReport:
        """Compute and commit the turn that finds the learning rate, so that it does no harm and its edits hold (:mod:`editing.first_turn`).

        Args:
            prepared: The turn.
            is_harmless: Looks at the model after the turn; all workers get the same answer.
            most_halvings: After so many the turn stays, whatever it does.

        Raises:
            TurnRefused: As :meth:`apply_turn` does; the last halving may leave nothing that changes a weight.
        """
        before, turns, observed = self.lifelong, self.turns, self._observe_turn(prepared)
        goal = self.config.strength_goal if self._seeks_goal(prepared.turn) else 0.0
        if before.rate is not None:
            most_halvings = 0  # what earlier turns have done is no reason to write this one weakly
        weights = [tensor.to("cpu", copy=True) for tensor in self.weights.in_place()] if goal or most_halvings else []  # else nothing is taken back

        def take_back() -> None:
            with uninterrupted():
                put_back(self.weights.in_place(), weights)
                self.lifelong, self.turns = before, turns

        report, share, halvings = find_strength(
            lambda share: self._write(prepared, observed, strength_share=share),
            take_back,
            lambda: self._held(prepared),
            is_harmless,
            goal=goal,
            most_halvings=most_halvings,
        )
        return replace(report, halvings=halvings, strength=share * (self.config.strength or 0.0))

    def apply_turn(self, prepared: PreparedTurn, *, measure: bool = True) -> TurnReport:
        """Compute and commit one turn. If it finds the learning rate, that is the rate of the configured strength.

        Args:
            prepared: The turn.
            measure: Also measure the efficacy of its edits afterwards.

        Raises:
            TurnRefused: Loss, gradients or shift are not finite, or no weight would change. Weights and statistics are as before.
        """
        return self._write(prepared, self._observe_turn(prepared), measure=measure)

    def observe(self, prepared: PreparedTurn) -> None:
        """Add a turn's rows to the lifelong statistics, and change no weight.

        Raises:
            TurnRefused: Loss or gradients are not finite. The statistics are as before.
        """
        self.lifelong = self._with_turn(self.lifelong, self.capture(prepared, tokens=self.config.preserves), prepared.turn)

    def efficacy(self, prepared: PreparedTurn, sample: int | None = None) -> float:
        """Share of a turn's answer tokens that the model has right now; mean over its edits in all of their forms.

        Args:
            prepared: The turn.
            sample: Measure only this many of these forms, evenly spaced from the longest to the shortest.
        """
        count = len(prepared.turn.sequences)
        rights = self._rights(prepared, range(0, count, max(1, count // sample)) if sample else range(count))
        return mean_accuracy(torch.tensor([right for of_form in rights for right in of_form]), [len(of_form) for of_form in rights])

    def _held(self, prepared: PreparedTurn) -> float:
        """Share of a turn's edits, in each of their forms, whose whole answer is right now; the first worker's word."""
        held = [all(of_form) for of_form in self._rights(prepared, range(len(prepared.turn.sequences)))]
        return float(self.collectives.broadcast(torch.tensor([sum(held) / len(held)], device=self.decoder.device)))

    def _rights(self, prepared: PreparedTurn, chosen: Sequence[int]) -> list[list[bool]]:
        """Of chosen forms of a turn's edits, whether each answer token is what the model says right now."""
        has_all = self.collectives.num_replicas == 1  # else this replica has run the prefix of its own share only
        prefixed = prepared.prefixed.select(chosen) if has_all else self.run_prefix(prepared.turn.sequences_at(chosen))
        predictions = predict(self.decoder, prefixed, start=self.start, batch_tokens=self.config.batch_tokens)
        return [[a == b for a, b in zip(p, s.answer_ids, strict=True)] for p, s in zip(predictions, prefixed.sequences, strict=True)]

    def unedited(self) -> AbstractContextManager[None]:
        """Within this context the model has its weights from before the first edit."""
        return self.weights.unedited()

    def restore(self) -> None:
        """Go back to the weights and statistics from before the first edit."""
        self.weights.restore()
        self.lifelong, self.turns = LifelongStatistics(), 0

    def digests(self) -> dict[str, str]:
        """SHA-256 of each edited module's weight, as stored in memory."""
        return self.weights.digests()

    def save(self, folder: str | Path) -> None:
        """Write the model and its tokenizer; plain ``AutoModelForCausalLM.from_pretrained(folder)`` loads them.

        A model that was loaded from a folder is a copy of it with the edited weights replaced (:mod:`editing.files.saving`). Only for a
        model that is whole in this process.

        Raises:
            ModelError: The model is a shard, or the files that it was loaded from have changed.
        """
        if any(shard.axis for shard in self.shards.values()):
            raise ModelError(f"{folder}: this process holds one shard of the model, which cannot be saved by itself; save from all shards")
        if self.base is None:
            save_plain(self.model, self.tokenizer, Path(folder))
            return
        self.base.check_in_place()
        weights = {f"{name}.weight": weight for name, weight in self.weights.items()}
        keys = keys_in_files(self.base.folder, self.model, weights.keys())
        save_edited(self.base.folder, {keys[name]: weight for name, weight in weights.items()}, Path(folder))

    def _observe_turn(self, prepared: PreparedTurn) -> _ObservedTurn:
        """What a turn's shifts are found from, with the weights as they are; changes none of them, nor the statistics."""
        clock = PhaseClock()
        self.preserved.of_text()
        self.preserved.of_outputs()
        rows = self.capture(prepared, tokens=self.config.preserves)
        neighbours = self.preserved.of_neighbours(prepared)
        clock.lap("capture")
        num_settled: int | None = None
        if self.config.solves_targets:
            solved = solve_targets(prepared, rows, self.capture, self.config, self.collectives, self._in_contexts(prepared))
            rows, num_settled = solved.rows, solved.num_settled
            clock.lap("targets")
        statistics = self._with_turn(self.lifelong, rows, prepared.turn)
        finds_rate = self.finds_rate(prepared.turn)
        if finds_rate:
            statistics = replace(statistics, rate=None)  # what fewer edits have found
        filled = self._filled_up(statistics)
        if finds_rate:
            filled = replace(filled, rate=filled.rate or self._find_rate(rows, statistics, neighbours))
        clock.lap("solve")
        return _ObservedTurn(rows, neighbours, num_settled, statistics, filled, clock.seconds)

    def _write(self, prepared: PreparedTurn, observed: _ObservedTurn, *, measure: bool = False, strength_share: float = 1.0) -> TurnReport:
        """Compute and commit an observed turn; if it finds the learning rate, at a share of the configured strength."""
        clock = PhaseClock()
        rows, statistics, filled = observed.rows, observed.statistics, observed.filled
        if self.finds_rate(prepared.turn):
            rate = strength_share * (filled.rate or 0.0)
            is_provisional = bool(self.config.strength_goal) and not self._seeks_goal(prepared.turn)
            statistics, filled = replace(statistics, rate=rate, is_provisional=is_provisional), replace(filled, rate=rate)
        passes = self._passes(prepared, rows, filled, observed.neighbours)
        passes.first()
        clock.lap("solve")
        turn, several = self.turns, self.config.passes > 1
        with restored_unless(lambda: self.turns > turn, self.weights.in_place() if several else ()):
            if several:
                passes.refine(self.capture)
                clock.lap("refine")
            with uninterrupted():
                self._commit(passes.last, statistics)
        clock.lap("apply")
        after = self.efficacy(prepared) if measure else None
        clock.lap("measure")
        seconds = {**observed.seconds, **clock.seconds, "solve": observed.seconds["solve"] + clock.seconds["solve"]}
        return self._report(prepared, rows, passes, after, seconds, observed.num_settled)

    def _seeks_goal(self, turn: Turn) -> bool:
        """Whether a turn that finds the rate is written again until the configured share of it holds."""
        return bool(self.config.strength_goal) and len(turn.edits) >= ENOUGH

    def _in_contexts(self, prepared: PreparedTurn) -> list[PreparedTurn]:
        """The turn with each of the configured sentences before its prompts."""
        own = prepared.shares[self.collectives.replica]
        turns = [put_in_context(prepared.turn, context, self.joiner, self.decoder.max_tokens) for context in self._contexts]
        return [replace(prepared, turn=turn, prefixed=self.run_prefix(turn.sequences_at(own))) for turn in turns]

    def _with_turn(self, before: LifelongStatistics, rows: TurnRows, turn: Turn) -> LifelongStatistics:
        """Statistics with those of one more turn."""
        sizes = {site: [count for count in turn.group_row_counts(self.config.group_size, site) if count] for site in SITES}
        return before.with_turn(rows, sizes, self.shards, self.config, self.collectives)

    def _filled_up(self, statistics: LifelongStatistics) -> LifelongStatistics:
        """What a turn is solved with: the statistics of all edits, filled up by the prior's while these are few. With its rate, if they have none."""
        if self._prior is None or not self._prior.is_wanted(statistics):
            self._of_prior = None
            return statistics
        if self._of_prior is None:
            self._of_prior = self._observe_prior(self._prior.turn)
        filled = statistics.filled_up(self._of_prior, self.shards, self.collectives)
        return replace(filled, rate=statistics.rate or self._of_prior.rate)

    def _observe_prior(self, turn: Turn) -> LifelongStatistics:
        """Statistics of the prior's statements in the unedited model, with the rate at which a full turn would have the configured strength.

        The statements have no neighbours, so a turn that holds some comes out a little weaker than meant.
        """
        with self.unedited():
            [prepared] = self.prepare([turn])
            rows = self.capture(prepared, tokens=self.config.preserves)
        found = self._with_turn(LifelongStatistics(), rows, turn)
        if self.config.strength is None:
            return found
        return replace(found, rate=self._find_rate(rows, found) * len(turn.edits) / FULL_TURN)

    def _find_rate(self, rows: TurnRows, statistics: LifelongStatistics, neighbours: Mapping[str, PreservingRidge] | None = None) -> float:
        """The learning rate at which a turn's first pass has the configured strength: its shift is linear in the rate.

        Raises:
            TurnRefused: The shift is not finite, or nothing.
        """
        at_answers = [name for name, site in self.sites.items() if site == "answer"]
        found = self._solver(statistics, 1.0, neighbours).solve(rows)
        shift, weights = (math.hypot(*(norms[name] for name in at_answers)) for norms in (found.norms, self.weights.norms()))
        if not shift:
            raise TurnRefused("its shift is 0, so no learning rate can be found")
        return (self.config.strength or 0.0) * weights / shift

    def _solver(self, statistics: LifelongStatistics, rate: float | None, neighbours: Mapping[str, PreservingRidge] | None) -> TurnSolver:
        text, outputs, remembered = self.preserved.of_text(), self.preserved.of_outputs(), self.lifelong.remembered
        return TurnSolver(statistics, self.shards, self.config, self.collectives, text, remembered, neighbours, outputs, rate)

    def _passes(
        self, prepared: PreparedTurn, rows: TurnRows, statistics: LifelongStatistics, neighbours: Mapping[str, PreservingRidge]
    ) -> TurnPasses:
        solver = self._solver(statistics, statistics.rate, neighbours)
        return TurnPasses(prepared, rows, solver, self.weights, self.config, self.collectives)

    def _commit(self, last: Solution, statistics: LifelongStatistics) -> None:
        self.weights.add(last.shifts)
        self.lifelong = statistics
        self.turns += 1

    def _report(
        self,
        prepared: PreparedTurn,
        rows: TurnRows,
        passes: TurnPasses,
        efficacy_after: float | None,
        seconds: dict[str, float],
        num_settled: int | None,
    ) -> TurnReport:
        turn = prepared.turn
        with_subject = [i for i, sequence in enumerate(turn.sequences) if sequence.subject is not None]
        return make_report(
            turn,
            rows,
            passes.total(),
            self.weights.growth(),
            self.collectives,
            number=self.turns,
            efficacy_after=efficacy_after,
            num_pending_rows=passes.num_pending_rows,
            seconds={"prefix": prepared.prefix_seconds, **seconds},
            num_subjects=len(turn.edits_of(with_subject)) if self.config.subject_modules else None,
            num_settled=num_settled,
            rate=self.lifelong.rate,
        )


def _resolve_sites(decoder: Decoder, config: EditorConfig) -> tuple[dict[str, nn.Linear], dict[str, Site]]:
    """The edited modules by name, and at which rows each of them is edited."""
    at_answers = resolve(decoder, config.modules)
    at_subjects = resolve(decoder, config.subject_modules) if config.subject_modules else {}
    for name in at_answers.keys() & at_subjects.keys():
        raise InputError(f"subject_modules: {name} is among modules too; a module is edited at the answer or at the subject, not at both")
    modules = at_answers | at_subjects
    return modules, {name: "subject" if name in at_subjects else "answer" for name in modules}
