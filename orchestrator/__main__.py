"""Entry point of ``ultraedit``. Light, so that a Ctrl-C while torch is being imported ends as quietly as a later one."""

import signal
import sys
from typing import Any, NoReturn


def main() -> NoReturn:
    """Run the command line; SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from orchestrator.cli import main as cli

        sys.exit(cli.main())
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
