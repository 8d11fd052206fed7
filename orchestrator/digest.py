"""The SHA-256 of an input, computed while the run goes on."""

import errno
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from editing import InputError
from editing.datasets.parts import Part

_CHUNK_BYTES = 2**20


class InputDigest:
    """Context manager: a thread reads the whole input beside the run; leaving stops it.

    It is a pass of its own, for the first checkpoint needs the digest long before the run has come to the input's end.

    A file's digest is that of its bytes. A folder's is that of the lines that ``sha256sum`` prints for its parts in the
    order of their names: ``cd FOLDER && sha256sum * | sha256sum``.

    Args:
        path: The file or folder.
        parts: Its parts.
    """

    def __init__(self, path: Path, parts: Sequence[Part]) -> None:
        self._path, self._parts = path, parts
        self._digest = ""
        self._error: OSError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="input digest", daemon=True)

    def __enter__(self) -> "InputDigest":
        self._thread.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._stop.set()

    def result(self) -> str:
        """The digest in hexadecimal. Waits until it is there.

        Raises:
            InputError: The input cannot be read.
        """
        self._thread.join()
        if self._error is not None:
            raise InputError(f"{self._path}: cannot be read for its SHA-256 ({self._error.strerror or self._error})")
        return self._digest

    def _work(self) -> None:
        try:
            digests = [self._hash(part.path) for part in self._parts]
        except OSError as error:
            self._error = error
            return
        if self._path.is_dir():
            lines = (f"{digest}  ".encode() + os.fsencode(part.path.name) for digest, part in zip(digests, self._parts, strict=True))
            digests = [hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()]
        (self._digest,) = digests

    def _hash(self, path: Path) -> str:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
        with path.open("rb", buffering=0) as file:
            while length := file.readinto(buffer):
                if self._stop.is_set():
                    raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
                digest.update(buffer[:length])  # lets other threads run
        return digest.hexdigest()
