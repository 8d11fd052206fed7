"""What must hold of a service at any time: each edit in one state, weights that are the ledger's replay, an intact log."""

from collections import Counter
from pathlib import Path

from sqlalchemy import select

from orchestrator.run.ledger import Ledger
from orchestrator.run.live import LiveRun, applied_ids
from orchestrator.run.run_config import RunConfig
from orchestrator.run.topology import make_worker
from orchestrator.service import audit, versions
from orchestrator.service.config import ServeConfig
from orchestrator.service.database import Database
from orchestrator.service.folders import StateFolder
from orchestrator.service.tables import edits
from orchestrator.tracking import NoTracker


def check(config: Path, scratch: Path, acknowledged: set[str], database: str = "") -> None:
    """Check a service whose processes have ended.

    Args:
        config: Its configuration file.
        scratch: A folder to replay in.
        acknowledged: Ids that it has answered with.
        database: The database's address, where it is not SQLite.
    """
    settings = ServeConfig.build({"database": database or None}, config)
    opened = Database(settings.database_url)
    with opened.reading() as connection:
        audit.verify(connection)
        head = versions.head(connection)
        assert head is not None
        known = {row.id: (row.state, row.version) for row in connection.execute(select(edits.c.id, edits.c.state, edits.c.version))}
    opened.close()
    assert known.keys() == acknowledged
    folder = StateFolder(settings.state)
    ledger = Ledger.first_parts(folder.run(head["run"]) / "ledger", folder.manifest(head["number"])["num_ledger_parts"])
    counts = Counter(entry.id for entry in ledger)
    assert max(counts.values(), default=1) == 1
    assert applied_ids(ledger) == {edit for edit, (state, _) in known.items() if state in ("verified", "live", "superseded")}
    assert replayed(settings, ledger, scratch) == head["digests"]


def replayed(settings: ServeConfig, ledger: Ledger, scratch: Path) -> dict[str, str]:
    """Digests of the weights after a ledger was run from the unedited model."""
    config = RunConfig.build(settings.run_options())
    run = LiveRun(config, make_worker(config), NoTracker())
    try:
        run.load()
        run.begin(scratch)
        run.replay(ledger)
        return run.worker.digest()
    finally:
        run.close()
