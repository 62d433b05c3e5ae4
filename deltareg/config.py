"""Settings: `deltareg.toml` of the project, then of the user; `DELTAREG_…` variables win over both.

A file is read as a whole or refused as a whole: a key that is not known is more likely a slip than a wish. The tables
of a recipe, which the file may hold as well, are left to `deltareg.recipe`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

from deltareg.errors import BadConfig, BadName, InvalidArgument, translate_os_errors
from deltareg.names import LOCAL, parse_reference
from deltareg.paths import expand_home
from deltareg.recipe import RECIPE_NAME, RECIPE_TABLES, SETTINGS_KEYS
from deltareg.remote.bandwidth import parse_rate
from deltareg.signing import Policies, Policy, check_trusted
from deltareg.signing.trust import is_identity
from deltareg.spelling import did_you_mean, nearest

__all__ = [
    "CONFIG_NAME",
    "KEYS",
    "VARIABLES",
    "FileSettings",
    "Remote",
    "Settings",
    "check_namespace",
    "check_remote_name",
    "is_location",
    "load_settings",
    "parse_settings",
    "project_file",
    "read_settings",
    "unknown_variables",
    "user_file",
]

CONFIG_NAME = RECIPE_NAME
"""The file of a project's settings: that of its recipe too."""

KEYS: Mapping[str, str] = MappingProxyType(
    {
        "home": "directory of the local registry; a relative path counts from the file's directory",
        "threads": "number of threads that a command may use; by default the number of processors",
        "bandwidth": "bytes a second that all transfers together may take, such as `10MB/s`; by default no limit",
        "remote": "name of the default remote, which `push` and `pull` use without `--remote`",
        "remotes.NAME.url": "URL or path of the remote NAME; a relative path counts from the file's directory",
        "remotes.NAME.namespaces": "namespaces, or single names (acme/search), that recipes look up in NAME alone",
        "policies.NAMESPACE.signed-by": "PEM files (public keys, root certificates) or IDENTITY@ISSUER: one of them "
        "has to have signed each delta of NAMESPACE, or NAMESPACE/NAME; relative paths count from the file's directory",
        "build": "what is built, where the file is a recipe too: see docs/recipes.md",
        "delta": "the deltas of the recipe",
    }
)
"""What a settings file may hold."""

VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "DELTAREG_HOME": "directory of the local registry, as `home`",
        "DELTAREG_THREADS": "number of threads, as `threads`",
        "DELTAREG_BANDWIDTH": "bytes a second for transfers, as `bandwidth`",
        "DELTAREG_REMOTE": "name, URL or path of the default remote, as `remote`",
        "DELTAREG_TOKEN": "token for the deltareg server that `--remote` or `DELTAREG_REMOTE` names, or that is the "
        "default remote in the user's own settings; it goes to no other",
        "DELTAREG_PASSWORD": "password of the private key that `deltareg sign` signs with",
        "DELTAREG_TRACEBACK": "`1` shows where in the program an unexpected error arose",
    }
)
"""The environment variables that the program reads."""

_REMOTE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LIMIT = 1 << 20

Value = TypeVar("Value")


@dataclass(frozen=True)
class Remote:
    """A remote as a settings file names it; `namespaces` are the namespaces and names that are looked up in it."""

    name: str
    url: str
    file: Path
    namespaces: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileSettings:
    """What one settings file says."""

    file: Path
    home: Path | None = None
    threads: int | None = None
    bandwidth: int | None = None
    remote: str | None = None
    remotes: Mapping[str, Remote] = field(default_factory=dict[str, Remote])
    policies: Mapping[str, Policy] = field(default_factory=dict[str, Policy])


