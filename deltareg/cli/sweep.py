"""`deltareg sweep`: a metric over the weights of a recipe's deltas."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import Device, Eval, Json, LowerIsBetter, Metric, ScoreOption, Threads, Timeout
from deltareg.paths import expand_home

if TYPE_CHECKING:
    from deltareg.analysis.curves import Curve
    from deltareg.analysis.sweep_report import SweepPoint, SweepReport

__all__ = ["sweep"]


def sweep(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A deltareg.toml, or the directory that holds it.")],
    alpha: Annotated[
        str,
        typer.Option(
            "--alpha",
            metavar="VALUES",
            help="What the recipe's weight of its first delta is multiplied by: start:stop:step, the stop included, "
            "or a list with commas.",
        ),
    ],
    beta: Annotated[
        str | None,
        typer.Option("--beta", metavar="VALUES", help="The same for the second delta: each with each alpha."),
    ] = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="Give the two deltas the weights alpha and 1 - alpha instead.")
    ] = False,
    delta: Annotated[
        list[str] | None,
        typer.Option(
            "--delta",
            metavar="NAMESPACE/NAME",
            help="The delta of alpha; given again, that of beta. By default as the recipe has them.",
        ),
    ] = None,
    command: Eval = None,
    score: ScoreOption = None,
    metric: Metric = None,
    lower_is_better: LowerIsBetter = None,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", metavar="SHARE", help="Share of max - min that a point of the plateau may lose to the best."
        ),
    ] = 0.05,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="FILE", help="Draw it: FILE ends in .png, .svg or .html."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Keep the points in a JSON file, written after each one; the same sweep goes on from it.",
        ),
    ] = None,
    timeout: Timeout = None,
    force: Annotated[bool, typer.Option("--force", help="Evaluate what the check refuses too.")] = False,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Evaluate a recipe at many weights of its deltas, and say which are best.

    With --score the base is loaded once, and a Python function of yours is called with the model, whose weights change
    in place, and its tokenizer: score(model, tokenizer) returns numbers by name. With --eval a checkpoint is built for
    each point, given to a command, and deleted. FUNCTION and CMD are code that runs with your rights: give none that
    you have not read.

    Prints for each metric the best weight, the value at 0 and at 1, whether the curve is concave, and how wide its
    plateau is. Follows deltareg.lock, or writes it.

    \b
      deltareg sweep deltareg.toml --alpha 0:2:0.1 --score score.py:accuracy --plot sweep.png
      deltareg sweep deltareg.toml --alpha 0:1:0.25 --beta 0:1:0.25 --eval 'python evaluate.py {model}'
    """
    from deltareg.analysis.grid import parse_values
    from deltareg.analysis.plots import check_plot
    from deltareg.analysis.scoring import load_score
    from deltareg.analysis.sweep import sweep
    from deltareg.analysis.sweep_plots import plot_sweep
    from deltareg.cli.evaluate import refuse_two, seconds_of
    from deltareg.cli.output import print_json
    from deltareg.cli.session import current_settings, sources, writable_registry

    refuse_two({"--eval": command, "--score": score})
    values = parse_values(alpha, "--alpha"), None if beta is None else parse_values(beta, "--beta")
    picture = None if plot is None else expand_home(plot)
    if picture is not None:
        check_plot(picture)
    settings = current_settings()
    with writable_registry(settings, dry_run=False) as registry:
        report = sweep(
            expand_home(recipe),
            sources(settings, registry),
            alpha=values[0],
            beta=values[1],
            fused=fused,
            score=None if score is None else load_score(score, metric or ()),
            command=command,
            metrics=metric or (),
            lower_is_better=lower_is_better or (),
            deltas=delta or (),
            tolerance=tolerance,
            timeout=seconds_of(timeout),
            out=None if out is None else expand_home(out),
            force=force,
            device=device,
            threads=threads or settings.threads,
            watch=_tell if sys.stderr.isatty() else None,
        )
    if picture is not None:
        plot_sweep(report, picture)
    if json:
        print_json(report)
    else:
        _print(report, picture)


def _tell(point: SweepPoint) -> None:
    """A point that is done, for whoever sits before a terminal."""
    from deltareg.cli.output import printable

    beta = "" if point.beta is None else f", beta {point.beta:g}"
    told = ", ".join(f"{name} {_number(value)}" for name, value in point.metrics.items())
    print(printable(f"alpha {point.alpha:g}{beta}: {told}"), file=sys.stderr, flush=True)


def _print(report: SweepReport, picture: Path | None) -> None:
    from deltareg.cli.output import hint, print_fields, print_table, warn
    from deltareg.cli.units import counted, duration

    for line in report.warnings:
        warn(line)
    roles = {delta.varies: delta.reference for delta in report.deltas if delta.varies}
    fields = {"recipe": report.recipe, "base": report.base.location, "alpha": roles["alpha"]}
    if "beta" in roles:
        fields["1 - alpha" if report.fused else "beta"] = roles["beta"]
    applied = sum(point.apply_seconds for point in report.points)
    scored = sum(point.score_seconds for point in report.points)
    print_fields(
        {
            **fields,
            "points": f"{len(report.points)}, {report.reused_points} of them done before",
            "applying": duration(applied),
            "evaluating": duration(scored),
        }
    )
    names = list(report.metrics)
    places = ["alpha"] + (["beta"] if report.beta is not None else [])
    rows = [
        [*(f"{getattr(point, place):g}" for place in places), *(_number(point.metrics.get(name)) for name in names)]
        for point in report.points
    ]
    print_table([*places, *names], rows, right=[*places, *names])
    columns = ["metric", "along", "best", "at", "at 0", "at 1", "curvature", "shape", "plateau"]
    lines = [
        [name, along, *_cells(curve, summary.at_zero, summary.at_one)]
        for name, summary in report.metrics.items()
        for along, curve in (("alpha", summary.alpha), ("beta", summary.beta))
        if curve is not None
    ]
    print_table(columns, lines, right=columns[2:7])
    for name, summary in report.metrics.items():
        for along, curve in (("alpha", summary.alpha), ("beta", summary.beta)):
            for note in curve.notes if curve is not None else ():
                hint(f"{name} along {along}: {note}")
        if summary.not_finite:
            warn(f"{name} was no finite number at {counted(summary.not_finite, 'point')}, which are left out")
    if picture is not None:
        hint(f"drew {picture}")


def _cells(curve: Curve, at_zero: float | None, at_one: float | None) -> list[str]:
    bend, wide = curve.concavity, curve.plateau
    plateau = ""
    if wide is not None:
        ends = " and ".join(name for name, is_open in (("first", wide.open_low), ("last", wide.open_high)) if is_open)
        plateau = f"{wide.low:g} … {wide.high:g}" + (f" (with the {ends} point)" if ends else "")
    return [
        _number(curve.best),
        f"{curve.best_at:g}",
        _number(at_zero),
        _number(at_one),
        "" if bend is None else f"{bend.curvature:.3g} [{bend.low:.3g}, {bend.high:.3g}]",
        "" if bend is None else f"{bend.verdict}, {100 * bend.not_above_zero:.0f} % of differences",
        plateau,
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
