"""``ultraedit verify``: a folder that was altered, is not whole, or was signed by somebody else is refused in one line."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import FinishedRun, Outcome

Run = Callable[..., Outcome]


def make_key(folder: Path, name: str) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}-public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public


@pytest.fixture
def signed(finished_run: FinishedRun, ultraedit: Run, tmp_path: Path) -> tuple[Path, Path]:
    """A signed export, and the public key."""
    private, public = make_key(tmp_path, "own")
    done = ultraedit("export", finished_run.path, "--as", "peft", "--measure", 0, "--sign", private, "--output", tmp_path / "out")
    assert done.code == 0, done.stderr
    return tmp_path / "out", public


def test_what_was_exported_is_whole_and_signed(signed: tuple[Path, Path], ultraedit: Run) -> None:
    folder, public = signed
    done = ultraedit("verify", folder, "--key", public)
    assert done.code == 0, done.stderr
    assert "signed by" in done.stdout
    assert b"PRIVATE" not in b"".join(path.read_bytes() for path in folder.iterdir())


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("bit", "adapter_model.safetensors: was altered or is not whole"),
        ("half", "adapter_model.safetensors: was altered or is not whole"),
        ("missing", "adapter_config.json: is missing"),
        ("more", "more.bin: is not in the certificate"),
        ("certificate", "which was altered after it was signed"),
        ("no certificate", "holds no certificate.json"),
        ("no json", "certificate.json: is damaged"),
        ("newer", "is a certificate of format version 9"),
        ("signature", "certificate.sig: is damaged"),
        ("unsigned", "is not signed"),
        ("other key", "was signed by the key"),
    ],
)
def test_what_was_altered_is_refused(damage: str, told: str, signed: tuple[Path, Path], ultraedit: Run, tmp_path: Path) -> None:
    folder, public = signed
    weights, certificate = folder / "adapter_model.safetensors", folder / "certificate.json"
    content = bytearray(weights.read_bytes())
    if damage == "bit":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "half":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        (folder / "adapter_config.json").unlink()
    elif damage == "more":
        (folder / "more.bin").write_bytes(b"1")
    elif damage == "certificate":
        certificate.write_text(certificate.read_text().replace('"count": 60', '"count": 61'))
    elif damage == "no certificate":
        certificate.unlink()
    elif damage == "no json":
        certificate.write_text("{")
    elif damage == "newer":
        certificate.write_text(json.dumps({**json.loads(certificate.read_text()), "format_version": 9}))
    elif damage == "signature":
        (folder / "certificate.sig").write_text("{}")
    elif damage == "unsigned":
        (folder / "certificate.sig").unlink()
    elif damage == "other key":
        public = make_key(tmp_path, "other")[1]
    done = ultraedit("verify", folder, "--key", public)
    assert done.code == 1
    assert len(done.errors) == 1
    assert told in done.errors[0]
