"""`deltareg diff` and `deltareg apply`: from checkpoints to deltas and back."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import (
    Conflicts,
    Description,
    DryRun,
    Json,
    Licence,
    On,
    Out,
    Overwrite,
    Preset,
    PresetOption,
    RecipeOption,
    Tag,
    Threads,
    complete_delta,
)
from deltareg.errors import InvalidArgument, UsageError
from deltareg.paths import expand_home

if TYPE_CHECKING:
    from deltareg.build.building import Options
    from deltareg.config import Settings

__all__ = ["CHECKPOINT", "SideFiles", "apply", "diff", "output_directory", "output_of"]


class SideFiles(StrEnum):
    """Whose tokenizer and chat template the result gets."""

    post = "post"
    target = "target"


class Dtype(StrEnum):
    """What the floats of an output can be."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"
    float64 = "float64"


CHECKPOINT = "a directory, a .safetensors file, hf://org/name[@revision] or s3://bucket/prefix (gs://, az://)"


def diff(
    base: Annotated[str, typer.Argument(metavar="BASE", help=f"The checkpoint before training: {CHECKPOINT}.")],
    post: Annotated[str, typer.Argument(metavar="POST", help="The checkpoint after training.")],
    tag: Tag,
    preset: PresetOption = Preset.fast,
    codec: Annotated[
        str,
        typer.Option(
            "--codec",
            metavar="CODEC",
            help="exact, or how to approximate: bf16, fp16, int8, int4, bit1, rank:R, topk:P. The error is recorded.",
        ),
    ] = "exact",
    licence: Licence = None,
    description: Description = None,
    on: On = None,
    conflicts: Conflicts = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Store what turns one checkpoint into another.

    The delta is exact: base + delta is post, bit for bit, and the delta can be applied without base. It lands in the
    local registry under a version that never changes. The same pair gives the same digest on every machine. A dry run
    encodes everything, so that the sizes are the real ones.

    With --codec the delta is smaller, and base + delta is only nearly post. Matrices are approximated: bf16 and fp16
    round each number, int8 and int4 bring them to 255 or 15 levels, bit1 to a sign, with factors of small rank,
    rank:16 keeps factors of rank 16, topk:5% the 5 % that change most. Norms, biases and what is no number stay exact.

    With --on the delta is one on top of another: BASE is a base with that delta applied, and apply wants both, or a
    target that has the other one already.

    \b
      deltareg diff base/ post/ --tag acme/search:1.0.0 --licence apache-2.0
      deltareg diff base/ post/ --tag acme/search:1.0.1-int4 --codec int4
      deltareg diff instruct/ search/ --tag acme/search:2.0.0 --on acme/instruct:1.0.0
    """
    from deltareg.cli.output import print_report
    from deltareg.cli.progress import watched
    from deltareg.cli.schedules import parse_on
    from deltareg.cli.session import current_settings, writable_registry
    from deltareg.diff import diff
    from deltareg.names import parse_licence

    licence = None if licence is None else parse_licence(licence)
    settings = current_settings()
    with writable_registry(settings, dry_run=dry_run) as registry, watched() as progress:
        report = diff(
            base,
            post,
            registry,
            tag,
            preset=preset.value,
            codec=codec,
            licence=licence,
            description=description,
            on=parse_on(on or []),
            conflicts=conflicts or [],
            threads=threads or settings.threads,
            dry_run=dry_run,
            progress=progress,
        )
    print_report(report, json=json)


def apply(
    out: Out,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help=f"The checkpoint to start from: {CHECKPOINT}. With --locked it is where the lock says, unless given.",
            show_default=False,
        ),
    ] = None,
    deltas: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REFERENCE[=WEIGHT]",
            help="The deltas, each with its weight: acme/search:1.0.0=0.5. Without a weight it is 1.",
            autocompletion=complete_delta,
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method", "-m", metavar="METHOD", help="How deltas are merged. deltareg methods lists the methods."
        ),
    ] = "linear",
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            "-p",
            metavar="NAME[@REFERENCE][SELECTOR]=VALUE",
            help="A parameter of the method: density=0.5. With a selector it holds for those tensors alone: "
            "'density[attention]=0.3', 'density[model.layers.1?.*]=0.9'. A number may change along the layers: "
            "density=0.2..0.8. May be given several times; the last that matches a tensor counts. One delta can have "
            "its own: density@acme/search:1.0.0=0.3 counts before density=0.5.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            "-w",
            metavar="REFERENCE[SELECTOR]=WEIGHT",
            help="Another weight of a delta for some tensors: 'acme/search:1.0.0[mlp]=0.8'.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**63 - 1, help="Where the random masks of dare and della start.")
    ] = 0,
    side_files: Annotated[
        SideFiles,
        typer.Option("--side-files", help="Whose tokenizer, chat template and generation config the result gets."),
    ] = SideFiles.post,
    with_added: Annotated[
        bool | None,
        typer.Option(
            "--with-added/--without-added",
            help="Take tensors that only post has, such as a task head, or leave them out. Without either they are "
            "taken where the target is the delta's own base.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Apply what the check refuses too. The model card names what it said.")
    ] = False,
    accept_licence: Annotated[
        bool,
        typer.Option(
            "--accept-licence", help="Apply although the licences do not go together. The model card says so."
        ),
    ] = False,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where the same command was killed: what it finished is read again and kept. Should this run "
            "fail, what it has finished stays for the next.",
        ),
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Memory of this machine to use at most, such as 2GiB, by doing less at a time. A GPU's own is not "
            "counted. The result does not depend on it.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="What computes: cpu, or GPUs by way of torch: cuda, cuda:1, cuda:0,cuda:1, cuda:all. The result is "
            "the same.",
        ),
    ] = "cpu",
    dtype: Annotated[
        Dtype | None,
        typer.Option("--dtype", help="Dtype of the output's floats; by default the target's.", show_default=False),
    ] = None,
    locked: Annotated[
        bool,
        typer.Option(
            "--locked", help="Build what deltareg.lock says, bit for bit, from the lock alone. It has all but TARGET."
        ),
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="With --locked: ask no remote.")] = False,
    recipe: RecipeOption = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Add deltas to a checkpoint, or merge several into it.

    Writes target + Σ weight · delta, rounded once, as a new checkpoint with its config, side files and a model card.
    It appears whole or not at all. With weight 1 on its own base a delta gives post, bit for bit. Each delta is
    checked first, as deltareg check does: what is incompatible is refused; what is adaptable is adapted, and the model
    card says how. Licences that do not go together are refused too, as far as their names tell. Another method than the
    sum is chosen with --method. Started by torchrun, several processes share the work: torchrun --nproc-per-node 4 -m
    deltareg apply …

    With --locked everything comes from deltareg.lock, and an output of another digest than the lock's is an error, with
    exit status 5 (of the process: torchrun has one of its own).

    \b
      deltareg apply target/ acme/search:1.0.0=0.5 acme/chat:2.1.0=0.5 -o merged/
      deltareg apply target/ acme/search:1.0.0 acme/chat:2.1.0 --method ties --param density=0.5 -o merged/
      deltareg apply --locked --offline -o merged/
    """
    import os
    from contextlib import closing

    from deltareg.apply import apply
    from deltareg.apply.ranks import ranks_of
    from deltareg.build.building import Options
    from deltareg.cli.output import print_report, warn
    from deltareg.cli.progress import watched
    from deltareg.cli.schedules import parse_own_parameters, parse_weights
    from deltareg.cli.session import current_settings, open_registry
    from deltareg.cli.units import duration, parse_size, size, speed
    from deltareg.merge import value_text

    bound = None if memory is None else parse_size(memory)
    settings = current_settings()
    if locked:
        _refuse_beside_a_lock(deltas, weights, parameters, method, seed, dtype, with_added, side_files)
        _apply_locked(
            target,
            out,
            recipe,
            settings,
            Options(
                overwrite=overwrite,
                resume=resume,
                force=force,
                accept_licence=accept_licence,
                memory=bound,
                threads=threads or settings.threads,
                device=device,
                dry_run=dry_run,
            ),
            offline=offline,
            json=json,
        )
        return
    if offline or recipe is not None:
        raise UsageError("--offline and --recipe go with --locked", hint="deltareg apply --locked --offline -o OUT")
    if target is None or not deltas:
        raise UsageError(
            "name a target and a delta at least, or build from a lock",
            hint="deltareg apply TARGET namespace/name:1.2.3=0.5 -o OUT; deltareg apply --locked -o OUT",
        )
    weighted = parse_weights(deltas, weights or [])
    shared, own = parse_own_parameters(method, parameters or [], [reference for reference, _ in weighted])
    registry = open_registry(settings)
    with closing(ranks_of(os.environ)) as ranks, watched(shown=ranks.number == 0) as progress:
        report = apply(
            target,
            [(reference, weight, own[reference]) for reference, weight in weighted],
            registry,
            output_of(out),
            method=method,
            parameters=shared,
            seed=seed,
            side_files=side_files.value,
            with_added=with_added,
            dtype=None if dtype is None else dtype.value,
            force=force,
            accept_licence=accept_licence,
            overwrite=overwrite,
            resume=resume,
            memory=bound,
            threads=threads or settings.threads,
            ranks=ranks,
            device=device,
            dry_run=dry_run,
            progress=progress,
        )
    if ranks.number:
        return  # the first one tells
    for finding in report.overridden:
        warn(f"forced: {finding}")
    for line in [*report.remedies, *report.warnings, *report.licence_warnings]:
        warn(line)
    more = {
        f"delta {number}": ", ".join(
            [f"{_weight(one.weight)} × {one.reference}"]
            + [f"{name} {value_text(value)}" for name, value in one.settings.items()]
        )
        for number, one in enumerate(report.deltas, 1)
    }
    more |= {name: value_text(value) for name, value in report.settings.items()}
    more |= {f"obligation {number}": text for number, text in enumerate(report.obligations, 1)}
    more["memory"] = f"{size(report.peak_memory or report.expected_memory)}{' expected' if dry_run else ' at most'}"
    if report.expected_seconds is not None:
        more["time"] = f"about {duration(report.expected_seconds)}, and what the disk takes"
    if report.bytes_written:
        more["speed"] = speed(report.bytes_written, report.seconds - report.load_seconds)
    unshown = ["deltas", "settings", "remedies", "overridden", "warnings", "bytes_per_second", "peak_memory"]
    unshown += [
        "obligations",
        "licence_warnings",
        "expected_memory",
        "expected_seconds",
        *([] if ranks.count > 1 else ["ranks"]),
    ]
    unshown += [] if report.resumed_tensors else ["resumed_tensors"]
    print_report(report, json=json, leave_out=unshown, more=more)


def _refuse_beside_a_lock(
    deltas: list[str] | None,
    weights: list[str] | None,
    parameters: list[str] | None,
    method: str,
    seed: int,
    dtype: Dtype | None,
    with_added: bool | None,
    side_files: SideFiles,
) -> None:
    """Raise UsageError for what a lock says already: it would be another output."""
    given = {
        "deltas": bool(deltas),
        "--weight": bool(weights),
        "--param": bool(parameters),
        "--method": method != "linear",
        "--seed": seed != 0,
        "--dtype": dtype is not None,
        "--with-added": with_added is not None,
        "--side-files": side_files != SideFiles.post,
    }
    beside = [name for name, there in given.items() if there]
    if beside:
        raise UsageError(
            f"the lock says what --locked builds: {', '.join(beside)} cannot be given",
            hint="change the recipe and lock it anew: deltareg lock",
        )


def _apply_locked(
    target: str | None,
    out: str,
    recipe: str | None,
    settings: Settings,
    options: Options,
    *,
    offline: bool,
    json: bool,
) -> None:
    import os
    from contextlib import closing
    from dataclasses import replace

    from deltareg.apply.ranks import ranks_of
    from deltareg.build import rebuild
    from deltareg.cli.builds import print_build, project_of
    from deltareg.cli.progress import watched
    from deltareg.cli.session import sources, writable_registry

    project = project_of(recipe)
    with (
        closing(ranks_of(os.environ)) as ranks,
        writable_registry(settings, dry_run=options.dry_run) as registry,
        watched(shown=ranks.number == 0) as progress,
    ):
        report = rebuild(
            project,
            sources(settings, registry, offline=offline, keeps=not options.dry_run),
            output_of(out),
            base=target,
            options=replace(options, ranks=ranks, progress=progress),
        )
    if ranks.number == 0:
        print_build(report, json=json)


def _weight(weight: float | str) -> str:
    from deltareg.cli.units import ratio

    return weight if isinstance(weight, str) else ratio(weight)


def output_of(out: str) -> str | Path:
    """What a command is to make: a directory, or a place in an object store. Raises InvalidArgument."""
    from deltareg.checkpoint.bucket import is_bucket

    return (
        out
        if is_bucket(out)
        else output_directory(
            out, places="name a directory, or s3://bucket/prefix, gs://bucket/prefix, az://container/prefix"
        )
    )


def output_directory(out: str, *, places: str = "name a directory to make, and copy that") -> Path:
    """The directory that a command is to make. Raises InvalidArgument where it has no name, or a URL's.

    `places` says what may be named instead of a URL.
    """
    if not out:
        raise InvalidArgument("the output has no name", hint="name the directory to make: -o merged/")
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", out):
        # As a path it would be a directory of the scheme's name, here.
        raise InvalidArgument(f"{out} is no place that can be written to", hint=places)
    return expand_home(out)
