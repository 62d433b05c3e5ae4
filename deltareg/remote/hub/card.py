"""The model card of a delta's repository: what the Hub lists it by, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltareg.checkpoint.hub import parse_hub_name
from deltareg.errors import BadName
from deltareg.licences import derive
from deltareg.manifest import DeltaConfig, Manifest
from deltareg.markdown import front_matter, plain
from deltareg.store import Entry

__all__ = ["MARK", "TAG", "card", "first_card"]

TAG = "deltareg"
"""By this tag the Hub finds the repositories of deltas."""
MARK = "<!-- Written by deltareg at each push. Take this line out to keep a text of your own. -->"
"""A model card without it is never changed."""
_ADAPTER = "adapter_config.json"


def first_card(delta: str) -> bytes:
    """The card of a repository that has no version yet."""
    front = {"library_name": TAG, "tags": [TAG]}
    return _joined(
        ["---", *front_matter(front), "---", MARK, "", f"# {plain(delta)}", "", "No version is here yet.", ""]
    )


def card(entry: Entry, manifest: Manifest, config: DeltaConfig, url: str, beside: Sequence[str]) -> bytes:
    """The card of a delta whose latest version is `entry`, at the remote `url`, with the files `beside` it.

    The same version gives the same bytes: no date, no machine.
    """
    name = plain(entry.reference.repository)
    adapted = _ADAPTER in beside
    lines = ["---", *front_matter(_front(config, adapted=adapted)), "---", MARK, "", f"# {name}", ""]
    lines += [f"{plain(config.description)}", ""] if config.description else []
    if entry.yanked is not None:
        lines += [f"**This version is yanked:** {plain(entry.yanked or 'no reason is given')}", ""]
    if entry.deprecated is not None:
        lines += [f"**This version is deprecated:** {plain(entry.deprecated or 'no reason is given')}", ""]
    lines += [
        "A weight delta: what a post-training run changed in its base, to be added to that base or to another one of",
        "the same architecture and tokenizer. The repository is an OCI image layout; deltareg reads it.",
        "",
        *_table(entry, manifest, config),
        "",
        "```console",
        f"$ deltareg remote add hub {url}",
        f"$ deltareg pull {entry.reference} --remote hub",
        f"$ deltareg check {entry.reference} path/to/base",
        f"$ deltareg apply path/to/base {entry.reference} -o path/to/output",
        "```",
        "",
    ]
    if adapted:
        lines += ["The delta is a LoRA adapter. `peft` loads it from here, at its base, without deltareg.", ""]
    if config.requires:
        needed = [f"- `{plain(str(one))}`" for one in config.requires]
        lines += ["It was taken on top of other deltas, which have to be applied too:", "", *needed, ""]
    return _joined(lines)


def _front(config: DeltaConfig, *, adapted: bool) -> dict[str, Any]:
    licence = derive({"delta": config.licence})
    front: dict[str, Any] = {"library_name": TAG, "tags": [TAG, *(["lora", "peft"] if adapted else [])]}
    base = _hub_name(config.base.id)
    if base is not None:
        front["base_model"] = base
        front["base_model_relation"] = "adapter" if adapted else "finetune"
    hub = {"license": licence.hub, "license_name": licence.hub_name}
    return front | {key: value for key, value in hub.items() if value is not None}


def _hub_name(base: str) -> str | None:
    """The model that the Hub can link to; a base that was a directory has none, and the Hub refuses what is no name."""
    try:
        return parse_hub_name(base).repository
    except BadName:
        return None


def _table(entry: Entry, manifest: Manifest, config: DeltaConfig) -> list[str]:
    revision = f" at `{plain(config.base.revision)}`" if config.base.revision else ""
    rows = {
        "version": f"`{entry.reference.tag}`",
        "digest": f"`{entry.digest}`",
        "base": f"`{plain(config.base.id)}`{revision}",
        "exactness": plain(str(config.exactness)),
        "licence": plain(config.licence or "unknown"),
        "size": f"{sum(blob.size for blob in manifest.blobs):,} bytes",
        "made by": plain(config.producer),
    }
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]


def _joined(lines: Sequence[str]) -> bytes:
    return "\n".join(lines).encode()
