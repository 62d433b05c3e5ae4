"""`deltareg search`: which deltas of the local registry, or of remotes, fit a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import Json, check_text, complete_remote

if TYPE_CHECKING:
    from deltareg.catalog import SearchRow

__all__ = ["search"]


def search(
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            help="Words, or how they begin, of the name, the base, the description, the model type.",
            show_default=False,
            callback=check_text,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TARGET",
            help="The checkpoint to fit: a directory, a .safetensors file, hf://org/name[@revision] or "
            "s3://bucket/prefix (gs://, az://).",
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--licence", metavar="SPDX", help="Only deltas of this licence.", callback=check_text),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", metavar="NAME", help="Only deltas of this namespace.", callback=check_text),
    ] = None,
    model_type: Annotated[
        str | None,
        typer.Option(
            "--model-type", metavar="TYPE", help="Only deltas of this type: llama, bert, ….", callback=check_text
        ),
    ] = None,
    remote: Annotated[
        list[str] | None,
        typer.Option(
            "--remote",
            metavar="REMOTE",
            help="Search a remote instead: its name, URL or path (with a slash). May be given several times.",
            autocompletion=complete_remote,
        ),
    ] = None,
    all_remotes: Annotated[bool, typer.Option("--all-remotes", help="Search every remote of the settings.")] = False,
    yanked: Annotated[bool, typer.Option("--yanked", help="Show yanked versions too.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=100_000, help="Show this many.")] = 20,
    json: Json = False,
) -> None:
    """Find deltas of the local registry, or of remotes, those that fit a checkpoint first.

    With --for only those that fit: identical (same fingerprint, tokenizer and added tokens), homologous (same
    fingerprint; the added tokens differ, or a tokenizer is not known), adaptable (same parameter space; vocabulary,
    head or tokenizer differ). This is a first look, from digests alone: deltareg check judges.

    A remote that cannot search by itself is read: names, manifests and configs, which are kept for the next time. Of
    several remotes one that does not answer is a warning.

    \b
      deltareg search "french chat" --for base/ --licence apache-2.0
      deltareg search chat --remote team --remote public
    """
    from deltareg.catalog.search import Query
    from deltareg.checkpoint import Checkpoint
    from deltareg.cli.output import hint, print_json, print_table, warn
    from deltareg.cli.searching import search_in
    from deltareg.cli.session import current_settings
    from deltareg.fingerprint import fingerprint_of

    settings = current_settings()
    fingerprint = None
    if target is not None:
        with Checkpoint.open(target, headers_only=True) as checkpoint:
            fingerprint = fingerprint_of(checkpoint)
    query = Query(text, fingerprint, licence, namespace, model_type, limit, yanked)
    found = search_in(settings, query, remote or [], every=all_remotes)
    for warning in found.warnings:
        warn(warning)
    if json:
        print_json(found)
    elif found.results:
        columns = [
            "remote",
            "reference",
            "fit",
            "size",
            "base",
            "licence",
            "created",
            "description",
            "yanked",
            "deprecated",
        ]
        print_table(columns, [_cells(row) for row in found.results], right=["size"])
        if found.total > len(found.results):
            least = "" if found.total_is_exact else "more than "
            hint(f"{least}{found.total} were found; --limit N shows more")
    else:
        hint("nothing was found; deltareg list shows all that there is")


def _cells(row: SearchRow) -> list[str]:
    from deltareg.cli.units import size

    told = "" if row.size is None else size(row.size)
    why = ["" if reason is None else reason or "no reason is given" for reason in (row.yanked, row.deprecated)]
    licence, description = row.licence or "", row.description or ""
    return [
        row.remote or "",
        row.reference,
        row.fit or "",
        told,
        row.base or "",
        licence,
        row.created,
        description,
        *why,
    ]
