"""`deltareg list`, `show` and `verify`: what a registry holds, and whether it is sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deltareg.cli.options import Json, ReferenceArgument, Threads, complete_remote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltareg.catalog import CatalogRow
    from deltareg.cli.reports import DeltaDetails
    from deltareg.config import Settings
    from deltareg.manifest import Parent, TensorEntry
    from deltareg.signing import SignatureRow

__all__ = ["list_deltas", "show", "verify"]

_NO_REASON = "no reason is given"


def list_deltas(
    repository: Annotated[
        str | None, typer.Argument(metavar="REPOSITORY", help="Only these: namespace/name.", show_default=False)
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(
            "--remote",
            metavar="REMOTE",
            help="List those of a remote: its name, URL or path (with a slash).",
            autocompletion=complete_remote,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the deltas of the local registry, or of a remote.

    Every version with its size, its base, its licence, the channels that point to it, and why it was yanked or
    deprecated. The ratio is that of post's bytes to the artifact's. Of a remote with many deltas that were not looked
    at before only names, dates and what is yanked or deprecated are told: deltareg search reads them all.

    \b
      deltareg list
      deltareg list acme/search --remote team
    """
    from deltareg.cli.listing import local_deltas, remote_deltas
    from deltareg.cli.output import hint, print_json, print_table, warn
    from deltareg.cli.session import current_settings, reach

    settings = current_settings()
    here = remote is None
    found = local_deltas(settings, repository) if here else remote_deltas(settings, reach(settings, remote), repository)
    for row in found.deltas:
        if row.fault is not None:
            warn(f"{row.reference}: {row.fault}")
    if json:
        print_json(found)
    elif found.deltas:
        columns = ["reference", "size", "ratio", "parameters", "exactness", "base", "licence", "channels", "created"]
        columns += ["yanked", "deprecated"]
        print_table(columns, [_cells(row) for row in found.deltas], right=["size", "ratio", "parameters"])
    else:
        hint(f"{found.registry} has no deltas yet: take one with deltareg diff, or fetch one with deltareg pull")


def show(
    reference: ReferenceArgument,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor too.")] = False,
    json: Json = False,
) -> None:
    """Show what is known of a delta in the local registry.

    Identity, size, base and post, licences, signatures as they stand (verify checks them), the size of the change by
    module class (norms, relative to the base's), and with --tensors how each tensor is stored, and how exactly. With
    --json the manifest and the config as the artifact has them.

    \b
      deltareg show acme/search:1.0.0 --tensors
    """
    from deltareg.cli.listing import details_of
    from deltareg.cli.output import print_fields, print_json, print_line, print_table
    from deltareg.cli.session import open_registry

    details = details_of(open_registry(), reference, tensors=tensors)
    if json:
        print_json(details)
        return
    print_fields(_fields(details))
    if details.config.norms:
        print_line("")
        columns = ["module class", "parameters", "change", "relative"]
        print_table(columns, _norms(details), right=columns[1:])
    if details.tensors is not None:
        print_line("")
        columns = ["tensor", "dtype", "shape", "kind", "size", "changed", "mended", "overwritten", "error"]
        print_table(columns, [_tensor_cells(entry) for entry in details.tensors], right=columns[4:])


