"""`deltareg eval`: one evaluation of one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from deltareg.cli.options import Device, Eval, Json, Metric, ScoreOption, Threads, Timeout

__all__ = ["evaluate", "refuse_two", "seconds_of"]


def evaluate(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A recipe (deltareg.toml or its directory), a checkpoint, or hf://…."),
    ],
    command: Eval = None,
    score: ScoreOption = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="NAMES", help="Tasks of lm-evaluation-harness, with commas between them."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Examples of each task. By default all.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Examples that the model is given at once.")
    ] = 1,
    include_path: Annotated[
        str | None,
        typer.Option("--include-path", metavar="DIR", help="Tasks of your own: a directory of the harness's YAML."),
    ] = None,
    metric: Metric = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write the results as lm-evaluation-harness does, with this report."
        ),
    ] = None,
    timeout: Timeout = None,
    force: Annotated[bool, typer.Option("--force", help="Evaluate what the check refuses too.")] = False,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Evaluate what a recipe builds, or a checkpoint.

    By a command, by a Python function, or by tasks of lm-evaluation-harness (pip install 'deltareg[eval]'). What a
    recipe says is built into a temporary directory ($TMPDIR says where), and removed afterwards. FUNCTION, CMD and
    tasks are code that runs with your rights: give none that you have not read.

    \b
      deltareg eval deltareg.toml --tasks arc_easy,hellaswag --limit 100 --out after.json
      deltareg eval llama/ --score score.py:accuracy
    """
    from pathlib import Path

    from deltareg.analysis.evaluating import evaluate
    from deltareg.analysis.harness import Harness
    from deltareg.analysis.scoring import load_score
    from deltareg.cli.output import print_report, warn
    from deltareg.cli.progress import watched
    from deltareg.cli.session import current_settings, sources, writable_registry
    from deltareg.errors import UsageError
    from deltareg.paths import expand_home

    refuse_two({"--eval": command, "--score": score, "--tasks": tasks})
    if tasks is None and (limit is not None or include_path is not None or batch_size != 1):
        raise UsageError("--limit, --batch-size and --include-path are for --tasks", hint="deltareg eval --help")
    include = None if include_path is None else Path(expand_home(include_path))
    settings = current_settings()
    with writable_registry(settings, dry_run=False) as registry, watched() as progress:
        report = evaluate(
            target,
            sources(settings, registry),
            score=None if score is None else load_score(score, metric or ()),
            command=command,
            tasks=None if tasks is None else Harness(_names(tasks), limit, batch_size, include, metric or ()),
            metrics=tuple(metric or ()),
            timeout=seconds_of(timeout),
            out=None if out is None else expand_home(out),
            force=force,
            device=device,
            threads=threads or settings.threads,
            progress=progress,
        )
    for line in report.warnings:
        warn(line)
    fields = {delta.reference: str(delta.weight) for delta in report.deltas}
    fields |= {name: "no finite number" if value is None else f"{value:.6g}" for name, value in report.metrics.items()}
    unshown = ["checkpoint", "base", "method", "deltas", "evaluation", "metrics", "warnings"]
    print_report(report, json=json, leave_out=unshown, more=fields)


def refuse_two(given: Mapping[str, str | None]) -> None:
    """Raise UsageError unless just one of the options is given."""
    from deltareg.errors import UsageError

    named = [option for option, value in given.items() if value is not None]
    if len(named) != 1:
        told = " and ".join(named) if named else "no evaluation"
        raise UsageError(f"{told} given: one of {', '.join(given)} says how to evaluate", hint="deltareg --help")


def seconds_of(text: str | None) -> float | None:
    """The seconds of a span of time. Raises InvalidArgument."""
    from deltareg.cli.units import parse_duration

    return None if text is None else float(parse_duration(text))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
