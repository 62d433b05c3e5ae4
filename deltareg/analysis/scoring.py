"""What evaluates a model: a command that prints JSON, or a Python function."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from pydantic import Field

from deltareg.errors import DeltaregError, EvaluationFailed, InvalidArgument, translate_os_errors
from deltareg.manifest import DigestText, Document
from deltareg.paths import expand_home

__all__ = [
    "Command",
    "Evaluation",
    "Metrics",
    "Score",
    "ScoreFunction",
    "checked_metrics",
    "load_score",
    "score_function",
]

Metrics = dict[str, float | None]
"""Metrics by name. None is one that is infinite or no number, as of a model that has diverged."""

Score = Callable[[Any, Any], Mapping[str, Any]]
"""From a model and a tokenizer, which is None where the checkpoint has none, to metrics by name."""

MODEL = "{model}"
"""What stands for the checkpoint's directory in a command."""

_TAIL = 1 << 20
_LINES_TOLD = 8
_GRACE = 5.0
_FUNCTION = re.compile(r"[^\W\d]\w*")


class Evaluation(Document):
    """What evaluated: the same one gives numbers that can be compared."""

    kind: Literal["command", "function", "tasks"]
    what: str = Field(description="the command, FILE.py:FUNCTION, or the tasks")
    digest: DigestText | None = Field(default=None, description="of the file that holds the function; else null")


@dataclass(frozen=True)
class Command:
    """A command with `{model}` in it, run without a shell. `seconds` is how long it may take; None is for ever."""

    text: str
    metrics: Sequence[str] = ()
    seconds: float | None = None

    def __post_init__(self) -> None:
        self._words(Path("model"))
        if self.seconds is not None and not self.seconds > 0:
            raise InvalidArgument(f"a timeout of {self.seconds:g} s leaves no time", hint="give more, or none")

    @property
    def evaluation(self) -> Evaluation:
        """What it is called in reports."""
        return Evaluation(kind="command", what=self.text)

    def run(self, model: Path) -> Metrics:
        """Evaluate the checkpoint in a directory.

        Reads the last line of stdout that is a JSON object, or stdout as a whole where it is one. Raises
        EvaluationFailed for a status other than 0, a timeout, no JSON, and what `checked_metrics` raises;
        InvalidArgument where there is no such program.
        """
        words = self._words(model)
        with (
            translate_os_errors("keep what the command prints", tempfile.gettempdir()),
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            with _started(words, out, err) as process:
                try:
                    status = process.wait(self.seconds)
                except subprocess.TimeoutExpired as error:
                    raise EvaluationFailed(
                        f"{words[0]} did not end within {self.seconds:g} s",
                        cause=_last_lines(err),
                        hint="--timeout gives it longer",
                    ) from error
            if status != 0:
                how = f"the status {status}" if status > 0 else f"the signal {_signal(-status)}"
                raise EvaluationFailed(
                    f"{words[0]} ended with {how}",
                    cause=_last_lines(err) or "it said nothing on stderr",
                    hint=f"run it by hand: {self.text.replace(MODEL, 'MODEL')}",
                    status=status,
                )
            found = _object_in(_tail(out))
            if found is None:
                raise EvaluationFailed(
                    f"{words[0]} printed no JSON object",
                    cause=f"the end of stdout: {_last_lines(out) or 'nothing'}",
                    hint='let it print one line such as {"accuracy": 0.87}',
                )
        return checked_metrics(found, self.metrics, words[0])

    def _words(self, model: Path) -> list[str]:
        try:
            words = shlex.split(self.text)
        except ValueError as error:
            raise InvalidArgument(f"the command cannot be read: {error}", hint="close its quotes") from error
        if not any(MODEL in word for word in words):
            raise InvalidArgument(
                f"the command has no {MODEL} in it: {self.text!r}",
                hint=f"write {MODEL} where the checkpoint's directory belongs: --eval 'python score.py {MODEL}'",
            )
        return [word.replace(MODEL, str(model)) for word in words]


@dataclass(frozen=True)
class ScoreFunction:
    """A Python function that evaluates, and what it is called."""

    function: Score
    evaluation: Evaluation
    metrics: Sequence[str] = ()

    def run(self, model: Any, tokenizer: Any) -> Metrics:
        """Evaluate a model. Raises EvaluationFailed for whatever the function raises, and for what are no metrics."""
        name = self.evaluation.what
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for what --json prints
                found = self.function(model, tokenizer)
        except DeltaregError:
            raise
        except (Exception, SystemExit) as error:
            raise EvaluationFailed(
                f"{name} raised {type(error).__name__}: {error}", cause=_where(error), hint="mend the function"
            ) from error
        return checked_metrics(found, self.metrics, name)


def score_function(function: Score, metrics: Sequence[str] = ()) -> ScoreFunction:
    """A function of the running program as an evaluation. Raises InvalidArgument for what cannot be called."""
    if not callable(function):
        raise InvalidArgument(f"{function!r} is no function", hint="give one of (model, tokenizer)")
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__name__)}"
    return ScoreFunction(function, Evaluation(kind="function", what=name), metrics)


