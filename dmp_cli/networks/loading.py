"""What diffusers and transformers load, and what they raise, as dmp takes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from dmp_cli.errors import ModelError

_WHOLE = "check that it is whole, and made for Stable Diffusion 1.x or 2.x in diffusers' layout"


@contextmanager
def as_model_error(path: Path, hint: str = _WHOLE) -> Iterator[None]:
    """What diffusers and transformers raise on files that are missing, broken or of other shape."""
    try:
        yield
    except (ModelError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # these libraries raise nearly every kind
        first = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{path}: cannot be loaded: {type(error).__name__}: {first}", hint
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' bars and remarks on loading out of the user's terminal."""
    bars, level = transformers_logging.is_progress_bar_enabled(), diffusers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def whole(model: Any, folder: Path, how: dict[str, Any]) -> Any:
    """`from_pretrained`, but a weight that is missing is an error instead of a random one."""
    loaded, report = model.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, **how
    )
    if report["missing_keys"]:
        raise ModelError(f"{folder}: weight {sorted(report['missing_keys'])[0]} is missing", _WHOLE)
    return loaded
