"""`deltareg lock`, `build`, `update`, `outdated`, `why` and `tree`: from a recipe to a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import DryRun, Json, Out, Overwrite, RecipeOption, ReferenceArgument, Threads

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from deltareg.build import BuildReport, LockReport, Project

__all__ = ["build", "lock", "outdated", "print_build", "project_of", "tree", "update", "why"]

AllowLicence = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-licence",
        metavar="SPDX",
        help="A licence that deltas may have, beside those of the recipe. May be given several times.",
    ),
]
ExcludeNewer = Annotated[
    str | None,
    typer.Option(
        "--exclude-newer",
        metavar="TIME",
        help="Take no version that was published after this date or time: 2026-01-31. UTC, where no zone is given.",
        show_default=False,
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Ask no remote: take what is on this machine.")]


def lock(
    recipe: RecipeOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where the lock is not what the recipe means.")
    ] = False,
    allow_licence: AllowLicence = None,
    exclude_newer: ExcludeNewer = None,
    offline: Offline = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Find the versions that a recipe asks for, and write them into deltareg.lock.

    The highest versions are taken that are in the ranges, fit the base and go together: the delta that the recipe names
    first comes first. What the lock held before stays, as long as it still fits; deltareg update takes newer ones. Only
    documents are fetched. Where nothing fits, the error says which requirement comes from where, what was looked at,
    and what would make it fit.

    \b
      deltareg lock
      deltareg lock --check     # in CI: is the lock that was committed what the recipe means?
    """
    _lock(
        recipe,
        update=(),
        check=check,
        allow_licence=allow_licence,
        exclude_newer=exclude_newer,
        offline=offline,
        threads=threads,
        dry_run=dry_run,
        json=json,
    )


def update(
    references: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAMESPACE/NAME]...", help="The deltas to update; all, where none is named."),
    ] = None,
    recipe: RecipeOption = None,
    allow_licence: AllowLicence = None,
    exclude_newer: ExcludeNewer = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Take the highest versions that fit into deltareg.lock, of all deltas or of those that are named.

    \b
      deltareg update acme/search
    """
    from deltareg.names import parse_reference

    _lock(
        recipe,
        update=None if not references else [parse_reference(text).repository for text in references],
        allow_licence=allow_licence,
        exclude_newer=exclude_newer,
        threads=threads,
        dry_run=dry_run,
        json=json,
    )


def build(
    out: Out,
    recipe: RecipeOption = None,
    locked: Annotated[
        bool, typer.Option("--locked", help="Fail where the lock is missing or not what the recipe says.")
    ] = False,
    offline: Offline = False,
    force: Annotated[bool, typer.Option("--force", help="Build with what the check refuses too.")] = False,
    accept_licence: Annotated[
        bool,
        typer.Option("--accept-licence", help="Build although the licences do not go together; the card says so."),
    ] = False,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same build was killed.")] = False,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Memory to use at most, such as 2GiB.", show_default=False),
    ] = None,
    threads: Threads = None,
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="What computes: cpu, cuda, cuda:1 …")
    ] = "cpu",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Build the checkpoint that a recipe describes.

    Follows deltareg.lock, or writes it where it is missing or older than the recipe. Everything is checked before
    anything large is fetched; then the deltas are fetched, verified and applied. The output carries the lock that it
    was built from, and deltareg inspect verifies it. The lock is told the output's digest: whoever builds from it again
    gets the same bytes or an error. One process builds; several, started by torchrun, build from the lock: deltareg
    apply --locked.

    \b
      deltareg build -o med-chat/
      deltareg build --dry-run -o med-chat/
    """
    import os

    from deltareg.apply.ranks import one_of_several
    from deltareg.build import build
    from deltareg.build.building import Options
    from deltareg.cli.checkpoints import output_of
    from deltareg.cli.progress import watched
    from deltareg.cli.session import current_settings, sources, writable_registry
    from deltareg.cli.units import parse_size
    from deltareg.errors import UsageError

    if one_of_several(os.environ):  # each would resolve the recipe for itself, and might find other versions
        raise UsageError(
            "deltareg build is for one process, and torchrun has started several",
            hint="deltareg lock, then torchrun … -m deltareg apply --locked -o OUT",
        )
    bound = None if memory is None else parse_size(memory)
    settings = current_settings()
    project = project_of(recipe)
    with writable_registry(settings, dry_run=dry_run) as registry, watched() as progress:
        report = build(
            project,
            sources(settings, registry, offline=offline, keeps=not dry_run),
            output_of(out),
            locked=locked,
            options=Options(
                overwrite=overwrite,
                resume=resume,
                force=force,
                accept_licence=accept_licence,
                memory=bound,
                threads=threads or settings.threads,
                device=device,
                dry_run=dry_run,
                progress=progress,
            ),
        )
    print_build(report, json=json)


def outdated(recipe: RecipeOption = None, threads: Threads = None, json: Json = False) -> None:
    """List the deltas of the lock with their versions: the locked one, the highest that fits, the highest of all."""
    from deltareg.build import outdated
    from deltareg.cli.output import hint, print_json, print_table
    from deltareg.cli.session import current_settings, sources, writable_registry

    settings = current_settings()
    project = project_of(recipe)
    with writable_registry(settings, dry_run=True) as registry:
        report = outdated(project, sources(settings, registry), threads=threads or settings.threads)
    if json:
        print_json(report)
        return
    print_table(
        ["delta", "locked", "fits", "highest", "wanted", "note"],
        [
            [row.reference, row.locked, row.fitting or "none", row.latest or "none", row.wanted or "", row.note or ""]
            for row in report.rows
        ],
    )
    if report.outdated:
        hint("deltareg update takes the versions that fit")


