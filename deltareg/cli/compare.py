"""`deltareg compare`: how much deltas disturb one another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import Json, Threads, complete_delta
from deltareg.paths import expand_home

if TYPE_CHECKING:
    from deltareg.analysis.compare import Comparison, ComparisonReport, PairReport

__all__ = ["compare"]


def compare(
    references: Annotated[
        list[str],
        typer.Argument(metavar="REFERENCE", help="Two deltas or more.", autocompletion=complete_delta),
    ],
    exact: Annotated[
        bool, typer.Option("--exact", help="Compute it from the deltas themselves, instead of from their sketches.")
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
    large; computed where it is small, and with --exact.

    \b
      deltareg compare acme/search:1.0.0 acme/chat:2.1.0 --plot interference.html
    """
    from deltareg.analysis.compare import compare
    from deltareg.analysis.plots import check_plot
    from deltareg.analysis.plots import plot as draw
    from deltareg.cli.output import print_json
    from deltareg.cli.progress import watched
    from deltareg.cli.session import current_settings, open_registry

    picture = None if plot is None else expand_home(plot)
    if picture is not None:
        check_plot(picture)
    settings = current_settings()
    registry = open_registry(settings)
    versions = [registry.version_of(reference) for reference in references]
    deltas = [(str(version), registry.artifact(version)) for version in versions]
    with watched() as progress:
        report = compare(deltas, exact=exact, threads=threads or settings.threads, progress=progress)
    if picture is not None:
        draw(report, picture)
    if json:
        print_json(report)
    else:
        _print(report, picture, layers=layers)


def _print(report: ComparisonReport, picture: Path | None, *, layers: bool) -> None:
    from deltareg.analysis.compare import ALL
    from deltareg.cli.output import hint, print_fields, print_table

    names = [delta.name for delta in report.deltas]
    print_fields({f"delta {number}": name for number, name in enumerate(names, 1)})
    cosines = {(pair.first, pair.second): _cosine(pair.classes.get(ALL)) for pair in report.pairs}
    numbers = [str(number) for number in range(1, len(names) + 1)]
    rows = [
        [number, *("1" if one == other else cosines.get((one, other)) or cosines[other, one] for other in names)]
        for number, one in zip(numbers, names, strict=True)
    ]
    print_table(["cosine", *numbers], rows, right=numbers)
    columns = ["deltas", "module class", "cosine", "norm ratio", "opposed signs", "parameters", "how"]
    order = {name: str(number) for number, name in enumerate(names, 1)}
    print_table(
        columns, [row for pair in report.pairs for row in _rows(pair, order, layers=layers)], right=columns[2:6]
    )
    skipped = sum(len(pair.skipped) for pair in report.pairs)
    if skipped:
        hint(f"{skipped} tensor{'s were' if skipped > 1 else ' was'} not compared: --json says why")
    if picture is not None:
        hint(f"drew {picture}")


def _rows(pair: PairReport, order: dict[str, str], *, layers: bool) -> list[list[str]]:
    from deltareg.analysis.compare import ALL

    both = f"{order[pair.first]} · {order[pair.second]}"
    groups = [("", pair.classes), *(pair.layers.items() if layers else ())]
    return [
        [both, f"{layer} {key}".strip(), *_cells(found)]
        for layer, classes in groups
        for key, found in sorted(classes.items(), key=lambda item: (item[0] != ALL, item[0]))
    ]


def _cells(found: Comparison) -> list[str]:
    from deltareg.cli.units import number, ratio

    conflict = "" if found.sign_conflict is None else f"{100 * found.sign_conflict:.1f} %"
    return [
        _cosine(found),
        "" if found.norm_ratio is None else ratio(found.norm_ratio),
        conflict,
        number(found.parameters),
        "exact" if found.exact else "estimated",
    ]


def _cosine(found: Comparison | None) -> str:
    if found is None or found.cosine is None:
        return "–"
    error = f" ± {found.cosine_error:.4f}" if found.cosine_error else ""
    return f"{found.cosine:.4f}{error}"
