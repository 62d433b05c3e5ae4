"""From what a user names to a folder with weights: a directory, a file, `hf://org/name@revision`, `s3://bucket/prefix`."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from deltareg.checkpoint.bucket import BucketFolder, is_bucket, parse_bucket_name
from deltareg.checkpoint.hub import PREFIX, Hub, HubName, parse_hub_name
from deltareg.checkpoint.layout import Weights, convert_command, find_weights, is_pickle, refuse_pickle, side_files_of
from deltareg.checkpoint.quantised import refuse_gguf
from deltareg.checkpoint.source import FileSource, Folder, LocalFolder
from deltareg.errors import (
    BadCheckpoint,
    CheckpointNotFound,
    DeltaregError,
    HubUnavailable,
    NotAllowed,
    PickleRefused,
    translate_os_errors,
)
from deltareg.paths import expand_home

__all__ = ["Located", "locate"]

_GGUF_MAGIC = b"GGUF"
_PICKLE_MAGICS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class Located:
    """A checkpoint that was found. `path` is None where it lies on the hub or in an object store only."""

    id: str
    revision: str | None
    folder: Folder
    weights: Weights
    path: Path | None
    root: Path | None


def locate(
    name: str | os.PathLike[str],
    *,
    offline: bool = False,
    headers_only: bool = False,
    hub: Hub | None = None,
    as_adapter: bool = False,
) -> Located:
    """Find the checkpoint called `name`.

    A `hf://` name is looked up in the local cache first, then downloaded; with `headers_only` nothing is downloaded.
    A cached model without a tokenizer is completed where the hub can be reached. With `offline` the network is not
    asked. What lies in an object store (`s3://`, `gs://`, `az://`) is read from there, never downloaded as a whole.
    With `as_adapter` an adapter's weights are taken before a model's beside them.
    Raises CheckpointNotFound, BadCheckpoint, PickleRefused, HubUnavailable, BucketUnavailable, NotAllowed, UsageError.
    """
    text = os.fspath(name)
    if is_bucket(name):
        return _locate_in_bucket(text, offline, as_adapter)
    if text.startswith(PREFIX):
        return _locate_on_hub(parse_hub_name(text), hub or Hub(), offline, headers_only, as_adapter)
    path = expand_home(text)
    with translate_os_errors("look at the checkpoint", path):
        if path.is_dir():
            return _locate_directory(path, as_adapter)
        if path.exists():
            return _locate_file(path)
    raise CheckpointNotFound(
        f"there is no checkpoint at {path}",
        hint=f"for a model on the hub write {PREFIX}{text}" if text.count("/") == 1 else "give a directory or a file",
        path=path,
    )


def _locate_directory(path: Path, as_adapter: bool) -> Located:
    folder = LocalFolder(path)
    known_as, revision = _identity(path)
    return Located(known_as, revision, folder, find_weights(folder, as_adapter=as_adapter), path, path)


def _identity(path: Path) -> tuple[str, str | None]:
    """A directory's name, or that of the model whose snapshot in the hub's cache it is."""
    full = path.resolve()
    owner = full.parent.parent.name
    if full.parent.name == "snapshots" and owner.startswith("models--"):
        return PREFIX + owner.removeprefix("models--").replace("--", "/"), full.name
    return full.name or "checkpoint", None


def _locate_file(path: Path) -> Located:
    if is_pickle(path.name) or (path.suffix != ".safetensors" and _starts_with(path, _PICKLE_MAGICS)):
        raise refuse_pickle(str(path), [path.name], convert_command([path.name], str(path.parent)))
    if path.suffix.lower() == ".gguf" or _starts_with(path, (_GGUF_MAGIC,)):
        raise refuse_gguf(str(path))
    if path.suffix == ".json":
        raise CheckpointNotFound(f"{path} holds no weights", hint=f"give the directory: {path.parent}", path=path)
    return Located(path.name, None, LocalFolder(path.parent), Weights((path.name,)), path, path.parent)


def _starts_with(path: Path, magics: tuple[bytes, ...]) -> bool:
    source = FileSource(path)
    try:
        return source.read(0, min(source.size, 4)).startswith(magics)
    finally:
        source.close()


def _locate_in_bucket(text: str, offline: bool, as_adapter: bool) -> Located:
    name = parse_bucket_name(text)
    if offline:
        raise CheckpointNotFound(f"{name.text} lies in an object store, and the network is not to be asked", path=text)
    suffix = os.path.splitext(name.last)[1].lower()
    if is_pickle(name.last):
        raise refuse_pickle(name.text, [name.last], convert_command([name.last], name.parent.last))
    if suffix == ".gguf":
        raise refuse_gguf(name.text)
    if suffix == ".json":
        raise CheckpointNotFound(f"{name.text} holds no weights", hint=f"give {name.parent.text}", path=text)
    if suffix == ".safetensors":
        return Located(name.last, None, BucketFolder(name.parent), Weights((name.last,)), None, None)
    folder = BucketFolder(name)
    if not folder.names():
        raise CheckpointNotFound(f"there is nothing at {name.text}", hint="check the name", path=text)
    try:
        return Located(name.last, None, folder, find_weights(folder, as_adapter=as_adapter), None, None)
    except PickleRefused as error:
        pickles: list[str] = error.data["pickles"]  # type: ignore[assignment]
        raise refuse_pickle(name.text, pickles, convert_command(pickles, name.last)) from error


def _locate_on_hub(name: HubName, hub: Hub, offline: bool, headers_only: bool, as_adapter: bool) -> Located:
    cached, fault = _locate_cached(name, hub, as_adapter)
    if cached is not None and (offline or headers_only or _has_tokenizer(cached.folder)):
        return cached
    if offline:
        raise fault
    try:
        return _fetch(name, hub, headers_only, as_adapter)
    except (HubUnavailable, NotAllowed, CheckpointNotFound):
        if cached is None:
            raise
        return cached


def _locate_cached(name: HubName, hub: Hub, as_adapter: bool) -> tuple[Located | None, DeltaregError]:
    """The model in the local cache; None with the error that tells why it cannot be used."""
    snapshot = hub.cached(name)
    message, cause = f"{name.text} is not in the local cache", None
    if snapshot is not None:
        try:
            return _locate_snapshot(name, snapshot, as_adapter), CheckpointNotFound(message)
        except PickleRefused as error:
            return None, error
        except (BadCheckpoint, CheckpointNotFound) as error:
            message, cause = f"{name.text} is cached in parts only", error.message
    hint = f"fetch it where the network allows: {_download_command(name)}"
    return None, CheckpointNotFound(message, cause=cause, hint=hint, path=name.text)


def _has_tokenizer(folder: Folder) -> bool:
    """Whether the tokenizer was fetched as well: loading a model caches its weights without it."""
    return any(file.startswith(("tokenizer", "vocab", "tekken")) or file.endswith(".model") for file in folder.names())


def _fetch(name: HubName, hub: Hub, headers_only: bool, as_adapter: bool) -> Located:
    remote = hub.folder(name)
    try:
        weights = find_weights(remote, as_adapter=as_adapter)
    except PickleRefused as error:
        raise _refuse_on_hub(name, error) from error
    if headers_only:
        return Located(name.id, remote.commit, remote, weights, None, None)
    wanted = {*weights.files, *side_files_of(remote.names()), "config.json", "adapter_config.json", "README.md"}
    if weights.index is not None:
        wanted.add(weights.index.file)
    return _locate_snapshot(name, hub.download(name, sorted(wanted)), as_adapter)


def _locate_snapshot(name: HubName, snapshot: Path, as_adapter: bool) -> Located:
    folder = LocalFolder(snapshot, name.id)
    try:
        return Located(name.id, snapshot.name, folder, find_weights(folder, as_adapter=as_adapter), snapshot, snapshot)
    except PickleRefused as error:
        raise _refuse_on_hub(name, error) from error


def _refuse_on_hub(name: HubName, error: PickleRefused) -> PickleRefused:
    pickles: list[str] = error.data["pickles"]  # type: ignore[assignment]
    directory = name.repository.partition("/")[2]
    fetch = _download_command(name, *pickles, "--local-dir", directory)
    return refuse_pickle(name.id, pickles, f"{fetch} && {convert_command(pickles, directory)}")


def _download_command(name: HubName, *arguments: str) -> str:
    revision = [] if name.revision is None else ["--revision", name.revision]
    return shlex.join(["hf", "download", name.repository, *arguments, *revision])
