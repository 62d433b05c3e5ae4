"""`deltareg import-mergekit`: from mergekit's configurations to recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from deltareg.cli.options import DryRun, Json, Licence, Preset, PresetOption, Threads, check_text

__all__ = ["import_mergekit"]


def import_mergekit(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="mergekit's YAML file.")],
    out: Annotated[
        str,
        typer.Option("--out", "-o", metavar="RECIPE", help="The recipe's file. What it holds beside a recipe stays."),
    ] = "deltareg.toml",
    namespace: Annotated[
        str, typer.Option("--namespace", metavar="NAME", help="Namespace of the deltas.", callback=check_text)
    ] = "imported",
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="The model that deltas are taken from, where the configuration has no base_model.",
            callback=check_text,
        ),
    ] = None,
    new_base: Annotated[
        str | None,
        typer.Option(
            "--new-base",
            metavar="MODEL",
            help="The model, added whole by task_arithmetic, that the recipe is to start from.",
            callback=check_text,
        ),
    ] = None,
    keep_base: Annotated[
        bool, typer.Option("--keep-base", help="Start from base_model, even where a model is added whole to it.")
    ] = False,
    preset: PresetOption = Preset.fast,
    licence: Licence = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a recipe that RECIPE holds.")] = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Turn a merge configuration of mergekit into a recipe, and take the deltas that it needs.

    Each model becomes a delta from the base in the local registry, unless that has the same one already. Paths count
    from the configuration's directory; org/name is a model on the hub. Methods are mergekit's variants, told by
    parameters; what has no equal here is refused with its line and the reason. docs/mergekit.md has the table.

    A new base that is added whole, as in old + (new − old) + α(post − old), becomes the recipe's base where it is
    certain which model that is: of two models, the one with weight 1. --new-base names it, --keep-base forbids it.

    \b
      deltareg import-mergekit merge.yml --namespace acme
    """
    from pathlib import Path

    from deltareg.cli.checkpoints import output_directory
    from deltareg.cli.output import hint, print_json, print_line, print_table, warn
    from deltareg.cli.progress import watched
    from deltareg.cli.session import current_settings, writable_registry
    from deltareg.cli.units import size
    from deltareg.mergekit import import_mergekit
    from deltareg.paths import expand_home

    settings = current_settings()
    place = output_directory(out, places="name a file")
    with writable_registry(settings, dry_run=dry_run) as registry, watched() as progress:
        report = import_mergekit(
            Path(expand_home(config)),
            registry,
            place,
            namespace=namespace,
            base=base,
            new_base=new_base,
            keep_base=keep_base,
            preset=preset.value,
            licence=licence,
            overwrite=overwrite,
            threads=threads or settings.threads,
            dry_run=dry_run,
            progress=progress,
        )
    for note in report.notes:
        warn(note)
    if json:
        print_json(report)
    else:
        if dry_run:
            for line in report.text.splitlines():
                print_line(line)
        rows = [
            [one.reference, one.status, "" if one.artifact_size is None else size(one.artifact_size), one.model]
            for one in report.deltas
        ]
        print_table(["delta", "status", "size", "model"], rows, right=["size"])
        print_line(f"{'would write' if dry_run else 'wrote'} {report.recipe}")
    for text in report.hints:
        hint(text)
