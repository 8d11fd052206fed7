"""Entry point of ``ultraedit``. Light, so that a Ctrl-C while torch is being imported ends as quietly as a later one."""

import signal
import sys
from typing import Any, NoReturn


def main() -> NoReturn:
    """Run the command line; SIGTERM ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from orchestrator.cli.main import main as run_command_line
        from orchestrator.cli.streams import flush_streams, guard_streams

        guard_streams()
        code = run_command_line()
        flush_streams()
        sys.exit(code)
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
