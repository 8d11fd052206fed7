"""Errors that a person reads. Each message is one clear line: what was found, where, what was expected.

Light to import: a command that fails at its first option shall not wait for torch.
"""

import sys


class UltraEditError(Exception):
    """Base of every error that this project raises on purpose. ``str(error)`` is ready to be shown.

    Attributes:
        exit_code: Of a command that ends with it.
    """

    exit_code = 1


class InputError(UltraEditError):
    """An option, a file or a request is not usable as given."""


class ModelError(UltraEditError):
    """A model cannot be loaded, or is not one that can be edited."""


class InvalidRequest(InputError):
    """One edit request is not usable; the others may go on.

    Args:
        field: Name of the offending field.
        reason: What was expected and what was found.
    """

    def __init__(self, field: str, reason: str) -> None:
        self.field, self.reason = on_one_line(field), on_one_line(reason)
        super().__init__(f"{self.field}: {self.reason}")


class TurnRefused(UltraEditError):
    """A turn was not applied; weights and moments are as they were before it.

    Args:
        reason: What was not finite, and where.
        culprits: Positions, in the turn's request order, of the edits that caused it; empty if it was not a single edit.
    """

    def __init__(self, reason: str, culprits: tuple[int, ...] = ()) -> None:
        super().__init__(reason)
        self.culprits = culprits


class WorkerLost(UltraEditError):
    """A worker died or did not answer. The run can go on from its last checkpoint with new ones."""


class OutOfMemory(UltraEditError):
    """The memory is full: to be given less, not to be started again."""

    @classmethod
    def here(cls, error: BaseException) -> "OutOfMemory":
        """What this process ran out of memory with."""
        told = next(iter(str(error).splitlines()), type(error).__name__)
        return cls(f"out of memory: {told}; try a smaller --batch-tokens, --lookahead 1, --dtype bfloat16 or --device-memory auto")


def ran_out_of_memory(error: BaseException) -> bool:
    """Only some of what runs out of memory says so by its type; the last one is what oneDNN, which does the products, says."""
    torch = sys.modules.get("torch")  # where it was not imported, the error is none of its own
    known = (MemoryError, torch.OutOfMemoryError) if torch else MemoryError
    words = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc", "could not create a primitive")
    return isinstance(error, known) or any(word in str(error) for word in words)


def on_one_line(text: str) -> str:
    """A text whose signs all show, for names that come from somebody's file: a line end among them is written ``\\n``."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def first_line(error: BaseException) -> str:
    """What a foreign error says, on one line: its first one, with the next where the first only announces it; its class where it says nothing."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
