"""One evaluation of one model: of what a recipe builds, or of a checkpoint."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import deltareg
from deltareg.analysis.harness import Harness
from deltareg.analysis.models import directory_of, load_model, load_tokenizer, need_transformers
from deltareg.analysis.points import built, current_lock
from deltareg.analysis.scoring import Command, Evaluation, Metrics, Score, ScoreFunction, score_function
from deltareg.analysis.sweep import project_at
from deltareg.build.building import Options
from deltareg.build.locking import base_digest
from deltareg.catalog import Registry
from deltareg.checkpoint import Checkpoint
from deltareg.errors import InvalidArgument
from deltareg.lock import FileDigest, LockedBase
from deltareg.manifest import DigestText, Document
from deltareg.paths import expand_home
from deltareg.progress import SILENT, Progress
from deltareg.recipe import RECIPE_NAME, Number
from deltareg.resolve import Sources
from deltareg.store.files import write_atomically

__all__ = ["EvaluatedCheckpoint", "EvaluatedDelta", "EvaluationReport", "evaluate", "is_recipe"]


class EvaluatedDelta(Document):
    """One delta of what was evaluated."""

    reference: str
    digest: DigestText
    weight: Number
    where: dict[str, Number] = Field(description="other weights by selector")


class EvaluatedCheckpoint(Document):
    """A checkpoint that was evaluated as it is."""

    id: str
    revision: str | None = Field(default=None, description="commit of the hub repository")
    digest: FileDigest | None = Field(description="digest of its tensors: names, dtypes, shapes, bytes")


class EvaluationReport(Document):
    """What an evaluation gave, and of what."""

    target: str = Field(description="the recipe or checkpoint, as it was named")
    kind: Literal["recipe", "checkpoint"]
    checkpoint: EvaluatedCheckpoint | None = Field(default=None, description="null for a recipe")
    base: LockedBase | None = Field(default=None, description="base of the recipe; null for a checkpoint")
    method: str | None = Field(default=None, description="how the recipe merges; null for a checkpoint")
    deltas: list[EvaluatedDelta] = Field(description="deltas of the recipe, in the order in which they are applied")
    evaluation: Evaluation
    metrics: Metrics = Field(description="by name; null for infinity, and for what is no number")
    build_seconds: float = Field(description="seconds of building a recipe, or of finding a checkpoint")
    score_seconds: float = Field(description="seconds of loading the model and of the evaluation itself")
    seconds: float
    warnings: list[str] = Field(description="what the user should know")


def evaluate(
    target: str | os.PathLike[str],
    registry: Registry | Sources,
    *,
    score: Score | ScoreFunction | None = None,
    command: str | None = None,
    tasks: Harness | None = None,
    metrics: tuple[str, ...] = (),
    timeout: float | None = None,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> EvaluationReport:
    """Evaluate what a recipe builds, a checkpoint's directory, or a model of the Hub.

    What a recipe says is built into a temporary directory, and evaluated there. By a `score` function, a `command` or
    `tasks` of lm-evaluation-harness: one of them. `device` is where the model of the first and the last computes. `out`
    gets the results as lm-evaluation-harness writes them, with the report as their `deltareg`.

    Raises InvalidArgument, EvaluationFailed, CheckpointNotFound, DiskFull, and what `build` raises.
    """
    started = time.monotonic()
    evaluator = _evaluator(score, command, tasks, metrics, timeout)
    goal = None if out is None else _checked_goal(Path(out))
    sources = registry if isinstance(registry, Sources) else Sources(registry)
    options = Options(force=force, threads=threads, progress=progress)
    with _target(os.fspath(target), sources, options) as (directory, told):
        made = time.monotonic()
        found, results = _run(evaluator, directory, device)
        scored = time.monotonic()
    report = EvaluationReport(
        target=os.fspath(target),
        evaluation=evaluator.evaluation,
        metrics=found,
        build_seconds=made - started,
        score_seconds=scored - made,
        seconds=time.monotonic() - started,
        warnings=[],
        **told,
    )
    if goal is not None:
        _write(goal, results, report)
    return report


def is_recipe(target: str) -> bool:
    """Whether a name means a recipe: a file `*.toml`, or a directory with a deltareg.toml and no weights."""
    path = expand_home(target)
    if "://" in target or not path.is_dir():
        return "://" not in target and path.suffix == ".toml"
    return (path / RECIPE_NAME).is_file() and not any(path.glob("*.safetensors"))


def _evaluator(
    score: Score | ScoreFunction | None,
    command: str | None,
    tasks: Harness | None,
    metrics: tuple[str, ...],
    timeout: float | None,
) -> Command | ScoreFunction | Harness:
    if sum(one is not None for one in (score, command, tasks)) != 1:
        raise InvalidArgument(
            "an evaluation is a command, a function, or tasks: one of them",
            hint="give --eval CMD, --score FILE.py:FUNCTION, or --tasks NAMES",
        )
    if command is not None:
        return Command(command, metrics, timeout)
    if timeout is not None:
        raise InvalidArgument("what runs in this process cannot be ended after a time", hint="--timeout is for --eval")
    if tasks is not None:
        need_transformers()
        return tasks
    assert score is not None
    need_transformers()
    return score if isinstance(score, ScoreFunction) else score_function(score, metrics)


@contextmanager
def _target(target: str, sources: Sources, options: Options) -> Generator[tuple[Path, dict[str, Any]]]:
    """The directory of what is evaluated, and what the report tells of it."""
    if not is_recipe(target):
        directory = directory_of(target)
        with Checkpoint.open(target) as checkpoint:
            digest = base_digest(checkpoint, options.threads, options.progress)
            told = EvaluatedCheckpoint(id=checkpoint.id, revision=checkpoint.revision, digest=digest)
        yield directory, {"kind": "checkpoint", "checkpoint": told, "deltas": []}
        return
    lock = current_lock(project_at(expand_home(target)), sources, threads=options.threads, progress=options.progress)
    deltas = [
        EvaluatedDelta(reference=one.reference, digest=one.digest, weight=one.weight, where=one.where)
        for one in lock.deltas
    ]
    with built(lock, sources, options) as directory:
        yield directory, {"kind": "recipe", "base": lock.base, "method": lock.method, "deltas": deltas}


def _run(evaluator: Command | ScoreFunction | Harness, directory: Path, device: str) -> tuple[Metrics, dict[str, Any]]:
    """The metrics, and the results in the form of lm-evaluation-harness."""
    if isinstance(evaluator, Command):
        found = evaluator.run(directory)
    else:
        import torch

        model, tokenizer = load_model(directory, device), load_tokenizer(directory)
        with torch.no_grad():
            if isinstance(evaluator, Harness):
                return evaluator.run(model, tokenizer)
            found = evaluator.run(model, tokenizer)
    return found, {"results": {"evaluation": {f"{name},none": value for name, value in found.items()}}}


def _checked_goal(path: Path) -> Path:
    if path.is_dir():
        raise InvalidArgument(f"{path} is a directory", hint="name a file for the results: --out results.json")
    if not path.parent.is_dir():
        raise InvalidArgument(f"there is no directory {path.parent} for the results", hint=f"mkdir -p {path.parent}")
    return path


def _write(path: Path, results: dict[str, Any], report: EvaluationReport) -> None:
    whole = {**results, "deltareg": {"version": deltareg.__version__, **report.model_dump(mode="json")}}
    text = json.dumps(whole, indent=2) + "\n"
    write_atomically(path, text.encode(), temporary=path.with_name(f".{path.name[:200]}.{os.getpid()}"))
