"""`deltareg methods`: how deltas can be merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import Json

if TYPE_CHECKING:
    from deltareg.merge import Parameter

__all__ = ["methods"]


def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="METHOD", help="Tell this one's equation and parameters.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """List the merge methods, or tell what one of them does.

    \b
      deltareg methods ties
    """
    from deltareg.cli.output import print_json, print_table
    from deltareg.cli.reports import MethodList, MethodRow, ParameterRow
    from deltareg.merge import METHODS, method_of

    chosen = list(METHODS.values()) if name is None else [method_of(name)]
    if json:
        rows = [
            MethodRow(
                name=method.name,
                summary=method.summary,
                description=method.description,
                least_deltas=method.least,
                most_deltas=method.most,
                random=method.random,
                parameters=[
                    ParameterRow(
                        name=one.name,
                        values=one.range,
                        by_delta=one.by_delta,
                        default=one.default,
                        meaning=one.meaning,
                    )
                    for one in method.parameters.values()
                ],
            )
            for method in chosen
        ]
        print_json(MethodList(methods=rows))
    elif name is None:
        print_table(["method", "what is added to the target"], [[method.name, method.summary] for method in chosen])
    else:
        (method,) = chosen
        typer.echo(f"{method.description}\n")
        columns = ["parameter", "default", "values", "by delta", "meaning"]
        print_table(columns, [_cells(one) for one in method.parameters.values()])


def _cells(parameter: Parameter) -> list[str]:
    by_delta = "yes" if parameter.by_delta else ""
    return [parameter.name, parameter.told_default, parameter.range, by_delta, parameter.meaning]
