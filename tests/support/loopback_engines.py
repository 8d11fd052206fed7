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
        for file in weights.glob("*.safetensors"):
            model.load_state_dict(load_file(file), strict=False)
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
        faults: What goes wrong: ``rank``, ``unknown module``, ``half written``, ``ignores loads``, ``dies after a load``, ``dies in place``,
            ``no lora``, ``no dev mode``, and ``slow`` with a path for an answer that takes longer than anyone waits.
        token: The key that it wants.
        calls: Paths that were called, in their order.
        port: Where it listens.
        released: Set when the test waits no more.
    """

    def __init__(self, base: Path) -> None:
        self.base, self.recorded, self.port = base, json.loads((RECORDED / "vllm-0.32.0.json").read_text()), 0
        self.start_anew()

    def start_anew(self) -> None:
        """As an engine whose process is started again at the same address: nothing is loaded, nothing goes wrong."""
        self.adapters: dict[str, Path] = {}
        self.weights: Path | None = None
        self.faults: set[str] = set()
        self.token: str | None = None
        self.calls: list[str] = []
        self.released = threading.Event()
        self.is_paused, self.is_dead = False, False

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and body."""
        self.calls.append(path)
        if self.is_dead:
            raise ConnectionAbortedError
        answer = self._answer(path, body)
        if f"slow {path}" in self.faults:
            self.released.wait(10)
        return answer

    def _answer(self, path: str, body: Any) -> tuple[int, Any]:
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
            case "/is_paused" if "no dev mode" not in self.faults:
                return self._said("is paused" if self.is_paused else "is not paused")
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
        if fault := self.faults & {"rank", "unknown module", "half written"}:
            return self._said(fault.pop(), NAME=name, PATH=str(folder))
        if "ignores loads" not in self.faults or name not in self.adapters:
            self.adapters[name] = folder
        self.is_dead = "dies after a load" in self.faults or ("dies in place" in self.faults and in_place)
        return self._said("loaded", NAME=name)

    def _reload(self, folder: Path) -> tuple[int, Any]:
        if not folder.is_dir():
            return self._said("no such weights")
        if "ignores loads" not in self.faults:
            self.weights = folder
        self.is_dead = "dies in place" in self.faults
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


class LoopbackSglang(LoopbackVllm):
    """SGLang 0.5.23 as its source says that it answers.

    Its own faults: ``rank``, ``load fails`` where the adapter takes the place of another, ``request between`` an unloading and a loading.
    """

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.recorded = json.loads((RECORDED / "sglang-0.5.23.json").read_text())
        self.once_loaded: dict[str, Path] = {}

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.calls.append(path)
        match path:
            case "/server_info":
                return self._said("server info", PATH=str(self.base))
            case "/v1/models":
                served = [self._filled(self.recorded["base"])]
                served += [self._filled(self.recorded["adapter"], NAME=name, PATH=str(folder)) for name, folder in self.adapters.items()]
                return 200, {"object": "list", "data": served}
            case "/v1/completions":
                base, _, name = body["model"].partition(":")
                assert base == "base"
                if name and name not in self.adapters and name in self.once_loaded:
                    self.adapters[name] = self.once_loaded[name]
                return self._complete({**body, "model": name or base})
            case "/load_lora_adapter":
                return self._load(body["lora_name"], Path(body["lora_path"]), in_place=False)
            case "/unload_lora_adapter":
                return self._unload(body["lora_name"])
            case "/update_weights_from_disk":
                if not list(Path(body["model_path"]).glob("*.safetensors")):
                    return self._said("no such weights", PATH=body["model_path"])
                self.weights = Path(body["model_path"])
                return self._said("reloaded", NAME=body["weight_version"])
        return self._said("no such route")

    def _load(self, name: str, folder: Path, *, in_place: bool) -> tuple[int, Any]:
        if name in self.adapters:
            return self._said("loaded already", NAME=name)
        if "rank" in self.faults:
            return self._said("rank", NAME=name)
        if "load fails" in self.faults and self.once_loaded.get(name, folder) != folder:
            return self._said("no such file", NAME=name, PATH=str(folder))
        self.adapters[name] = self.once_loaded[name] = folder
        return self._said("loaded", NAME=name, PATH=str(folder))

    def _unload(self, name: str) -> tuple[int, Any]:
        if name not in self.adapters:
            return self._said("no such adapter", NAME=name)
        folder = self.adapters.pop(name)
        if "request between" in self.faults and name == "edited":
            self.faults.remove("request between")
            self.adapters[name] = folder
        return self._said("removed")


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
