"""What an engine is asked after a load, and what its answers are held against: the edited Hugging Face model's own.

Where the edited model's text begins with the answer that belongs to the question, so must the engine's; else both must begin with the same
word. What comes later is not compared: engines compute in another order, and often in another precision, and a text that has parted once
stays apart. A few answers may differ (``tolerance``). Questions that the edited model answers right and the unedited one does not tell whether
the edits are there at all; of those too no more than that share may fail.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from editing.messages import Asked
from editing.monitoring.texts import begins_with
from orchestrator.run.ledger import Entry

EDIT, PROBE = "edit", "locality probe"
MAX_TOKENS = 12
"""Tokens of an answer."""


_SIGNS = ".,;:!?\"'()[]"

TELLING = "tells the edited model from the unedited"
"""Questions of both kinds that do."""


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt.

    Attributes:
        kind: :data:`EDIT` or :data:`PROBE`.
        prompt: What is asked; of a chat what the model's template writes.
        target: The edit's target, or the probe's answer; ``None`` if it has none.
        edited: What the edited model writes.
        unedited: What the model wrote before the edits.
    """

    kind: str
    prompt: str
    target: str | None
    edited: str
    unedited: str

    @property
    def tells_apart(self) -> bool:
        """Whether the edited model gives the answer that belongs to the question, and the unedited one does not."""
        return self.target is not None and begins_with(self.edited, self.target) and not begins_with(self.unedited, self.target)

    def holds(self, answer: str) -> bool:
        """Whether an engine's answer is the edited model's."""
        if self.target is not None and begins_with(self.edited, self.target):
            return begins_with(answer, self.target)
        return _first_word(answer) == _first_word(self.edited)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An engine's answers.

    Attributes:
        questions: What was asked.
        answers: What it wrote.
        tolerance: Share of answers that may differ.
    """

    questions: Sequence[Question]
    answers: Sequence[str]
    tolerance: float

    @property
    def failed(self) -> list[tuple[Question, str]]:
        """Questions whose answers do not hold, with these."""
        return [(q, a) for q, a in zip(self.questions, self.answers, strict=True) if not q.holds(a)]

    def counts(self, kind: str) -> tuple[int, int]:
        """Of one kind, or of those that tell the edited model from the unedited: how many were asked, and how many hold."""
        of_kind = [(q, a) for q, a in zip(self.questions, self.answers, strict=True) if (q.tells_apart if kind == TELLING else q.kind == kind)]
        return len(of_kind), sum(q.holds(a) for q, a in of_kind)

    @property
    def why_not(self) -> str:
        """Why the edits do not count as live; empty if they do."""
        asked, held = len(self.questions), len(self.questions) - len(self.failed)
        telling, told = self.counts(TELLING)
        if not telling:
            return (
                f"none of the {asked} questions tells the edited model from the unedited one; ask more with --verify, or look at the run's efficacy"
            )
        if told < telling * (1 - self.tolerance):
            return f"{told} of the {telling} questions that tell the edited model from the unedited one are answered as by the edited one"
        if held < asked * (1 - self.tolerance):
            return f"{held} of {asked} answers are the edited model's, expected {1 - self.tolerance:.0%}"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Counts, for the record."""
        return {kind: dict(zip(("asked", "hold"), self.counts(kind), strict=True)) for kind in (EDIT, PROBE, TELLING)}


def prompts_of(entries: Sequence[Entry]) -> list[tuple[str, Asked, str | None]]:
    """Kind, question and target of the questions about edits: each one's own, and its locality probe if it has one."""
    edits: list[tuple[str, Asked, str | None]] = [(EDIT, entry.request.asked, entry.request.target) for entry in entries]
    return edits + [(PROBE, entry.request.locality_prompt, entry.request.locality_answer) for entry in entries if entry.request.locality_prompt]


def _first_word(text: str) -> str:
    """The first word, without signs around it; of a text without words its first signs."""
    words = text.split()
    return words[0].strip(_SIGNS) or words[0] if words else ""
