"""model-signing, where it is installed; and the directory that it signs and verifies."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltareg.errors import InvalidArgument, translate_os_errors
from deltareg.names import Reference
from deltareg.signing.bundle import file_of

__all__ = ["load", "signed_directory"]


def load(module: str) -> Any:
    """A module of model-signing, or of what comes with it. Any: it has no types.

    Raises InvalidArgument, with the command that installs it, where it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidArgument(
            "signatures need model-signing, which is not installed",
            cause=str(error),
            hint="python -m pip install 'deltareg[sign]'",
        ) from error


@contextmanager
def signed_directory(reference: Reference, manifest: bytes) -> Generator[tuple[Path, Path]]:
    """A directory with the one file that is signed, and a path beside it for the bundle. Removed at the end.

    model-signing hashes what lies in a directory. A link into the store would do for reading, but it refuses links.
    """
    with (
        translate_os_errors("write a temporary file", tempfile.gettempdir()),
        tempfile.TemporaryDirectory(prefix="deltareg-sign-") as temporary,
    ):
        root = Path(temporary) / "delta"
        file = root / file_of(reference)
        file.parent.mkdir(parents=True)
        file.write_bytes(manifest)
        yield root, Path(temporary) / "bundle.json"