def load_score(text: str, metrics: Sequence[str] = ()) -> ScoreFunction:
    """The function that `FILE.py:FUNCTION` or `package.module:FUNCTION` names.

    Its code runs, with all that this process may do. A module is looked for in the working directory too. Raises
    InvalidArgument where there is no such file, module or function; EvaluationFailed where its code fails.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or _FUNCTION.fullmatch(name) is None:
        raise InvalidArgument(f"{text!r} names no function", hint="write FILE.py:FUNCTION or package.module:FUNCTION")
    module, file = _module_of(place)
    function = getattr(module, name, None)
    if not callable(function):
        names = cast("dict[str, object]", vars(module))
        known = ", ".join([key for key, value in names.items() if callable(value) and not key.startswith("_")][:10])
        raise InvalidArgument(
            f"{place} has no function {name}",
            cause=f"it has {known or 'none'}",
            hint="name one of them",
        )
    digest = None
    if file is not None:
        with translate_os_errors("read", file):
            digest = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()
    return ScoreFunction(cast(Score, function), Evaluation(kind="function", what=text, digest=digest), metrics)


def checked_metrics(found: object, wanted: Sequence[str], source: str) -> Metrics:
    """What an evaluation gave, as numbers: those in `wanted`, or all where it is empty.

    Raises EvaluationFailed for what is no mapping from names to numbers, is empty, or lacks one that is wanted.
    """
    if not isinstance(found, Mapping):
        raise EvaluationFailed(
            f"{source} gave {type(found).__name__}, not metrics by name", hint='give something like {"accuracy": 0.87}'
        )
    values = {str(name): value for name, value in cast("Mapping[object, object]", found).items()}
    missing = [name for name in wanted if name not in values]
    if missing:
        raise EvaluationFailed(
            f"{source} gave no metric {missing[0]!r}",
            cause=f"it gave {', '.join(sorted(values)[:20]) or 'none'}",
            hint="--metric takes one of these",
        )
    if not values:
        raise EvaluationFailed(f"{source} gave no metrics", hint='give something like {"accuracy": 0.87}')
    return {name: _number(name, values[name], source) for name in (dict.fromkeys(wanted) or values)}


def _number(name: str, value: object, source: str) -> float | None:
    try:
        # Text is no number, even where float() would read it; numpy's and torch's scalars are.
        if isinstance(value, (bool, str, bytes)) or value is None:
            raise TypeError
        number = float(cast(Any, value))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise EvaluationFailed(
            f"the metric {name!r} of {source} is no number: {value!r:.80}",
            hint="--metric NAME takes the metrics that are numbers, and leaves out the others",
        ) from error
    return number if math.isfinite(number) else None


# --- commands -----------------------------------------------------------------------------------------------------


@contextmanager
def _started(words: Sequence[str], out: IO[bytes], err: IO[bytes]) -> Generator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which is ended with all that it started when the context is left early."""
    try:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidArgument(
            f"{words[0]!r} cannot be run: {reason}",
            hint="name a program with its arguments; a shell is not asked: --eval \"sh -c '…'\" asks one",
        ) from error
    try:
        yield process
    finally:
        if process.poll() is None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))
    return file.read().decode("utf-8", "replace")


def _last_lines(file: IO[bytes]) -> str | None:
    lines = [line.strip() for line in _tail(file).splitlines() if line.strip()]
    return "; ".join(line[:300] for line in lines[-_LINES_TOLD:]) or None


def _object_in(text: str) -> dict[str, object] | None:
    """The JSON object that a command printed."""
    for part in (text, *reversed(text.splitlines())):
        if "{" not in part:
            continue
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return cast("dict[str, object]", value)
    return None


# --- functions ----------------------------------------------------------------------------------------------------


def _module_of(place: str) -> tuple[Any, Path | None]:
    """A module, and its file where one is known."""
    if not place.endswith(".py"):
        with _importing(place, Path.cwd()):
            try:
                module = importlib.import_module(place)
            except ModuleNotFoundError as error:
                if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
                    raise InvalidArgument(
                        f"there is no module {place}", hint="name a file with its ending: FILE.py:FUNCTION"
                    ) from error
                raise
        origin = getattr(module, "__file__", None)
        return module, None if origin is None else Path(origin)
    path = expand_home(place)
    if not path.is_file():
        raise InvalidArgument(f"there is no file {path}", hint="write FILE.py:FUNCTION")
    name = f"deltareg_score_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a name that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    with _importing(place, path.resolve().parent):
        sys.modules[name] = module  # dataclasses and pickle look their module up
        spec.loader.exec_module(module)
    return module, path


@contextmanager
def _importing(place: str, beside: Path) -> Generator[None]:
    """Import as Python does for a script in `beside`: what lies there is found. Raises EvaluationFailed."""
    if str(beside) not in sys.path:
        sys.path.insert(0, str(beside))  # stays: functions import when they are called, too
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except DeltaregError:
        raise
    except (Exception, SystemExit) as error:
        raise EvaluationFailed(
            f"{place} cannot be imported: {type(error).__name__}: {error}", cause=_where(error), hint="mend it first"
        ) from error


def _where(error: BaseException) -> str | None:
    """The innermost line of code in which an error arose."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name}" if frames else None
