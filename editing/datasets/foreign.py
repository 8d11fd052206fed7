"""Files that people have and that hold no edits as they are: what they are, told by their first bytes, and how to convert them."""

import zipfile
from pathlib import Path

from editing.errors import InputError

_CONVERT = "pandas.read_excel(FILE).to_json('edits.jsonl', orient='records', lines=True)"

_BEGINNINGS: dict[bytes, str] = {
    b"\xd0\xcf\x11\xe0": f"is an old Excel workbook; save its sheet as CSV UTF-8, or run {_CONVERT}",
    b"BZh": "is compressed with bzip2; unpack it with bunzip2, or use gzip or zstd",
    b"\xfd7zXZ": "is compressed with xz; unpack it with unxz, or use gzip or zstd",
    b"7z\xbc\xaf": "is a 7z archive; unpack it, and give the file in it",
    b"SQLite format 3": "is an SQLite database; export its table as CSV: sqlite3 -header -csv FILE 'select * from TABLE'",
    b"\x80\x02": "is a Python pickle, which can run code when it is read; save the records as JSON lines",
    b"\x80\x03": "is a Python pickle, which can run code when it is read; save the records as JSON lines",
    b"\x80\x04": "is a Python pickle, which can run code when it is read; save the records as JSON lines",
    b"\x80\x05": "is a Python pickle, which can run code when it is read; save the records as JSON lines",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
    b"%PDF": "is a PDF; expected a file with edits",
}

HEAD_BYTES = max(map(len, _BEGINNINGS))
"""How much of a file tells it."""


def refuse_foreign(path: Path, head: bytes) -> None:
    """Refuse a file by its first bytes.

    Raises:
        InputError: It is one of those; the error says how to convert it.
    """
    what = next((what for beginning, what in _BEGINNINGS.items() if head.startswith(beginning)), None)
    if head.startswith(b"PK\x03\x04"):
        what = "is a ZIP archive; unpack it, and give the file in it"
        if zipfile.is_zipfile(path) and "xl/workbook.xml" in zipfile.ZipFile(path).namelist():
            what = f"is an Excel workbook; save its sheet as CSV UTF-8, or run {_CONVERT}"
    if what:
        raise InputError(f"{path}: {what}")
