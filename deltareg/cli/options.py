"""Arguments and options that several commands have, and how the shell completes them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

__all__ = [
    "Conflicts",
    "Description",
    "Device",
    "DryRun",
    "Eval",
    "Json",
    "Licence",
    "LimitRate",
    "LowerIsBetter",
    "Metric",
    "On",
    "OnRemote",
    "Out",
    "Overwrite",
    "Preset",
    "PresetOption",
    "RecipeOption",
    "ReferenceArgument",
    "RemoteOption",
    "ScoreOption",
    "Tag",
    "Threads",
    "Timeout",
    "VersionArgument",
    "check_text",
    "complete_delta",
    "complete_remote",
]


class Preset(StrEnum):
    """How hard `diff` tries."""

    fast = "fast"
    small = "small"


def complete_remote(incomplete: str) -> list[str]:
    """The remotes whose names begin so."""
    from deltareg.cli.session import current_settings
    from deltareg.errors import DeltaregError

    try:
        return [name for name in current_settings().remotes if name.startswith(incomplete)]
    except (DeltaregError, OSError):
        return []


def complete_delta(incomplete: str) -> list[str]:
    """The deltas of the local registry whose names begin so."""
    from deltareg.cli.session import open_registry
    from deltareg.errors import DeltaregError

    try:
        entries = open_registry().store.entries()
    except (DeltaregError, OSError):
        return []
    return [name for entry in entries if (name := str(entry.reference)).startswith(incomplete)]


def check_text(value: str | None) -> str | None:
    """The callback of an option whose value is stored: bytes that are no text cannot be. Raises BadParameter."""
    if value is not None and any("\ud800" <= char <= "\udfff" for char in value):
        raise typer.BadParameter("it is no text in this terminal's encoding")
    return value


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Write nothing; say what would be done.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="N", min=1, help="Threads to use. The result does not depend on it.", show_default=False
    ),
]
Tag = Annotated[str, typer.Option("--tag", metavar="REFERENCE", help="What to call the delta: namespace/name:1.2.3.")]
PresetOption = Annotated[Preset, typer.Option("--preset", help="small takes longer and gives a smaller artifact.")]
Licence = Annotated[
    str | None,
    typer.Option("--licence", metavar="SPDX", help="Licence of the delta, such as apache-2.0.", callback=check_text),
]
Description = Annotated[
    str | None,
    typer.Option("--description", metavar="TEXT", help="One line about what the training taught.", callback=check_text),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        help="The recipe. By default the nearest deltareg.toml, here or above. The lock lies beside it.",
        show_default=False,
    ),
]
Out = Annotated[
    str,
    typer.Option("--out", "-o", metavar="OUT", help="What to make: a directory, or s3://bucket/prefix (gs://, az://)."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace OUT, if it is a checkpoint, with all that is in it.")
]
RemoteOption = Annotated[
    str | None,
    typer.Option(
        "--remote",
        metavar="REMOTE",
        help="Name, URL or path (with a slash) of the remote. By default the default remote.",
        autocompletion=complete_remote,
    ),
]
On = Annotated[
    list[str] | None,
    typer.Option(
        "--on",
        metavar="REFERENCE[=WEIGHT]",
        help="A delta that BASE holds already: this one is to be applied on top of it. May be given several times.",
        autocompletion=complete_delta,
    ),
]
Conflicts = Annotated[
    list[str] | None,
    typer.Option(
        "--conflicts",
        metavar="NAME [RANGE]",
        help="A delta that must not be applied with this one: 'acme/other', 'acme/other >=2, <3'. May be given several "
        "times.",
    ),
]
LimitRate = Annotated[
    str | None,
    typer.Option(
        "--limit-rate",
        metavar="RATE",
        help="Bytes a second that all transfers together may take: 10MB/s, 500KB/s. By default as the settings say.",
        show_default=False,
    ),
]
OnRemote = Annotated[
    str | None,
    typer.Option(
        "--remote",
        metavar="REMOTE",
        help="Name, URL or path (with a slash) of a remote. Without it the local registry is meant.",
        autocompletion=complete_remote,
    ),
]
VersionArgument = Annotated[
    str,
    typer.Argument(metavar="REFERENCE", help="The version: namespace/name:1.2.3.", autocompletion=complete_delta),
]
ReferenceArgument = Annotated[
    str,
    typer.Argument(
        metavar="REFERENCE",
        help="The delta: namespace/name:1.2.3, :channel, @sha256:…; without any of them the latest version.",
        autocompletion=complete_delta,
    ),
]
Eval = Annotated[
    str | None,
    typer.Option(
        "--eval",
        metavar="CMD",
        help="A command that evaluates the checkpoint in {model}, and prints a JSON object of numbers as its last "
        "line. It runs with your rights, without a shell.",
    ),
]
ScoreOption = Annotated[
    str | None,
    typer.Option(
        "--score",
        metavar="FILE.py:FUNCTION",
        help="A Python function of model and tokenizer that returns numbers by name; package.module:FUNCTION too. Its "
        "code runs in this process, with your rights.",
    ),
]
Metric = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="NAME", help="A metric to take; may be given several times. By default all."),
]
LowerIsBetter = Annotated[
    list[str] | None,
    typer.Option(
        "--lower-is-better",
        metavar="NAME",
        help="A metric such as a loss or a perplexity. May be given several times.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="What the model of --score or --tasks computes on.")
]
Timeout = Annotated[
    str | None,
    typer.Option(
        "--timeout", metavar="TIME", help="How long one run of CMD may take: 90s, 30m, 1h30m. By default for ever."
    ),
]
