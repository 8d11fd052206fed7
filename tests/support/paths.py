"""Where things are that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""This project's folder."""
PARITY = ROOT / "tests" / "data" / "parity"
"""Two tiny models, their edits, and what the published implementation makes of them."""
PUBLIC_DATA = ROOT.parent / "shared" / "data"
"""Published data sets, where a machine has them; tests of them are skipped elsewhere."""
