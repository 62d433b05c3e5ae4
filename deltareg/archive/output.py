"""The file that an archive is written to: it appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from deltareg.editing import sync_directory
from deltareg.errors import OutputExists, translate_os_errors

__all__ = ["archive_file"]


@contextmanager
def archive_file(file: Path | BinaryIO, *, overwrite: bool) -> Generator[BinaryIO]:
    """What to write to: a stream as it is, or a file beside `file` that takes its place at the end.

    Raises OutputExists where it is there and not to be overwritten, or is no file; NotAllowed, DiskFull.
    """
    if not isinstance(file, Path):
        yield file
        with translate_os_errors("write the archive", "-"):
            file.flush()
        return
    if os.path.lexists(file) and (not overwrite or not file.is_file()):
        raise OutputExists(f"{file} exists already", hint="choose another name, or --overwrite to replace a file")
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    with translate_os_errors("write the archive", file):
        output = temporary.open("xb")
    try:
        with output:
            yield output
            with translate_os_errors("write the archive", file):
                output.flush()
                os.fsync(output.fileno())
        with translate_os_errors("write the archive", file):
            temporary.replace(file)
            sync_directory(file.parent)
    finally:
        temporary.unlink(missing_ok=True)
