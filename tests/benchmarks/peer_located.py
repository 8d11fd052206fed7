"""MEMIT (Meng et al., arXiv 2210.07229) and AlphaEdit (Fang et al., arXiv 2410.02355), written from the papers' formulas.

    value     z_i = h_i + d_i at the subject's last token, after the last of the layers: d_i by Adam down
              mean over contexts of -log p(target) + kl * KL(p(. | "<subject> is a") with d_i | without) + decay * |d|^2 / |h|^2,
              held within |d| <= bound * |h|; an edit whose -log p is below ``enough`` takes no further step
    residual  layer by layer from the lowest, (z_i - h_i now) / (layers left)
    MEMIT     S = (weight * C + K'K)^-1 K'R                   C the mean of k k' over a text
    AlphaEdit S = (P (K_0'K_0 + K'K) + ridge * I)^-1 P K'R    P projects onto the eigenvectors of C with small values, K_0 are earlier turns' keys

Keys K (n x d_in) and residuals R (n x d_out) are rows; S (d_in x d_out) is added, transposed, to a down projection's weight, turn by turn. A fact
that is written in several ways has one value, of the prompt as typed, which serves all of them, as it serves all contexts.

Differences: contexts are sentences that ship with this project, not text sampled from the model. The threshold under which an eigenvalue
is small is a share of the mean one, since the models' scales differ. With one layer, values are those of the MLP's output, not of the stream:
the same where nothing stands between the two, and right where a norm does (Gemma 3).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from editing.model.continuation import Continued
from editing.model.prefix import Prefixed, run_prefix
from editing.model.tokenization import AnswerSequence, batches
from editing.subject_targets import read_contexts
from editing.turn import TokenizedEdit
from tests.benchmarks.peer_bench import Ask, Bench

BATCH_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Values:
    """How values are found.

    Attributes:
        layers: The layers whose down projections are written, ascending.
        steps: Steps of Adam at the most.
        rate: Its learning rate, in the units of the hidden states' mean norm over the square root of their width.
        bound: Largest norm of a change, as a share of the hidden state's.
        decay: Weight of the squared norm.
        kl: Weight of what the subject is.
        enough: Nats under which an edit is done.
        contexts: Sentences before the prompt, beside the prompt alone.
    """

    layers: tuple[int, ...]
    steps: int = 20
    rate: float = 0.5
    bound: float = 0.75
    decay: float = 0.5
    kl: float = 0.0625
    enough: float = 0.05
    contexts: int = 1


def memit(bench: Bench, edits: Sequence[TokenizedEdit], *, weight: float, layers: Sequence[int], **how: Any) -> Ask:
    """Write edits by MEMIT; ``weight`` says how many tokens the text counts for."""
    values = Values(layers=tuple(layers), **how)
    _write_all(bench, edits, values, lambda name, keys, residuals: memit_shift(keys, residuals, _covariance(bench, name), weight))
    return str


def alphaedit(bench: Bench, edits: Sequence[TokenizedEdit], *, threshold: float, layers: Sequence[int], ridge: float = 1.0, **how: Any) -> Ask:
    """Write edits by AlphaEdit; eigenvalues below ``threshold`` times the mean one are small, ``ridge`` is in units of the mean squared key."""
    values = Values(layers=tuple(layers), **how)

    def shift(name: str, keys: Tensor, residuals: Tensor) -> Tensor:
        projector = bench.once(("projector", name, threshold), lambda: null_space(_covariance(bench, name), threshold))
        ours = alphaedit_shift(keys, residuals, projector, ridge * float(_covariance(bench, name).diagonal().sum()), bench.written.get(name))
        bench.written[name] = bench.written.get(name, 0) + keys.double().T @ keys.double()
        return ours

    _write_all(bench, edits, values, shift)
    return str


def memit_shift(keys: Tensor, residuals: Tensor, covariance: Tensor, weight: float) -> Tensor:
    """``(weight * C + K'K)^-1 K'R``, ``(d_in, d_out)`` float64."""
    keys, residuals = keys.double(), residuals.double()
    return torch.linalg.solve(weight * covariance + keys.T @ keys, keys.T @ residuals)


def alphaedit_shift(keys: Tensor, residuals: Tensor, projector: Tensor, ridge: float, earlier: Tensor | None = None) -> Tensor:
    """``(P (K_0'K_0 + K'K) + ridge * I)^-1 P K'R``, ``(d_in, d_out)`` float64; ``earlier`` is ``K_0'K_0``."""
    keys, residuals = keys.double(), residuals.double()
    system = projector @ (keys.T @ keys if earlier is None else earlier + keys.T @ keys)
    system.diagonal().add_(ridge)
    return torch.linalg.solve(system, projector @ keys.T @ residuals)


def null_space(covariance: Tensor, threshold: float) -> Tensor:
    """The projector ``(d_in, d_in)`` onto eigenvectors whose eigenvalue is below ``threshold`` times the mean one."""
    values, vectors = torch.linalg.eigh(covariance)
    small = vectors[:, values < threshold * values.mean()]
    return small @ small.T


def _covariance(bench: Bench, name: str) -> Tensor:
    found: Tensor = bench.found["covariance", name][0]
    return found


def _write_all(bench: Bench, edits: Sequence[TokenizedEdit], values: Values, shift: Any) -> None:
    for layer in values.layers:
        name = f"{layer}.mlp.down_proj"
        bench.once(("covariance", name), lambda name=name: bench.second_moment(name))  # the first call is before any shift
    first, *others = bench.turns(edits)
    known = ("values", values, tuple(edit.request for edit in first))  # of the unedited model, so the same for every setting
    _write(bench, first, values, shift, bench.once(known, lambda: find_values(bench, first, values), of_edits=True))
    for turn in others:
        _write(bench, turn, values, shift, find_values(bench, turn, values))


def _write(bench: Bench, edits: Sequence[TokenizedEdit], values: Values, shift: Any, targets: Tensor) -> None:
    variants, last = _variants(bench, edits, values), values.layers[-1]
    for left, layer in zip(range(len(values.layers), 0, -1), values.layers, strict=True):
        name = f"{layer}.mlp.down_proj"
        keys = torch.stack([_at_subjects(bench, bench.linear(name), layer, variant, "input") for variant in variants]).mean(0)
        now = _at_subjects(bench, _site(bench, values), last, variants[0], "output")
        change = shift(name, keys, (targets - now) / left)
        bench.linear(name).weight.data.add_(change.T.to(torch.float32))


def find_values(bench: Bench, edits: Sequence[TokenizedEdit], values: Values) -> Tensor:
    """Values ``(n, d)`` of the edits."""
    site, last = _site(bench, values), values.layers[-1]
    prompts = [sequence for variant in _variants(bench, edits, values) for sequence in variant]
    known = [bench.sequence(f"{edit.request.subject or edit.request.prompt} is a", None, edit.request.subject) for edit in edits]
    prefixed = run_prefix(bench.decoder, [*prompts, *known], stop=last, batch_tokens=BATCH_TOKENS)
    search = _Search(bench, site, values, prefixed, len(edits), _at_subjects(bench, site, last, prompts[: len(edits)], "output"))
    for _ in range(values.steps):
        if not search.step():
            break
    return search.start + search.change


class _Search:
    """The changes of all edits, by Adam; sequence ``i`` belongs to edit ``i % n``, and the last ``n`` ask what the subject is."""

    def __init__(self, bench: Bench, site: nn.Module, values: Values, prefixed: Prefixed, count: int, start: Tensor) -> None:
        self._bench, self._site, self._values, self._count = bench, site, values, count
        self._lengths = [len(sequence.answer_ids) for sequence in prefixed.sequences]
        self._known_ones = len(prefixed.sequences) - count
        self._continued = Continued.at_subjects(bench.decoder, prefixed, start=values.layers[-1], batch_tokens=BATCH_TOKENS)
        self.start, self.change = start, torch.zeros_like(start)
        self._norms = start.norm(dim=1, keepdim=True)
        self._rate = values.rate * float(self._norms.mean()) / start.shape[1] ** 0.5
        self._active = list(range(count))
        self._moments = torch.zeros(2, *start.shape)
        self._steps = 0
        with torch.no_grad():
            self._known = self._known_before()

    def step(self) -> bool:
        """Take a step with the edits that are not done; whether there were any."""
        gradient, nats = self._gradient()
        self._active = [i for i in self._active if nats[i] >= self._values.enough]
        chosen, self._steps = torch.tensor(self._active, dtype=torch.long), self._steps + 1
        first, second = self._moments
        first[chosen] = 0.9 * first[chosen] + 0.1 * gradient[chosen]
        second[chosen] = 0.999 * second[chosen] + 0.001 * gradient[chosen].square()
        mean, square = first[chosen] / (1 - 0.9**self._steps), second[chosen] / (1 - 0.999**self._steps)
        moved = self.change[chosen] - self._rate * mean / (square.sqrt() + 1e-8)
        bound = self._values.bound * self._norms[chosen]
        self.change[chosen] = moved * (bound / moved.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        return bool(self._active)

    def _gradient(self) -> tuple[Tensor, Tensor]:
        """The gradient ``(n, d)`` of the loss, and the nats ``(n,)`` that the targets cost."""
        change = self.change.clone().requires_grad_()
        nats, asked = torch.zeros(self._count), self._known_ones // self._count
        chosen = [k * self._count + i for k in range(asked + 1) for i in self._active]
        for batch, owners, logits in self._logits(chosen, change):
            numbers = torch.tensor([chosen[i] for i in batch.indices])
            sequence_of_row = torch.repeat_interleave(torch.arange(len(numbers)), torch.tensor([self._lengths[i] for i in numbers.tolist()]))
            is_known = numbers >= self._known_ones
            lengths = torch.bincount(sequence_of_row).float()
            losses = F.cross_entropy(logits, batch.labels, reduction="none") / lengths[sequence_of_row] / asked
            known_rows = is_known[sequence_of_row]
            divergence = F.kl_div(self._known[owners[is_known]], logits[known_rows].log_softmax(-1), log_target=True, reduction="sum")
            (losses[~known_rows].sum() + self._values.kl * divergence).backward()
            nats.index_add_(0, owners[sequence_of_row][~known_rows], losses[~known_rows].detach())
        (self._values.decay * (change / self._norms).square().sum()).backward()
        assert change.grad is not None
        return change.grad, nats

    def _known_before(self) -> Tensor:
        found = torch.empty(self._count, self._bench.decoder.config.vocab_size)
        for _, owners, logits in self._logits(range(self._known_ones, self._known_ones + self._count), self.change):
            found[owners] = logits.log_softmax(-1)
        return found

    def _logits(self, chosen: Sequence[int], change: Tensor) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """Batches of chosen sequences, the edits that they belong to, and the logits of their rows."""
        decoder = self._bench.decoder
        for batch, hidden in self._continued.select(chosen).batches(batch_tokens=BATCH_TOKENS, device=decoder.device):
            owners = torch.tensor([chosen[i] % self._count for i in batch.indices])
            with _added(self._site, batch.subjects, change[owners]):
                final = decoder.suffix(batch.input_ids, hidden, self._values.layers[-1], batch.past)
            yield batch, owners, decoder.logits(final.flatten(0, 1)[batch.rows]).float()


@contextmanager
def _added(site: nn.Module, positions: Tensor, change: Tensor) -> Iterator[None]:
    """Within this context a module's output has a change ``(s, d)`` added at flat positions."""

    def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden.flatten(0, 1).index_add(0, positions, change).view_as(hidden)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = site.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _site(bench: Bench, values: Values) -> nn.Module:
    """Where values are: the stream after the last layer, or the output of the only MLP."""
    last = values.layers[-1]
    return bench.linear(f"{last}.mlp.down_proj") if len(values.layers) == 1 else bench.decoder.layers[last]


def _variants(bench: Bench, edits: Sequence[TokenizedEdit], values: Values) -> list[list[AnswerSequence]]:
    """What one value serves, each as a sequence an edit: the prompt as typed, alone and after each context, then the other ways of asking."""
    as_typed, *others = zip(*(bench.forms(edit) for edit in edits), strict=True)
    after = [[bench.forms(edit, context)[0] for edit in edits] for context in read_contexts(values.contexts)]
    return [list(as_typed), *after, *map(list, others)]


@torch.no_grad()
def _at_subjects(bench: Bench, module: nn.Module, layer: int, sequences: Sequence[AnswerSequence], what: str) -> Tensor:
    """The input or output ``(n, d)`` of a module of a layer at the subjects' last tokens, with the weights as they are now."""
    found: list[Tensor] = []

    def record(_module: nn.Module, inputs: Any, output: Any) -> None:
        hidden = inputs[0] if what == "input" else output[0] if isinstance(output, tuple) else output
        found.append(hidden.flatten(0, 1))

    rows: dict[int, Tensor] = {}
    handle = module.register_forward_hook(record)
    try:
        for batch in batches(sequences, batch_tokens=BATCH_TOKENS, device=bench.decoder.device):
            bench.decoder.prefix(batch.input_ids, layer + 1)
            rows |= dict(zip(batch.indices, found.pop()[batch.subjects], strict=True))
    finally:
        handle.remove()
    return torch.stack([rows[i] for i in range(len(sequences))])
