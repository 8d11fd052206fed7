"""``ultraedit export``: a run's edits in a form that serving engines load; ``ultraedit verify``: whether it is whole and signed."""

from pathlib import Path
from typing import Any

import rich_click as click

from orchestrator.cli.console import messages, say, screen
from orchestrator.cli.help import command
from orchestrator.cli.libraries import ready_libraries
from orchestrator.cli.options import EXPORT_FORMS, FILE, FOLDER, FROM_ZERO, NAMED_MODEL, RANK, run_dir


@command("export")
@run_dir
@click.option("--as", "form", type=click.Choice(EXPORT_FORMS), metavar="FORM", required=True, help=f"What is written: {', '.join(EXPORT_FORMS)}.")
@click.option("--output", **FOLDER, required=True, help="Folder to make.")
@click.option("--rank", **RANK, default="auto", show_default=True, help="Largest rank of an adapter; auto loses nothing but rounding.")
@click.option("--from-turn", **FROM_ZERO, default=0, show_default=True, help="Turn of the model to which an adapter is added.")
@click.option("--to-turn", **FROM_ZERO, help="Turn to export. [default: the last]")
@click.option("--whole", is_flag=True, help="Of a checkpoint all weights, not the edited matrices alone.")
@click.option("--base-gguf", **FILE, help="GGUF file of the unedited model, which --as gguf copies.")
@click.option("--measure", **FROM_ZERO, default=100, show_default=True, help="Edits on which the export is measured; 0 for none.")
@click.option("--sign", **FILE, help="Ed25519 private key, PEM, that signs the certificate.")
@click.option("--model", **NAMED_MODEL, help="The unedited model, if it is no longer where the run had it.")
def export_command(run_dir: Path, model: str | None, **options: Any) -> None:
    """Write a finished run's edits in a form that engines load.

    The folder has a certificate: digests, what was lost, and metrics of the export beside those of the full edit.
    """
    ready_libraries()
    from orchestrator.cli.export_tables import show_export
    from orchestrator.export.exporting import ExportOptions, export_run
    from orchestrator.export.source import RunSource
    from orchestrator.progress import Progress

    asked = ExportOptions(**options)
    asked.check()
    show_export(export_run(RunSource(run_dir, model), asked, Progress(messages())), asked.output, screen())


@command("verify")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--key", **FILE, help="Ed25519 public key, PEM, by which the certificate must be signed.")
def verify_command(folder: Path, key: Path | None) -> None:
    """Check an exported folder against its certificate."""
    ready_libraries()
    from orchestrator.export.certificate import verify_folder

    found = verify_folder(folder, key=key)
    signed = f"signed by {found['signed_by']}" if found["signed_by"] else "not signed"
    edits = found["edits"]
    turns = f"turns {edits['from_turn'] + 1} to {edits['to_turn']}"
    say(f"{folder}: whole: {len(found['files'])} files, {found['form']}, {edits['count']} edits of {turns}, {signed}")
