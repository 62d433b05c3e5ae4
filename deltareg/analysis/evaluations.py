"""Results of evaluations as their programs write them: lm-evaluation-harness's files, and tables in CSV."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, cast

from pydantic import BaseModel, Field

from deltareg.errors import BadEvaluation, InvalidArgument, NotFound, translate_os_errors
from deltareg.manifest import Document

__all__ = [
    "ROLES",
    "Evaluation",
    "Gathered",
    "LeftOut",
    "Score",
    "TransferRow",
    "gather",
    "gather_all",
    "read_evaluation",
    "read_table",
]

ROLES = ("base", "post", "new_base", "real")
"""What is evaluated: Θ_base, Θ_post, Θ'_base, and the model that post-training or a delta made of Θ'_base."""

# Less of these is better, which old result files do not say.
_LOSSES = re.compile(r"perplexity|bits_per_byte|(?:^|_)(?:ppl|loss|bpb)(?:$|_)")


class TransferRow(Document):
    """One task, as the four models do it. Standard errors are absent where they are not known."""

    task: str
    group: str = Field(default="", description="the family of models, where there are several")
    metric: str = ""
    base: float
    post: float
    new_base: float
    real: float
    base_error: float | None = Field(default=None, ge=0)
    post_error: float | None = Field(default=None, ge=0)
    new_base_error: float | None = Field(default=None, ge=0)
    real_error: float | None = Field(default=None, ge=0)


class LeftOut(Document):
    """A task that was not taken, and why."""

    task: str
    group: str = ""
    reason: str


@dataclass(frozen=True)
class Score:
    """One metric of one task. `error` is its standard error; `falls` where less is better."""

    value: float
    error: float | None = None
    falls: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What one model was found to do: scores by task and metric, in the order of the file."""

    name: str
    scores: Mapping[str, Mapping[str, Score]]
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    shots: Mapping[str, str] = field(default_factory=dict[str, str])
    subtasks: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """The parts of each group."""


@dataclass
class Gathered:
    """The rows of an analysis, what was left out of them, and what the reader should know."""

    rows: list[TransferRow] = field(default_factory=list[TransferRow])
    left_out: list[LeftOut] = field(default_factory=list[LeftOut])
    warnings: list[str] = field(default_factory=list[str])

    def add(self, other: Gathered) -> None:
        self.rows += other.rows
        self.left_out += other.left_out
        self.warnings += other.warnings


# --- tables -------------------------------------------------------------------------------------------------------


def read_table(path: Path) -> Gathered:
    """The rows of a CSV file with the columns task, base, post, new_base and real.

    `group`, `metric` and standard errors (`base_stderr`, …) may be there too; other columns are passed over. A row
    without one of the four values is left out. Raises BadEvaluation, NotFound, NotAllowed.
    """
    lines = csv.reader(_text(path).splitlines())
    found = Gathered()
    try:
        names = [_column(name) for name in next(lines, list[str]())]
        missing = [name for name in ("task", *ROLES) if name not in names]
        if missing:
            raise BadEvaluation(
                f"{path} has no column {', '.join(missing)}",
                hint="its first line names the columns: task,base,post,new_base,real[,group,metric]",
                path=str(path),
            )
        for cells in lines:
            if any(cell.strip() for cell in cells):
                _take_row(found, dict(zip(names, cells, strict=False)), f"{path}:{lines.line_num}")
    except csv.Error as error:
        raise BadEvaluation(f"{path}:{lines.line_num} is no CSV: {error}", path=str(path)) from error
    return found