@dataclass(frozen=True)
class Settings:
    """What counts once every source was asked. None where none of them says anything."""

    home: Path | None = None
    threads: int | None = None
    bandwidth: int | None = None
    """Bytes a second."""
    default_remote: str | None = None
    """Name, URL or path."""
    remotes: Mapping[str, Remote] = field(default_factory=dict[str, Remote])
    policies: Policies = field(default_factory=Policies)
    """Whose deltas have to be signed."""
    files: tuple[Path, ...] = ()
    """The files that were read, the strongest first."""

    @property
    def bound(self) -> dict[str, str]:
        """The name of the remote that a namespace, or a namespace/name, is looked up in."""
        return {name: remote.name for remote in self.remotes.values() for name in remote.namespaces}

    @property
    def urls(self) -> dict[str, str]:
        """The URLs of the remotes by name; a default remote that is given by its URL or path is called by that."""
        found = {name: remote.url for name, remote in self.remotes.items()}
        if self.default_remote is not None and self.default_remote not in found:
            found[self.default_remote] = self.remote_url()
        return found

    def own_default(self, file: Path) -> str | None:
        """The default remote, if the settings at `file` alone say which it is and where."""
        if self.default_remote is None or file not in self.files:
            return None
        if self.default_remote in self.remotes:
            return self.default_remote if self.remotes[self.default_remote].file == file else None
        return self.default_remote if read_settings(file).remote == self.default_remote else None

    def remote_url(self, name: str | None = None) -> str:
        """The URL of a remote by its name; a URL or a path is taken as it is; without `name` the default remote.

        Raises InvalidArgument where there is none.
        """
        wanted = name if name is not None else self.default_remote
        if wanted is None:
            raise InvalidArgument(
                "no remote was named and there is no default remote",
                cause=_there_are(self.remotes),
                hint="add --remote NAME, or make one the default: deltareg remote add NAME URL --default",
            )
        if wanted in self.remotes:
            return self.remotes[wanted].url
        if is_location(wanted):
            return wanted
        raise InvalidArgument(
            f"no remote is called {wanted!r}",
            cause=_there_are(self.remotes),
            hint=_did_you_mean(wanted, self.remotes)
            or f"deltareg remote add {wanted} URL; a directory is written with a slash: ./{wanted}",
        )


def load_settings(directory: Path, environment: Mapping[str, str]) -> Settings:
    """The settings for a command that runs in `directory`. Raises BadConfig, InvalidArgument, NotAllowed."""
    found = [path for path in (project_file(directory), user_file()) if path is not None and os.path.isfile(path)]
    files = [read_settings(path) for path in dict.fromkeys(found)]
    remotes = _merged(files)
    home = environment.get("DELTAREG_HOME")
    return Settings(
        home=(directory / expand_home(home)) if home else _first(settings.home for settings in files),
        threads=_threads_of(environment) or _first(settings.threads for settings in files),
        bandwidth=_bandwidth_of(environment) or _first(settings.bandwidth for settings in files),
        default_remote=environment.get("DELTAREG_REMOTE")
        or _first(settings.remote for settings in files)
        or (next(iter(remotes)) if len(remotes) == 1 else None),
        remotes=remotes,
        # Of two for one namespace the stronger file's counts whole: keys of both would let either file add one.
        policies=Policies({name: one for settings in reversed(files) for name, one in settings.policies.items()}),
        files=tuple(settings.file for settings in files),
    )


def project_file(directory: Path) -> Path | None:
    """The nearest `deltareg.toml` in `directory` or above it."""
    candidates = (place / CONFIG_NAME for place in (directory, *directory.parents))
    # os.path: a directory that may not be searched has no file, as far as this user is concerned.
    return next((path for path in candidates if os.path.isfile(path)), None)


def user_file() -> Path:
    """Where the user's settings are, or would be."""
    import platformdirs

    return platformdirs.user_config_path("deltareg") / CONFIG_NAME


def read_settings(path: Path) -> FileSettings:
    """Read one file. Raises BadConfig, which names every fault in it, NotAllowed."""
    with translate_os_errors("read the settings", path), path.open("rb") as file:
        data = file.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise BadConfig(f"{path} is larger than {_LIMIT} bytes", path=path)
    return parse_settings(data, path)