def verify(
    reference: ReferenceArgument,
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="The checkpoint that the delta was taken from.")
    ] = None,
    post: Annotated[
        str | None, typer.Option("--post", metavar="POST", help="The checkpoint that base + delta has to be.")
    ] = None,
    signed_by: Annotated[
        list[str] | None,
        typer.Option(
            "--signed-by",
            metavar="WHO",
            help="Who has to have signed the delta: a PEM file with a public key or with root certificates, or "
            "IDENTITY@ISSUER of sigstore. Given several times, one of them suffices.",
        ),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(
            "--remote",
            metavar="REMOTE",
            help="With --signed-by: look at the signatures that a remote has, and at nothing else.",
            autocompletion=complete_remote,
        ),
    ] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Check that a delta of the local registry is sound, and who signed it.

    Reads every blob and decodes every record. With --base and --post, which belong together, it also proves that base +
    delta is post, bit for bit. Of a lossy delta it measures the error anew, tensor by tensor, which must be what the
    delta says. Ends with status 5 where something is wrong, or where nobody of --signed-by has signed it.

    \b
      deltareg verify acme/search:1.0.0 --base base/ --post post/
      deltareg verify acme/search:1.0.0 --signed-by acme.pub.pem
      deltareg verify acme/search:1.0.0 --signed-by acme.pub.pem --remote team
    """
    from deltareg.cli.session import current_settings, reach
    from deltareg.errors import UsageError

    settings = current_settings()
    if remote is None:
        _verify_here(settings, reference, base, post, signed_by or [], threads, json=json)
        return
    if not signed_by or base is not None or post is not None:
        raise UsageError(
            "of a delta at a remote only the signatures are checked",
            hint="add --signed-by FILE, and leave --base and --post out; or pull the delta first",
        )
    from deltareg.cli.output import print_fields, print_json
    from deltareg.signatures import verify_signed
    from deltareg.signing import trusted

    found = verify_signed(reach(settings, remote), reference, [trusted(one) for one in signed_by])
    if json:
        print_json(found)
        return
    print_fields({"reference": found.reference, "digest": found.digest, "registry": found.registry})
    _print_signatures(found.signatures)


def _verify_here(
    settings: Settings,
    reference: str,
    base: str | None,
    post: str | None,
    signed_by: list[str],
    threads: int | None,
    *,
    json: bool,
) -> None:
    from deltareg.apply.verify import verify
    from deltareg.cli.output import hint, print_report
    from deltareg.cli.progress import watched
    from deltareg.cli.session import open_registry
    from deltareg.signatures import verify_signed
    from deltareg.signing import trusted

    registry = open_registry(settings)
    people = [trusted(one) for one in signed_by]
    signatures = verify_signed(registry, reference, people).signatures if people else []
    with watched() as progress:
        report = verify(
            reference, registry, base=base, post=post, threads=threads or settings.threads, progress=progress
        )
    print_report(report.model_copy(update={"signatures": signatures}), json=json, leave_out=["signatures"])
    if signatures and not json:
        _print_signatures(signatures)
    if report.reproduced is None:
        hint("the delta is sound; whether it gives post is checked with --base BASE --post POST")


def _print_signatures(rows: Sequence[SignatureRow]) -> None:
    from deltareg.cli.output import print_line, print_table

    print_line("")
    print_table(
        ["signature", "by", "signed as", "verified as", "fault"],
        [[row.kind or "", row.signer or "", row.reference or "", row.trusted or "", row.fault or ""] for row in rows],
    )


def _cells(row: CatalogRow) -> list[str]:
    from deltareg.cli.units import number, ratio, size

    return [
        row.reference,
        "" if row.size is None else size(row.size),
        ratio(row.raw_size / row.size) if row.raw_size and row.size else "",
        "" if row.parameters is None else number(row.parameters),
        row.exactness or "",
        row.base or "",
        row.licence or "",
        ", ".join(row.channels),
        row.created,
        "" if row.yanked is None else row.yanked or _NO_REASON,
        "" if row.deprecated is None else row.deprecated or _NO_REASON,
    ]


def _fields(details: DeltaDetails) -> dict[str, str]:
    from deltareg.cli.units import counted, number, ratio, size

    config = details.config
    fields = {
        "reference": details.reference,
        "digest": details.digest,
        "created": details.created,
        "yanked": None if details.yanked is None else details.yanked or _NO_REASON,
        "deprecated": None if details.deprecated is None else details.deprecated or _NO_REASON,
        "description": config.description,
        "licence": config.licence,
        "size": f"{size(details.size)} in {counted(len(details.manifest.blobs) + 1, 'blob')}",
        "ratio": ratio(config.post.size / details.size),
        "exactness": str(config.exactness),
        "preset": config.preset,
        "base": _parent(config.base),
        "post": _parent(config.post),
        "parameters": number(config.post.parameters),
        "model type": config.fingerprint.model_type,
        "fingerprint": config.fingerprint.digest,
        "requires": ", ".join(map(str, config.requires)) or None,
        "conflicts": ", ".join(map(str, config.conflicts)) or None,
        "signatures": "; ".join(_signature(row) for row in details.signatures) or None,
        "producer": config.producer,
    }
    return {label: value for label, value in fields.items() if value is not None}


def _signature(row: SignatureRow) -> str:
    """What a signature claims: `show` has nobody to trust."""
    return f"{row.signer or row.digest}" + (f" (not good: {row.fault})" if row.fault else " (not checked)")


def _parent(parent: Parent) -> str:
    from deltareg.cli.units import size

    told = [f"{size(parent.size)} of {', '.join(parent.dtypes)}", parent.licence, parent.digest]
    name = parent.id if parent.revision is None else f"{parent.id}@{parent.revision}"
    return f"{name} ({'; '.join(one for one in told if one)})"


def _norms(details: DeltaDetails) -> list[list[str]]:
    from deltareg.cli.units import number, ratio

    return [
        [name, number(norms.parameters), ratio(norms.delta), ratio(norms.delta / norms.base) if norms.base else ""]
        for name, norms in details.config.norms.items()
    ]


def _tensor_cells(entry: TensorEntry) -> list[str]:
    from deltareg.cli.units import number, ratio, shape, size

    dtypes = " → ".join(dict.fromkeys(dtype for dtype in (entry.base_dtype, entry.post_dtype) if dtype is not None))
    if entry.delta_dtype is not None:
        dtypes += f" + {entry.delta_dtype}"
    error = "" if entry.error is None else ratio(entry.error)
    counts = [number(count) if count else "" for count in (entry.changed, entry.mended, entry.overwritten)]
    return [entry.name, dtypes, shape(entry.shape), entry.kind, size(entry.size), *counts, error]