def _column(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _take_row(found: Gathered, cells: Mapping[str, str], where: str) -> None:
    task, group = cells.get("task", "").strip(), cells.get("group", "").strip()
    if not task:
        raise BadEvaluation(f"{where} names no task")
    missing = [role for role in ROLES if not cells.get(role, "").strip()]
    if missing:
        found.left_out.append(LeftOut(task=task, group=group, reason=f"no value of {', '.join(missing)}"))
        return
    values: dict[str, Any] = {role: _number(cells[role], f"{where}, {role}") for role in ROLES}
    for role in ROLES:
        if (text := cells.get(f"{role}_stderr", "").strip()) != "":
            values[f"{role}_error"] = _number(text, f"{where}, {role}_stderr", least=0)
    found.rows.append(TransferRow(task=task, group=group, metric=cells.get("metric", "").strip(), **values))


def _number(text: str, where: str, *, least: float = -math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < least:
        raise BadEvaluation(
            f"{where}: {text.strip()!r:.80} is no number", hint="write 48.3 or 0.483, without a sign of %"
        )
    return value


# --- lm-evaluation-harness ----------------------------------------------------------------------------------------


class _Results(BaseModel):
    """A results file of lm-evaluation-harness, as far as it is read."""

    results: dict[str, dict[str, Any]]
    versions: dict[str, Any] = Field(default_factory=dict)
    n_shot: dict[str, Any] = Field(default_factory=dict, alias="n-shot")
    higher_is_better: dict[str, Any] = Field(default_factory=dict)
    group_subtasks: dict[str, list[str]] = Field(default_factory=dict)
    model_name: str | None = None
    date: float | None = None


def read_evaluation(paths: Path | Sequence[Path]) -> Evaluation:
    """What results files say of one model. A directory stands for all results files in it and below.

    Of a task that several files have the latest counts, by the date in the file. A JSON object of numbers is an
    evaluation too, each of its names a task. Raises BadEvaluation for files that are none of that, and where files of a
    directory are of several models; NotFound, NotAllowed.
    """
    given = [paths] if isinstance(paths, Path) else list(paths)
    found = sorted((one for path in given for one in _files(path)), key=lambda one: (one[1].date or 0, str(one[0])))
    models = sorted({results.model_name for _, results in found if results.model_name is not None})
    if len(models) > 1:
        raise BadEvaluation(
            f"{', '.join(map(str, given))}: results of several models: {', '.join(models)}",
            hint="name the directory or file of one of them",
            models=models,
        )
    merged: dict[str, Any] = {"scores": {}, "versions": {}, "shots": {}, "subtasks": {}}
    for path, results in found:
        scores = {task: _scores(task, values, results, path) for task, values in results.results.items()}
        merged["scores"].update({task: metrics for task, metrics in scores.items() if metrics})
        merged["versions"].update({task: str(version) for task, version in results.versions.items()})
        merged["shots"].update({task: str(shots) for task, shots in results.n_shot.items()})
        merged["subtasks"].update(results.group_subtasks)
    return Evaluation(name=models[0] if models else given[0].stem, **merged)


def _files(path: Path) -> Iterator[tuple[Path, _Results]]:
    if not path.is_dir():
        results = _parsed(path)
        if results is None:
            raise BadEvaluation(
                f"{path} has no results",
                hint="give a results_….json of lm-evaluation-harness, a directory of them, or a JSON object of numbers",
                path=str(path),
            )
        yield path, results
        return
    with translate_os_errors("list", path):
        inside = sorted(path.rglob("*.json"))
    # Other JSON files may lie there: configurations, samples.
    found = [(one, results) for one in inside if (results := _parsed(one, lenient=True)) is not None]
    if not found:
        raise BadEvaluation(f"there are no results in {path}", hint="lm_eval --output_path writes them", path=str(path))
    yield from found


def _parsed(path: Path, *, lenient: bool = False) -> _Results | None:
    """The results in a file; None for JSON that is something else."""
    try:
        value: Any = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        if lenient:
            return None
        raise BadEvaluation(f"{path} is no JSON: {error}", path=str(path)) from error
    if not isinstance(value, dict):
        return None
    if not lenient and "results" not in value:
        document = cast("dict[str, Any]", value)
        numbers = document.get("metrics", document)
        if not isinstance(numbers, dict) or not any(map(_is_number, cast("dict[str, Any]", numbers).values())):
            return None
        value = {"results": {task: {"": one} for task, one in cast("dict[str, Any]", numbers).items()}}
    try:
        return _Results.model_validate(value)
    except ValueError:
        return None


def _scores(task: str, values: Mapping[str, Any], results: _Results, path: Path) -> dict[str, Score]:
    """The metrics of one task. Their keys are `metric,filter`; files before version 0.4 have the metric alone."""
    new = any("," in key for key in values)
    told: Any = results.higher_is_better.get(task)
    falling = cast("dict[str, Any]", told) if isinstance(told, dict) else {}
    scores: dict[str, Score] = {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if metric.endswith("_stderr") or (new and not comma) or not _is_number(value):
            continue
        if not math.isfinite(value):
            raise BadEvaluation(f"{path}: {key} of {task} is {value}, which is no number", path=str(path))
        error = values.get(f"{metric}_stderr{comma}{kind}")
        higher = falling.get(metric)
        falls = higher is False or (higher is None and _LOSSES.search(metric or task) is not None)
        scores[key] = Score(float(value), float(error) if _is_number(error) and error >= 0 else None, falls)
    return scores


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(path: Path) -> str:
    with translate_os_errors("read", path):
        try:
            return path.read_bytes().decode("utf-8-sig")
        except FileNotFoundError as error:
            raise NotFound(f"there is no file {path}", path=str(path)) from error
        except IsADirectoryError as error:
            raise BadEvaluation(
                f"{path} is a directory",
                hint="name a CSV file; directories of results go with --base, --post, --new-base and --real",
                path=str(path),
            ) from error
        except UnicodeDecodeError as error:
            raise BadEvaluation(f"{path} is no UTF-8 text: {error}", path=str(path)) from error


# --- four evaluations as rows -------------------------------------------------------------------------------------


def gather(
    group: str,
    evaluations: Mapping[str, Evaluation],
    *,
    metrics: Sequence[str] = (),
    subtasks: bool = False,
) -> Gathered:
    """A row for each task that all four evaluations have, in the order of the first, one metric each.

    The metric is the first of `metrics` that all have (`acc` or `acc,none`), or else the first one in the file of which
    more is better. The parts of a group stand for it with `subtasks`, the group for its parts without.
    """
    sides = [evaluations[role] for role in ROLES]
    tasks = dict.fromkeys(task for side in sides for task in side.scores)
    found = Gathered()
    hidden = _groups(sides) if subtasks else _parts(sides)
    for task in tasks:
        if task in hidden:
            continue
        missing = [role for role, side in zip(ROLES, sides, strict=True) if task not in side.scores]
        if missing:
            found.left_out.append(LeftOut(task=task, group=group, reason=f"no value of {', '.join(missing)}"))
            continue
        metric = _metric([side.scores[task] for side in sides], metrics)
        if metric is None:
            asked = f"none of {', '.join(metrics)}" if metrics else "no metric of which more is better"
            found.left_out.append(LeftOut(task=task, group=group, reason=f"the four have {asked} in common"))
            continue
        found.rows.append(_row(task, group, metric, sides))
        found.warnings += _differences(task, group, sides)
    return found


def _row(task: str, group: str, metric: str, sides: Sequence[Evaluation]) -> TransferRow:
    scores = {role: side.scores[task][metric] for role, side in zip(ROLES, sides, strict=True)}
    values: dict[str, Any] = {role: score.value for role, score in scores.items()}
    values.update({f"{role}_error": score.error for role, score in scores.items()})
    return TransferRow(task=task, group=group, metric=metric, **values)


def _metric(scores: Sequence[Mapping[str, Score]], wanted: Sequence[str]) -> str | None:
    common = [key for key in scores[0] if all(key in one for one in scores)]
    if wanted:
        return next((key for name in wanted for key in common if name in (key, key.partition(",")[0])), None)
    return next((key for key in common if not any(one[key].falls for one in scores)), None)


def _shared(sides: Iterable[Evaluation]) -> Iterator[tuple[str, Sequence[str]]]:
    """The groups that have a score of their own everywhere, and parts that have one, with these parts."""
    sides = list(sides)
    for group, parts in {name: parts for side in sides for name, parts in side.subtasks.items()}.items():
        scored = [part for part in parts if part != group and all(part in side.scores for side in sides)]
        if scored and all(group in side.scores for side in sides):
            yield group, scored


def _parts(sides: Sequence[Evaluation]) -> set[str]:
    return {part for _, parts in _shared(sides) for part in parts}


def _groups(sides: Sequence[Evaluation]) -> set[str]:
    return {group for group, _ in _shared(sides)}


def _differences(task: str, group: str, sides: Sequence[Evaluation]) -> Iterator[str]:
    """What makes numbers of one task hard to compare."""
    for what, found in (
        ("version", [side.versions.get(task) for side in sides]),
        ("number of shots", [side.shots.get(task) for side in sides]),
    ):
        if len({one for one in found if one is not None}) > 1:
            told = ", ".join(f"{one or '?'} for {role}" for role, one in zip(ROLES, found, strict=True))
            yield f"{task}{f' ({group})' if group else ''}: the {what} differs: {told}"


def gather_all(
    tables: Sequence[Path],
    results: Mapping[str, Sequence[Path]],
    *,
    names: Sequence[str] = (),
    metrics: Sequence[str] = (),
    subtasks: bool = False,
) -> Gathered:
    """The rows of CSV tables, and of results by role: the first of each role are one family of models, and so on.

    Families are called by `names`, or by the models that their real results name. Raises InvalidArgument where roles do
    not match in number, names do not match the families, or nothing is given; what reading files raises.
    """
    counts = {role: len(results.get(role, ())) for role in ROLES}
    families = max(counts.values())
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of --{role.replace('_', '-')}" for role, count in counts.items())
        raise InvalidArgument(
            f"results do not match: {told}", hint="give each of the four once for each family of models"
        )
    if not families and not tables:
        raise InvalidArgument(
            "there is nothing to analyse", hint="give a CSV file, or --base, --post, --new-base and --real"
        )
    if names and len(names) != families:
        raise InvalidArgument(f"{len(names)} names for {families} families", hint="give --name once for each of them")
    found = Gathered()
    for path in tables:
        found.add(read_table(path))
    for number in range(families):
        sides = {role: read_evaluation(results[role][number]) for role in ROLES}
        name = names[number] if names else sides["real"].name if families > 1 or tables else ""
        found.add(gather(name, sides, metrics=metrics, subtasks=subtasks))
    return found
