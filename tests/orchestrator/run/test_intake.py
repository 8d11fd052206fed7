"""The start of a run looks at the first records of a large input, and its digest is computed beside the run."""

import gzip
import hashlib
import json
import shutil
import subprocess
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from editing import InputError
from editing.datasets import EditFile
from editing.datasets import records as records_module
from orchestrator import digest as digest_module
from orchestrator.digest import InputDigest
from orchestrator.progress import Progress
from orchestrator.run.intake import FirstLook

RECORD = json.dumps({"prompt": "p" * 1000, "target": "t"}).encode()
BROKEN = b"[" + b",".join([RECORD] * 17_000) + b', {"prompt": '


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Over 16 MiB, and its end is missing."""
    path = tmp_path / "edits.json"
    path.write_bytes(BROKEN)
    assert len(BROKEN) > 2**24
    return path


def test_of_a_large_text_only_the_beginning_is_read_at_the_start(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    parse = records_module._parse
    monkeypatch.setattr(records_module, "_parse", lambda number, text: parsed.append(number) or parse(number, text))
    source = EditFile(large)
    look = FirstLook(source)
    assert look.num_edits(None) is None
    assert look.num_edits(5) == 5
    assert max(parsed) == 1000
    with pytest.raises(InputError, match="record 17001: the JSON array breaks off"):
        list(source.records(after=16_999))


def test_a_short_text_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "edits.json"
    path.write_bytes(b"[" + b",".join([RECORD] * 3000) + b"]")
    assert FirstLook(EditFile(path)).num_edits(None) == 3000
    assert FirstLook(EditFile(path)).num_edits(2000) == 2000
    path.write_bytes(b"[" + b",".join([RECORD] * 3000))
    with pytest.raises(InputError, match="record 3000: the JSON array breaks off"):
        FirstLook(EditFile(path)).num_edits(None)


def test_what_few_records_a_compressed_text_has_are_all_seen(tmp_path: Path) -> None:
    path = tmp_path / "edits"
    path.write_bytes(gzip.compress(b"\n".join([RECORD] * 999)))
    assert FirstLook(EditFile(path)).num_edits(None) == 999
    path.write_bytes(gzip.compress(b"\n".join([RECORD] * 1001)))
    assert FirstLook(EditFile(path)).num_edits(None) is None
    path.write_bytes(gzip.compress(b'{"prompt": "p", "target": ""}\n' * 999))
    with pytest.raises(InputError, match="holds no usable edit; record 1: target"):
        FirstLook(EditFile(path)).num_edits(None)


def test_parquet_says_how_many_records_it_has(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["p"] * 1500, "target": ["t"] * 1500})
    for part in "ab":
        pq.write_table(table, tmp_path / part)
    assert FirstLook(EditFile(tmp_path)).num_edits(None) == 3000
    assert FirstLook(EditFile(tmp_path)).num_edits(7) == 7


def test_a_bar_needs_no_total() -> None:
    with Progress(Console(quiet=True)).bar("editing", None) as advance:
        advance(3)


def digest_of(path: Path) -> str:
    source = EditFile(path)
    with InputDigest(source.path, source.parts) as digest:
        return digest.result()


def test_the_digest_of_a_file_is_that_of_its_bytes(large: Path) -> None:
    assert digest_of(large) == hashlib.sha256(BROKEN).hexdigest()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_digest_of_a_folder_is_that_of_its_parts_with_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    folder.mkdir()
    for name, count in (("b", 2), ("a", 3), ("_SUCCESS", 1)):
        (folder / name).write_bytes(b"\n".join([RECORD] * count))
    printed = subprocess.run("sha256sum a b | sha256sum", shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert (before := digest_of(folder)) == printed.split()[0]
    (folder / "b").rename(folder / "c")
    assert digest_of(folder) != before


def test_a_file_that_goes_away_is_an_error_where_its_digest_is_needed(large: Path) -> None:
    source = EditFile(large)
    digest = InputDigest(source.path, source.parts)
    large.unlink()
    with digest, pytest.raises(InputError, match=r"edits.json: cannot be read for its SHA-256 \(No such file"):
        digest.result()


def test_leaving_stops_the_thread_and_gives_no_wrong_digest(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_module, "_CHUNK_BYTES", 1)
    source = EditFile(large)
    with InputDigest(source.path, source.parts) as digest:
        pass
    with pytest.raises(InputError, match="cannot be read for its SHA-256"):
        digest.result()
    assert "input digest" not in [thread.name for thread in threading.enumerate()]
