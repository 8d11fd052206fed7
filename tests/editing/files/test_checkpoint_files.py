"""The files of a model are those that transformers would load, on every path, and a Hub repository is downloaded once."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from editing import ModelError
from editing.files.checkpoint_files import INDEX, weight_files
from tests.support.families import tiny_model
from tests.support.paths import PARITY
from tests.support.quiet_server import QuietServer


def a_model(folder: Path, **save: object) -> Path:
    tiny_model("llama")[0].save_pretrained(folder, **save)
    return folder


def names(folder: Path) -> list[str]:
    return [file.name for file in weight_files(folder)]


def test_one_file_is_taken_before_an_index_as_transformers_does(tmp_path: Path) -> None:
    sharded, single = a_model(tmp_path / "sharded", max_shard_size="20KB"), a_model(tmp_path / "single")
    (sharded / "model.safetensors").write_bytes((single / "model.safetensors").read_bytes())
    assert names(sharded) == ["model.safetensors"]
    zeros = {key: torch.zeros_like(tensor) for key, tensor in load_file(single / "model.safetensors").items()}
    save_file(zeros, sharded / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(sharded)  # the oracle: what it loads is what we name
    assert all(not parameter.any() for parameter in loaded.parameters())


def test_files_that_transformers_does_not_load_are_no_part_of_the_model(tmp_path: Path) -> None:
    for number, folder in enumerate((a_model(tmp_path / "single"), a_model(tmp_path / "sharded", max_shard_size="20KB"))):
        (folder / "consolidated.safetensors").write_bytes(b"not read")
        (folder / "model-extra.safetensors").write_bytes(b"not read")
        assert ("model.safetensors" in names(folder)) == (number == 0)
        assert not {"consolidated.safetensors", "model-extra.safetensors"} & set(names(folder))


def test_weights_that_the_configuration_names_are_taken(tmp_path: Path) -> None:
    folder = a_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "own.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "own.safetensors"}))
    assert names(folder) == ["own.safetensors"]
    AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("consolidated.safetensors", r"it holds consolidated\.safetensors, which transformers does not load"),
        ("pytorch_model.bin", "its pickle files are not opened, convert them with: python -c "),
        ("notes.txt", "so no safetensors weights"),
    ],
    ids=["another form", "pickled", "nothing"],
)
def test_a_folder_without_weights_says_what_it_holds_instead(there: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / there).write_bytes(b"{}")
    with pytest.raises(ModelError, match=words):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    "index", [b"", b"[]", b'{"weight_map": 3}', b'{"weight_map": {}}', b"\xff"], ids=["empty", "list", "number", "no weights", "bytes"]
)
def test_a_damaged_index_is_one_clear_line(index: bytes, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_bytes(index)
    with pytest.raises(ModelError, match=r"index\.json: (is not a safetensors index|names no weights)"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["/etc/x.safetensors", "../x.safetensors"])
def test_an_index_names_files_inside_its_folder_only(name: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match="expected a file inside the model's folder"):
        weight_files(tmp_path)


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hugging Face Hub does for one repository, from a folder."""

    folder: Path
    asked: list[str]
    commit = "0" * 40

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/own/model"):
            siblings = [{"rfilename": str(p.relative_to(self.folder))} for p in sorted(self.folder.rglob("*")) if p.is_file()]
            tree = [{"type": "file", "path": s["rfilename"], "size": 1, "oid": "0"} for s in siblings]
            found = tree if "/tree/" in path else {"id": "own/model", "sha": self.commit, "siblings": siblings}
            self._send(json.dumps(found).encode(), "application/json", body=body)
            return
        file = self.folder / path.split(f"/{self.commit}/", 1)[-1].split("/resolve/main/", 1)[-1]
        if not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if body:
            self.asked.append(str(file.relative_to(self.folder)))
        self._send(file.read_bytes(), "application/octet-stream", body=body)

    def _send(self, content: bytes, kind: str, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    """A Hub on the loopback with one sharded model, and files beside it that nobody needs."""
    folder = a_model(tmp_path / "repository", max_shard_size="40KB")
    for file in (PARITY / "llama-tiny" / "model").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    for name in ("consolidated.safetensors", "pytorch_model.bin", "onnx/model.onnx", "original/config.json", "LICENSE", "README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    handler = type("OwnHub", (Hub,), {"folder": folder, "asked": []})
    server = QuietServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


@pytest.mark.thorough
def test_a_repository_is_downloaded_once_without_what_nobody_loads(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    address, handler = hub
    code = (
        "import torch; from editing.files import pretrained\n"
        "model, _ = pretrained.load('own/model', device=torch.device('cpu'))\n"
        "folder = pretrained.local_folder('own/model')\n"
        "print(sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()))"
    )
    environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "PATH": "/usr/bin"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[3], check=False)
    assert found.returncode == 0, found.stderr
    wanted = {f.name for f in weight_files(handler.folder)} | {INDEX, "config.json", "generation_config.json", "LICENSE"}
    wanted |= {f.name for f in (PARITY / "llama-tiny" / "model").glob("tokenizer*")}
    assert set(eval(found.stdout.splitlines()[-1])) == wanted
    assert sorted(handler.asked) == sorted(wanted)  # each once


def test_an_adapter_is_downloaded_too(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    address, handler = hub
    for file in handler.folder.iterdir():
        if file.is_file():
            file.unlink()
    for name in ("adapter_config.json", "adapter_model.safetensors", "training_args.bin"):
        (handler.folder / name).write_bytes(b"{}")
    code = "import sys; from editing.files.checkpoint_files import download; print(sorted(p.name for p in download('own/model').iterdir()))"
    environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "PATH": "/usr/bin"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[3], check=False)
    assert found.returncode == 0, found.stderr
    assert set(eval(found.stdout.splitlines()[-1])) == {"adapter_config.json", "adapter_model.safetensors"}
