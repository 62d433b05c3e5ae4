"""Checkpoints as live models, by way of transformers."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from deltareg.checkpoint import Checkpoint
from deltareg.checkpoint.bucket import is_bucket
from deltareg.errors import DeltaregError, InvalidArgument, UnsupportedFormat

__all__ = ["directory_of", "load_model", "load_tokenizer", "need_transformers"]

_NEEDED = ("torch", "transformers")


def need_transformers() -> None:
    """Raise InvalidArgument where models cannot be loaded."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InvalidArgument(
            f"models in memory need {' and '.join(missing)}, which this Python does not have",
            hint="pip install 'deltareg[eval]', or evaluate checkpoints on disk: --eval",
        )


def directory_of(name: str) -> Path:
    """The directory of a checkpoint; a model of the Hub is downloaded into its cache.

    Raises CheckpointNotFound, BadCheckpoint, PickleRefused, HubUnavailable, NotAllowed; InvalidArgument for one in an
    object store.
    """
    if is_bucket(name):
        raise InvalidArgument(
            f"{name} lies in an object store, from where no model is loaded", hint="copy it to a directory first"
        )
    with Checkpoint.open(name) as checkpoint:
        return checkpoint.root


def load_model(directory: Path, device: str = "cpu") -> Any:
    """The model of a checkpoint in its own dtype, on a device, ready to be evaluated.

    It has the class that its config names, or else that of a causal language model. No code of the checkpoint runs.
    Raises UnsupportedFormat; InvalidArgument for a device that is not there.
    """
    need_transformers()
    import torch
    import transformers

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises both for a device that it was built without
        first = str(error).partition("\n")[0]
        raise InvalidArgument(
            f"the device {device!r} cannot be used: {first}", hint="name cpu, cuda or cuda:1"
        ) from error
    names = _architectures(directory)
    kinds = [getattr(transformers, name, None) for name in names]
    kind = next((one for one in kinds if hasattr(one, "from_pretrained")), transformers.AutoModelForCausalLM)
    try:
        with _bars_on_terminals_only():
            model = cast(Any, kind).from_pretrained(
                directory, dtype="auto", local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
    except DeltaregError:
        raise
    except Exception as error:  # of whatever class: it reads many files in many ways
        raise _refused("the model", directory, error) from error
    return model.to(device).eval()


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer beside a model; None where there is none. Raises UnsupportedFormat."""
    need_transformers()
    import transformers

    if not any(directory.glob("tokenizer*")) and not any(directory.glob("*vocab*")):
        return None
    try:
        return cast(Any, transformers.AutoTokenizer).from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise _refused("the tokenizer", directory, error) from error


@contextmanager
def _bars_on_terminals_only() -> Generator[None]:
    """Keep transformers from drawing progress bars into a log."""
    from transformers.utils import logging

    as_it_is = sys.stderr.isatty() or not logging.is_progress_bar_enabled()
    if not as_it_is:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if not as_it_is:
            logging.enable_progress_bar()


def _architectures(directory: Path) -> list[str]:
    try:
        config: Any = json.loads((directory / "config.json").read_bytes())
        return [str(name) for name in cast("list[object]", config.get("architectures") or [])]
    except (OSError, ValueError, AttributeError):
        return []


def _refused(what: str, directory: Path, error: Exception) -> UnsupportedFormat:
    first = str(error).strip().partition("\n")[0]
    return UnsupportedFormat(
        f"transformers cannot load {what} in {directory}",
        cause=f"{type(error).__name__}: {first}",
        hint="evaluate it with a program of your own: --eval 'CMD {model}'",
    )
