"""Load a model whole and save it. Safetensors only: no pickle is ever opened, no code of a repository is ever run."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from editing.errors import InputError, ModelError, first_line, ran_out_of_memory
from editing.files.checkpoint_files import download, weight_files
from editing.files.conversion import plain_folder, source_at
from editing.files.weights import missing_weights

_FINGERPRINT_SAMPLE = 1024
"""Elements of each weight that the fingerprint reads."""

DTypeName = Literal["auto", "float32", "bfloat16"]


def choose_device(name: str = "auto") -> torch.device:
    """A device by name; ``auto`` takes the first GPU, else the CPU.

    Raises:
        InputError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device: there is no {name}; torch sees {torch.cuda.device_count()} CUDA devices here, give cpu, auto or one of them")
    return device


def load(name: str | os.PathLike[str], *, device: torch.device, dtype: DTypeName = "auto") -> tuple[PreTrainedModel, Any]:
    """Load a causal language model and its tokenizer, frozen and in evaluation mode.

    Args:
        name: A folder, or a repository id of the Hugging Face Hub.
        device: Where the weights go.
        dtype: ``auto`` keeps float32 checkpoints as they are and loads half-precision ones in bfloat16.

    Raises:
        ModelError: One line saying what is missing or unsupported.
    """
    folder = local_folder(name)
    config = load_config(folder)
    model, info = attempt(
        name,
        "model",
        lambda: AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=resolve_dtype(config, dtype),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        ),
    )
    missing = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info.get("mismatched_keys", ()))
    if missing:
        raise ModelError(missing_weights(name, missing))
    tokenizer = load_tokenizer(folder)
    model = model.eval().requires_grad_(False).to(device)
    check_causal(name, model)
    return model, tokenizer


def check_name(name: str | os.PathLike[str]) -> str:
    """Check that a name is a model folder with readable files, or a model to convert, or could be a Hub id; returns what to call it in messages.

    Raises:
        ModelError: It is neither.
    """
    path = Path(name)
    if source_at(path) is not None:
        return str(name)
    if path.is_dir():
        _check_folder(path)
        return str(name)
    if path.exists() or str(name).startswith((".", "/", "~")) or str(name).count("/") > 1:
        found = "another file" if path.exists() else "nothing"
        raise ModelError(f"{name}: expected a folder with a model, or a GGUF file, found {found}")
    return f"{name} (no folder here, so taken for a Hub id)"


def local_folder(name: str | os.PathLike[str]) -> Path:
    """The folder of a model; one of the Hub is downloaded first, as far as it is needed, a GGUF file or an adapter converted.

    Raises:
        ModelError: There is no such model, or its folder is not complete, or it cannot be converted.
    """
    called = check_name(name)
    folder = Path(name)
    if not folder.exists():
        folder = attempt(called, "files", lambda: download(str(name)))
    if (source := source_at(folder)) is not None:
        return plain_folder(source, local_folder)
    if folder != Path(name):
        _check_folder(folder)
    return folder


def load_config(name: str | os.PathLike[str]) -> Any:
    """A model's configuration; of a folder, whose files are looked at too.

    Raises:
        ModelError: There is none, or it is of a quantized model.
    """
    check_name(name)
    return read_config(name)


def read_config(name: str | os.PathLike[str]) -> Any:
    """A model's configuration, whether its weights are there or not.

    Raises:
        ModelError: There is none, or it is of a quantized model.
    """
    if source_at(Path(name)) is not None:
        name = local_folder(name)
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise ModelError(f"{name}: has no config.json, so it is not a model folder")
    called = name if Path(name).is_dir() else check_name(name)
    # without trust_remote_code=False, transformers asks at the terminal whether a repository's code may run
    config = attempt(called, "configuration", lambda: AutoConfig.from_pretrained(name, trust_remote_code=False))
    if getattr(config, "quantization_config", None):
        found = config.quantization_config
        method = found.get("quant_method", "unnamed") if isinstance(found, dict) else found.quant_method
        plain = "weights must be float32, bfloat16 or float16 to be edited"
        raise ModelError(f"{name}: the checkpoint is quantized ({method}); {plain}: take the unquantized one, edit it, and quantize the result")
    return config


def context_length(config: Any) -> int | None:
    """Tokens that a model takes at most, or ``None`` where its configuration states no limit."""
    text = config.get_text_config(decoder=True)
    names = ("max_position_embeddings", "n_positions", "max_seq_len")  # the last is MPT's
    return next((limit for name in names if (limit := getattr(text, name, None))), None)


