"""`deltareg inspect`: what an output was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import Json, Threads

if TYPE_CHECKING:
    from deltareg.build.inspecting import InspectReport
    from deltareg.recipe import Number, Setting

__all__ = ["inspect"]


def inspect(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The directory that build made.")],
    quick: Annotated[bool, typer.Option("--quick", help="Compare names only; read no file but the lock.")] = False,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Tell what an output was made of, and whether it is still what was made.

    Reads the deltareg.lock that an output carries: its base, deltas, weights, method and licences. Every file is read
    and compared with it; what was changed, removed or added is named, and the command ends with status 5. That guards
    against accidents: who can write the output can write its lock too.

    \b
      deltareg inspect merged/
    """
    from deltareg.build.inspecting import inspect
    from deltareg.cli.output import hint, print_fields, print_json, print_line, print_table, warn
    from deltareg.cli.progress import watched
    from deltareg.cli.session import current_settings

    with watched() as progress:
        report = inspect(out, quick=quick, threads=threads or current_settings().threads, progress=progress)
    for line in report.licence_warnings:
        warn(line)
    if json:
        print_json(report)
    else:
        print_fields(_fields(report))
        print_line("")
        columns = ["delta", "weight", "parameters", "licence", "exactness", "remote", "required by", "digest"]
        print_table(columns, [_cells(report, place) for place in range(len(report.deltas))], right=["weight"])
    if not report.verified:
        hint("names were compared, no file was read: without --quick every byte is")


def _fields(report: InspectReport) -> dict[str, str]:
    from deltareg.cli.units import counted, size

    base = report.base
    fields = {
        "output": report.out,
        "name": report.name,
        "files": f"{counted(report.files, 'file')}, {size(report.bytes)}, "
        + ("as the lock says" if report.verified else "not read"),
        "digest": report.digest,
        "licence": report.licence,
        **{f"obligation {number}": text for number, text in enumerate(report.obligations, 1)},
        "base": base.location + (f" at {base.revision}" if base.revision else ""),
        "base digest": base.digest,
        "base licence": base.licence,
        "method": report.method,
        **{f"{report.method} {name}": _setting(setting) for name, setting in report.parameters.items()},
        "seed": str(report.seed),
        "dtype": report.dtype,
        "side files": report.side_files,
        "recipe": report.recipe,
        "producer": report.producer,
    }
    return {label: value for label, value in fields.items() if value is not None}


def _cells(report: InspectReport, place: int) -> list[str]:
    delta = report.deltas[place]
    weights = [_number(delta.weight), *(f"{selector}: {_number(one)}" for selector, one in delta.where.items())]
    return [
        delta.reference,
        ", ".join(weights),
        "; ".join(f"{name} {_setting(setting)}" for name, setting in delta.parameters.items()),
        delta.licence or "unknown",
        str(delta.exactness),
        delta.remote,
        ", ".join(delta.required_by),
        delta.digest,
    ]


def _setting(setting: Setting) -> str:
    if isinstance(setting, dict):
        return ", ".join(f"{selector}: {_setting(value)}" for selector, value in setting.items())
    return setting if isinstance(setting, str) else _number(setting)


def _number(number: Number | bool) -> str:
    if isinstance(number, list):
        return "..".join(f"{one:g}" for one in number)
    return str(number).lower() if isinstance(number, bool) else f"{number:g}"
