"""The files beside the weights: the target's, and over them those that came with the first delta."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from deltareg.apply.placement import WeightedDelta
from deltareg.checkpoint import Checkpoint
from deltareg.checkpoint.layout import is_tokenizer_file
from deltareg.digest import parse_json
from deltareg.errors import BadManifest

__all__ = ["SideFiles", "side_files"]

SideFiles = Literal["post", "target"]
"""Whose tokenizer, chat template and generation config the output gets."""

_CONFIG = "tokenizer_config.json"
_GENERATION = "generation_config.json"
_TEMPLATE = "chat_template"


def side_files(
    target: Checkpoint, deltas: Sequence[WeightedDelta], choice: SideFiles, moved: Sequence[Mapping[int, int]]
) -> dict[str, bytes]:
    """The files by relative path.

    `moved` gives for each delta its row of a token by the target's, where these differ. Where any do, the target's
    tokenizer is the one that fits the output: it keeps its files, and gets of post's `tokenizer_config.json` the chat
    template alone, and post's `generation_config.json` with the target's numbers of its tokens.
    """
    files = {path.as_posix(): target.read_file(path) for path in target.side_files}
    if choice != "post" or not deltas:
        return files
    brought = deltas[0].artifact.side_files()
    if any(moved):
        own = files.get(_CONFIG)
        template = _template(brought.get(_CONFIG))
        brought = {name: data for name, data in brought.items() if not is_tokenizer_file(name)}
        if own is not None and template is not None:
            files[_CONFIG] = _with_template(own, template)
        generation = brought.pop(_GENERATION, None)
        renumbered = None if generation is None else _renumbered(generation, moved[0])
        if renumbered is not None:
            brought[_GENERATION] = renumbered
    return {**files, **brought}


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(data, what=_CONFIG)
    except BadManifest:
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _template(config: bytes | None) -> object:
    return None if config is None else (_object(config) or {}).get(_TEMPLATE)


def _with_template(config: bytes, template: object) -> bytes:
    value: Mapping[str, Any] | None = _object(config)
    if value is None or value.get(_TEMPLATE) == template:
        return config
    return (json.dumps({**value, _TEMPLATE: template}, indent=2, ensure_ascii=False) + "\n").encode()


def _renumbered(generation: bytes, moved: Mapping[int, int]) -> bytes | None:
    """post's generation config with the target's numbers of its tokens; None where the target lacks one of them."""
    value = _object(generation)
    if value is None or not moved:
        return generation
    rows = {home: row for row, home in moved.items() if home >= 0}
    lost = {row for row in moved if row not in rows}

    def number(id: object) -> object:
        return rows.get(id, id) if type(id) is int else id

    found: dict[str, Any] = {}
    for key, old in value.items():
        ids = cast("list[object]", old) if isinstance(old, list) else [old]
        if not key.endswith(("_token_id", "_token_ids")):
            found[key] = old
        elif any(type(id) is int and id in lost for id in ids):
            return None
        else:
            found[key] = [number(id) for id in ids] if isinstance(old, list) else number(old)
    return generation if found == value else (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()
