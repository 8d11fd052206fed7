"""One model with its lifelong moments, edited turn by turn.

    requests --tokenize, sort, group--> turn --prefix (frozen, many turns at once)--> hidden states
      --suffix forward, head on rows, suffix backward--> keys K, value gradients G of every edited module
      --moments merged, K^ and G^--> targets T --n x n solve--> thin shift --> weights

A turn may take several passes: the suffix runs again over the shifted weights, and what is not settled yet is shifted
further, always against the turn's own moments. However many, a turn is applied whole or not at all: what is not finite is
refused, and then weights and moments are what they were before it.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # documented, but not in its __all__

from editing.atomic import restored_unless, uninterrupted
from editing.config import EditorConfig
from editing.errors import InputError, ModelError, TurnRefused
from editing.files import pretrained
from editing.method.lifelong import Lifelong
from editing.method.moments import Moments
from editing.method.preserve import PreservingRidge, System
from editing.method.reference_text import observe_text, passages, read_text, text_digest
from editing.method.second_moments import Features
from editing.method.shift import Shift, SolveForm, solve_features, solve_rows, targets
from editing.method.whitening import check_width, whiten
from editing.model.capture import capture, group_weights
from editing.model.decoder import Decoder
from editing.model.joining import Joiner
from editing.model.modules import resolve
from editing.model.prefix import Prefixed, predict, run_prefix
from editing.model.rows import TurnRows, lines_of, owners, rows_of
from editing.model.tokenization import SITES, AnswerSequence, Site, row_offsets, token_offsets
from editing.presets.resolve import resolve_settings
from editing.requests import EditRequest
from editing.sharding.collectives import Collectives, SingleWorker
from editing.sharding.shards import LinearShard, Shape, shard_of
from editing.turn import PreparedTurn, Turn, TurnReport, in_turns, tokenize


class Editor:
    """A causal language model that can be edited.

    Args:
        model: A Hugging Face causal language model, or one shard of it. It is frozen, and edited in place.
        tokenizer: Its tokenizer.
        config: How edits are made.
        collectives: How partial results of fellow workers become whole; one worker needs none. With several shards every
            method is called on all of them, with the same arguments and in the same order.
        decoder: Runs the model, where not all of it is in memory.
        originals: Its modules' weights from before the first edit by name; by default copies are taken now.

    Attributes:
        model: The model, edited by every :meth:`apply`; a plain Hugging Face model all along.
        joiner: Turns prompts and answers into its tokens.
        lifelong: Statistics of all edits so far.
        turns: Turns applied so far.
        modules: The edited modules by name.
        sites: At which rows each of them is edited.
        shards: What this worker holds of each of them.
        collectives: As given.
        text_sha256: Digest of the text that the ridge preserves, as it was read; ``none`` if there is none.
        masters: Float32 copies of edited modules whose weights are of lower precision, by name.
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
        self.tokenizer = tokenizer
        self.config = config
        self.decoder = decoder or Decoder(model)
        self.joiner = Joiner(tokenizer, config.join, num_embeddings=self.decoder.config.vocab_size)
        at_answers = resolve(self.decoder, config.modules)
        at_subjects = resolve(self.decoder, config.subject_modules) if config.subject_modules else {}
        for name in at_answers.keys() & at_subjects.keys():
            raise InputError(
                f"subject_modules: {name} is among modules too; a module is edited at the answer or at the subject; give others, or none"
            )
        self.modules = at_answers | at_subjects
        self.sites: dict[str, Site] = {name: "subject" if name in at_subjects else "answer" for name in self.modules}
        self.shards = {name: shard_of(m) for name, m in self.modules.items()}
        self.start = min(self.decoder.layer_of(name) for name in self.modules) if config.cache_prefix else 0
        self.lifelong = Lifelong()
        self.turns = 0
        self.collectives = collectives or SingleWorker()
        self._originals = originals or {name: m.weight.detach().to("cpu", copy=True) for name, m in self.modules.items()}
        self._original_norms = {name: self._whole_norm(name, _squared_norm(self._originals[name])) or 1.0 for name in self.modules}
        if config.whiten:
            check_width(self.shards)
        text = read_text(config.preserve_text) if config.preserves_text else ""
        self._passages, self.text_sha256 = passages(self.joiner, text, self.decoder.max_tokens), text_digest(text)
        self.masters = {n: m.weight.float() for n, m in self.modules.items() if config.masters and m.weight.dtype != torch.float32}

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
        modules, learning_rate, found = resolve_settings(decoder, name, modules=modules, learning_rate=learning_rate, preset=preset, dataset=dataset)
        config = EditorConfig(modules=modules, learning_rate=learning_rate, **{**found, **options})
        return cls(model, tokenizer, config, collectives, decoder=decoder, originals=originals)

    @property
    def moments(self) -> dict[Shape, Moments]:
        """Lifelong moments by module shape ``(d_in, d_out)``, of the modules edited at the answers."""
        return self.lifelong.moments

    @property
    def uses_masters(self) -> bool:
        """Whether float32 copies of the edited modules are kept beside lower-precision weights."""
        return bool(self.masters)

    def apply(self, requests: Iterable[EditRequest], *, measure: bool = True, lookahead: int = 4) -> list[TurnReport]:
        """Write facts into the model.

        Args:
            requests: Any number of edits; they are cut into turns of ``edits_per_turn``.
            measure: Also measure the edits' efficacy after each turn.
            lookahead: Turns that go through the frozen layers in one pass.

        Returns:
            What each turn did.

        Raises:
            InvalidRequest: A request cannot be tokenized for this model. Nothing was applied.
            TurnRefused: A turn's numbers were not finite. Earlier turns of this call stay applied, it and later ones were not.
        """
        edits = [tokenize(self.joiner, request, max_tokens=self.decoder.max_tokens) for request in requests]
        turns = in_turns(edits, self.config.edits_per_turn, before=self.turns)
        reports = []
        while window := list(islice(turns, lookahead)):
            reports += [self.apply_turn(prepared, measure=measure) for prepared in self.prepare(window)]
        return reports

    def prepare(self, turns: Sequence[Turn]) -> list[PreparedTurn]:
        """Run the prefix for several coming turns at once. Applying turns does not make the result stale, and what a turn gets does
        not depend on the others, to the last bit."""
        began = time.perf_counter()
        count, row_cost = self.collectives.num_replicas, self.decoder.row_cost(self.start)
        shares = [turn.shares(self.config.group_size, count, row_cost=row_cost) for turn in turns]
        own = [[turn.sequences[i] for i in dealt[self.collectives.replica]] for turn, dealt in zip(turns, shares, strict=True)]
        prefixed = self.run_prefix([sequence for sequences in own for sequence in sequences], apart=[len(sequences) for sequences in own])
        seconds = (time.perf_counter() - began) / max(1, len(turns))
        prepared, offset = [], 0
        for turn, dealt, sequences in zip(turns, shares, own, strict=True):
            prepared.append(PreparedTurn(turn, prefixed.select(range(offset, offset + len(sequences))), seconds, dealt))
            offset += len(sequences)
        return prepared

    def run_prefix(self, sequences: Sequence[AnswerSequence], *, apart: Sequence[int] | None = None) -> Prefixed:
        """Run the layers below the lowest edited one; ``apart`` as for :func:`editing.model.tokenization.batches`."""
        return run_prefix(self.decoder, sequences, stop=self.start, batch_tokens=self.config.batch_tokens, apart=apart)

    def apply_turn(self, prepared: PreparedTurn, *, measure: bool = True) -> TurnReport:
        """Compute and commit one turn.

        Raises:
            TurnRefused: Loss, gradients or shift are not finite, or no weight would change. Weights and moments are as they were.
        """
        clock = _Clock()
        _ = self._text  # the first turn runs the model over it, which is no part of a solve
        rows = self._capture(prepared, tokens=self.config.preserve != "off")
        clock.lap("capture")
        lifelong = self._with_turn(rows, prepared.turn)
        systems: dict[str, System] = {}
        passes = [self._solve_all(rows, lifelong, systems)]
        self._check_change(passes[0], rows)
        num_pending_rows = [int(rows.settled.logical_not().sum())]
        clock.lap("solve")
        turn = self.turns
        with restored_unless(lambda: self.turns > turn, self._held() if self.config.passes > 1 else ()):
            if self.config.passes > 1:
                self._refine(prepared, rows, lifelong, systems, passes, num_pending_rows)
                clock.lap("refine")
            with uninterrupted():
                self._commit(passes[-1].shifts, lifelong)
        clock.lap("apply")
        after = self.efficacy(prepared) if measure else None
        clock.lap("measure")
        return self._report(prepared, rows, after, passes, num_pending_rows, clock.laps)

    def observe(self, prepared: PreparedTurn) -> None:
        """Feed the lifelong statistics with a turn's rows, and change no weight.

        Raises:
            TurnRefused: Loss or gradients are not finite. The statistics are as they were.
        """
        self.lifelong = self._with_turn(self._capture(prepared, tokens=self.config.preserve != "off"), prepared.turn)

    def efficacy(self, prepared: PreparedTurn, sample: int | None = None) -> float:
        """Mean share of a turn's answer tokens that the model has right now.

        Args:
            prepared: The turn.
            sample: Look at so many of its edits only, spread evenly from the longest to the shortest.
        """
        count = len(prepared.turn.edits)
        chosen = range(0, count, max(1, count // sample)) if sample else range(count)
        if self.collectives.num_replicas == 1:
            prefixed = prepared.prefixed.select(chosen)
        else:  # this replica has run the prefix of its own share only
            prefixed = self.run_prefix([prepared.turn.sequences[i] for i in chosen])
        predictions = predict(self.decoder, prefixed, start=self.start, batch_tokens=self.config.batch_tokens)
        correct = [a == b for p, s in zip(predictions, prefixed.sequences, strict=True) for a, b in zip(p, s.answer_ids, strict=True)]
        return _mean_accuracy(torch.tensor(correct), [len(s.answer_ids) for s in prefixed.sequences])

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Within this context the model has the weights that it had before the first edit."""
        edited = {name: m.weight.data for name, m in self.modules.items()}
        try:
            for name, module in self.modules.items():
                module.weight.data = self._originals[name].to(module.weight.device)
            yield
        finally:
            for name, module in self.modules.items():
                module.weight.data = edited[name]

    def restore(self) -> None:
        """Go back to the weights and moments from before the first edit."""
        for name, module in self.modules.items():
            module.weight.data.copy_(self._originals[name])
            if name in self.masters:
                self.masters[name].copy_(self._originals[name])
        self.lifelong, self.turns = Lifelong(), 0

    def digests(self) -> dict[str, str]:
        """SHA-256 of each edited module's weight, as stored in memory."""
        return {name: _digest(weight) for name, weight in self.whole(self.weights())}

    def weights(self) -> dict[str, Tensor]:
        """The edited modules' weights by name, as far as this worker holds them."""
        return {name: module.weight.data for name, module in self.modules.items()}

    def whole(self, held: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Tensors of the edited modules, one by one, put together from all shards; ``held`` are this worker's parts by name."""
        for name, tensor in held.items():
            yield name, self.collectives.all_gather_weight(tensor, self.shards[name])

    def save(self, folder: str | Path) -> None:
        """Write the model and its tokenizer; plain ``AutoModelForCausalLM.from_pretrained(folder)`` loads them.

        Only for a model that lies here whole: of a sharded one, the base checkpoint is copied with the edited weights replaced
        (:func:`editing.files.weights.save_edited`).

        Raises:
            ModelError: The model is a shard.
        """
        if any(shard.axis for shard in self.shards.values()):
            raise ModelError(f"{folder}: a shard of a model cannot be saved by itself")
        pretrained.save(self.model, self.tokenizer, Path(folder))

    def _capture(self, prepared: PreparedTurn, chosen: Sequence[int] | None = None, *, tokens: bool = False) -> TurnRows:
        """All rows of a turn, or of chosen edits of it; with ``tokens``, the keys of its other tokens too."""
        config, turn, replica = self.config, prepared.turn, self.collectives.replica
        weights = group_weights([len(s.answer_ids) for s in turn.sequences], config.group_size)
        own = prepared.prefixed
        sequences, dealt = turn.sequences, prepared.shares
        if chosen is not None:
            wanted = {position: number for number, position in enumerate(chosen)}
            own = own.select([place for place, position in enumerate(dealt[replica]) if position in wanted])
            weights = weights[lines_of(chosen, row_offsets(sequences))]
            sequences, dealt = [sequences[i] for i in chosen], [[wanted[i] for i in share if i in wanted] for share in dealt]
        shares = {site: [lines_of(share, row_offsets(sequences, site)) for share in dealt] for site in SITES}
        of_tokens = [lines_of(share, token_offsets(sequences)) for share in dealt]
        captured = capture(
            self.decoder,
            self.modules,
            own.batches(batch_tokens=config.batch_tokens, device=self.decoder.device),
            weights[shares["answer"][replica]],
            start=self.start,
            sites=self.sites,
            num_subjects=len(shares["subject"][replica]),
            batch_tokens=config.batch_tokens,
            margin=config.margin,
            num_tokens=len(of_tokens[replica]) if tokens else None,
        )
        rows = captured.gathered(self.collectives, shares)
        if tokens:
            rows = replace(rows, tokens={name: self.collectives.all_gather_rows(keys, of_tokens) for name, keys in captured.tokens.items()})
        broken = rows.broken(sequences)
        for keys in rows.tokens.values():
            broken += (~keys.isfinite().all()).float()  # no edit can be told from another then
        finite = self.collectives.all_reduce_sum(broken) == 0
        _check_finite(finite, turn, range(len(sequences)) if chosen is None else chosen)
        return rows

    @cached_property
    def _text(self) -> dict[str, PreservingRidge]:
        """What the preserving ridge knows of a text that no edit is about, of the unedited model; by module."""
        if not self._passages:
            return {}
        with self.unedited():
            prefixed, batch_tokens = self.run_prefix(self._passages), self.config.batch_tokens
            return observe_text(
                self.decoder, self.modules, self.shards, prefixed, self.config, self.collectives, start=self.start, batch_tokens=batch_tokens
            )

    def _with_turn(self, rows: TurnRows, turn: Turn) -> Lifelong:
        sizes = {site: [count for count in turn.group_row_counts(self.config.group_size, site) if count] for site in SITES}
        return self.lifelong.with_turn(rows, sizes, self.shards, self.config, self.collectives)

    def _refine(
        self,
        prepared: PreparedTurn,
        rows: TurnRows,
        lifelong: Lifelong,
        systems: dict[str, System],
        passes: list["_Pass"],
        num_pending_rows: list[int],
    ) -> None:
        """Add the first pass to the weights, and find further ones while there is something to do. The last one is left to be added.

        The second pass looks at all rows again, later ones at the edits that had unsettled rows when last looked at. What was
        captured of the others stays: their keys have changed with the shifts below them only, and their targets are 0.
        """
        sequences = prepared.turn.sequences
        of_answers, of_subjects = owners(sequences, "answer"), owners(sequences, "subject")
        chosen: Sequence[int] = range(len(prepared.turn.edits))
        while len(passes) < self.config.passes:
            self._add(passes[-1].shifts)
            rows = rows.updated(rows_of(chosen, sequences), self._capture(prepared, chosen))
            pending = self.collectives.broadcast(rows.settled.logical_not().float())
            num_pending_rows.append(int(pending.sum()))
            edits = torch.zeros(len(sequences)).index_add_(0, of_answers, pending.cpu()).sign()
            chosen = [i for i in chosen if edits[i]]
            at_sites: dict[Site, Tensor] = {"answer": pending, "subject": edits[of_subjects].to(pending.device)}
            found = self._solve_all(rows, lifelong, systems, at_sites) if chosen else _Pass({}, {})
            passes.append(found)
            if not self._changes(found.shifts):
                return

    def _solve_all(self, rows: TurnRows, lifelong: Lifelong, systems: dict[str, System], pending: Mapping[Site, Tensor] | None = None) -> "_Pass":
        """One pass's shifts. Where ``pending`` ``(n,)`` or ``(s,)`` is 0, a row's output shall stay as it is.

        The first pass leaves the preserving ridges' systems in ``systems`` for the others.

        Raises:
            TurnRefused: A shift is not finite.
        """
        shifts = {name: self._solve(name, rows, lifelong, systems, pending) for name in self.shards}
        norms = {name: self._whole_norm(name, shift.squared_norm()) for name, shift in shifts.items()}
        for name, norm in norms.items():
            if not norm < float("inf"):
                raise TurnRefused(f"the shift of {name} is not finite")
        return _Pass(shifts, norms)

    def _solve(self, name: str, rows: TurnRows, lifelong: Lifelong, systems: dict[str, System], pending: Mapping[Site, Tensor] | None) -> Shift:
        config, keys, shard = self.config, rows.keys[name], self.shards[name]
        if not len(keys):
            return Shift.nothing(keys, rows.value_gradients[name])
        features = Features(shard, "keys", self.collectives)
        try:
            goal = self._targets(name, rows, lifelong)
            if pending is not None:
                goal *= pending[self.sites[name]].unsqueeze(1)
            if preserved := lifelong.preserved.get(name):
                if name not in systems:
                    systems[name] = preserved.system(ridge=config.ridge, weight=config.preserve_weight, text=self._text.get(name))
                keys, gram = systems[name].through(keys, features)
                return solve_rows(keys.to(goal.dtype), gram, goal, ridge=1.0)
            if self._form(len(keys), shard) == "d_in":
                return solve_features(keys, goal, config.ridge)
            return solve_rows(keys, features.gram(keys), goal, config.ridge)
        except LinAlgError:
            return Shift.undefined(keys, rows.value_gradients[name])  # whose norm makes all shards refuse the turn

    def _targets(self, name: str, rows: TurnRows, lifelong: Lifelong) -> Tensor:
        keys, gradients, shard, site = rows.keys[name], rows.value_gradients[name], self.shards[name], self.sites[name]
        over_keys = self.collectives.all_reduce_sum if shard.axis == "keys" else self.collectives.broadcast
        moments = lifelong.at(site)[shard.shape]
        rate = self.config.learning_rate * (self.config.subject_scale if site == "subject" else 1.0)
        key_norms = over_keys(moments.of_features(shard.key_features).normalize(keys).square().sum(1))
        if self.config.whiten:
            normalized = whiten(gradients, lifelong.whitening[name], Features(shard, "values", self.collectives))
        else:
            normalized = moments.of_features(shard.value_features).normalize(gradients)
        return targets(key_norms, normalized, rate)

    def _form(self, num_rows: int, shard: LinearShard) -> SolveForm:
        if shard.axis == "keys":
            return "row"
        if self.config.solve != "auto":
            return self.config.solve
        return "row" if num_rows <= shard.shape[0] else "d_in"

    def _whole_norm(self, name: str, squared: Tensor) -> float:
        """Frobenius norm of something of a weight's shape, given its square over the held part."""
        over_shards = self.collectives.all_reduce_sum if self.shards[name].axis else self.collectives.broadcast
        return float(over_shards(squared).clamp(min=0).sqrt())

    def _report(
        self,
        prepared: PreparedTurn,
        rows: TurnRows,
        after: float | None,
        passes: Sequence["_Pass"],
        num_pending_rows: list[int],
        laps: dict[str, float],
    ) -> TurnReport:
        names = list(self.modules)
        total = self._total(passes)
        growth = {name: self._whole_norm(name, _squared_norm(self._exact(name))) / self._original_norms[name] - 1 for name in names}
        before = _mean_accuracy(rows.correct, [len(s.answer_ids) for s in prepared.turn.sequences])
        seconds = {"prefix": prepared.prefix_seconds, **laps}
        each = [*(total.shifts[name].condition for name in names), *seconds.values()]
        figures = torch.tensor([rows.losses.mean().item(), before, after or 0.0, *each], dtype=torch.float64)
        loss, before, measured, *each = self.collectives.broadcast(figures).tolist()
        return TurnReport(
            turn=self.turns,
            edits=len(prepared.turn.edits),
            rows=len(rows.losses),
            loss=loss,
            efficacy_before=before,
            efficacy_after=None if after is None else measured,
            shift_norms=total.norms,
            weight_growth=growth,
            conditions=dict(zip(names, each, strict=False)),
            seconds=dict(zip(seconds, each[len(names) :], strict=True)),
            num_pending_rows=num_pending_rows,
            subjects=sum(s.subject is not None for s in prepared.turn.sequences) if self.config.subject_modules else None,
        )

    def _exact(self, name: str) -> Tensor:
        """A module's weight in float32: its master, the weight itself where it is float32, else a copy."""
        master = self.masters.get(name)
        return self.modules[name].weight.data.float() if master is None else master

    def _total(self, passes: Sequence["_Pass"]) -> "_Pass":
        """What all passes did together."""
        if len(passes) == 1:
            return passes[0]
        shifts = {name: Shift.total([p.shifts[name] for p in passes if p.shifts]) for name in self.modules}
        return _Pass(shifts, {name: self._whole_norm(name, shift.squared_norm()) for name, shift in shifts.items()})

    def _check_change(self, first: "_Pass", rows: TurnRows) -> None:
        for name, norm in first.norms.items():
            if norm == 0 and len(rows.keys[name]):
                raise TurnRefused(f"the shift of {name} is 0, so nothing would change")
        if self._changes(first.shifts):
            return
        dtype = str(next(iter(self.modules.values())).weight.dtype).removeprefix("torch.")
        raise TurnRefused(
            f"its shifts are too small to change any {dtype} weight; expected a larger learning rate than {self.config.learning_rate:g}"
        )

    def _changes(self, shifts: dict[str, Shift]) -> bool:
        """Whether any weight would be another after these shifts; the same answer on all shards."""
        changes = any(shift.changes(self._exact(name), self.modules[name].weight.data) for name, shift in shifts.items())
        return bool(self.collectives.all_reduce_sum(torch.tensor(float(changes))) > 0)

    def _commit(self, shifts: dict[str, Shift], lifelong: Lifelong) -> None:
        self._add(shifts)
        self.lifelong = lifelong
        self.turns += 1

    def _add(self, shifts: dict[str, Shift]) -> None:
        for name, shift in shifts.items():
            weight, exact = self.modules[name].weight.data, self._exact(name)
            shift.add_to(exact)
            if exact is not weight:
                weight.copy_(exact)

    def _held(self) -> list[Tensor]:
        """What a turn changes in place."""
        return [*self.weights().values(), *self.masters.values()]


@dataclass(frozen=True, slots=True)
class _Pass:
    """Shifts of one pass over a turn, and their Frobenius norms, by module; empty where there was nothing to do."""

    shifts: dict[str, Shift]
    norms: dict[str, float]


class _Clock:
    """Wall time of consecutive phases."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps[phase], self._last = now - self._last, now


def _squared_norm(weight: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(weight, dtype=torch.float32)
    return norm.double().square()


def _digest(weight: Tensor) -> str:
    return hashlib.sha256(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()


def _mean_accuracy(correct: Tensor, lengths: Sequence[int]) -> float:
    shares = [part.double().mean() for part in correct.split(list(lengths))]
    return float(torch.stack(shares).mean())


def _check_finite(finite: Tensor, turn: Turn, chosen: Sequence[int]) -> None:
    if finite.all():
        return
    culprits = tuple(sorted(turn.order[i] for i, good in zip(chosen, finite.tolist(), strict=True) if not good))
    raise TurnRefused(f"loss or gradients of {len(culprits)} of its {len(turn.edits)} edits are not finite", culprits)
