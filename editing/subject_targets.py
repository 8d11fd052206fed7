"""The search for solved targets over a turn: residuals at the subjects are put in place, captured, and moved until the answers lead.

    first capture --gradients--> step --residuals--> capture (subject modules, edits not settled yet) --gradients--> step ...

Each form of an edit has a residual of its own, and leaves when it is settled.

The residuals and every decision are the same on all workers: rows are gathered after each capture, and which edits have settled is the first
worker's word. Each step sends the rows of the edits that are not settled, ``d_in + d_out`` numbers a module and edit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources

import torch
from torch import Tensor

from editing.config import EditorConfig
from editing.errors import InputError, InvalidRequest
from editing.method.residuals import ResidualSteps, leads_for_sure
from editing.method.rows import TurnRows
from editing.model.joining import Joiner
from editing.model.row_positions import row_positions
from editing.model.tokenization import AnswerSequence
from editing.sharding.collectives import Collectives
from editing.turn import PreparedTurn, TokenizedEdit, Turn, framed
from editing.turn_capture import TurnCapture


@dataclass(frozen=True, slots=True)
class SolvedTargets:
    """What a search has found.

    Attributes:
        rows: The turn's rows, with residuals and the keys that belong to them.
        num_settled: Edits whose answer leads by the margin with their residuals in place.
    """

    rows: TurnRows
    num_settled: int


def solve_targets(
    prepared: PreparedTurn,
    rows: TurnRows,
    capture: TurnCapture,
    config: EditorConfig,
    collectives: Collectives,
    in_contexts: Sequence[PreparedTurn] = (),
) -> SolvedTargets:
    """Find the residuals of a turn.

    Args:
        prepared: The turn.
        rows: Its rows, captured with the weights as they are.
        capture: Captures the turn with residuals in place.
        config: Steps, margin and bound.
        collectives: How all workers decide alike.
        in_contexts: The same sequences in the same order with text before their prompts. A residual serves all of these; gradients and
            keys are means over them.

    Raises:
        TurnRefused: A loss or a gradient is not finite.
    """
    whole = [prepared, *in_contexts]
    in_variants = zip(*(variant.turn.sequences for variant in whole), strict=True)
    with_subject = [i for i, several in enumerate(in_variants) if all(sequence.subject is not None for sequence in several)]
    searches = {name: ResidualSteps(outputs, config.subject_bound) for name, outputs in rows.outputs.items()}
    keys = {name: rows.keys[name].clone() for name in searches}
    pending = ~leads_for_sure(rows.losses, config.subject_margin)
    still = _with_pending(range(len(prepared.turn.sequences)), prepared, pending, collectives)
    active = [i for i in with_subject if i in still]
    at = _rows(prepared, active, pending)
    gradients = _at(at, {name: rows.value_gradients[name] for name in searches})
    variants = [capture.from_subjects(variant) for variant in whole] if active else whole
    if in_contexts and active:
        in_place = _in_place(searches, at)  # 0 by now
        gradients = _means([gradients, *(capture(variant, active, residuals=in_place).value_gradients for variant in variants[1:])])
    for _ in range(config.subject_steps):
        if not active:
            break
        for name, search in searches.items():
            search.step(at, gradients[name])
        in_place = _in_place(searches, at)
        found = [capture(variant, active, residuals=in_place, margin=config.subject_margin) for variant in variants]
        for name, mean in _means([captured.keys for captured in found]).items():
            keys[name][at] = mean
        still = set().union(*(_with_pending(active, v, captured.pending, collectives) for v, captured in zip(variants, found, strict=True)))
        kept = torch.tensor([k for k, i in enumerate(active) if i in still], dtype=torch.int64).to(at.device)
        gradients = _at(kept, _means([captured.value_gradients for captured in found]))
        active, at = [i for i in active if i in still], at[kept]
    residuals = {name: search.residuals for name, search in searches.items()}
    settled = prepared.turn.edits_of(with_subject) - prepared.turn.edits_of(active)
    return SolvedTargets(replace(rows, keys=rows.keys | keys, residuals=residuals), len(settled))


def read_contexts(count: int) -> list[str]:
    """The first sentences of those that ship with the project, each with a blank at its end.

    Raises:
        InputError: There are fewer.
    """
    found = [line + " " for line in (resources.files("editing.probes") / "contexts.txt").read_text(encoding="utf-8").splitlines()]
    if count > len(found):
        raise InputError(f"subject_contexts: expected at most {len(found)}, found {count}")
    return found[:count]


def put_in_context(turn: Turn, context: str, joiner: Joiner, max_tokens: int | None) -> Turn:
    """The turn with a text before every prompt. An edit that becomes too long for the model stays as it is."""
    return replace(turn, edits=tuple(replace(edit, forms=_in_context(edit, context, joiner, max_tokens)) for edit in turn.edits))


def _in_context(edit: TokenizedEdit, context: str, joiner: Joiner, max_tokens: int | None) -> tuple[AnswerSequence, ...]:
    try:
        return framed(joiner, edit.request, max_tokens, context=context)
    except InvalidRequest:
        return edit.forms


def _rows(prepared: PreparedTurn, chosen: Sequence[int], like: Tensor) -> Tensor:
    """Numbers of the subjects' rows of chosen sequences."""
    return row_positions(chosen, prepared.turn.sequences)["subject"].to(like.device)


def _at(rows: Tensor, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: table[rows] for name, table in tables.items()}


def _in_place(searches: Mapping[str, ResidualSteps], rows: Tensor) -> dict[str, Tensor]:
    """The residuals at rows, as they are by now."""
    return _at(rows, {name: search.residuals for name, search in searches.items()})


def _means(several: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Means of equally named tables."""
    first, *others = several
    if not others:
        return dict(first)
    return {name: torch.stack([tables[name] for tables in several]).mean(0) for name in first}


def _with_pending(captured: Sequence[int], prepared: PreparedTurn, pending: Tensor, collectives: Collectives) -> set[int]:
    """Those of the captured sequences that have a pending row, given the rows of all of them; the first worker's word."""
    owners = (i for i in captured for _ in prepared.turn.sequences[i].answer_ids)
    return {i for i, is_pending in zip(owners, collectives.broadcast(pending.float()).tolist(), strict=True) if is_pending}
