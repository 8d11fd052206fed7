"""``ultraedit data build``: an edit set from triples."""

from pathlib import Path
from typing import Any

import click

from orchestrator.data.building import BuildConfig, build
from orchestrator.data.building.templates import SHIPPED

_path = click.Path(exists=True, path_type=Path)


@click.command("build")
@click.option("--triples", type=_path, multiple=True, required=True, help="TSV, JSON lines or Parquet, or a folder; may be given several times.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--templates", type=_path, default=SHIPPED, help="Templates of the relations, as YAML.  [default: questions about Wikidata's]")
@click.option("--aliases", type=_path, multiple=True, help="Names of entities and relations, as Wikidata5M has them; may be given several times.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--probe-share", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.2, show_default=True, help="Facts kept as probes."
)
@click.option("--strict", is_flag=True, help="Stop at the first triple that cannot be used instead of setting it aside.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes on this machine.  [default: one a core, where there is work]")
@click.option("--ray-address", help="Build on a Ray cluster: local, auto or ray://HOST:PORT.")
def build_command(**options: Any) -> None:
    """Build edits, each with an equivalent prompt and an unrelated probe, from triples."""
    config = BuildConfig(**options)
    counts = build(config)
    click.echo(f"{counts.total('edit'):,} edits from {counts.total('triple'):,} triples; {counts.total('probe'):,} facts kept as probes")
    for reason in counts.reasons():
        click.echo(f"set aside {reason}")
    click.echo(f"edits     {config.output}\ncard      {config.output / 'README.md'}")
