"""The files that a tokenizer is stored in: bounded reads, JSON, and the tokens that are added beside its model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from deltareg.digest import Digest, canonical_json, parse_json, sha256
from deltareg.errors import BadCheckpoint, BadManifest

__all__ = [
    "FILE_LIMIT",
    "AddedToken",
    "Readable",
    "added_digest",
    "added_token",
    "as_list",
    "as_object",
    "bad",
    "checked_ids",
    "checked_tokens",
    "named_tokens",
    "parse_document",
    "quoted",
    "read_chat_template",
    "read_document",
    "read_lines",
    "stored_tokens",
    "token_of",
]

FILE_LIMIT = 64 * 2**20
"""Bytes that one file of a tokenizer may have. The largest published `tokenizer.json` have about 35 MB."""

_HIGHEST_ID = 2**31 - 1
# Each is an object of some 100 bytes in memory, however few it has in the document.
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE_ROLES = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("special", "lstrip", "rstrip", "normalized", "single_word")


class Readable(Protocol):
    """What a tokenizer is read from: a folder of a checkpoint, or an artifact's side files."""

    def names(self) -> Sequence[str]:
        """The files, by POSIX name."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """One file as a whole. Raises BadCheckpoint if it has more than `limit` bytes."""
        ...


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before the model sees it, and how it is found."""

    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


def bad(file: str, what: str) -> BadCheckpoint:
    """The error of a tokenizer file that is not what such a file is."""
    return BadCheckpoint(f"{file}: {what}", hint="fetch the tokenizer's files again", file=file)


# --- JSON ---------------------------------------------------------------------------------------------------------


def read_document(files: Readable, name: str) -> dict[str, Any]:
    """A JSON file as an object; empty where the file does not exist. Raises BadCheckpoint."""
    if name not in files.names():
        return {}
    return as_object(parse_document(files.read(name, FILE_LIMIT), name), name, "the document")


def parse_document(raw: bytes, file: str) -> Any:
    """Parse JSON under the rules of `deltareg.digest.parse_json`. Raises BadCheckpoint."""
    try:
        return parse_json(raw, what=file)
    except BadManifest as error:
        raise bad(file, f"not valid JSON: {error.cause}") from error


def as_object(value: object, file: str, what: str) -> dict[str, Any]:
    """`value` if it is an object. Raises BadCheckpoint."""
    if not isinstance(value, dict):
        raise bad(file, f"{what} is no object")
    return cast("dict[str, Any]", value)


def as_list(value: object, file: str, what: str) -> list[Any]:
    """`value` if it is an array. Raises BadCheckpoint."""
    if not isinstance(value, list):
        raise bad(file, f"{what} is no array")
    return cast("list[Any]", value)


def read_lines(files: Readable, name: str) -> list[str]:
    """The lines of a text file in UTF-8, without their ends. Raises BadCheckpoint.

    Only a line feed ends a line: tokens hold the other characters that Unicode counts as line ends.
    """
    try:
        lines = files.read(name, FILE_LIMIT).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise bad(name, f"not UTF-8 at byte {error.start}") from error
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


# --- tokens and ids -----------------------------------------------------------------------------------------------


def checked_ids(vocabulary: Mapping[str, Any], file: str) -> dict[str, int]:
    """`vocabulary` if each of its ids is an integer, not negative, and has one token. Raises BadCheckpoint."""
    ids = vocabulary.values()
    if set(map(type, ids)) - {int} or (ids and not 0 <= min(ids) <= max(ids) <= _HIGHEST_ID):
        token, wrong = next((token, id) for token, id in vocabulary.items() if not _is_id(id))
        raise bad(file, f"token {quoted(token)} has the id {quoted(wrong)}, which is no integer from 0 to 2^31 - 1")
    if len(set(ids)) != len(vocabulary):
        first: dict[int, str] = {}
        for token, id in vocabulary.items():
            if id in first:
                raise bad(file, f"tokens {quoted(first[id])} and {quoted(token)} have the same id {id}")
            first[id] = token
    return dict(vocabulary)


def checked_tokens(tokens: Iterable[object], file: str) -> dict[str, int]:
    """Token → id of tokens that are listed in the order of their ids. Raises BadCheckpoint."""
    found: dict[str, int] = {}
    for id, token in enumerate(tokens):
        name = token_of(token, file, f"token {id}")
        if found.setdefault(name, id) != id:
            raise bad(file, f"token {quoted(name)} occurs twice, with the ids {found[name]} and {id}")
    return found


def token_of(value: object, file: str, what: str) -> str:
    """`value` if it is text. Raises BadCheckpoint."""
    if not isinstance(value, str):
        raise bad(file, f"{what} is no text: {quoted(value)}")
    return value


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= _HIGHEST_ID


def quoted(value: object) -> str:
    shown = repr(value) if not isinstance(value, int) or value.bit_length() < 256 else "a huge integer"
    return shown if len(shown) <= 80 else f"{shown[:79]}…"


# --- added tokens -------------------------------------------------------------------------------------------------


