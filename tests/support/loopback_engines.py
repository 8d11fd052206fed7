"""Servers that speak the recorded answers of real engines, with a real tiny model behind them: what they write follows from the files that
they were told to load, read by ``peft`` and transformers."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.paths import ROOT
from tests.support.quiet_server import QuietServer

RECORDED = ROOT / "tests" / "data" / "engines"


@cache
def _model(base: Path, adapter: Path | None, weights: Path | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if weights is not None:
        model.load_state_dict(load_file(weights / "model.safetensors"), strict=False)
    return model if adapter is None else PeftModel.from_pretrained(model, adapter).merge_and_unload()


@torch.no_grad()
def write(base: Path, adapter: Path | None, weights: Path | None, prompt: str, count: int) -> str:
    """Greedy text of a model with an adapter, or with other weights."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    output = _model(base, adapter, weights).generate(ids, do_sample=False, max_new_tokens=count, pad_token_id=0)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


class LoopbackVllm:
    """vLLM 0.32.0 as it answers.

    Args:
        base: Folder of the model that it serves.

    Attributes:
        adapters: Folder by name.
        weights: Folder of the weights that were loaded over the model's.
        faults: What goes wrong: ``rank``, ``ignores loads``, ``dies after a load``, ``no lora``, ``no dev mode``.
        token: The key that it wants.
        calls: Paths that were called, in their order.
        port: Where it listens.
    """

    def __init__(self, base: Path) -> None:
        self.base, self.recorded = base, json.loads((RECORDED / "vllm-0.32.0.json").read_text())
        self.adapters: dict[str, Path] = {}
        self.weights: Path | None = None
        self.faults: set[str] = set()
        self.token: str | None = None
        self.calls: list[str] = []
        self.is_paused, self.is_dead, self.port = False, False, 0

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and body."""
        self.calls.append(path)
        if self.is_dead:
            raise ConnectionAbortedError
        match path.partition("?")[0]:
            case "/version":
                return self._said("version")
            case "/v1/models":
                served = [self._filled(self.recorded["base"], PATH=str(self.base))]
                served += [self._filled(self.recorded["adapter"], NAME=name, PATH=str(folder)) for name, folder in self.adapters.items()]
                return 200, {"object": "list", "data": served}
            case "/v1/completions":
                return self._complete(body)
            case "/v1/load_lora_adapter" if "no lora" not in self.faults:
                return self._load(body["lora_name"], Path(body["lora_path"]), in_place=body["load_inplace"])
            case "/v1/unload_lora_adapter" if "no lora" not in self.faults:
                found = self.adapters.pop(body["lora_name"], None)
                return self._said("removed" if found else "no such adapter", NAME=body["lora_name"])
            case "/pause" if "no dev mode" not in self.faults:
                self.is_paused = True
                return self._said("paused")
            case "/resume":
                self.is_paused = False
                return self._said("resumed")
            case "/reset_prefix_cache":
                return self._said("reset")
            case "/collective_rpc":
                assert self.is_paused
                assert body["method"] == "reload_weights"
                return self._reload(Path(body["kwargs"]["weights_path"]))
        return self._said("no such route")

    def _load(self, name: str, folder: Path, *, in_place: bool) -> tuple[int, Any]:
        if name in self.adapters and not in_place:
            return self._said("loaded already", NAME=name)
        if not (folder / "adapter_config.json").is_file():
            return self._said("no such file", NAME=name)
        if "rank" in self.faults:
            return self._said("rank", NAME=name)
        if "ignores loads" not in self.faults or name not in self.adapters:
            self.adapters[name] = folder
        self.is_dead = "dies after a load" in self.faults
        return self._said("loaded", NAME=name)

    def _reload(self, folder: Path) -> tuple[int, Any]:
        if not folder.is_dir():
            return self._said("no such weights")
        if "ignores loads" not in self.faults:
            self.weights = folder
        return self._said("reloaded")

    def _complete(self, body: Any) -> tuple[int, Any]:
        name = body["model"]
        if name != "base" and name not in self.adapters:
            return self._said("no such model", NAME=name)
        assert body["temperature"] == 0
        text = write(self.base, self.adapters.get(name), self.weights, body["prompt"], body["max_tokens"])
        return self._said("completion", NAME=name, TEXT=text)

    def _said(self, what: str, **names: str) -> tuple[int, Any]:
        status, content = self.recorded[what]
        return status, self._filled(content, **names)

    def _filled(self, content: Any, **names: str) -> Any:
        if isinstance(content, dict):
            return {key: self._filled(value, **names) for key, value in content.items()}
        if isinstance(content, list):
            return [self._filled(value, **names) for value in content]
        for name, value in names.items():
            content = content.replace(name, value) if isinstance(content, str) else content
        return content


class LoopbackLlamaCpp(LoopbackVllm):
    """llama.cpp's server as it answers, started with one adapter.

    Args:
        base: Folder of the model that it serves.
        adapter: Folder of the adapter, in the form of ``peft``, that stands for the GGUF file.
        path: The GGUF file that it was started with.
    """

    def __init__(self, base: Path, adapter: Path, path: Path) -> None:
        super().__init__(base)
        self.recorded = json.loads((RECORDED / "llama.cpp-b1-0c1e570.json").read_text())
        self.adapter, self.path, self.scale = adapter, path, 0.0

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.calls.append(path)
        match path:
            case "/props":
                return self._said("props", PATH=str(self.base))
            case "/lora-adapters" if body is None:
                return 200, [{**self._filled(self.recorded["adapter"], PATH=str(self.path)), "scale": self.scale}]
            case "/lora-adapters":
                self.scale = next(one["scale"] for one in body if one["id"] == 0)
                return self._said("switched")
            case "/v1/completions":
                own = body.get("lora", [{"scale": self.scale}])[0]["scale"]
                return self._said("completion", TEXT=write(self.base, self.adapter if own else None, None, body["prompt"], body["max_tokens"]))
        return self._said("no such route")


@contextmanager
def serving(engine: LoopbackVllm) -> Iterator[LoopbackVllm]:
    """Within this context an engine listens on a port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._reply(json.loads(content) if content else None)

        def _reply(self, body: Any) -> None:
            if engine.token and self.headers.get("Authorization") != f"Bearer {engine.token}":
                self._send(401, {"error": "Unauthorized"})
            else:
                self._send(*engine.answer(self.path, body))

        def _send(self, status: int, content: Any) -> None:
            text = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = QuietServer(("127.0.0.1", 0), Handler)
    engine.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield engine
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
