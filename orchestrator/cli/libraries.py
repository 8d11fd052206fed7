"""torch and transformers, imported by the commands that run a model and by no other: they take seconds."""

import logging
import os


def ready_libraries() -> None:
    """Import them, quiet and deterministic."""
    import torch
    import transformers

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # or every new tensor is filled first: a model without weights too
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")  # or DeepSpeed says which it takes
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
