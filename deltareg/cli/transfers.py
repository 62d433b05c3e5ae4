"""`deltareg push` and `deltareg pull`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltareg.cli.options import DryRun, Json, LimitRate, ReferenceArgument, RemoteOption, Threads

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deltareg.catalog import Registry
    from deltareg.names import Reference
    from deltareg.transfer import TransferReport

__all__ = ["pull", "push"]

_THREADS = 4


def push(
    reference: ReferenceArgument,
    remote: RemoteOption = None,
    threads: Threads = None,
    limit_rate: LimitRate = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Send a delta to a remote.

    Only the blobs that the remote lacks are sent, each verified before it becomes visible; the name comes last. Cut
    off, the same command goes on where it was. A version that the remote has with other bytes is refused. On the
    Hugging Face Hub, a delta that is a LoRA adapter gets that adapter beside it, for peft.

    \b
      deltareg push acme/search:1.0.0 --remote team
    """
    from deltareg.cli.progress import watched
    from deltareg.cli.session import current_settings, open_registry, reach
    from deltareg.transfer import push

    settings = current_settings()
    goal = reach(settings, remote, limit=limit_rate)
    registry = open_registry(settings)
    with watched() as progress:
        report = push(
            registry,
            reference,
            goal,
            threads=threads or settings.threads or _THREADS,
            dry_run=dry_run,
            progress=progress,
            beside=lambda version, folder: _adapter(version, registry, folder),
        )
    _print_report(report, "sent", json=json)


def pull(
    reference: ReferenceArgument,
    remote: RemoteOption = None,
    threads: Threads = None,
    limit_rate: LimitRate = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Fetch a delta from a remote into the local registry.

    Only the blobs that are missing here are fetched, each verified; the name comes last. Cut off, the same command goes
    on where it was. Damaged local copies are mended.

    \b
      deltareg pull acme/search:1.0.0 --remote team
    """
    from deltareg.cli.progress import watched
    from deltareg.cli.session import current_settings, reach, writable_registry
    from deltareg.transfer import pull

    settings = current_settings()
    source = reach(settings, remote, limit=limit_rate)
    with writable_registry(settings, dry_run=dry_run) as registry, watched() as progress:
        report = pull(
            registry,
            reference,
            source,
            threads=threads or settings.threads or _THREADS,
            dry_run=dry_run,
            progress=progress,
        )
    _print_report(report, "fetched", json=json)


def _adapter(version: Reference, registry: Registry, folder: Path) -> Mapping[str, Path]:
    from deltareg.lora import stored_adapter

    return stored_adapter(version, registry, folder)


def _print_report(report: TransferReport, moved: str, *, json: bool) -> None:
    from deltareg.cli.output import print_report, warn
    from deltareg.cli.units import speed

    for warning in report.warnings:
        warn(warning)
    size = report.bytes if not report.dry_run else 0
    more = {"speed": speed(size, report.seconds)} if size else None
    leave_out = ["warnings"] if report.referrers else ["warnings", "referrers"]
    print_report(report, json=json, leave_out=leave_out, more=more, labels={"moved": moved})
