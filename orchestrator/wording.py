"""How numbers of things are told to people."""


def counted(count: int, noun: str) -> str:
    """A number with its noun, which takes an s where it is not 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
