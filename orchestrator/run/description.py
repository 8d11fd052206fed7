"""What a run is: the content of ``run.json``, its first log lines, and the parameters that the tracker gets."""

import logging
import platform
import time
from importlib import metadata
from typing import Any

import torch

from editing.presets import unmeasured
from editing.version import __version__
from orchestrator.run.journal import RunState
from orchestrator.run.run_config import RunConfig

logger = logging.getLogger("ultraedit")

_PACKAGES = ("torch", "transformers", "safetensors", "pyarrow")
"""Packages whose versions decide a run's bits."""


def describe_run(config: RunConfig, model: dict[str, Any], state: RunState) -> dict[str, Any]:
    """Everything that is known of a run before its first turn; the person who watches it is shown the main points.

    Args:
        config: The run's configuration.
        model: What was loaded, as the worker describes it.
        state: The state that the run begins from.
    """
    run = {
        "config": config.as_dict(),
        "model": model | {"preset": model["preset"] or state.preset},  # a resumed run has its preset's settings, given one by one
        "input": state.source,
        "base_fingerprint": state.base_fingerprint,
        "digests_before": state.base_digests,
        "versions": _versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    _log(run, is_distributed=config.is_distributed)
    return run


def tracker_parameters(run: dict[str, Any]) -> dict[str, Any]:
    """A run's description as flat parameters."""
    model = run["model"]
    return {
        **run["config"],
        "preset": model["preset"],
        "modules": ", ".join(model["modules"]),
        "learning_rate": model["learning_rate"],
        **model["method"],
        "subject_modules": ", ".join(model["method"]["subject_modules"]),
        **{name: model[name] for name in ("architecture", "parameters", "device", "dtype", "float32_masters")},
        **({"input_sha256": run["input"]["sha256"]} if run["input"]["sha256"] else {}),
        **{f"version_{name}": version for name, version in run["versions"].items()},
    }


def _log(run: dict[str, Any], *, is_distributed: bool) -> None:
    config, model = run["config"], run["model"]
    subjects = model["method"]["subject_modules"]
    masters = "kept" if model["float32_masters"] else "not needed" if model["dtype"] == "float32" else "off"
    size = f"{model['parameters'] / 1e9:.2f} B parameters"
    workers = f"{config['replicas']} x {config['shards']} workers, " if is_distributed else ""
    logger.info("model     %s, %s, %s on %s%s", model["architecture"], size, model["dtype"], workers, model["device"])
    if converted := model["converted"]:
        logger.info("          %s: %s", converted["from"], converted["how"])
    if model["preset"] == unmeasured.NAME:
        logger.info("preset    none fits this model: modules by their depth, a rate that the first turn finds; ultraedit tune finds better ones")
    elif model["preset"]:
        logger.info("preset    %s", model["preset"])
    logger.info("modules   %s", _shortened([name for name in model["modules"] if name not in subjects]))
    if subjects:
        logger.info("          %s at the subject", _shortened(subjects))
    for line in model["text"]:
        logger.info("text      %s", line)
    rate = "learning rate found by the first turn" if model["learning_rate"] is None else f"learning rate {model['learning_rate']:g}"
    logger.info("%s, float32 masters %s, input format %s", rate, masters, run["input"]["format"])


def _shortened(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names[:3])}" + (", ..." if len(names) > 3 else "")


def _versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in _PACKAGES}
    own = {"ultraedit": __version__, "python": platform.python_version(), "platform": platform.platform(), "threads": str(torch.get_num_threads())}
    return {**own, **versions}