def parse_settings(data: bytes, path: Path) -> FileSettings:
    """Settings from the text of the file at `path`. Raises BadConfig, which names every fault."""
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{path} is not valid TOML: {error}", cause=str(error), path=path) from error
    reader = _Reader(path, values)
    settings = FileSettings(
        file=path,
        home=reader.take("home", _path_from(path.parent)),
        threads=reader.take("threads", _thread_count),
        bandwidth=reader.take("bandwidth", _rate),
        remote=reader.take("remote", _text),
        remotes=reader.remotes(),
        policies=reader.policies(),
    )
    reader.finish()
    return settings


def unknown_variables(environment: Iterable[str]) -> dict[str, str | None]:
    """The `DELTAREG_…` variables that mean nothing, each with the known one that is nearest to it."""
    strangers = sorted(name for name in environment if name.startswith("DELTAREG_") and name not in VARIABLES)
    return {name: nearest(name, VARIABLES) for name in strangers}


def is_location(text: str) -> bool:
    """Whether a remote is named by its URL or path: whatever no name of a remote can be."""
    return "/" in text or text in (".", "..") or text.startswith(("~", "file:"))


def check_remote_name(name: str) -> str:
    """Return `name` if a remote may be called so. Raises InvalidArgument."""
    if _REMOTE_NAME.fullmatch(name) is None:
        raise InvalidArgument(
            f"a remote cannot be called {name!r}", cause="names have letters, digits, '.', '_' and '-', at most 64"
        )
    if name == LOCAL:
        raise InvalidArgument(
            f"a remote cannot be called {LOCAL}",
            cause="recipes call the registry of this machine so",
            hint="choose another name",
        )
    return name


def check_namespace(text: str) -> str:
    """Return `text` if it is a namespace or a namespace/name. Raises BadName."""
    try:
        found = parse_reference(text if "/" in text else f"{text}/x")
    except BadName as error:
        raise BadName(f"{text!r} is no namespace", cause=error.cause, hint="write acme, or acme/search") from error
    if found.tag is not None or found.digest is not None:
        raise BadName(f"{text!r} is no namespace", hint="write acme, or acme/search: a binding is for every version")
    return text


def _merged(files: Sequence[FileSettings]) -> dict[str, Remote]:
    """The remotes of all files, of which the first one wins: for a remote, and for a namespace that is bound.

    Raises BadConfig where one namespace is bound to two remotes.
    """
    found: dict[str, Remote] = {}
    bound: dict[str, Remote] = {}
    faults: list[str] = []
    for settings in files:
        for name, remote in settings.remotes.items():
            if name in found:
                continue
            found[name] = remote
            for one in remote.namespaces:
                other = bound.setdefault(one, remote)
                if other is not remote:
                    faults.append(f"{one} is bound to {other.name} ({other.file}) and to {remote.name} ({remote.file})")
    if faults:
        raise BadConfig("; ".join(faults), hint="bind it to one of them: remotes.NAME.namespaces", faults=faults)
    return {name: found[name] for settings in reversed(files) for name in settings.remotes}


