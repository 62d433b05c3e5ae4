"""`deltareg compare`: how much deltas disturb one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import Json, Threads, complete_delta
from deltareg.paths import expand_home

if TYPE_CHECKING:
    from deltareg.analysis.compare import Comparison, ComparisonReport
    from deltareg.analysis.side_by_side import SideBySideReport

__all__ = ["compare"]


def compare(
    references: Annotated[
        list[str],
        typer.Argument(metavar="REFERENCE", help="Two deltas or more.", autocompletion=complete_delta),
    ],
    exact: Annotated[
        bool, typer.Option("--exact", help="Compute it from the deltas themselves, instead of from their sketches.")
    ] = False,
    both: Annotated[
        bool,
        typer.Option("--both", help="Estimates from the sketches beside exact figures, with what lies between them."),
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Print it layer by layer too.")] = False,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw cosines and norms by layer: FILE ends in .png, .svg or .html."
        ),
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Say how much deltas of one parameter space disturb one another.

    Prints the cosine of each two of them, the ratio of their norms, and the share of elements whose signs oppose, by
    class of module. A cosine near 0 means that they hardly do; near 1 that they teach the same; below 0 that they undo
    one another. Estimated from sketches of at most a megabyte, with the standard error beside it, where a model is
    large; computed where it is small, and with --exact. With --both the two stand side by side, and whether the
    estimate is as near as its standard error says.

    \b
      deltareg compare acme/search:1.0.0 acme/chat:2.1.0 --plot interference.html
    """
    from deltareg.analysis.compare import compare
    from deltareg.analysis.plots import check_plot
    from deltareg.analysis.plots import plot as draw
    from deltareg.analysis.side_by_side import SideBySideReport, side_by_side
    from deltareg.analysis.side_by_side_plot import plot_side_by_side
    from deltareg.cli.output import hint, print_json
    from deltareg.cli.progress import watched
    from deltareg.cli.session import current_settings, open_registry
    from deltareg.errors import InvalidArgument

    if exact and both:
        raise InvalidArgument("--both has the exact figures already", hint="leave out --exact")
    picture = None if plot is None else expand_home(plot)
    if picture is not None:
        check_plot(picture)
    settings = current_settings()
    registry = open_registry(settings)
    versions = [registry.version_of(reference) for reference in references]
    deltas = [(str(version), registry.artifact(version)) for version in versions]
    threads = threads or settings.threads
    with watched() as progress:
        if both:
            report = side_by_side(deltas, threads=threads, progress=progress)
        else:
            report = compare(deltas, exact=exact, threads=threads, progress=progress)
    if picture is not None:
        _ = plot_side_by_side(report, picture) if isinstance(report, SideBySideReport) else draw(report, picture)
    if json:
        print_json(report)
        return
    if isinstance(report, SideBySideReport):
        _print_both(report, layers=layers)
    else:
        _print(report, layers=layers)
    if picture is not None:
        hint(f"drew {picture}")


def _print(report: ComparisonReport, *, layers: bool) -> None:
    from deltareg.analysis.compare import ALL
    from deltareg.analysis.plots import with_error
    from deltareg.cli.output import hint, print_fields, print_table
    from deltareg.cli.units import counted

    names = [delta.name for delta in report.deltas]
    print_fields({f"delta {number}": name for number, name in enumerate(names, 1)})
    totals = {(pair.first, pair.second): pair.classes[ALL] for pair in report.pairs}
    cosines = {both: with_error(found.cosine, found.cosine_error) for both, found in totals.items()}
    numbers = [str(number) for number in range(1, len(names) + 1)]
    rows = [
        [number, *("1" if one == other else cosines.get((one, other)) or cosines[other, one] for other in names)]
        for number, one in zip(numbers, names, strict=True)
    ]
    print_table(["cosine", *numbers], rows, right=numbers)
    columns = ["deltas", "module class", "cosine", "norm ratio", "opposed signs", "parameters", "how"]
    order = {name: str(number) for number, name in enumerate(names, 1)}
    rows = [
        [f"{order[pair.first]} · {order[pair.second]}", f"{layer} {key}".strip(), *_cells(found)]
        for pair in report.pairs
        for layer, key, found in pair.rows(layers=layers)
    ]
    print_table(columns, rows, right=columns[2:6])
    # One that several pairs skip is one tensor still.
    skipped = len({tensor.name for pair in report.pairs for tensor in pair.skipped})
    if skipped:
        where = "" if len(report.pairs) == 1 else " in every pair"
        hint(f"{counted(skipped, 'tensor')} {'was' if skipped == 1 else 'were'} not compared{where}: --json says why")


def _print_both(report: SideBySideReport, *, layers: bool) -> None:
    from deltareg.analysis.side_by_side_plot import FIGURES, agreed, told
    from deltareg.cli.output import hint, print_fields, print_table
    from deltareg.cli.units import counted, number

    order = {delta.name: str(place) for place, delta in enumerate(report.deltas, 1)}
    print_fields({f"delta {place}": name for name, place in order.items()})
    names = {(pair.first, pair.second): f"{order[pair.first]} · {order[pair.second]}" for pair in report.pairs}
    columns = ["deltas", "figure", "estimates", "within one error", "within two", "largest difference"]
    rows = [
        [names[pair.first, pair.second], name, *agreed(found)]
        for pair in report.pairs
        for name, found in (("cosine", pair.cosine), ("opposed signs", pair.sign_conflict))
    ]
    print_table(columns, rows, right=columns[2:])
    columns = ["deltas", "module class", *FIGURES, "parameters"]
    rows = [
        [
            names[pair.first, pair.second],
            f"{row.layer} {row.module_class}".strip(),
            *told(row.cosine),
            *told(row.sign_conflict),
            number(row.parameters),
        ]
        for pair in report.pairs
        for row in pair.differences
        if layers or not row.layer
    ]
    print_table(columns, rows, right=columns[2:])
    skipped = len({tensor.name for pair in report.pairs for tensor in pair.skipped})
    if skipped:
        hint(f"{counted(skipped, 'tensor')} {'was' if skipped == 1 else 'were'} not compared: --json says why")


def _cells(found: Comparison) -> list[str]:
    from deltareg.analysis.plots import with_error
    from deltareg.cli.units import number, ratio

    conflict = "" if found.sign_conflict is None else f"{100 * found.sign_conflict:.1f} %"
    return [
        with_error(found.cosine, found.cosine_error),
        "" if found.norm_ratio is None else ratio(found.norm_ratio),
        conflict,
        number(found.parameters),
        "exact" if found.exact else "estimated",
    ]
