"""A model's name that was stored by an earlier call: a folder, which may be gone, or an id of the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache


def lost_folder(name: str, *, may_be_relative: bool) -> Path | None:
    """Where the folder of a stored name was looked for in vain; ``None`` if it is there, or the name is one of the Hub.

    Args:
        name: The stored name.
        may_be_relative: Whether a folder may have been stored with a path relative to a working directory that is not known.
            A short one looks like an id of the Hub, and is taken for one if the Hub's cache has it.
    """
    path = Path(name)
    if path.is_dir() or path.is_file():
        return None
    looks_like_id = not path.is_absolute() and not name.startswith((".", "~")) and name.count("/") < 2
    if looks_like_id and (not may_be_relative or isinstance(try_to_load_from_cache(name, "config.json"), str)):
        return None
    return path.absolute()
