"""A turn: the edits that share one shift per module, in the order that the method wants them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from editing.model.joining import Joiner
from editing.model.prefix import Prefixed
from editing.model.tokenization import AnswerSequence, Site, encode
from editing.requests import EditRequest

TYPED = "typed:"
"""Before the name of a probe: the same, as it is typed."""


@dataclass(frozen=True, slots=True)
class TokenizedEdit:
    """A request with its edit and its probes as token ids.

    Attributes:
        request: The request.
        sequence: Prompt and target: what is written, and the probe of efficacy.
        rephrase: Rephrased prompt and target, the probe of generalization, or ``None``.
        locality: Locality prompt and answer, the probe of specificity and retention, or ``None``. Where the request
            has no locality answer, the sequence has one row and no meaningful answer.
        persona: Prompts of other people and target, the probes of generalization to them.
        multi_hop: Questions that need the edit and more, and their answers.
        record: Number of its record in the input, from 1; 0 if it came from no file.
        typed: Where prompts and answers meet by the published rule, the probes that have other tokens as typed, by name, with these
            tokens; ``None`` with another rule, whose tokens are those of the text as typed.
    """

    request: EditRequest
    sequence: AnswerSequence
    rephrase: AnswerSequence | None = None
    locality: AnswerSequence | None = None
    persona: tuple[AnswerSequence, ...] = ()
    multi_hop: tuple[AnswerSequence, ...] = ()
    record: int = 0
    typed: Mapping[str, AnswerSequence] | None = field(default=None, hash=False)

    @property
    def probes(self) -> dict[str, AnswerSequence]:
        """What the edit is measured on, by name: those of its request, and :data:`TYPED` with the name of each that is another as typed."""
        return self.asked | {TYPED + name: sequence for name, sequence in (self.typed or {}).items()}

    @property
    def asked(self) -> dict[str, AnswerSequence]:
        """The request's probes by name: their kind, numbered from 0 where a request may have several of the kind."""
        single = {"sequence": self.sequence, "rephrase": self.rephrase, "locality": self.locality}
        several = {f"{kind}.{i}": s for kind, all in (("persona", self.persona), ("multi_hop", self.multi_hop)) for i, s in enumerate(all)}
        return {name: sequence for name, sequence in single.items() if sequence is not None} | several


@dataclass(frozen=True, slots=True)
class Turn:
    """Edits of one turn, longest input first (stable), which decides who shares a group.

    Attributes:
        edits: In the method's order.
        order: ``order[i]`` is the position of ``edits[i]`` among the requests as they were given.
        superseded: Edits that are no part of it, since a later one of the same turn gives their prompt another target.
        before: Number of turns before it in its run.
    """

    edits: tuple[TokenizedEdit, ...]
    order: tuple[int, ...]
    superseded: tuple[TokenizedEdit, ...] = ()
    before: int = 0

    @classmethod
    def of(cls, edits: Sequence[TokenizedEdit], superseded: Sequence[TokenizedEdit] = (), *, before: int = 0) -> "Turn":
        order = sorted(range(len(edits)), key=lambda i: -len(edits[i].sequence.input_ids))
        return cls(tuple(edits[i] for i in order), tuple(order), tuple(superseded), before)

    @property
    def as_asked(self) -> list[TokenizedEdit]:
        """The edits in the order of their requests."""
        return [edit for _, edit in sorted(zip(self.order, self.edits, strict=True), key=lambda pair: pair[0])]

    @property
    def sequences(self) -> list[AnswerSequence]:
        return [edit.sequence for edit in self.edits]

    def shares(self, group_size: int, num_replicas: int, *, row_cost: float = 1.0) -> list[list[int]]:
        """Whole groups dealt out to replicas, the costliest first, each to whom has least to do so far.

        Who gets the first group moves on from turn to turn, so that turns of few groups keep all busy in turn.

        Args:
            group_size: Edits of a group.
            num_replicas: How many there are; those that get no group have nothing to do in this turn.
            row_cost: What a row costs in the head, in tokens that go through the layers.

        Returns:
            Per replica the positions of its edits, in their order.
        """
        groups = [range(a, min(a + group_size, len(self.edits))) for a in range(0, len(self.edits), group_size)]
        sequences = self.sequences
        costs = [sum(len(sequences[i].input_ids) + row_cost * len(sequences[i].answer_ids) for i in group) for group in groups]
        loads = [0.0] * num_replicas
        dealt: list[list[int]] = [[] for _ in range(num_replicas)]
        for g in sorted(range(len(groups)), key=lambda g: -costs[g]):
            replica = min(range(num_replicas), key=lambda r: (loads[r], (r - self.before) % num_replicas))
            loads[replica] += costs[g]
            dealt[replica] += groups[g]
        return [sorted(share) for share in dealt]

    def group_row_counts(self, group_size: int, site: Site = "answer") -> list[int]:
        """Rows at a site of each group; the last one may hold fewer edits."""
        lengths = [len(s.rows(site)) for s in self.sequences]
        return [sum(lengths[a : a + group_size]) for a in range(0, len(lengths), group_size)]


