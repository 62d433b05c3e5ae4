"""The checks of `deltareg doctor`, one function each; none of them changes anything."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deltareg import __version__
from deltareg.catalog import CatalogRow, Registry
from deltareg.catalog.mounts import network_type, type_of
from deltareg.cli.reports import Check, DoctorReport
from deltareg.cli.session import home_of, network
from deltareg.cli.units import counted, size
from deltareg.config import Settings, load_settings, unknown_variables
from deltareg.digest import Digest
from deltareg.errors import DeltaregError, NotFound, UnsupportedFormat
from deltareg.paths import expand_home
from deltareg.remote import Network, open_remote
from deltareg.remote.network import TOKEN_VARIABLE
from deltareg.store import Entry

__all__ = ["PACKAGES", "examine"]

PACKAGES = (
    "blake3",
    "httpx2",
    "huggingface-hub",
    "numba",
    "numpy",
    "obstore",
    "platformdirs",
    "pydantic",
    "pyyaml",
    "resolvelib",
    "rfc8785",
    "rich",
    "semver",
    "sqlite-utils",
    "stamina",
    "tomlkit",
    "typer",
    "zstandard",
)
"""What deltareg cannot do without."""

_OPTIONAL = ("keyring", "model-signing", "safetensors", "torch", "transformers")
_LITTLE = 1 << 30
_FSCK = "deltareg cache fsck"


def examine(directory: Path, environment: Mapping[str, str]) -> DoctorReport:
    """Look at everything that a command depends on, for commands that run in `directory`."""
    checks = [*_versions()]
    try:
        settings = load_settings(directory, environment)
    except DeltaregError as error:
        checks.append(_fault("settings", error))
        settings = Settings()
    else:
        files = ", ".join(map(str, settings.files)) or "no deltareg.toml: everything is as built in"
        checks.append(Check(name="settings", status="ok", detail=files))
    checks += _variables(environment)
    checks += [*_local(settings), *_remotes(settings)]
    return DoctorReport(ok=all(check.status != "fault" for check in checks), checks=checks)


def _local(settings: Settings) -> Iterator[Check]:
    try:
        home = expand_home(home_of(settings)).absolute()
    except DeltaregError as error:
        yield _fault("home", error)
        return
    yield _attempt("home", lambda: _home(home))
    yield _attempt("file system", lambda: _file_system(home))
    yield _attempt("disk space", lambda: _space(home))
    yield from _registry(home)


def _versions() -> Iterator[Check]:
    yield _ok("deltareg", __version__)
    yield _ok("python", f"{platform.python_version()} ({sys.executable}), {platform.platform()}")
    yield _ok("processors", f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}")
    yield _ok("sqlite", sqlite3.sqlite_version)
    for package in PACKAGES:
        try:
            yield _ok(package, version(package))
        except PackageNotFoundError:
            yield Check(name=package, status="fault", detail="not installed", hint=f"pip install {package}")
    for package in _OPTIONAL:
        try:
            yield _ok(package, version(package))
        except PackageNotFoundError:
            yield _ok(package, "not installed, not needed")


def _variables(environment: Mapping[str, str]) -> Iterator[Check]:
    for name, near in unknown_variables(environment).items():
        hint = None if near is None else f"did you mean {near}?"
        yield Check(name=name, status="warning", detail="this variable means nothing to deltareg", hint=hint)


def _home(home: Path) -> Check:
    if not os.path.exists(home):
        place = _nearest_existing(home)
        if os.access(place, os.W_OK | os.X_OK):
            return _ok("home", f"{home} (will be made by the first diff or pull)")
        return Check(
            name="home",
            status="fault",
            detail=f"{home} does not exist, and {place} is not writable",
            hint="set DELTAREG_HOME to a directory of yours",
        )
    if not os.access(home, os.W_OK | os.X_OK):
        detail = f"{home} is not writable: deltas can be read, none can be stored"
        return Check(name="home", status="warning", detail=detail, hint=f"check the permissions of {home}")
    return _ok("home", str(home))


def _file_system(home: Path) -> Check:
    kind = network_type(home)
    if kind is not None:
        return Check(
            name="file system",
            status="fault",
            detail=f"{home} lies on a network file system ({kind}), where the catalog would corrupt",
            hint="set DELTAREG_HOME to a directory on a local disk",
        )
    return _ok("file system", type_of(home) or "of a kind that this system does not tell")


def _space(home: Path) -> Check:
    usage = shutil.disk_usage(_nearest_existing(home))
    told = f"{size(usage.free)} free of {size(usage.total)}"
    if usage.free < _LITTLE:
        hint = "free some space, or set DELTAREG_HOME to a directory on a larger disk; deltareg cache gc may help"
        return Check(name="disk space", status="warning", detail=told, hint=hint)
    return _ok("disk space", told)


def _registry(home: Path) -> Iterator[Check]:
    try:
        registry = Registry(home, create=False)
    except NotFound:
        yield _ok("registry", "nothing was stored yet")
        return
    except DeltaregError as error:
        yield _fault("registry", error)
        return
    yield _attempt("registry", lambda: _store(registry))
    yield _attempt("catalog", lambda: _catalog(registry))


def _store(registry: Registry) -> Check:
    """Every name leads to blobs of the right sizes. Their bytes are what `cache fsck` reads."""
    entries = registry.store.entries()
    faults = [fault for entry in entries if (fault := _fault_of(registry, entry)) is not None]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        return Check(name="registry", status="fault", detail=shown, hint=_FSCK)
    return _ok("registry", f"{counted(len(entries), 'name')}, every blob is there; deltareg cache fsck reads them")


def _fault_of(registry: Registry, entry: Entry) -> str | None:
    try:
        blobs = registry.store.manifest(entry.digest).blobs
    except DeltaregError as error:
        return f"{entry.reference}: {error.message}"
    wrong = [blob for blob in blobs if not _is_there(registry, blob.digest, blob.size)]
    return f"{entry.reference}: missing or of another size: {counted(len(wrong), 'blob')}" if wrong else None


def _is_there(registry: Registry, digest: str, expected: int) -> bool:
    try:
        return registry.store.size(Digest(digest)) == expected
    except NotFound:
        return False


def _catalog(registry: Registry) -> Check:
    rows = registry.list()
    faulty = [row for row in rows if row.fault is not None]
    if not faulty:
        return _ok("catalog", counted(len(rows), "version"))
    # Those of a newer format are sound: they come last, and are no fault by themselves.
    reasons = sorted(((_why(registry, row), row) for row in faulty), key=lambda each: _is_newer(each[0]))
    error, first = reasons[0]
    return Check(
        name="catalog",
        status="warning" if _is_newer(error) else "fault",
        detail=f"{len(faulty)} of {len(rows)} versions cannot be read: {first.reference}: {first.fault}",
        hint=_FSCK if error is None else error.hint or _FSCK,
    )


def _why(registry: Registry, row: CatalogRow) -> DeltaregError | None:
    """The error that reading a version's documents gives."""
    try:
        _ = registry.artifact(row.reference).config
    except DeltaregError as error:
        return error
    return None


