"""Which version of the project this is."""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "ultraedit-orchestrator"


def _installed() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # the sources are on the path and were never installed
        return "unknown"


__version__ = _installed()
