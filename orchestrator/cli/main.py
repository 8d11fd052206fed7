"""The command line: ``ultraedit`` and its commands, wired together. What each one does is in a file of its own."""

import os
import sys
from collections.abc import Sequence
from functools import partial

import rich_click as click
from click.exceptions import Exit

from orchestrator.cli.apply_command import apply
from orchestrator.cli.console import show_log
from orchestrator.cli.data_commands import data
from orchestrator.cli.edit_command import edit
from orchestrator.cli.errors import Invocation, exit_code_of
from orchestrator.cli.evaluate_command import evaluate
from orchestrator.cli.export_command import export_command, verify_command
from orchestrator.cli.help import SETTINGS, Group
from orchestrator.cli.plan_command import plan_command
from orchestrator.cli.publish_command import publish_command, published_command
from orchestrator.cli.run_commands import demo, remove, rollback
from orchestrator.cli.serve_command import audit, serve_command
from orchestrator.cli.show_commands import compare, diff, history, show
from orchestrator.cli.tune_command import tune_command

__all__ = ["cli", "edit", "main"]

_COMPLETE = "_ULTRAEDIT_COMPLETE"
"""Set by the shell when it asks what could come next."""


@click.group(cls=Group, context_settings=SETTINGS)
@click.command_panel("Edit a model", commands=["edit", "rollback", "remove", "demo"])
@click.command_panel("Look at results", commands=["show", "history", "diff", "compare", "evaluate", "apply"])
@click.command_panel("Into service", commands=["export", "verify", "publish", "published", "serve", "audit"])
@click.command_panel("Prepare", commands=["data", "plan", "tune"])
@click.version_option(package_name="ultraedit-orchestrator")
@click.option("--debug", is_flag=True, envvar="ULTRAEDIT_DEBUG", help="Show the traceback of a failure. [env: ULTRAEDIT_DEBUG=1]")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Write facts into a language model's weights, without training (UltraEdit, arXiv 2505.14679)."""
    invocation = context.find_object(Invocation)
    if invocation is not None:
        invocation.debug, invocation.command = debug, context.invoked_subcommand or ""


for _command in (
    *(edit, rollback, remove, demo),
    *(show, history, diff, compare, evaluate, apply),
    *(export_command, verify_command, publish_command, published_command, serve_command, audit),
    *(data, plan_command, tune_command),
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: Without the program's name; by default this process's.

    Returns:
        The exit code.
    """
    show_log()
    invocation = Invocation()
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code_of(partial(_run, given, invocation), invocation)


def _run(arguments: list[str], invocation: Invocation) -> int:
    if instruction := os.environ.get(_COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "ultraedit", _COMPLETE, instruction)
    code = 0
    try:
        with cli.make_context("ultraedit", arguments, obj=invocation) as context:
            cli.invoke(context)
    except Exit as asked:  # after --help, or with an answer that is no
        code = asked.exit_code
    sys.stdout.flush()
    return code
