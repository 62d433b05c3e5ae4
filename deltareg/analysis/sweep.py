"""A metric over the weights of a recipe's deltas: each weight is built and evaluated."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from deltareg.analysis.grid import MOST_POINTS, checked_values
from deltareg.analysis.points import LivePoints, Place, Varied, built, current_lock, vary
from deltareg.analysis.scoring import Command, Evaluation, Metrics, Score, ScoreFunction, score_function
from deltareg.analysis.sweep_report import SweepPoint, SweepReport, SweptDelta, check_lower, summaries
from deltareg.build import Project
from deltareg.build.building import Options
from deltareg.catalog import Registry
from deltareg.errors import DeltaregError, InvalidArgument, OutputExists, translate_os_errors
from deltareg.lock import Lock
from deltareg.manifest import parse
from deltareg.resolve import Sources
from deltareg.store.files import write_atomically

__all__ = ["SweepPoint", "SweepReport", "project_at", "sweep"]

_READ_LIMIT = 1 << 28


class _Evaluator(Protocol):
    """Evaluates points of a sweep."""

    warnings: list[str]

    def run(self, found: Lock) -> tuple[Metrics, float, float]:
        """The metrics of a point, the seconds of making it, and those of the evaluation."""
        ...


@dataclass
class _Job:
    """A sweep that was decided on, and its points so far."""

    project: Project
    varied: Varied
    evaluation: Evaluation
    alpha: Sequence[float]
    beta: Sequence[float] | None
    wanted: Sequence[str]
    lower: Sequence[str]
    tolerance: float
    out: Path | None
    started: float
    points: dict[Place, SweepPoint]
    reused: int = 0
    load_seconds: float = 0.0
    warnings: Sequence[str] = ()

    @property
    def places(self) -> list[Place]:
        """All points, α the fastest."""
        return [Place(alpha, beta) for beta in self.beta or [None] for alpha in self.alpha]

    @property
    def deltas(self) -> list[SweptDelta]:
        """The deltas as the report has them."""
        roles: dict[str, Literal["alpha", "beta"]] = dict(zip(self.varied.names, ("alpha", "beta"), strict=False))
        return [
            SweptDelta(
                reference=one.reference,
                digest=one.digest,
                weight=one.weight,
                varies=roles.get(one.name.repository),
            )
            for one in self.varied.lock.deltas
        ]

    def report(self) -> SweepReport:
        """What is known by now."""
        done = [self.points[place] for place in self.places if place in self.points]
        complete = len(done) == len(self.places)
        return SweepReport(
            recipe=str(self.project.recipe_path),
            recipe_digest=self.project.recipe.digest,
            base=self.varied.lock.base,
            method=self.varied.lock.method,
            deltas=self.deltas,
            evaluation=self.evaluation,
            fused=self.varied.fused,
            alpha=list(self.alpha),
            beta=None if self.beta is None else list(self.beta),
            points=done,
            metrics=summaries(done, self.lower, self.tolerance) if complete else {},
            complete=complete,
            reused_points=self.reused,
            load_seconds=self.load_seconds,
            seconds=time.monotonic() - self.started,
            warnings=list(self.warnings),
        )

    def keep(self) -> None:
        """Write what is known by now, where that is wanted. Raises DiskFull, NotAllowed."""
        if self.out is not None:
            text = json.dumps(self.report().model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
            temporary = self.out.with_name(f".{self.out.name[:200]}.{os.getpid()}")
            write_atomically(self.out, text.encode(), temporary=temporary)


def sweep(
    recipe: Project | str | os.PathLike[str],
    registry: Registry | Sources,
    *,
    alpha: Sequence[float],
    beta: Sequence[float] | None = None,
    fused: bool = False,
    score: Score | ScoreFunction | None = None,
    command: str | None = None,
    metrics: Sequence[str] = (),
    lower_is_better: Sequence[str] = (),
    deltas: Sequence[str] = (),
    tolerance: float = 0.05,
    timeout: float | None = None,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    watch: Callable[[SweepPoint], None] | None = None,
) -> SweepReport:
    """Evaluate a recipe at each α, or at each pair of α and β.

    α multiplies the recipe's weight of its first delta, β that of the second; `deltas` names others. With `fused` the
    two have the weights α and 1 − α: the line Θ₀ + αΔ* + (1 − α)Δ. `score` is given a model in memory, whose weights
    change between points, and its tokenizer; `command` the directory of a checkpoint that is built for each point, and
    `timeout` seconds to evaluate it. Of the `metrics` by name, all where none is named, higher is better unless they
    are in `lower_is_better`. The lock beside the recipe is written where it is missing. `out` is written after every
    point, and a sweep that finds there points of its own goes on behind them. `device` is where a model in memory
    computes, and what builds. `watch` is told of each point.

    Raises InvalidArgument, OutputExists where `out` holds something else, EvaluationFailed, and what `build` and `live`
    raise; the points that were done are in `out` then.
    """
    started = time.monotonic()
    evaluator = _evaluator(score, command, metrics, timeout)
    alpha, beta = _grid(alpha, beta, fused=fused)
    if not 0 <= tolerance <= 1:
        raise InvalidArgument(f"the tolerance is {tolerance!r}", hint="give a share from 0 to 1, such as 0.05")
    goal = None if out is None else _checked_goal(Path(out))
    project = recipe if isinstance(recipe, Project) else project_at(recipe)
    sources = registry if isinstance(registry, Sources) else Sources(registry)
    lock = current_lock(project, sources, threads=threads)
    varied = vary(lock, project, deltas, count=2 if fused or beta is not None else 1, fused=fused)
    job = _Job(
        project, varied, evaluator.evaluation, alpha, beta, metrics, lower_is_better, tolerance, goal, started, {}
    )
    for place in job.places:
        varied.at(place)  # a weight that is too large is told before the first point
    _take_up(job)
    _run(job, evaluator, sources, Options(force=force, threads=threads, device=device), watch)
    job.keep()
    return job.report()


def project_at(path: str | os.PathLike[str]) -> Project:
    """The recipe in a file, or in a directory. Raises BadRecipe where it is read and there is none."""
    return Project.find(Path(), os.path.abspath(path))


def _evaluator(
    score: Score | ScoreFunction | None, command: str | None, metrics: Sequence[str], timeout: float | None
) -> Command | ScoreFunction:
    if (score is None) == (command is None):
        raise InvalidArgument(
            "an evaluation is a command or a function, and one of them", hint="give --eval CMD, or --score FILE.py:NAME"
        )
    if command is not None:
        return Command(command, metrics, timeout)
    if timeout is not None:
        raise InvalidArgument("a function in this process cannot be ended after a time", hint="--timeout is for --eval")
    assert score is not None
    return score if isinstance(score, ScoreFunction) else score_function(score, metrics)


def _grid(
    alpha: Sequence[float], beta: Sequence[float] | None, *, fused: bool
) -> tuple[list[float], list[float] | None]:
    if fused and beta is not None:
        raise InvalidArgument("on the fused line beta is 1 − alpha", hint="leave --beta or --fused out")
    first = checked_values(alpha, "alpha")
    second = None if beta is None else checked_values(beta, "beta")
    if len(first) * len(second or [0.0]) > MOST_POINTS:
        raise InvalidArgument(
            f"alpha and beta have {len(first) * len(second or []):,} points together, more than {MOST_POINTS:,}",
            hint="take larger steps",
        )
    return first, second


def _checked_goal(path: Path) -> Path:
    if path.is_dir():
        raise InvalidArgument(f"{path} is a directory", hint="name a file for the report: --out sweep.json")
    if not path.parent.is_dir():
        raise InvalidArgument(f"there is no directory {path.parent} for the report", hint=f"mkdir -p {path.parent}")
    return path


def _run(
    job: _Job,
    evaluator: Command | ScoreFunction,
    sources: Sources,
    options: Options,
    watch: Callable[[SweepPoint], None] | None,
) -> None:
    missing = [place for place in job.places if place not in job.points]
    if not missing:
        return
    with _opened(evaluator, job.varied.lock, sources, options) as opened:
        job.load_seconds = time.monotonic() - job.started
        for place in missing:
            found = job.varied.at(place)
            try:
                metrics, made, scored = opened.run(found)
                check_lower(job.lower, metrics)
            except DeltaregError as error:
                at = f"at alpha {place.alpha:g}" + ("" if place.beta is None else f", beta {place.beta:g}")
                error.message = f"{at}: {error.message}"
                error.args = (error.message,)
                error.data["points"] = len(job.points)
                raise
            changed = [one for one in found.deltas if one.name.repository in job.varied.names]
            point = SweepPoint(
                alpha=place.alpha,
                beta=place.beta,
                weights={one.reference: one.weight for one in changed},
                metrics=metrics,
                apply_seconds=made,
                score_seconds=scored,
            )
            job.points[place] = point
            job.warnings = opened.warnings
            job.keep()
            if watch is not None:
                watch(point)


@contextmanager
def _opened(
    evaluator: Command | ScoreFunction, lock: Lock, sources: Sources, options: Options
) -> Generator[_Evaluator]:
    if isinstance(evaluator, Command):
        yield _OnDisk(evaluator, sources, options, [])
    else:
        with LivePoints(lock, sources, options) as live:
            yield _InMemory(evaluator, live, [])


@dataclass
class _OnDisk:
    """Builds a checkpoint for each point, and removes it afterwards."""

    command: Command
    sources: Sources
    options: Options
    warnings: list[str]

    def run(self, found: Lock) -> tuple[Metrics, float, float]:
        started = time.monotonic()
        with built(found, self.sources, self.options) as directory:
            made = time.monotonic()
            metrics = self.command.run(directory)
            return metrics, made - started, time.monotonic() - made


@dataclass
class _InMemory:
    """Changes the weights on a model."""

    score: ScoreFunction
    live: LivePoints
    warnings: list[str]

    def run(self, found: Lock) -> tuple[Metrics, float, float]:
        import torch

        started = time.monotonic()
        self.live.put(found)
        self.warnings = self.live.warnings
        made = time.monotonic()
        self.live.model.eval()
        with torch.no_grad():
            metrics = self.score.run(self.live.model, self.live.tokenizer)
        return metrics, made - started, time.monotonic() - made


# --- going on where it was ----------------------------------------------------------------------------------------


def _take_up(job: _Job) -> None:
    """Take the points of an earlier run of the same sweep. Raises OutputExists where the file holds something else."""
    if job.out is None or not job.out.exists():
        return
    with translate_os_errors("read the report", job.out), job.out.open("rb") as file:
        data = file.read(_READ_LIMIT)
    try:
        before = parse(SweepReport, data, what=str(job.out))
    except DeltaregError as error:
        raise OutputExists(
            f"{job.out} is there, and is no report of a sweep", cause=error.message, hint="name another file"
        ) from error
    different = _difference(before, job)
    if different is not None:
        raise OutputExists(
            f"{job.out} holds another sweep: {different} differs", hint="name another file, or remove that one"
        )
    wanted = set(job.places)
    for point in before.points:
        place = Place(point.alpha, point.beta)
        if place in wanted and all(name in point.metrics for name in job.wanted):
            kept = {name: point.metrics[name] for name in job.wanted} if job.wanted else point.metrics
            job.points[place] = point.model_copy(update={"metrics": kept})
    job.reused = len(job.points)
    job.warnings = before.warnings


def _difference(before: SweepReport, job: _Job) -> str | None:
    """What makes numbers of an earlier run incomparable with those of this one."""
    base = job.varied.lock.base
    checks: Mapping[str, tuple[object, object]] = {
        "the recipe": (before.recipe_digest, job.project.recipe.digest),
        "the base": ((before.base.fingerprint, before.base.digest), (base.fingerprint, base.digest)),
        "a delta, or which of them varies": (before.deltas, job.deltas),
        "the fused line": (before.fused, job.varied.fused),
        "the evaluation": (before.evaluation, job.evaluation),
    }
    return next((name for name, (then, now) in checks.items() if then != now), None)