class _Reader:
    """Takes values out of a table and gathers what is wrong with it."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self._path = path
        self._values = values
        self._faults: list[str] = []
        self._refuse_strangers("", values, [*SETTINGS_KEYS, *RECIPE_TABLES])

    def take(self, key: str, convert: Callable[[Any], Value]) -> Value | None:
        return self._convert(key, self._values[key], convert) if key in self._values else None

    def remotes(self) -> dict[str, Remote]:
        found: dict[str, Remote] = {}
        for name, table in self._table("remotes", self._values.get("remotes", {})).items():
            entry = self._table(f"remotes.{name}", table)
            self._refuse_strangers(f"remotes.{name}.", entry, ["url", "namespaces"])
            if _REMOTE_NAME.fullmatch(name) is None:
                self._faults.append(f"remotes.{name}: no name for a remote")
            elif name == LOCAL:
                self._faults.append(
                    f"remotes.{name}: recipes call the registry of this machine so; choose another name"
                )
            elif "url" in entry:
                url = self._convert(f"remotes.{name}.url", entry["url"], _url_from(self._path.parent))
                found[name] = Remote(name, url or "", self._path, self._namespaces(name, entry.get("namespaces", [])))
            elif isinstance(table, dict):
                self._faults.append(f"remotes.{name}: url is missing")
        return found

    def policies(self) -> dict[str, Policy]:
        found: dict[str, Policy] = {}
        for name, table in self._table("policies", self._values.get("policies", {})).items():
            key = f"policies.{name}"
            entry = self._table(key, table)
            self._refuse_strangers(f"{key}.", entry, ["signed-by"])
            signers = entry.get("signed-by")
            if self._convert(key, name, check_namespace) is None or not isinstance(table, dict):
                continue
            if not isinstance(signers, list) or not signers:
                # No list would let everything through, and an empty one nothing: both are slips.
                told = f'takes a list of texts, such as ["keys/acme.pem"], not {signers!r}'
                self._faults.append(f"{key}.signed-by {told}")
                continue
            convert = _signer_from(self._path.parent)
            people = [self._convert(f"{key}.signed-by", one, convert) for one in cast("list[Any]", signers)]
            found[name] = Policy(name, tuple(one for one in people if one is not None), self._path)
        return found

    def _namespaces(self, name: str, value: Any) -> tuple[str, ...]:
        key = f"remotes.{name}.namespaces"
        if not isinstance(value, list):
            self._faults.append(f'{key} takes a list of texts, such as ["acme"], not {value!r}')
            return ()
        values = cast("list[Any]", value)
        found = [self._convert(key, one, lambda one: check_namespace(_text(one))) for one in values]
        return tuple(dict.fromkeys(one for one in found if one is not None))

    def finish(self) -> None:
        if self._faults:
            raise BadConfig(
                f"{self._path}: " + "; ".join(self._faults),
                hint=f"known keys are {', '.join(KEYS)}",
                path=self._path,
                faults=self._faults,
            )

    def _refuse_strangers(self, prefix: str, values: Mapping[str, Any], known: list[str]) -> None:
        for key in values:
            if key not in known:
                self._faults.append(f"unknown key {prefix}{key}" + did_you_mean(key, known, prefix))

    def _table(self, key: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return cast(dict[str, Any], value)
        self._faults.append(f"{key} is a {_type_name(value)}, not a table")
        return {}

    def _convert(self, key: str, value: Any, convert: Callable[[Any], Value]) -> Value | None:
        try:
            return convert(value)
        except ValueError as error:
            self._faults.append(f"{key} {error}")
        except (BadName, InvalidArgument) as error:
            self._faults.append(f"{key}: {error.message}")
        return None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"takes a text, not {value!r}")
    return value


def _thread_count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"takes a number from 1 on, not {value!r}")
    return value


def _rate(value: Any) -> int:
    return parse_rate(str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value))


def _path_from(directory: Path) -> Callable[[Any], Path]:
    return lambda value: directory / expand_home(_text(value))


def _signer_from(directory: Path) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        text = check_trusted(_text(value))
        return text if is_identity(text) else str(directory / expand_home(text))

    return convert


def _url_from(directory: Path) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        url = _text(value)
        return url if "://" in url or url.startswith("file:") else str(directory / expand_home(url))

    return convert


def _threads_of(environment: Mapping[str, str]) -> int | None:
    text = environment.get("DELTAREG_THREADS")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise BadConfig(f"DELTAREG_THREADS takes a number from 1 on, not {text!r}", hint="unset DELTAREG_THREADS")
    return int(text)


def _bandwidth_of(environment: Mapping[str, str]) -> int | None:
    text = environment.get("DELTAREG_BANDWIDTH")
    if not text:
        return None
    try:
        return parse_rate(text)
    except InvalidArgument as error:
        raise BadConfig(f"DELTAREG_BANDWIDTH: {error.message}", hint=error.hint) from error


def _first(values: Iterable[Value | None]) -> Value | None:
    return next((value for value in values if value is not None), None)


def _type_name(value: Any) -> str:
    return type(value).__name__


def _there_are(remotes: Mapping[str, Remote]) -> str:
    return f"there are {', '.join(remotes)}" if remotes else "no remote is set up"


def _did_you_mean(word: str, known: Iterable[str]) -> str | None:
    near = nearest(word, known)
    return None if near is None else f"did you mean {near}?"
