"""``ultraedit data build``: an edit set from triples."""

from pathlib import Path
from typing import Any

import rich_click as click

from orchestrator.cli.console import say
from orchestrator.cli.help import command
from orchestrator.cli.options import COUNT, FOLDER, FROM_ZERO

_INPUT: dict[str, Any] = {"type": click.Path(exists=True, path_type=Path)}
_INPUTS: dict[str, Any] = {**_INPUT, "multiple": True, "metavar": "FILE|FOLDER"}


@command("build")
@click.option("--triples", **_INPUTS, required=True, help="TSV, JSON lines or Parquet, or a folder; may be given several times.")
@click.option("--output", **FOLDER, required=True, help="Folder for the edit set.")
@click.option("--templates", **_INPUT, metavar="FILE", help="Templates of the relations, as YAML. [default: questions about Wikidata's relations]")
@click.option("--aliases", **_INPUTS, help="Names of entities and relations, as in Wikidata5M; may be given several times.")
@click.option("--seed", **FROM_ZERO, default=0, show_default=True, help="Seed of every random choice.")
@click.option(
    "--probe-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="X",
    default=0.2,
    show_default=True,
    help="Share of the facts that are never edited and serve as unrelated probes, between 0 and 1.",
)
@click.option("--strict", is_flag=True, help="Stop at the first unusable triple instead of setting it aside.")
@click.option("--workers", **COUNT, help="Processes on this machine. [default: one per core, where there is work]")
@click.option("--ray-address", metavar="ADDRESS", help="Build on a Ray cluster: local, auto or ray://HOST:PORT.")
def build_command(templates: Path | None, **options: Any) -> None:
    """Build edits from triples, each with an equivalent prompt and an unrelated probe."""
    from orchestrator.data.building import BuildConfig, build

    given: dict[str, Any] = {"templates": templates} if templates else {}
    config = BuildConfig(**options, **given)
    counts = build(config)
    say(f"{counts.total('edit'):,} edits from {counts.total('triple'):,} triples; {counts.total('probe'):,} facts kept as probes")
    for reason in counts.reasons():
        say(f"set aside {reason}")
    say(f"edits     {config.output}\ncard      {config.output / 'README.md'}")
