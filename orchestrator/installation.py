"""Whether ``editing``, ``workers`` and ``orchestrator`` are this project's own packages.

The names are generic, so another package, or a folder on the path, may have one of them too. ``python -m orchestrator.installation``
says so in one line; ``docs/troubleshooting.md`` says what to do.
"""

import base64
import hashlib
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, PackagePath, distribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path

from editing.errors import InputError
from editing.version import PACKAGE, __version__

PACKAGES = ("editing", "workers", "orchestrator")
HOME = Path(__file__).resolve().parents[1]
"""The folder that holds this copy of the project's packages."""

_ADVICE = f"install {PACKAGE} in an environment of its own (python -m venv), and keep folders of that name off the path"


def check_packages() -> None:
    """Check that the project's packages are imported from where this file lies, and are as they were installed.

    Raises:
        InputError: One of them is another's; the message names it, its place, who else has the name, and what to do.
    """
    for problem in _problems():
        raise InputError(f"{problem}; {_ADVICE}")


def _problems() -> Iterator[str]:
    for name in PACKAGES:
        if (place := _imported_from(name)) != HOME / name:
            yield f"package {name!r} is imported from {place or 'nowhere'}, expected {HOME / name}"
    for file in _changed_files():
        others = sorted(set(packages_distributions().get(file.parts[0], ())) - {PACKAGE})
        yield f"package {file.parts[0]!r}: {file} is not the one that was installed{f'; {others[0]} has this package too' if others else ''}"


def _imported_from(name: str) -> Path | None:
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # a folder without __init__.py has no origin
        return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None
    return Path(spec.origin).resolve().parent


def _changed_files() -> Iterator[PackagePath]:
    """Installed ``__init__.py`` files whose content is another's: two packages of one name are written into one folder."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        return
    for file in files:
        if file.parts[0] in PACKAGES and file.name == "__init__.py" and file.hash and _sha256(file) != file.hash.value:
            yield file


def _sha256(file: PackagePath) -> str | None:
    path = Path(str(file.locate()))
    if not path.is_file():
        return None
    return base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()


def main() -> int:
    """Say where the packages lie, or what is wrong with them."""
    try:
        check_packages()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{PACKAGE} {__version__}: {', '.join(PACKAGES)} in {HOME} are its own\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
