"""A turn: the edits that share one shift per module, on its way from requests to a report.

    EditRequest --tokenize--> TokenizedEdit --in_turns--> Turn --prefix--> PreparedTurn --apply_turn--> TurnReport

Inside a turn the edits are sorted by input length, longest first, and then cut into groups, as in the published code.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from editing.messages import Asked
from editing.method.rows import Site
from editing.model.continuation import Continued
from editing.model.joining import Joiner
from editing.model.prefix import Prefixed
from editing.model.tokenization import AnswerSequence, encode
from editing.requests import EditRequest
from editing.subjects import likely_subject

TYPED = "typed:"
"""Before the name of a probe: the same, as it is typed."""


@dataclass(frozen=True, slots=True)
class TokenizedEdit:
    """A request with its edit and its probes as token ids.

    Attributes:
        request: The request.
        sequence: Prompt and target, the probe of efficacy; of a chat in the model's template.
        rephrase: Rephrased prompt and target, the probe of generalization, or ``None``.
        locality: Locality prompt and answer, the probe of specificity and retention, or ``None``. Where the request
            has no locality answer, the sequence has one row and no meaningful answer.
        persona: Prompts of other people and target, the probes of generalization to them.
        multi_hop: Questions that need the edit and more, and their answers.
        portability: Other questions that the edit changes too, and their answers.
        record: Number of its record in the input, from 1; 0 if it came from no file.
        typed: Where prompts and answers meet by the published rule, the probes that have other tokens as typed, by name, with these
            tokens; ``None`` with another rule, whose tokens are those of the text as typed.
        forms: What is edited in: prompt and target in each of the configured framings. By default the sequence itself.
    """

    request: EditRequest
    sequence: AnswerSequence
    rephrase: AnswerSequence | None = None
    locality: AnswerSequence | None = None
    persona: tuple[AnswerSequence, ...] = ()
    multi_hop: tuple[AnswerSequence, ...] = ()
    portability: tuple[AnswerSequence, ...] = ()
    record: int = 0
    typed: Mapping[str, AnswerSequence] | None = field(default=None, hash=False)
    forms: tuple[AnswerSequence, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "forms", self.forms or (self.sequence,))

    @property
    def probes(self) -> dict[str, AnswerSequence]:
        """Sequences that the edit is measured on, by name: the request's, and :data:`TYPED` with the name of each that differs as typed."""
        return self.requested | {TYPED + name: sequence for name, sequence in (self.typed or {}).items()}

    @property
    def requested(self) -> dict[str, AnswerSequence]:
        """Those of the request, by the kind of probe, numbered from 0 where a request may have several."""
        single = {"sequence": self.sequence, "rephrase": self.rephrase, "locality": self.locality}
        kinds = {"persona": self.persona, "multi_hop": self.multi_hop, "portability": self.portability}
        several = {f"{kind}.{i}": sequence for kind, sequences in kinds.items() for i, sequence in enumerate(sequences)}
        return {name: sequence for name, sequence in single.items() if sequence is not None} | several


