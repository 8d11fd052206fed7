"""The engines, each behind the same few verbs: try out, ask, load, take out.

    vllm       adapters under a name, swapped in place; or the edited matrices over the served ones (``collective_rpc``)
    sglang     adapters under a name, unloaded and loaded; or a whole checkpoint (``update_weights_from_disk``)
    llamacpp   adapters that the server was started with, switched on and off

None of them hides a refusal: what an engine says is what a person reads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from editing.errors import InputError, on_one_line
from orchestrator.export.exporting import GGUF_ADAPTER, Form
from orchestrator.publish.http import Api, EngineError

How = Literal["adapter", "weights"]

_BY_NUMBER = "adapter number "
"""Begins what llama.cpp's server is asked for where an adapter is tried out."""

_SWAPS = 5
"""Tries to swap an adapter in SGLang, which loads one that was unloaded by itself when a request names it at that moment."""


class Engine(Protocol):
    """A running engine.

    Attributes:
        target: Its address, as given.
    """

    target: str

    def form(self, how: How) -> tuple[Form, bool]:
        """What it loads: the form of export, and whether a checkpoint must be whole.

        Raises:
            InputError: It cannot be done.
        """
        ...

    def check(self) -> str:
        """What it says of itself, if it answers. Raises :class:`EngineError` as all verbs do."""
        ...

    def check_loadable(self, folder: Path) -> None:
        """Refuse an export that it could not load, before anything is changed."""
        ...

    def try_out(self, name: str, folder: Path, how: How) -> str | None:
        """Make an export ready to be asked beside what is served; what to ask for, or ``None`` where the engine cannot."""
        ...

    def drop(self, tried: str) -> None:
        """Take away what was tried out."""
        ...

    def load(self, name: str, folder: Path, how: How) -> None:
        """Serve an export under a name, in the place of what had it."""
        ...

    def unload(self, name: str, folder: Path) -> None:
        """Serve an adapter no more."""
        ...

    def ask(self, served: str | None, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy text after prompts, from the adapter of that name, or what was tried out; ``None`` for the weights themselves."""
        ...


class _AdaptersByName(Engine):
    """What serves adapters under names, and refuses by itself what it cannot load.

    Args:
        api: Where it is.
    """

    def __init__(self, api: Api) -> None:
        self._api, self.target = api, api.called

    def check_loadable(self, folder: Path) -> None:
        """The engine itself refuses what it cannot load, and goes on serving what it has."""

    def try_out(self, name: str, folder: Path, how: How) -> str | None:
        if how == "weights":
            return None
        tried = f"{name}.{folder.name}"
        try:
            self.load(tried, folder, how)
        except EngineError as error:
            if not error.status:  # no answer: it may have been loaded all the same
                with suppress(EngineError):  # what is raised says enough of an engine that does not answer
                    self.drop(tried)
            raise
        return tried

    def drop(self, tried: str) -> None:
        self.unload(tried, Path())


class VllmEngine(_AdaptersByName):
    """vLLM's OpenAI server.

    Adapters need ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``; weights need ``VLLM_SERVER_DEV_MODE=1``.

    Args:
        api: Where it is.
    """

    def form(self, how: How) -> tuple[Form, bool]:
        return ("peft", False) if how == "adapter" else ("checkpoint", False)

    def check(self) -> str:
        version = self._api.get("/version")
        if self._is_paused():
            way = f"let it go on with: curl -X POST http://{self._api.host}:{self._api.port}/resume"
            raise EngineError(f"{self.target}: is paused, by somebody or by a publication that was killed, and answers nobody; {way}")
        return f"vLLM {version.get('version', '?')}" if isinstance(version, dict) else "vLLM"

    def load(self, name: str, folder: Path, how: How) -> None:
        if how == "weights":
            self._reload(folder)
            return
        in_place = name in self._adapters()
        body = {"lora_name": name, "lora_path": str(folder.resolve()), "load_inplace": in_place}
        try:
            with self._paused("adapter") if in_place else nullcontext():
                self._api.post("/v1/load_lora_adapter", body)
        except EngineError as error:
            if error.status == 404 and "load_lora_adapter" in str(error) and "LoRA" not in str(error).partition("refused")[2]:
                needed = "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
                raise EngineError(f"{self.target}: takes no adapters while it runs; {needed}", 404) from None
            raise
        if name not in self._adapters():
            raise EngineError(f"{self.target}: /v1/models does not name {name} after it was loaded; see the engine's log")

    def unload(self, name: str, folder: Path) -> None:
        self._api.post("/v1/unload_lora_adapter", {"lora_name": name})

    def ask(self, served: str | None, prompts: Sequence[str], max_tokens: int) -> list[str]:
        return complete(self._api, served or self._base(), prompts, max_tokens)

    def _is_paused(self) -> bool:
        """Whether it lets all requests wait; without the developer mode it cannot be paused."""
        try:
            answer = self._api.get("/is_paused")
        except EngineError as error:
            if error.status != 404:
                raise
            return False
        return isinstance(answer, dict) and bool(answer.get("is_paused"))

    @contextmanager
    def _paused(self, how: How) -> Iterator[None]:
        """No request is under way, so that none begins with the old weights and ends with the new ones.

        Only with the developer mode, without which an adapter is swapped all the same.

        Raises:
            EngineError: The engine refuses, or weights are to be changed without the developer mode.
        """
        can_pause = True
        try:
            try:
                self._api.post("/pause?mode=wait")
            except EngineError as error:
                if error.status != 404:
                    raise  # it may be paused all the same, once the requests that it waits for are done
                can_pause = False
                if how == "weights":
                    raise EngineError(f"{self.target}: takes no weights while it runs; start it with VLLM_SERVER_DEV_MODE=1", 404) from None
            yield
        except BaseException as error:
            if can_pause:
                self._resume_after(error)
            raise
        if can_pause:
            self._api.post("/resume")

    def _resume_after(self, failure: BaseException) -> None:
        """Let requests go on after a failure, of which nothing is hidden if that fails too."""
        try:
            self._api.post("/resume")
        except EngineError as error:
            raise EngineError(f"{on_one_line(str(failure))}; and it may still be paused: {error}") from failure

    def _reload(self, folder: Path) -> None:
        with self._paused("weights"):
            self._api.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}})
            reset = self._api.post("/reset_prefix_cache")
        if isinstance(reset, dict) and reset.get("success") is False:
            raise EngineError(f"{self.target}: kept its prefix cache, so old answers could come from it; give the command again")

    def _adapters(self) -> list[object]:
        return [model["id"] for model in models(self._api) if model.get("parent")]

    def _base(self) -> str:
        return str(next(model["id"] for model in models(self._api) if not model.get("parent")))


class SglangEngine(_AdaptersByName):
    """SGLang's server. Adapters need ``--enable-lora --max-lora-rank N --lora-target-modules all``.

    Args:
        api: Where it is.
    """

    def form(self, how: How) -> tuple[Form, bool]:
        return ("peft", False) if how == "adapter" else ("checkpoint", True)

    def check(self) -> str:
        info = self._api.get("/server_info")
        return f"SGLang {info.get('version', '?')}" if isinstance(info, dict) else "SGLang"

    def load(self, name: str, folder: Path, how: How) -> None:
        if how == "weights":
            self._update(folder)
            return
        former = self._served().get(name)
        for left in reversed(range(_SWAPS)):
            if name in self._served():  # it has no loading in place: for a moment the name is unknown
                self._told("/unload_lora_adapter", {"lora_name": name})
            try:
                self._told("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
                return
            except EngineError as error:
                if left and "already loaded" in str(error):
                    continue
                if former is not None and name not in self._served():
                    self._load_again(name, former, error)
                raise

    def unload(self, name: str, folder: Path) -> None:
        self._told("/unload_lora_adapter", {"lora_name": name})

    def ask(self, served: str | None, prompts: Sequence[str], max_tokens: int) -> list[str]:
        return complete(self._api, self._base() if served is None else f"{self._base()}:{served}", prompts, max_tokens)

    def _load_again(self, name: str, former: str, failure: EngineError) -> None:
        try:
            self._told("/load_lora_adapter", {"lora_name": name, "lora_path": former})
        except EngineError as error:
            raise EngineError(f"{failure}; and the former adapter, {former}, could not be loaded again: {error}") from failure

    def _update(self, folder: Path) -> None:
        """It waits by itself for the requests under way, and those that come meanwhile wait. Its own pause would end them."""
        self._told("/update_weights_from_disk", {"model_path": str(folder.resolve()), "flush_cache": True, "weight_version": folder.name})

    def _served(self) -> dict[str, str]:
        """Path of each adapter, by name."""
        return {str(model["id"]): str(model["root"]) for model in models(self._api) if model.get("parent")}

    def _base(self) -> str:
        return str(next(model["id"] for model in models(self._api) if not model.get("parent")))

    def _told(self, path: str, body: dict[str, object]) -> None:
        answer = self._api.post(path, body)
        if isinstance(answer, dict) and answer.get("success") is False:
            reason = answer.get("error_message") or answer.get("message") or "it does not say why"
            raise EngineError(f"{self.target}: {path}: refused: {reason}")


class LlamaCppEngine:
    """llama.cpp's ``llama-server``, which has the adapters that it was started with and switches them.

    Args:
        api: Where it is.
    """

    def __init__(self, api: Api) -> None:
        self._api, self.target = api, api.called

    def form(self, how: How) -> tuple[Form, bool]:
        if how == "weights":
            raise InputError(
                f"how: {self.target} cannot change its weights while it runs; publish --how adapter, or start it with an export --as gguf"
            )
        return "gguf-lora", False

    def check(self) -> str:
        build = self._api.get("/props").get("build_info", "?")
        return f"llama.cpp {build}"

    def check_loadable(self, folder: Path) -> None:
        self._id(folder)

    def try_out(self, name: str, folder: Path, how: How) -> str | None:
        return f"{_BY_NUMBER}{self._id(folder)}"  # a request may name adapters of its own

    def drop(self, tried: str) -> None:
        """Nothing was changed."""

    def load(self, name: str, folder: Path, how: How) -> None:
        wanted = self._id(folder)
        self._switch({found["id"]: 1.0 if found["id"] == wanted else 0.0 for found in self._listed()})

    def unload(self, name: str, folder: Path) -> None:
        gone = self._id(folder)
        self._switch({found["id"]: 0.0 if found["id"] == gone else found["scale"] for found in self._listed()})

    def ask(self, served: str | None, prompts: Sequence[str], max_tokens: int) -> list[str]:
        by_number = served is not None and served.startswith(_BY_NUMBER)
        own = {"lora": [{"id": int(str(served).removeprefix(_BY_NUMBER)), "scale": 1.0}]} if by_number else {}
        return complete(self._api, "default", prompts, max_tokens, **own)

    def _switch(self, scales: dict[int, float]) -> None:
        self._api.post("/lora-adapters", [{"id": number, "scale": scale} for number, scale in scales.items()])
        found = {adapter["id"]: float(adapter["scale"]) for adapter in self._listed()}
        if found != scales:
            raise EngineError(f"{self.target}: /lora-adapters says {found} after {scales} was asked for; see the engine's log")

    def _listed(self) -> list[dict[str, Any]]:
        return list(self._api.get("/lora-adapters"))

    def _id(self, folder: Path) -> int:
        path = (folder / GGUF_ADAPTER).resolve()
        for adapter in self._listed():
            if Path(str(adapter["path"])).resolve() == path:
                return int(adapter["id"])
        start = f"start llama-server with: --lora-scaled {path}:0"
        raise EngineError(f"{self.target}: was not started with this adapter, and loads none while it runs; {start}, and give this command again")


def models(api: Api) -> list[dict[str, object]]:
    """What an OpenAI server names under ``/v1/models``.

    Raises:
        EngineError: Its answer has another form.
    """
    answer = api.get("/v1/models")
    if not isinstance(answer, dict) or not answer.get("data"):
        raise EngineError(f"{api.called}: /v1/models: expected a list of models; is this the engine's OpenAI server?")
    return list(answer["data"])


def complete(api: Api, model: str, prompts: Sequence[str], max_tokens: int, **more: object) -> list[str]:
    """Greedy completions, one call each."""
    texts = []
    for prompt in prompts:
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "seed": 0, **more}
        answer = api.post("/v1/completions", body)
        try:
            texts.append(str(answer["choices"][0]["text"]))
        except (KeyError, IndexError, TypeError):
            raise EngineError(f"{api.called}: /v1/completions: expected choices with a text, found {str(answer)[:100]!r}") from None
    return texts


_ENGINES: dict[str, Callable[[Api], Engine]] = {"vllm": VllmEngine, "sglang": SglangEngine, "llamacpp": LlamaCppEngine}


def open_engine(target: str, *, token: str | None, timeout: float) -> Engine:
    """The engine at an address ``vllm://HOST:PORT``, ``sglang://HOST:PORT`` or ``llamacpp://HOST:PORT``.

    Raises:
        InputError: The address is none of these.
    """
    try:
        parts = urlsplit(target)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if parts.scheme not in _ENGINES or not host or not port or parts.path.strip("/") or parts.username:
        raise InputError(f"to: expected vllm://HOST:PORT, sglang://HOST:PORT, llamacpp://HOST:PORT or folder:PATH, found {target!r}")
    return _ENGINES[parts.scheme](Api(target, host, port, token, timeout))
