"""``make demo-live``: a service on a small chat model takes ten facts, has them live, catches one that breaks something, and goes back.

python -m orchestrator.demo.live [STATE]     ends when Enter is pressed, or at once where nobody could press it
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from editing.errors import UltraEditError
from orchestrator.cli.console import complain, messages, say
from orchestrator.cli.libraries import ready_libraries
from orchestrator.demo import FACTS, smollm2_folder
from orchestrator.progress import Progress
from orchestrator.service.client import Client, Edit, StoredEdit

_NUM_FACTS = 10
_WAIT_SECONDS = 600.0

SETTINGS: dict[str, Any] = {
    "name": "smollm2",
    "port": 0,
    "turn_edits": _NUM_FACTS,
    "turn_seconds": 2,
    "run": {
        "modules": "model.layers.{20..23}.self_attn.o_proj",
        "learning_rate": 1e-3,
        "passes": 3,
        "preserve": "exact",
        "preserve_text": "everyday",
        "preserve_weight": 300,
        "subject_modules": "model.layers.{4..8}.mlp.down_proj",
        "subject_targets": "solved",
        "subject_bound": 3,
        "subject_margin": 3,
        "subject_steps": 6,
        "subject_weight": 8000,
    },
}
"""How the service is started: settings that were measured in docs/quality.md, "Solved targets"."""

MUST_STAY = {"prompt": "The capital of France is", "answer": "Paris"}
WRONG = Edit("The capital of France is", "Lyon", subject="France", source="broken on purpose")


def facts(count: int) -> list[Edit]:
    """The first of the demo's facts of each relation in turn."""
    records = [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()]
    chosen = records[:: max(1, len(records) // count)][:count]
    return [Edit(r["prompt"], r["target"], subject=r["subject"], rephrasings=(r["rephrase"],), source="the demo's facts") for r in chosen]


def show(client: Client) -> None:
    """Take the service through what it is for, and print what it says."""
    client.add_probes([MUST_STAY], "must-stay")
    say(f"must stay: {MUST_STAY['prompt']} {MUST_STAY['answer']}")
    asked = client.add_all(facts(_NUM_FACTS))
    say(f"asked for {len(asked)} facts; each is written, proved and then live, or set aside:")
    for edit in asked:
        _show_edit(client.wait(edit.id, _WAIT_SECONDS))
    good = _live_version(client)
    say(f"live: version {good}")
    say(f"asked for one that breaks what must stay: {WRONG.prompt} {WRONG.target}")
    _show_edit(client.wait(client.add(WRONG).id, _WAIT_SECONDS))
    say(f"live: version {_live_version(client)}; the turn was undone")
    one_more = client.wait(client.add(facts(_NUM_FACTS + 1)[-1]).id, _WAIT_SECONDS)
    _show_edit(one_more)
    say(f"live: version {_live_version(client)}")
    done = client.roll_back(good, "the demo goes back")
    say(f"rolled back to version {good}: version {done['version']} is live, and the edit that came since is {client.edit(one_more.id).state}")


def _show_edit(edit: StoredEdit) -> None:
    texts = edit.figures or {}
    before, after = (" ".join(str(texts.get(name, "")).split())[:40] for name in ("text_before", "text_after"))
    told = f"{before!r} -> {after!r}" if after else edit.reason
    say(f"  {edit.state:<12} {edit.prompt} [{edit.target}]: {told}")


def _live_version(client: Client) -> int:
    return int(client.status()["live_version"])


@contextmanager
def running(model: Path, state: Path, settings: Mapping[str, Any] = SETTINGS) -> Iterator[tuple[str, str]]:
    """A service within this context: its address and its token.

    Raises:
        UltraEditError: It did not start.
    """
    state.mkdir(parents=True, exist_ok=True)
    config = state / "serve.yaml"
    config.write_text(yaml.safe_dump({**settings, "model": str(model), "state": str(state)}))
    command = [sys.executable, "-m", "orchestrator", "serve", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield _told(process)
    finally:
        process.terminate()
        process.wait()


def _told(process: "subprocess.Popen[str]") -> tuple[str, str]:
    found: dict[str, str] = {}
    for line in process.stdout or ():
        name, _, value = line.strip().partition(": ")
        found[name] = value
        if name == "console":
            return found["listening"], found.get("token", "")
    raise UltraEditError("demo: the service did not start; what it says is above")


def main() -> int:
    """Show it all. Returns the exit code."""
    ready_libraries()
    began = time.monotonic()
    state = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="ultraedit-live-"))
    try:
        model = smollm2_folder(Path(".cache"), Progress(messages())).resolve()
        with running(model, state / "service") as (address, token):
            with Client(address, token) as client:
                show(client)
            subprocess.run([sys.executable, "-m", "orchestrator", "audit", "verify", "--state", str(state / "service")], check=True)
            say(f"took {time.monotonic() - began:.0f} s; all of it is in {state}")
            say(f"console: {address}/  token: {token}")
            if sys.stdin is not None and os.isatty(sys.stdin.fileno()):
                input("press Enter to stop the service ")
    except UltraEditError as error:
        complain(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