def _is_newer(error: DeltaregError | None) -> bool:
    return isinstance(error, UnsupportedFormat)


def _remotes(settings: Settings) -> Iterator[Check]:
    reached = network(settings)
    for remote in settings.remotes.values():
        yield _attempt(f"remote {remote.name}", lambda remote=remote: _remote(remote.name, remote.url, reached))
    default = settings.default_remote
    if default is not None and default not in settings.remotes:
        yield _attempt("default remote", lambda: _remote("default", settings.remote_url(), reached))
    if reached.token is not None:
        yield _token(reached)


def _token(network: Network) -> Check:
    """Whom the token of the environment is for: whoever wonders why it is not taken reads it here."""
    if network.token_for:
        return _ok(TOKEN_VARIABLE, f"goes to {', '.join(sorted(network.token_for))}, and nowhere else")
    return Check(
        name=TOKEN_VARIABLE,
        status="warning",
        detail="goes nowhere by default: no server is named by DELTAREG_REMOTE or by your own settings",
        hint="name the server with --remote or DELTAREG_REMOTE",
    )


def _remote(name: str, url: str, network: Network) -> Check:
    capabilities = open_remote(url, network).capabilities()
    if not capabilities.writable:
        detail = f"{url} answers; you may pull from it, not push to it"
        return Check(name=f"remote {name}", status="warning", detail=detail)
    return _ok(f"remote {name}", f"{url} answers")


def _attempt(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except DeltaregError as error:
        return _fault(name, error)
    except OSError as error:
        return Check(name=name, status="fault", detail=str(error))


def _ok(name: str, detail: str) -> Check:
    return Check(name=name, status="ok", detail=detail)


def _fault(name: str, error: DeltaregError) -> Check:
    return Check(name=name, status="fault", detail=error.message, hint=error.hint)


def _nearest_existing(path: Path) -> Path:
    # os.path: what lies in a directory that may not be searched does not exist, as far as this user is concerned.
    return next(place for place in (path, *path.parents) if os.path.exists(place))