def load_tokenizer(name: str | os.PathLike[str]) -> Any:
    """A model's tokenizer.

    Raises:
        ModelError: There is none.
    """
    called = check_name(name)
    folder = local_folder(name) if source_at(Path(name)) is not None else name
    return attempt(called, "tokenizer", lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def has_chat_template(name: str | os.PathLike[str]) -> bool:
    """Whether a model brings a chat template; its tokenizer is not loaded, and may be missing."""
    where = local_folder(name) if source_at(Path(name)) is not None else name
    if get_tokenizer_config(where, trust_remote_code=False).get("chat_template"):
        return True
    reasons = ("gated_repo", "missing_entries", "connection_errors")  # as transformers looks for the file of the line above
    return cached_file(where, "chat_template.jinja", **{f"_raise_exceptions_for_{reason}": False for reason in reasons}) is not None


def fingerprint(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None) -> str:
    """SHA-256 over a sample of every weight, the same for the same model wherever it lies; cheap at any size.

    Args:
        weights: The model's parameters, whole, by name and in its order, tied ones once; they are taken one by one.
        dtype: Precision in which the model is held, if that is not the weights' own.
    """

    def samples() -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
        for name, weight in weights:
            flat = weight.detach().flatten()
            yield name, tuple(weight.shape), flat[:: fingerprint_step(flat.numel())].cpu().to(dtype or weight.dtype)

    return fingerprint_of(samples())


def fingerprint_of(samples: Iterable[tuple[str, tuple[int, ...], Tensor]]) -> str:
    """The same, given each parameter's name, shape and sample: every :func:`fingerprint_step` th element, in the model's precision."""
    digest = hashlib.sha256()
    for name, shape, sample in samples:
        digest.update(f"{name} {shape} {sample.dtype}".encode())
        digest.update(sample.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_step(count: int) -> int:
    """Distance of the elements of a weight of ``count`` that the fingerprint reads."""
    return max(1, count // _FINGERPRINT_SAMPLE)


def load_generation_config(name: str | os.PathLike[str], model: PreTrainedModel) -> Any:
    """How a model generates by default: as its folder says, or else its own configuration."""
    try:
        return GenerationConfig.from_pretrained(name)
    except OSError:
        return model.generation_config


def make_skeleton(name: object, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose parameters have no memory yet, frozen and in evaluation mode. Its buffers are real.

    Raises:
        ModelError: The configuration is of no causal language model.
    """
    with _parameters_on_meta():
        model = attempt(name, "model", lambda: AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False))
    skeleton: PreTrainedModel = model.eval().requires_grad_(False)
    return skeleton


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made in this context have parameters without memory. Buffers are real: their values stand in no file."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":  # tied ones are registered again and must stay one
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def resolve_dtype(config: Any, dtype: DTypeName) -> torch.dtype:
    """The precision in which a model is loaded: the asked one, or that of its files with bfloat16 for all half-precision ones."""
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    stored = config.get_text_config().dtype or config.dtype
    return torch.float32 if stored in (None, torch.float32, torch.float64) else torch.bfloat16


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: has no config.json, so it is not a model folder")
    for file in weight_files(path):
        if not file.is_file():
            raise ModelError(f"{path}: the weights file {file.name} named in its index is missing")
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: is damaged or not a safetensors file ({error})") from None


@torch.no_grad()
def check_causal(name: object, model: PreTrainedModel, run: Callable[[Tensor], Tensor] | None = None) -> None:
    """Refuse an encoder, which can be loaded as a causal model too; its outputs tell, for they depend on what comes later.

    Args:
        name: What to call the model.
        model: The model.
        run: Outputs ``(B, T, ...)`` for ids ``(B, T)``; by default the model's logits.

    Raises:
        ModelError: It is one.
    """
    run = run or (lambda input_ids: model(input_ids=input_ids.to(model.device), use_cache=False).logits)
    input_ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]]).remainder(model.get_input_embeddings().num_embeddings)
    first, second = attempt(name, "forward pass", lambda: run(input_ids))[:, :3].float()
    if (first - second).norm() > torch.finfo(model.dtype).eps ** 0.5 * first.norm():  # a decoder gives 0, or rounding
        raise ModelError(f"{name}: {type(model).__name__} is an encoder, its answers depend on later tokens; expected a decoder-only language model")


def attempt(name: object, part: str, action: Any) -> Any:
    """Let a library load a part of a model; whatever it raises becomes one clear line.

    Raises:
        ModelError: It could not.
    """
    try:
        return action()
    except Exception as error:  # on a broken folder the libraries raise whatever they stumble over
        if ran_out_of_memory(error):
            raise
        raise ModelError(f"{name}: its {part} {'failed' if part == 'forward pass' else 'could not be loaded'}: {first_line(error)}") from error
