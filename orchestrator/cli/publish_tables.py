"""What an engine answered, and what was published, as tables."""

from collections.abc import Sequence

from orchestrator.cli.console import Screen
from orchestrator.cli.tables import Column, Sheet
from orchestrator.publish.questions import EDIT, PROBE, TELLING, Verdict
from orchestrator.publish.store import Publication

_SHOWN = 10
"""Answers that do not hold, at most."""


def show_verdict(verdict: Verdict, screen: Screen) -> None:
    """Print what holds in an engine, and what does not."""
    counts = Sheet("question", Column("asked", right=True), Column("as the edited model", right=True))
    for kind in (EDIT, PROBE, TELLING):
        counts.add(kind, *map(str, verdict.counts(kind)))
    screen.print(counts)
    screen.print()
    if failed := verdict.failed[:_SHOWN]:
        answers = Sheet(Column("prompt", text=True), Column("edited model", text=True), Column("engine", text=True), title="answers that differ")
        for question, answer in failed:
            answers.add(question.prompt, " ".join(question.edited.split()), " ".join(answer.split()))
        screen.print(answers)
        screen.print()


def show_publications(publications: Sequence[Publication], screen: Screen) -> None:
    """Print a record."""
    if not publications:
        screen.print("nothing was published")
        return
    sheet = Sheet(Column("no.", right=True), "when", "to", "as", Column("edits", right=True), Column("outcome", text=True))
    for p in publications:
        sheet.add(str(p.number), p.when, p.target, p.name or p.how, str(p.edits), f"{p.outcome}: {p.reason}" if p.reason else p.outcome)
    screen.print(sheet)
