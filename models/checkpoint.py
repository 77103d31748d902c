"""Checkpoints of a model: its configuration and its weights in one file, read without running code from it."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from moevit.errors import ModelError

M = TypeVar("M", bound=torch.nn.Module)


def save(model: torch.nn.Module, config: Any, form: str, path: str) -> None:
    """Write a configuration (a dataclass) and the weights of `model`, marked as of format `form`."""
    torch.save({"format": form, "config": asdict(config), "weights": model.state_dict()}, path)


def load(path: str, form: str, command: str, build: Callable[[dict[str, Any]], M]) -> M:
    """Read what `save` wrote, in evaluation mode.

    Only tensors and plain values are unpickled (``weights_only``), so a hostile file cannot run code.

    Parameters
    ----------
    path, form
        The file and the format it must be marked with.
    command
        The module that makes such files, for the message.
    build
        Makes the model of a configuration's fields.

    Raises
    ------
    ModelError
        The file is no checkpoint of this kind, or its weights do not fit its configuration.
    """
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError("no such file", where=path, mend=f"make one with python -m {command}") from error
    except Exception as error:  # torch raises whatever its unpickler meets
        raise ModelError(f"is not a checkpoint of {command} ({str(error).splitlines()[0]})", where=path) from error
    if not isinstance(data, dict) or data.get("format") != form:
        raise ModelError(f"is not a checkpoint of {command} (no format {form!r} in it)", where=path)
    try:
        model = build(data["config"])
        model.load_state_dict(data["weights"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"configuration and weights do not fit together ({error})", where=path) from error
    return model.eval()
