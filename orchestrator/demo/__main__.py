"""``python -m orchestrator.demo``: convert the demo's model, once, and print its folder."""

from pathlib import Path

from orchestrator.cli.console import messages, say
from orchestrator.demo import gemma_folder
from orchestrator.progress import Progress

say(str(gemma_folder(Path(".cache"), Progress(messages()))))