def added_token(entry: object, id: object, file: str, *, special: bool) -> tuple[str, AddedToken]:
    """The content of an added token, and the rest of what a file says about it. Raises BadCheckpoint."""
    fields = {"content": entry} if isinstance(entry, str) else as_object(entry, file, "an added token")
    content = token_of(fields.get("content"), file, "the content of an added token")
    checked_ids({content: id}, file)
    is_special = fields.get("special", special)
    defaults = {"special": special, "normalized": not is_special}
    flags: dict[str, Any] = {flag: fields.get(flag, defaults.get(flag, False)) for flag in _FLAGS}
    for flag, value in flags.items():
        if type(value) is not bool:
            raise bad(file, f"{flag} of the added token {quoted(content)} is neither true nor false")
    return content, AddedToken(cast("int", id), **flags)


def stored_tokens(entries: object, file: str) -> dict[str, AddedToken]:
    """The added tokens of a `tokenizer.json`: objects with content, id and flags. Raises BadCheckpoint."""
    found: dict[str, AddedToken] = {}
    for entry in as_list(entries, file, "added_tokens"):
        fields = as_object(entry, file, "an added token")
        content, token = added_token(fields, fields.get("id"), file, special=False)
        if content in found:
            raise bad(file, f"the added token {quoted(content)} occurs twice")
        found[content] = token
    return found


def named_tokens(
    files: Readable, config: Mapping[str, Any], vocabulary: Mapping[str, int], roles: Mapping[str, str]
) -> dict[str, AddedToken]:
    """The added tokens of a format that has them in files of their own.

    `roles` are the special tokens that the tokenizer's class has where no file names others. They count where the
    vocabulary has them; `special_tokens_map.json`, `added_tokens.json` and `tokenizer_config.json` are read over them.
    Raises BadCheckpoint.
    """
    special_map = read_document(files, "special_tokens_map.json")
    special = _special_tokens(
        {"": roles, "special_tokens_map.json": special_map, "tokenizer_config.json": config},
    )
    name = "added_tokens.json"
    listed = checked_ids(read_document(files, name), name)
    found: dict[str, AddedToken] = {}
    for token, id in {**{token: vocabulary[token] for token in special if token in vocabulary}, **listed}.items():
        entry, file = special.get(token, (token, name))
        found[token] = added_token(entry, id, file, special=token in special)[1]
    name = "tokenizer_config.json"
    for key, entry in as_object(config.get("added_tokens_decoder") or {}, name, "added_tokens_decoder").items():
        id = int(key) if re.fullmatch("[0-9]{1,10}", key) else key
        content, token = added_token(entry, id, name, special=False)
        found[content] = token
    return found


def _special_tokens(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Any, str]]:
    """Special tokens by content: the entry that names each, and its file. A later file goes before an earlier one."""
    by_role = {role: (value, file) for file, fields in sources.items() for role, value in fields.items()}
    found: dict[str, tuple[Any, str]] = {}
    for role in (*_ROLES, *_MORE_ROLES):
        value, file = by_role.get(role, (None, ""))
        entries: list[Any] = [value]
        if role in _MORE_ROLES and isinstance(value, dict):
            entries = list(cast("dict[str, Any]", value).values())
        elif role in _MORE_ROLES and isinstance(value, list):
            entries = cast("list[Any]", value)
        for entry in entries:
            content = cast("dict[str, Any]", entry).get("content") if isinstance(entry, dict) else entry
            if isinstance(content, str):
                found.setdefault(content, (cast("Any", entry), file))
    return found


def added_digest(tokens: Mapping[str, AddedToken]) -> Digest:
    """The digest of added tokens, ordered by id: content, id and the five flags of each."""
    ordered = sorted(tokens.items(), key=lambda item: item[1].id)
    return sha256(
        canonical_json(
            [
                {"content": content, "id": token.id, **{f: getattr(token, f) for f in _FLAGS}}
                for content, token in ordered
            ]
        )
    )


# --- chat template ------------------------------------------------------------------------------------------------


def read_chat_template(files: Readable, config: Mapping[str, Any]) -> Digest | None:
    """The digest of the chat templates by name, None where there is none. Raises BadCheckpoint.

    A file of its own goes before `tokenizer_config.json`, as in transformers. Line ends are written as line feeds,
    and one at the end does not count: Jinja drops it.
    """
    found = _named_templates(config.get("chat_template"), "tokenizer_config.json")
    document = read_document(files, "chat_template.json")
    found.update(_named_templates(document.get("chat_template"), "chat_template.json"))
    if "chat_template.jinja" in files.names():
        try:
            found["default"] = files.read("chat_template.jinja", FILE_LIMIT).decode("utf-8")
        except UnicodeDecodeError as error:
            raise bad("chat_template.jinja", f"not UTF-8 at byte {error.start}") from error
    if not found:
        return None
    texts = {name: re.sub("\r\n?", "\n", text).removesuffix("\n") for name, text in found.items()}
    return sha256(canonical_json(texts))


def _named_templates(value: object, file: str) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        named = list(cast("dict[str, object]", value).items())
    else:
        entries = [as_object(entry, file, "a chat template") for entry in as_list(value, file, "chat_template")]
        named = [(entry.get("name"), entry.get("template")) for entry in entries]
    found: dict[str, str] = {}
    for name, text in named:
        key = token_of(name, file, "the name of a chat template")
        if key in found:
            raise bad(file, f"the chat template {quoted(key)} occurs twice")
        found[key] = token_of(text, file, f"the chat template {quoted(key)}")
    return found
