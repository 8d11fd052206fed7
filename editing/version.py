"""The version of this project that is installed."""

from importlib import metadata

PACKAGE = "ultraedit-orchestrator"
"""Its name for pip."""


def _installed() -> str:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:  # a checkout on the path of a Ray worker, for instance
        return "unknown"


__version__ = _installed()
