"""A worker without a model that does as it is told, and a run of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from editing import TurnRefused
from editing.config import RAW
from editing.model.generation import Written
from editing.model.joining import Joiner
from editing.monitoring.evaluation import Answers, EditResult, Predictions
from editing.monitoring.health import Vitals
from editing.turn import PreparedTurn, TokenizedEdit, Turn, TurnReport
from orchestrator.progress import Progress
from orchestrator.run.coordinator import Coordinator
from orchestrator.run.run_config import RunConfig
from orchestrator.tracking import NoTracker


class Letters:
    """A tokenizer: one token a character."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


class ScriptedWorker:
    """Refuses the turns that it is told to, and notes what it is asked."""

    joiner, max_tokens, lookahead, edits_at_a_time = Joiner(Letters()), 50, 4, 200

    def __init__(self, refuse: Sequence[int] = (), *, growth: float = 0.0, sick_from: float = float("inf")) -> None:
        self.refuse, self.windows, self.seen = set(refuse), [], 0
        self.growth, self.sick_from, self.measured = growth, sick_from, []

    def outlook(self, num_edits: int | None = None) -> list[str]:
        return []

    def load(self) -> None: ...

    def describe(self) -> dict[str, Any]:
        fields = ("architecture", "device", "dtype", "preset")
        return {
            **dict.fromkeys(fields, "x"),
            "parameters": 1,
            "modules": ["m"],
            "learning_rate": 1.0,
            "method": {"subject_modules": [], "join": "raw"},
            "text": [],
            "preserve_text_sha256": "none",
            "converted": None,
            "float32_masters": False,
        }

    def saved_size(self) -> int:
        return 0

    def digest(self) -> dict[str, str]:
        return {"m": str(self.seen)}

    def prepare(self, turns: Sequence[Turn]) -> list[PreparedTurn]:
        self.windows.append(len(turns))
        return [PreparedTurn(turn, None, 0.5) for turn in turns]

    def apply(self, prepared: PreparedTurn) -> TurnReport:
        self.seen += 1
        if self.seen in self.refuse:
            raise TurnRefused("not finite", (0,))
        n = len(prepared.turn.edits)
        seconds = {"prefix": 0.5, "capture": 1.0, "solve": 0.25, "apply": 0.125, "measure": 9.0}
        return TurnReport(self.seen, n, n, 1.0, 0.0, None, {"m": 2.0}, {"m": self.growth * self.seen}, {"m": 1.0}, seconds)

    def measure_health(self, prepared: PreparedTurn) -> Vitals:
        self.measured.append(self.seen)
        sick = self.seen >= self.sick_from
        return Vitals(1.0, 90.0 if sick else 10.0, 9.0 if sick else 1.0, 0.0 if sick else 1.0, 1.0, None, None, None)

    def evaluate(self, edits: Sequence[TokenizedEdit], known: Sequence[Answers | None] | None = None) -> tuple[list[EditResult], Predictions]:
        return [EditResult(1.0, None, None, None, 0.0, None, None)] * len(edits), [{} for _ in edits]

    def write(self, prompts: Sequence[str], *, framing: str = RAW, unedited: bool = False, max_new_tokens: int = 12) -> list[Written]:
        return [Written(" old" if unedited else f" {p[-1]}!", stopped=True) for p in prompts]

    def perplexities(self, passages: Sequence[str], known: float | None = None) -> tuple[float, float]:
        return float(len(passages)), float(len(passages)) + 1

    def save(self, folder: Path) -> None:
        folder.mkdir()

    def fingerprint(self) -> str:
        return "base"

    def save_state(self, path: Path) -> None:
        path.write_text(str(self.seen))

    def load_state(self, path: Path, watch: dict[str, Any] | None) -> None:
        self.seen = int(path.read_text())

    def watch_state(self) -> dict[str, Any]:
        return {}


def run_scripted(tmp_path: Path, worker: ScriptedWorker, count: int = 7, **options: Any) -> Path:
    edits = tmp_path / "edits.jsonl"
    edits.write_text("\n".join(json.dumps({"prompt": f"p{i}", "target": str(i)}) for i in range(count)))
    config = RunConfig(model="m", edits=str(edits), output=str(tmp_path / "out"), edits_per_turn=2, **options)
    return Coordinator(config, worker, NoTracker(), Progress(Console(quiet=True), enabled=False)).run()


def read_metrics(path: Path) -> dict[str, Any]:
    return json.loads((path / "metrics.json").read_text())


def read_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path / "edits.parquet").to_pylist()
