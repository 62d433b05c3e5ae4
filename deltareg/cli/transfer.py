"""`deltareg transfer`: how much of a delta's effect arrives on another base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import Json
from deltareg.paths import expand_home

if TYPE_CHECKING:
    from deltareg.analysis.transfer import TransferAnalysis

__all__ = ["transfer"]


def _results(flag: str, of: str) -> typer.models.OptionInfo:
    return typer.Option(flag, metavar="FILE", help=f"Results of {of}: a file or a directory. Once for each family.")


def transfer(
    tables: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="EVALS",
            help="CSV files with the columns task, base, post, new_base, real[, group].",
            show_default=False,
        ),
    ] = None,
    base: Annotated[list[str] | None, _results("--base", "the base that the delta was taken from")] = None,
    post: Annotated[list[str] | None, _results("--post", "the model that was post-trained on it")] = None,
    new_base: Annotated[list[str] | None, _results("--new-base", "the base that the delta was added to")] = None,
    real: Annotated[
        list[str] | None, _results("--real", "what came of it: by the delta, or by post-training the new base")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME", help="What to call a family of models. Once for each of them."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="METRIC",
            help="The metric to take, such as acc_norm; given again, another where a task lacks the first.",
        ),
    ] = None,
    subtasks: Annotated[
        bool, typer.Option("--subtasks", help="Take the parts of a group, such as mmlu's subjects, not the group.")
    ] = False,
    confidence: Annotated[
        float, typer.Option("--confidence", metavar="P", help="Confidence of the intervals, from 0 to 1.")
    ] = 0.95,
    resamples: Annotated[int, typer.Option("--resamples", metavar="N", min=0, help="Draws of the bootstrap.")] = 10_000,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Where the draws of the bootstrap begin.")
    ] = 0,
    plot: Annotated[
        str | None,
        typer.Option("--plot", metavar="FILE", help="Draw measured against predicted: .png, .svg or .html."),
    ] = None,
    json: Json = False,
) -> None:
    """Say how much of a delta's effect arrives on another base.

    Predicts each task by new base + post − base, and regresses what was measured on that: gamma is the share that
    arrives, 1 if all of it does. Reads results of lm-evaluation-harness as they are, and CSV tables.

    \b
      deltareg transfer --base evals/old --post evals/chat --new-base evals/new --real evals/new-chat
      deltareg transfer families.csv --plot transfer.html
    """
    from deltareg.analysis import transfer as analyse
    from deltareg.analysis.evaluations import gather_all
    from deltareg.analysis.pictures import check_plot
    from deltareg.analysis.transfer_plot import plot_transfer
    from deltareg.cli.output import print_json

    picture = None if plot is None else expand_home(plot)
    if picture is not None:
        check_plot(picture)
    paths = {"base": base, "post": post, "new_base": new_base, "real": real}
    found = gather_all(
        [expand_home(path) for path in tables or []],
        {role: [expand_home(path) for path in given or []] for role, given in paths.items()},
        names=name or (),
        metrics=metric or (),
        subtasks=subtasks,
    )
    analysis = analyse(
        found.rows,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        left_out=found.left_out,
        warnings=found.warnings,
    )
    if picture is not None:
        plot_transfer(analysis, picture)
    if json:
        print_json(analysis)
    else:
        _print(analysis, picture)


def _print(analysis: TransferAnalysis, picture: Path | None) -> None:
    from deltareg.analysis.transfer_plot import LINE_HEADS, line_rows
    from deltareg.cli.output import hint, print_fields, print_table, warn
    from deltareg.cli.units import counted

    print_fields(
        {
            "tasks": str(len(analysis.points)),
            "mean predicted": f"{analysis.mean_hypothetical:.4g}",
            "mean measured": f"{analysis.mean_real:.4g}",
            "confidence": f"{100 * analysis.confidence:g} %",
        }
    )
    print_table(LINE_HEADS, line_rows(analysis), right=LINE_HEADS[1:])
    columns = ["task", "group", "base", "post", "new base", "predicted", "measured", "residual"]
    rows = [
        [
            f"{point.task} {point.metric}".strip(),
            point.group,
            *(f"{value:.4g}" for value in (point.base, point.post, point.new_base, point.hypothetical, point.real)),
            f"{point.residual:+.3g}",
        ]
        for point in analysis.points
    ]
    print_table(columns, rows, right=columns[2:])
    for warning in analysis.warnings:
        warn(warning)
    for one in analysis.left_out[:5]:
        hint(f"{one.task}{f' ({one.group})' if one.group else ''} was left out: {one.reason}")
    if len(analysis.left_out) > 5:
        hint(f"{counted(len(analysis.left_out) - 5, 'task')} more left out: --json says why")
    if picture is not None:
        hint(f"drew {picture}")