@dataclass(frozen=True, slots=True)
class PreparedTurn:
    """A turn whose prefix has been run.

    Attributes:
        turn: The turn.
        prefixed: This replica's sequences of it.
        prefix_seconds: Time of the prefix that falls to this turn.
        shares: Per replica the positions of its edits in the turn.
    """

    turn: Turn
    prefixed: Prefixed
    prefix_seconds: float
    shares: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TurnReport:
    """What one turn did.

    Attributes:
        turn: Number of the turn, the first is 1.
        edits: Number of edits.
        rows: Number of answer tokens.
        loss: Mean cross-entropy over all rows before the shift, in nats.
        efficacy_before: Mean share of answer tokens that were right before the shift.
        efficacy_after: The same after it; ``None`` if it was not measured.
        shift_norms: Frobenius norm of each module's shift.
        weight_growth: By how much the Frobenius norm of each module's weight has grown since before the first edit, as a share of it.
        conditions: Condition number of each module's solve, estimated; the largest of all passes.
        seconds: Wall time of the phases ``prefix``, ``capture``, ``solve``, ``apply``, ``measure``, and ``refine``, all passes
            after the first, where there may be some.
        num_pending_rows: Rows that were not settled before each pass; 0 at the end where all became so before the passes ran out.
        subjects: Edits with a subject in their prompt; ``None`` where no module is edited there.
    """

    turn: int
    edits: int
    rows: int
    loss: float
    efficacy_before: float
    efficacy_after: float | None
    shift_norms: dict[str, float]
    weight_growth: dict[str, float]
    conditions: dict[str, float]
    seconds: dict[str, float] = field(default_factory=dict)
    num_pending_rows: list[int] = field(default_factory=list)
    subjects: int | None = None


def tokenize(tokenizer: Any, request: EditRequest, *, max_tokens: int | None, record: int = 0) -> TokenizedEdit:
    """Tokenize one request with all its probes.

    Args:
        tokenizer: The model's joiner, or its tokenizer for the default one.
        request: The request.
        max_tokens: The model's context length.
        record: Number of its record in the input.

    Raises:
        InvalidRequest: An answer gives no token, or one without an embedding, or a prompt with its answer exceeds the model's context.
    """
    joiner = Joiner.of(tokenizer)
    edit = _tokenized(joiner, request, max_tokens, record)
    if joiner.as_typed is joiner:
        return edit
    if all(sequence.whole for sequence in edit.asked.values()):
        return replace(edit, typed={})
    typed = _tokenized(joiner.as_typed, request, max_tokens, record).asked
    return replace(edit, typed={name: typed[name] for name, sequence in edit.asked.items() if not sequence.whole})


def _tokenized(joiner: Joiner, request: EditRequest, max_tokens: int | None, record: int) -> TokenizedEdit:
    def encoded(prompt: str, answer: str | None, prompt_field: str, answer_field: str = "target", subject: str | None = None) -> AnswerSequence:
        return encode(joiner, prompt, answer, subject=subject, max_tokens=max_tokens, prompt_field=prompt_field, answer_field=answer_field)

    r = request
    return TokenizedEdit(
        request,
        encoded(r.prompt, r.target, "prompt", subject=r.subject),
        None if r.rephrase is None else encoded(r.rephrase, r.target, "rephrase"),
        None if r.locality_prompt is None else encoded(r.locality_prompt, r.locality_answer, "locality_prompt", "locality_answer"),
        tuple(encoded(prompt, r.target, "persona") for prompt in r.persona),
        tuple(encoded(p, a, "multi_hop_prompt", "multi_hop_answer") for p, a in zip(r.multi_hop_prompt, r.multi_hop_answer, strict=True)),
        record,
    )


def in_turns(edits: Iterable[TokenizedEdit], edits_per_turn: int, *, before: int = 0) -> Iterator[Turn]:
    """Cut a stream of edits into turns, ``before`` of which were before it; the last one may be short.

    Two targets for one prompt would be blended by the turn's one solve: the later one wins, the other is set aside.
    """
    pending: list[TokenizedEdit] = []
    superseded: list[TokenizedEdit] = []
    for edit in edits:
        new = edit.request
        if beaten := [p for p in pending if new.asks_as(p.request) and not new.answers_as(p.request)]:
            pending = [p for p in pending if not new.asks_as(p.request) or new.answers_as(p.request)]
            superseded += beaten
        pending.append(edit)
        if len(pending) == edits_per_turn:
            yield Turn.of(pending, superseded, before=before)
            pending, superseded, before = [], [], before + 1
    if pending:
        yield Turn.of(pending, superseded, before=before)
