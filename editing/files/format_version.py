"""Versions of the formats that this project writes to disk, so that a file of another version is read right or refused, never misread.

Every format has a number of its own, which grows when a file can no longer be read as before. A file says which one it has
under :data:`KEY`. A file that says nothing has version 1: so do all files that 0.1.0 wrote.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from editing.errors import InputError
from editing.version import PACKAGE, __version__

KEY = "format_version"
"""Where a file says its version: a key of JSON and YAML, or of a Parquet file's metadata."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format on disk.

    Attributes:
        name: What messages call such a file.
        version: The version that is written, and the newest one that can be read.
    """

    name: str
    version: int

    @property
    def tag(self) -> dict[str, int]:
        """What a new file says of itself."""
        return {KEY: self.version}

    @property
    def parquet_tag(self) -> dict[bytes, bytes]:
        """The same for the metadata of a Parquet schema."""
        return {KEY.encode(): str(self.version).encode()}

    def version_of(self, values: Mapping[str, Any], where: object) -> int:
        """The version of what was read.

        Args:
            values: A file's outermost keys and values.
            where: The file, for messages.

        Raises:
            InputError: It is newer than this program, or no version.
        """
        found = values.get(KEY, 1)
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            raise InputError(f"{where}: {KEY}: expected a whole number of at least 1, found {found!r}")
        if found > self.version:
            newest = f"the newest that this version of {PACKAGE} ({__version__}) can read is {self.version}"
            raise InputError(f"{where}: is a {self.name} of format version {found}; {newest}: install a newer version of {PACKAGE}")
        return found

    def version_of_parquet(self, metadata: Mapping[bytes, bytes] | None, where: object) -> int:
        """The same for the metadata of a Parquet schema."""
        text = (metadata or {}).get(KEY.encode(), b"1").decode("utf-8", "replace")
        return self.version_of({KEY: int(text) if text.isdecimal() else text}, where)