@dataclass(frozen=True, slots=True)
class Turn:
    """Edits of one turn, longest input first (a stable sort).

    Attributes:
        edits: The edits in this order.
        order: ``order[i]`` is the position of ``edits[i]`` among the requests as they were given.
        places: Of each sequence, the position of its edit in ``edits``, and its number among the edit's forms. Longest input first: without
            several framings one of each edit, in the edits' order. The order decides which sequences share a group.
        superseded: Edits that are not applied, since a later edit of the same turn gives their prompt another target.
        before: Number of turns before it in its run.
    """

    edits: tuple[TokenizedEdit, ...]
    order: tuple[int, ...]
    places: tuple[tuple[int, int], ...]
    superseded: tuple[TokenizedEdit, ...] = ()
    before: int = 0

    @classmethod
    def of(cls, edits: Sequence[TokenizedEdit], superseded: Sequence[TokenizedEdit] = (), *, before: int = 0) -> "Turn":
        """A turn of edits in the order of their requests."""
        order = sorted(range(len(edits)), key=lambda i: -len(edits[i].forms[0].input_ids))
        places = [(position, number) for position, i in enumerate(order) for number in range(len(edits[i].forms))]
        places.sort(key=lambda place: -len(edits[order[place[0]]].forms[place[1]].input_ids))
        return cls(tuple(edits[i] for i in order), tuple(order), tuple(places), tuple(superseded), before)

    @property
    def in_request_order(self) -> list[TokenizedEdit]:
        """The edits in the order of their requests."""
        return [edit for _, edit in sorted(zip(self.order, self.edits, strict=True), key=lambda pair: pair[0])]

    @property
    def sequences(self) -> list[AnswerSequence]:
        """Prompt and target of each edit in each of its forms, in the order of ``places``."""
        return self.sequences_at(range(len(self.places)))

    def sequences_at(self, numbers: Iterable[int]) -> list[AnswerSequence]:
        """Some of them."""
        return [self.edits[position].forms[form] for position, form in (self.places[i] for i in numbers)]

    def edits_of(self, sequences: Iterable[int]) -> set[int]:
        """Positions of the edits that some of the sequences belong to."""
        return {self.places[i][0] for i in sequences}

    def shares(self, group_size: int, num_replicas: int, *, row_cost: float = 1.0) -> list[list[int]]:
        """Deal whole groups to replicas: the costliest group first, each to the replica with the least work so far.

        Ties go to another replica in each turn, so that turns of few groups keep all replicas busy by and by.

        Args:
            group_size: Sequences of a group.
            num_replicas: Number of replicas. One that gets no group has no work in this turn.
            row_cost: Cost of a row in the head, in tokens that go through the layers.

        Returns:
            Per replica, the positions of its sequences in ascending order.
        """
        sequences = self.sequences
        groups = [range(a, min(a + group_size, len(sequences))) for a in range(0, len(sequences), group_size)]
        costs = [sum(len(sequences[i].input_ids) + row_cost * len(sequences[i].answer_ids) for i in group) for group in groups]
        loads = [0.0] * num_replicas
        dealt: list[list[int]] = [[] for _ in range(num_replicas)]
        for g in sorted(range(len(groups)), key=lambda g: -costs[g]):
            replica = min(range(num_replicas), key=lambda r: (loads[r], (r - self.before) % num_replicas))
            loads[replica] += costs[g]
            dealt[replica] += groups[g]
        return [sorted(share) for share in dealt]

    def group_row_counts(self, group_size: int, site: Site = "answer") -> list[int]:
        """Rows at a site of each group. The last group may have fewer sequences."""
        lengths = [len(s.rows(site)) for s in self.sequences]
        return [sum(lengths[a : a + group_size]) for a in range(0, len(lengths), group_size)]


@dataclass(frozen=True, slots=True)
class PreparedTurn:
    """A turn that has gone through the prefix.

    Attributes:
        turn: The turn.
        prefixed: This replica's sequences of it.
        prefix_seconds: This turn's share of the time that the prefix took.
        shares: Per replica, the positions of its sequences in the turn.
        continued: This replica's sequences from their subjects on, for runs in which nothing changes before these.
    """

    turn: Turn
    prefixed: Prefixed
    prefix_seconds: float
    shares: list[list[int]] = field(default_factory=list)
    continued: Continued | None = None

    def only(self, chosen: Sequence[int], replica: int) -> "PreparedTurn":
        """Chosen sequences of the turn, as a turn of its own with the same edits.

        Args:
            chosen: Positions of the sequences, in ascending order.
            replica: The replica whose sequences these are.
        """
        new_position = {position: number for number, position in enumerate(chosen)}
        turn = replace(self.turn, places=tuple(self.turn.places[i] for i in chosen))
        own = [number for number, position in enumerate(self.shares[replica]) if position in new_position]
        shares = [[new_position[i] for i in share if i in new_position] for share in self.shares]
        continued = None if self.continued is None else self.continued.select(own)
        return replace(self, turn=turn, prefixed=self.prefixed.select(own), shares=shares, continued=continued)


