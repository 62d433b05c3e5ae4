"""The files beside the weights: the target's, and over them those that came with the first delta."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from deltareg.apply.placement import WeightedDelta
from deltareg.checkpoint import Checkpoint
from deltareg.digest import parse_json
from deltareg.errors import BadManifest

__all__ = ["SideFiles", "side_files"]

SideFiles = Literal["post", "target"]
"""Whose tokenizer, chat template and generation config the output gets."""

_CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template"
# What says which token has which row.
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def side_files(
    target: Checkpoint, deltas: Sequence[WeightedDelta], choice: SideFiles, *, keep_tokens: bool
) -> dict[str, bytes]:
    """The files by relative path.

    `keep_tokens`: rows of the embedding were matched by token, so that the target's tokenizer is the one that fits the
    output. It then keeps its files, and of post's `tokenizer_config.json` it gets the chat template alone.
    """
    files = {path.as_posix(): target.read_file(path) for path in target.side_files}
    if choice != "post" or not deltas:
        return files
    brought = deltas[0].artifact.side_files()
    if keep_tokens:
        own = files.get(_CONFIG)
        template = _template(brought.get(_CONFIG))
        brought = {name: data for name, data in brought.items() if not _is_vocabulary(name)}
        if own is not None and template is not None:
            files[_CONFIG] = _with_template(own, template)
    return {**files, **brought}


def _is_vocabulary(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _VOCABULARIES)


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