def why(reference: ReferenceArgument, recipe: RecipeOption = None, threads: Threads = None, json: Json = False) -> None:
    """Explain the version of a delta that a recipe leads to: who asks for it, and why no other version was taken.

    \b
      deltareg why acme/search
    """
    from deltareg.build import why
    from deltareg.cli.output import print_fields, print_json, print_line
    from deltareg.cli.session import current_settings, sources, writable_registry

    settings = current_settings()
    project = project_of(recipe)
    with writable_registry(settings, dry_run=True) as registry:
        report = why(project, sources(settings, registry), reference, threads=threads or settings.threads)
    if json:
        print_json(report)
        return
    print_fields({"delta": report.reference, "digest": report.digest, "remote": report.remote})
    for line in report.requirements:
        print_line(f"  {line}")
    print_line("versions")
    for line in report.versions:
        print_line(f"  {line}")


def tree(recipe: RecipeOption = None, json: Json = False) -> None:
    """Draw which delta of the lock brings which others with it."""
    from deltareg.build import tree
    from deltareg.cli.output import print_json, print_line
    from deltareg.cli.units import ratio

    report = tree(project_of(recipe))
    if json:
        print_json(report)
        return
    print_line(f"{report.name} on {report.base}")
    for row in report.rows:
        weight = row.weight if isinstance(row.weight, str) else ratio(row.weight)
        wanted = f" ({row.wanted})" if row.wanted else ""
        more = " …" if row.repeated else ""
        print_line(f"{'   ' * row.depth}└─ {weight} × {row.reference}{wanted}{more}")


def _lock(
    recipe: str | None,
    *,
    update: Sequence[str] | None,
    check: bool = False,
    allow_licence: list[str] | None,
    exclude_newer: str | None,
    offline: bool = False,
    threads: int | None,
    dry_run: bool,
    json: bool,
) -> None:
    from deltareg.build import lock
    from deltareg.cli.progress import watched
    from deltareg.cli.session import current_settings, sources, writable_registry

    settings = current_settings()
    project = project_of(recipe)
    writes = not (dry_run or check)
    with writable_registry(settings, dry_run=not writes) as registry, watched() as progress:
        report = lock(
            project,
            sources(settings, registry, offline=offline, keeps=writes),
            update=update,
            check=check,
            allow_licence=_licences(allow_licence),
            exclude_newer=_moment(exclude_newer),
            dry_run=dry_run,
            threads=threads or settings.threads,
            progress=progress,
        )
    _print_lock(report, json=json)


def _licences(named: list[str] | None) -> list[str]:
    from deltareg.names import parse_licence

    return [parse_licence(one) for one in named or []]


def _moment(text: str | None) -> datetime | None:
    from deltareg.errors import UsageError
    from deltareg.recipe import parse_moment

    try:
        return None if text is None else parse_moment(text)
    except ValueError as error:
        raise UsageError(f"--exclude-newer {error}") from error


def project_of(recipe: str | None) -> Project:
    """The recipe that a command is about. Raises BadRecipe where there is none."""
    from deltareg.build import Project
    from deltareg.cli.session import working_directory
    from deltareg.paths import expand_home

    return Project.find(working_directory(), None if recipe is None else expand_home(recipe))


def print_build(report: BuildReport, *, json: bool) -> None:
    """What a build came to."""
    from deltareg.cli.output import print_report, warn
    from deltareg.cli.units import duration, ratio, size
    from deltareg.merge import value_text

    for warning in report.warnings:
        warn(warning)
    more: dict[str, str] = {}
    for number, one in enumerate(report.deltas, 1):
        weight = one.weight if isinstance(one.weight, str) else ratio(one.weight)
        by = f", required by {', '.join(one.required_by)}" if one.required_by else ""
        own = "".join(f", {name} {value_text(value)}" for name, value in one.settings.items())
        more[f"delta {number}"] = f"{weight} × {one.reference} from {one.remote}{own}{by}"
    expected = " expected" if report.dry_run else " at most"
    more |= {
        "to fetch" if report.dry_run else "fetched": size(report.fetch_bytes),
        "to read" if report.dry_run else "read": size(report.read_bytes),
        "to write" if report.dry_run else "written": size(report.write_bytes),
        "memory": size(report.memory) + expected,
    }
    if report.dry_run:
        seconds = report.expected_seconds
        more["time"] = (
            "unknown before the deltas are here"
            if seconds is None
            else f"about {duration(seconds)}, and what the disk takes"
        )
    unshown = ["deltas", "warnings", "fetch_bytes", "read_bytes", "write_bytes", "memory", "expected_seconds"]
    print_report(report, json=json, leave_out=unshown, more=more)


def _print_lock(report: LockReport, *, json: bool) -> None:
    from deltareg.cli.output import print_report, warn

    for warning in report.warnings:
        warn(warning)
    more = {
        one.reference: " → ".join(dict.fromkeys(one for one in (one.before, one.after) if one))
        + ("" if one.change == "kept" else f" ({one.change})")
        for one in report.deltas
    }
    print_report(report, json=json, leave_out=["deltas", "warnings"], more=more)
