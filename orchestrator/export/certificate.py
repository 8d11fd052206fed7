"""``certificate.json``: what a folder of an export holds, by digests, and what was lost on the way; signed or not.

    certificate.json    files with size and SHA-256; digests of the base's and the merged matrices; edits, metrics, losses, versions
    certificate.sig     optional: an Ed25519 signature over the bytes of certificate.json, with the public key

The private key is a PEM file without a password, as ``openssl genpkey -algorithm ed25519`` writes it. The ``cryptography`` package signs.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editing.errors import InputError
from editing.files.format_version import Format

CERTIFICATE, SIGNATURE = "certificate.json", "certificate.sig"

FORMAT = Format("certificate", 1)

_CHUNK = 2**22


def write_certificate(folder: Path, content: Mapping[str, Any], *, key: Path | None) -> dict[str, Any]:
    """Write the certificate of a folder that is otherwise complete.

    Args:
        folder: The folder.
        content: What is said beside the files.
        key: Private key with which it is signed.

    Returns:
        The certificate.

    Raises:
        InputError: The key is no Ed25519 key.
    """
    body = {**FORMAT.tag, **content, "files": _described(folder)}
    text = (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode()
    (folder / CERTIFICATE).write_bytes(text)
    if key is not None:
        (folder / SIGNATURE).write_text(json.dumps(_signed(text, key), indent=2) + "\n", encoding="utf-8")
    return body


def verify_folder(folder: Path, *, key: Path | None = None) -> dict[str, Any]:
    """Check a folder against its certificate, and that against its signature.

    Args:
        folder: The folder.
        key: Public key, PEM, by which it must be signed; by default any signature that is there must be right.

    Returns:
        The certificate, with ``signed_by``: the public key in hexadecimal, or ``None``.

    Raises:
        InputError: A file is missing, altered or not in the certificate, or the signature is not right.
    """
    certificate = read_certificate(folder)
    signed_by = _check_signature(folder, key)
    found = _described(folder)
    for name in sorted(certificate["files"].keys() | found.keys()):
        expected, is_there = certificate["files"].get(name), found.get(name)
        if expected != is_there:
            what = "is missing" if is_there is None else "is not in the certificate" if expected is None else "was altered or is not whole"
            raise InputError(f"{folder / name}: {what}; export it again")
    return {**certificate, "signed_by": signed_by}


def read_certificate(folder: Path) -> dict[str, Any]:
    """A folder's certificate.

    Raises:
        InputError: There is none, it is damaged, or of a newer format version.
    """
    path = folder / CERTIFICATE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        FORMAT.version_of(content, path)
        if not all(isinstance(content[name], dict) for name in ("files", "base", "merged")):
            raise TypeError("it lacks files, base or merged")
    except OSError as error:
        raise InputError(f"{folder}: holds no {CERTIFICATE} ({error.strerror}); expected a folder that ultraedit export wrote") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is damaged ({type(error).__name__}: {error}); export it again") from None
    return content


def digest_of(weight: Tensor) -> str:
    """SHA-256 of a weight's bytes, as in ``run.json``."""
    return hashlib.sha256(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()


def check_key(key: Path) -> None:
    """Read a private key, so that a wrong one is found before the work.

    Raises:
        InputError: It is no Ed25519 key, or ``cryptography`` is not installed.
    """
    _private(key)


def _described(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (CERTIFICATE, SIGNATURE):
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256}
    return found


def _signed(text: bytes, key: Path) -> dict[str, str]:
    private = _private(key)
    public = private.public_key().public_bytes_raw().hex()
    return {"algorithm": "Ed25519", "public_key": public, "signature": private.sign(text).hex()}


def _check_signature(folder: Path, key: Path | None) -> str | None:
    path = folder / SIGNATURE
    if not path.is_file():
        if key is not None:
            raise InputError(f"{folder}: is not signed: it has no {SIGNATURE}; expected the signature of {key}")
        return None
    _cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(found["public_key"]))
        signature = bytes.fromhex(found["signature"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({type(error).__name__}: {error}); export it again") from None
    if key is not None and _public(key) != found["public_key"]:
        raise InputError(f"{path}: was signed by the key {found['public_key'][:16]}..., expected that of {key}, {_public(key)[:16]}...")
    try:
        public.verify(signature, (folder / CERTIFICATE).read_bytes())
    except InvalidSignature:
        raise InputError(f"{path}: does not belong to {CERTIFICATE}, which was altered after it was signed; do not use this folder") from None
    return str(found["public_key"])


def _private(key: Path) -> Any:
    serialization = _cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"sign: {key} cannot be read as a private key without a password in PEM ({error})") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise InputError(f"sign: {key} is another kind of key, expected Ed25519: openssl genpkey -algorithm ed25519 -out {key.name}")
    return private


def _public(key: Path) -> str:
    serialization = _cryptography()
    try:
        public: bytes = serialization.load_pem_public_key(key.read_bytes()).public_bytes_raw()
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"key: {key} cannot be read as an Ed25519 public key in PEM ({error})") from None
    return public.hex()


def _cryptography() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise InputError("cryptography: the package is not installed; install it with: pip install 'ultraedit-orchestrator[export]'") from None
    return serialization