@dataclass(frozen=True, slots=True)
class TurnReport:
    """What one turn did.

    Attributes:
        turn: Number of the turn, from 1.
        edits: Number of edits.
        rows: Number of answer tokens.
        loss: Mean cross-entropy over all rows before the shift, in nats.
        efficacy_before: Share of answer tokens that were right before the shift; mean over the edits.
        efficacy_after: The same after the shift; ``None`` if it was not measured.
        shift_norms: Frobenius norm of each module's shift.
        weight_growth: Growth of the Frobenius norm of each module's weight since before the first edit, as a share of it.
        conditions: Condition number of each module's solve, estimated; the largest of all passes.
        seconds: Wall time of the phases ``prefix``, ``capture``, ``solve``, ``apply`` and ``measure``; of ``targets``, if they are
            solved; and of ``refine``, all passes after the first, if the configuration allows more than one.
        num_pending_rows: Pending rows before each pass; the last number is 0 if the turn ended for lack of them.
        subjects: Edits with a subject in their prompt; ``None`` if no module is edited at subjects.
        settled: Of these, edits whose solved target, in every framing, makes the answer lead by the margin; ``None`` if no targets are solved.
        rate: The learning rate, where the first turn was to find one; else ``None``.
        halvings: How often that turn was done again at half the strength, since it had done harm.
        strength: Its strength in the end.
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
    settled: int | None = None
    rate: float | None = None
    halvings: int = 0
    strength: float | None = None


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
    if any(form is not joiner or joiner.ending(form, request.target) for form in joiner.forms_of(request.asked)):
        edit = replace(edit, forms=framed(joiner, request, max_tokens))
    if joiner.as_typed is joiner:
        return edit
    if all(sequence.whole for sequence in edit.requested.values()):
        return replace(edit, typed={})
    typed = _tokenized(joiner.as_typed, request, max_tokens, record).requested
    return replace(edit, typed={name: typed[name] for name, sequence in edit.requested.items() if not sequence.whole})


def framed(joiner: Joiner, request: EditRequest, max_tokens: int | None, *, context: str = "") -> tuple[AnswerSequence, ...]:
    """Prompt and target of a request in each of the joiner's framings, which may be of another length than the request's; a chat as it stands.

    Args:
        joiner: The model's joiner.
        request: The request.
        max_tokens: The model's context length.
        context: Text before the prompt.

    Raises:
        InvalidRequest: As for :func:`editing.model.tokenization.encode`.
    """
    prompt, target = context + request.prompt, request.target
    forms = joiner.forms_of(request.asked)
    subject = _subject(joiner, request)
    return tuple(encode(form, prompt, target + joiner.ending(form, target), subject=subject, max_tokens=max_tokens) for form in forms)


def _subject(joiner: Joiner, request: EditRequest) -> str | None:
    return likely_subject(request.prompt) if request.subject is None and joiner.finds_subjects else request.subject


def _tokenized(joiner: Joiner, request: EditRequest, max_tokens: int | None, record: int) -> TokenizedEdit:
    def encoded(prompt: Asked, answer: str | None, prompt_field: str, answer_field: str = "target", subject: str | None = None) -> AnswerSequence:
        return encode(joiner, prompt, answer, subject=subject, max_tokens=max_tokens, prompt_field=prompt_field, answer_field=answer_field)

    def answered(kind: str) -> tuple[AnswerSequence, ...]:
        fields = f"{kind}_prompt", f"{kind}_answer"
        return tuple(encoded(prompt, answer, *fields) for prompt, answer in zip(*(getattr(request, name) for name in fields), strict=True))

    r = request
    return TokenizedEdit(
        request,
        encoded(r.asked, r.target, "messages" if r.messages else "prompt", subject=_subject(joiner, r)),
        None if r.rephrase is None else encoded(r.rephrase, r.target, "rephrase"),
        None if r.locality_prompt is None else encoded(r.locality_prompt, r.locality_answer, "locality_prompt", "locality_answer"),
        tuple(encoded(prompt, r.target, "persona") for prompt in r.persona),
        answered("multi_hop"),
        answered("portability"),
        record,
    )


class TurnCutter:
    """Cuts edits that come one by one into turns.

    One solve would blend two targets for the same prompt. So the later edit wins, and the earlier one is superseded.

    Args:
        edits_per_turn: Edits of a full turn.
        before: Number of turns before the first one in their run.
    """

    def __init__(self, edits_per_turn: int, *, before: int = 0) -> None:
        self._edits_per_turn, self._before = edits_per_turn, before
        self._pending: list[TokenizedEdit] = []
        self._superseded: list[TokenizedEdit] = []

    def add(self, edit: TokenizedEdit) -> Turn | None:
        """Add an edit; the turn that it completes, if it does."""
        new = edit.request
        if earlier := [p for p in self._pending if new.asks_as(p.request) and not new.answers_as(p.request)]:
            self._pending = [p for p in self._pending if not new.asks_as(p.request) or new.answers_as(p.request)]
            self._superseded += earlier
        self._pending.append(edit)
        return self.rest() if len(self._pending) == self._edits_per_turn else None

    def rest(self) -> Turn | None:
        """A turn of the edits that are in none yet; ``None`` if there are no such edits."""
        if not self._pending:
            return None
        turn = Turn.of(self._pending, self._superseded, before=self._before)
        self._pending, self._superseded, self._before = [], [], self._before + 1
        return turn


def in_turns(edits: Iterable[TokenizedEdit], edits_per_turn: int, *, before: int = 0) -> Iterator[Turn]:
    """Cut a stream of edits into turns, ``before`` of which were before it; the last one may be short. See :class:`TurnCutter`."""
    cutter = TurnCutter(edits_per_turn, before=before)
    for edit in edits:
        if turn := cutter.add(edit):
            yield turn
    if turn := cutter.rest():
        yield turn
