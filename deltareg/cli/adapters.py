"""`deltareg import-lora` and `deltareg export-lora`: from PEFT's adapters to deltas and back."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deltareg.cli.checkpoints import CHECKPOINT
from deltareg.cli.options import (
    Conflicts,
    Description,
    DryRun,
    Json,
    Licence,
    On,
    Preset,
    PresetOption,
    Tag,
    Threads,
    complete_delta,
)

__all__ = ["export_lora", "import_lora"]


def import_lora(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER", help="The adapter: what peft's save_pretrained made, a directory or hf://org/name."
        ),
    ],
    base: Annotated[
        str, typer.Option("--base", metavar="BASE", help=f"The checkpoint that it was trained on: {CHECKPOINT}.")
    ],
    tag: Tag,
    preset: PresetOption = Preset.fast,
    licence: Licence = None,
    description: Description = None,
    on: On = None,
    conflicts: Conflicts = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Store a PEFT adapter as a delta.

    LoRA, rsLoRA and DoRA, with modules_to_save and biases. Factors are stored as they are and multiplied where the
    delta is applied, so that it is as small as the adapter; what is no product of factors is stored as diff stores it.
    base + delta is what peft's own merge gives, each number rounded once. It mixes with other deltas as any does.

    \b
      deltareg import-lora adapter/ --base base/ --tag acme/chat:1.0.0
    """
    from deltareg.cli.output import print_report, warn
    from deltareg.cli.progress import watched
    from deltareg.cli.schedules import parse_on
    from deltareg.cli.session import current_settings, writable_registry
    from deltareg.lora import import_lora
    from deltareg.names import parse_licence

    licence = None if licence is None else parse_licence(licence)
    settings = current_settings()
    with writable_registry(settings, dry_run=dry_run) as registry, watched() as progress:
        report = import_lora(
            adapter,
            base,
            registry,
            tag,
            preset=preset.value,
            licence=licence,
            description=description,
            on=parse_on(on or []),
            conflicts=conflicts or [],
            threads=threads or settings.threads,
            dry_run=dry_run,
            progress=progress,
        )
    for note in report.notes:
        warn(note)
    print_report(report, json=json, leave_out=["notes"])


def export_lora(
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="The delta.", autocompletion=complete_delta)],
    rank: Annotated[int, typer.Option("--rank", "-r", metavar="R", min=1, help="The rank of the factors at most.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="OUT", help="The directory to make.")],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="BASE",
            help="The delta's own base. With it norms and biases go along, as modules_to_save.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT, if it is an adapter, with all that is in it.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Take a base that the check refuses, too.")] = False,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write a delta as an adapter that peft loads, and tell the error that this makes.

    Each matrix gets the factors of that rank which are nearest to its delta (a truncated singular value
    decomposition); factors that the delta stores itself are written as they are. A full fine-tune is not of low rank:
    look at the error, which also stands in the model card. What no factors can express is left out and named.

    \b
      deltareg export-lora acme/search:1.0.0 --rank 32 -o adapter/
    """
    # Tensors are worked on side by side: threads of NumPy's own within each would only wait for one another.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from deltareg.cli.checkpoints import output_directory
    from deltareg.cli.output import print_report, warn
    from deltareg.cli.progress import watched
    from deltareg.cli.session import current_settings, open_registry
    from deltareg.cli.units import ratio
    from deltareg.lora import export_lora

    settings = current_settings()
    registry = open_registry(settings)
    with watched() as progress:
        report = export_lora(
            reference,
            registry,
            output_directory(out),
            rank=rank,
            base=base,
            overwrite=overwrite,
            force=force,
            threads=threads or settings.threads,
            dry_run=dry_run,
            progress=progress,
        )
    if report.delta_error is not None:
        warn(f"the delta is itself an approximation, whose relative error {ratio(report.delta_error)} comes on top")
    for note in report.notes:
        warn(note)
    if report.overwritten:
        warn(f"{report.overwritten} numbers are no sum with base's, such as NaN or −0.0: the adapter lacks these")
    if report.left_out:
        share = sum(one.share for one in report.left_out)
        warn(
            f"{len(report.left_out)} tensors are left out, {ratio(share)} of the squared error: "
            f"{report.left_out[0].name}: {report.left_out[0].reason}"
        )
    leave_out = ["tensors", "left_out", "saved_modules", "delta_error", "overwritten", "notes"]
    more = {"tensors": str(len(report.tensors)), "left out": str(len(report.left_out))}
    print_report(report, json=json, leave_out=leave_out, more=more)
