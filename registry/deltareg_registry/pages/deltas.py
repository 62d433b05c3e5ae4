"""The page of a delta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from deltareg.errors import BadName, ChannelMoved, DeltaregError, InvalidArgument, NotFound
from deltareg.manifest import DeltaConfig, Norms
from deltareg.names import Reference, parse_reference
from deltareg.store import Entry, version_among
from deltareg_registry.access.principal import Principal, Role
from deltareg_registry.api.artifacts import open_delta
from deltareg_registry.api.changes import ChannelMove, Reason, deprecate, move_channel, undeprecate, unyank, yank
from deltareg_registry.api.deltas import version_details
from deltareg_registry.pages.forms import Asking, Posted, model_of
from deltareg_registry.pages.lineage import lineage_of
from deltareg_registry.pages.norms import LayerNorms, layer_norms
from deltareg_registry.pages.rendering import render, server_url
from deltareg_registry.problems import status_of
from deltareg_registry.records.names import entries_of, entry_of
from deltareg_registry.records.namespaces import repository_id
from deltareg_registry.records.statistics import pulls_by_digest
from deltareg_registry.state import State, state_of

__all__ = ["delta_pages"]

delta_pages = APIRouter(include_in_schema=False)

_SHOWN_VERSIONS = 200
_MARKS = {"yank": yank, "deprecate": deprecate}
_UNMARKS = {"unyank": unyank, "undeprecate": undeprecate}


@delta_pages.get("/d/{namespace}/{name}")
def delta_page(
    request: Request,
    asking: Asking,
    namespace: str,
    name: str,
    version: Annotated[str | None, Query(max_length=200)] = None,
    older: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """A version of a delta, the latest unless another is asked for, or a channel; `older` is a place in its lineage."""
    return _page(request, asking, namespace, name, version, older=older)


@delta_pages.post("/d/{namespace}/{name}/versions/{version}")
def mark_version(request: Request, asking: Asking, namespace: str, name: str, version: str, form: Posted) -> Response:
    """Yank or deprecate a version, or take that back."""
    action = form.text("action")
    place = (request, asking, namespace, name, version)
    if action in _MARKS:
        _MARKS[action](*place, model_of(Reason, {"reason": form.text("reason") or ""}))
    elif action in _UNMARKS:
        _UNMARKS[action](*place)
    else:
        raise InvalidArgument("nothing is said of what to do with the version")
    return RedirectResponse(f"/d/{namespace}/{name}?{urlencode({'version': version})}", 303)


@delta_pages.post("/d/{namespace}/{name}/versions/{version}/channels")
def lead_channel(request: Request, asking: Asking, namespace: str, name: str, version: str, form: Posted) -> Response:
    """Let a channel lead to a version, if it still leads where the page said; who comes second is told."""
    channel = form.text("channel")
    if channel is None:
        raise InvalidArgument("no channel is named")
    digest = version_details(request, asking, namespace, name, version).digest
    move = model_of(ChannelMove, {"digest": digest, "expected": form.text("expected")})
    try:
        move_channel(request, asking, namespace, name, channel, move)
    except (BadName, ChannelMoved) as error:
        return _page(request, asking, namespace, name, version, error=error)
    return RedirectResponse(f"/d/{namespace}/{name}?{urlencode({'version': version})}#channels", 303)


def _page(
    request: Request,
    asking: Principal,
    namespace: str,
    name: str,
    version: str | None,
    *,
    older: str | None = None,
    error: BadName | ChannelMoved | None = None,
) -> Response:
    """The page; `error` is what came of moving a channel."""
    state = state_of(request)
    wanted = Reference(namespace, name) if version is None else parse_reference(f"{namespace}/{name}:{version}")
    with state.database.reading() as connection:
        repository = repository_id(connection, namespace, name)
        entries = entries_of(connection, repository, wanted)
        pulls = pulls_by_digest(connection, repository)
    entry = entry_of(entries, wanted)
    this = version_among(entries, wanted if version is not None else entry.reference, entry.digest)
    if this is None or this.version is None:
        raise NotFound(f"{wanted} leads to no version")
    details = version_details(request, asking, namespace, name, str(this.tag))
    config = details.config
    norms, fault = _layers(state, asking, str(this))
    return render(
        request,
        "delta.html",
        status=200 if error is None else status_of(error),
        this=this,
        details=details,
        config=config,
        commands=_commands(server_url(request), this, config),
        versions=_versions(entries, pulls),
        pulls=pulls.get(details.digest, 0),
        norms=norms,
        norms_fault=fault,
        classes=_classes(config),
        lineage=lineage_of(state, asking, this, details.digest, config, older),
        older=older,
        digests=_digests(config),
        # Whether the namespace is public makes nobody a publisher.
        publisher=asking.role_in(namespace, public=False) >= Role.PUBLISHER,
        channels=_channels(entries),
        fault=None if error is None else _why_not_moved(error, entries),
    )


def _channels(entries: Sequence[Entry]) -> list[tuple[str, str, str]]:
    """The channels by name, each with the version that it leads to and its digest."""
    return [
        (str(entry.reference.tag), _version_of(entries, entry.digest), entry.digest)
        for entry in entries
        if entry.reference.version is None
    ]


def _version_of(entries: Sequence[Entry], digest: str) -> str:
    found = (entry for entry in entries if entry.digest == digest and entry.reference.version is not None)
    return next((str(entry.reference.tag) for entry in found), digest)


def _why_not_moved(error: BadName | ChannelMoved, entries: Sequence[Entry]) -> str:
    if isinstance(error, BadName):
        return f"{error.message}. {error.hint or ''}".strip()
    found, expected = error.data.get("found"), error.data.get("expected")
    if expected is None:
        return f"There is a channel of that name already: it leads to {_version_of(entries, str(found))}."
    now = "is gone" if found is None else f"leads to {_version_of(entries, str(found))} now"
    return (
        f"The channel {now}, and not to {_version_of(entries, str(expected))}: somebody changed it after you opened "
        "the page. It was left alone. Below is how it stands; move it again if that is still right."
    )


def _layers(state: State, asking: Principal, name: str) -> tuple[LayerNorms | None, str | None]:
    """The norms by layer, or why they cannot be told: the rest of the page can."""
    try:
        return layer_norms(open_delta(state, asking, name)[1]), None
    except DeltaregError as error:
        return None, error.message


def _commands(server: str, this: Reference, config: DeltaConfig) -> list[tuple[str, str]]:
    """What to type, with what it does."""
    required = [f" {one.name}={one.weight:g}" if one.weight != 1 else f" {one.name}" for one in config.requires]
    return [
        ("Fetch it", f"deltareg pull {this} --remote {server}"),
        ("See whether it fits a checkpoint", f"deltareg check {this} --base path/to/target"),
        ("Add it to a checkpoint", f"deltareg apply path/to/target{''.join(required)} {this} -o path/to/output"),
    ]


def _versions(entries: Sequence[Entry], pulls: dict[str, int]) -> dict[str, Any]:
    """The versions, the highest first, each with the channels that lead to it and how often it was fetched."""
    channels: dict[str, list[str]] = {}
    for entry in entries:
        if entry.reference.version is None:
            channels.setdefault(entry.digest, []).append(str(entry.reference.tag))
    versions = [entry for entry in entries if entry.reference.version is not None][::-1]
    return {
        "rows": [
            (entry, channels.get(entry.digest, []), pulls.get(entry.digest, 0)) for entry in versions[:_SHOWN_VERSIONS]
        ],
        "more": max(0, len(versions) - _SHOWN_VERSIONS),
    }


def _classes(config: DeltaConfig) -> list[tuple[str, Norms, float | None]]:
    """Norms by module class, with the share that the delta is of the base."""
    return [(key, norms, norms.delta / norms.base if norms.base else None) for key, norms in config.norms.items()]


def _digests(config: DeltaConfig) -> list[tuple[str, str]]:
    """What tells whether it fits, with what each digest covers."""
    fingerprint = config.fingerprint
    found = [("Fingerprint", fingerprint.digest), ("Parameter space", fingerprint.space)]
    if fingerprint.tokenizer is not None:
        found += [("Tokenizer", fingerprint.tokenizer.core), ("Added tokens", fingerprint.tokenizer.added)]
    return found
