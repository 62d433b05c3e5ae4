"""Reading tiktoken's files (a token in base64 and its rank, a line each) and Mistral's `tekken.json`.

Neither has merges: the ranks imply them. A tiktoken file has no pre-tokenizer either, which is then the one that its
name tells, or else Llama 3's, as transformers has it; its special tokens are those of `tokenizer_config.json`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from deltareg.fingerprint.tokenizer_core import (
    BYTES,
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    QWEN2_PATTERN,
    Model,
    Step,
    by_rank,
    isolate,
)
from deltareg.fingerprint.tokenizer_files import (
    FILE_LIMIT,
    AddedToken,
    Readable,
    as_list,
    as_object,
    bad,
    checked_ids,
    named_tokens,
    parse_document,
    quoted,
    read_document,
    token_of,
)

__all__ = ["is_tiktoken", "read_tekken", "read_tiktoken"]

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")
_PATTERNS: Mapping[str, tuple[list[Step], str]] = {
    "qwen": ([{"type": "NFC"}], QWEN2_PATTERN),
    "gpt2": ([], GPT2_PATTERN),
    "r50k_base": ([], GPT2_PATTERN),
    "p50k_base": ([], GPT2_PATTERN),
}
_TEKKEN = "tekken.json"
_MOST_SPECIAL = 65_536
# mistral-common's names where a tekken.json lists none.
_TEKKEN_SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


def _byte_characters() -> str:
    """The character that GPT-2's byte-level form has for each byte: its own if visible, else one from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in visible]
    return "".join(chr(byte if byte in visible else 0x100 + others.index(byte)) for byte in range(256))


_CHARACTERS = _byte_characters()


def is_tiktoken(data: bytes) -> bool:
    """Whether a file starts as a tiktoken file does; Llama 3's is called `tokenizer.model`."""
    return _LINE.match(data) is not None


def read_tiktoken(files: Readable, name: str) -> Model:
    """What the tiktoken file `name` says. Raises BadCheckpoint."""
    ranks: dict[str, int] = {}
    for number, line in enumerate(files.read(name, FILE_LIMIT).splitlines(), 1):
        parts = line.split(b" ")
        if not line:
            continue
        if len(parts) != 2 or not (parts[1].isdigit() and len(parts[1]) <= 10):
            raise bad(name, f"line {number} is not a token in base64 and its rank")
        _put(ranks, parts[0], int(parts[1]), f"line {number}", name)
    checked_ids(ranks, name)
    config = read_document(files, "tokenizer_config.json")
    normalizer, pattern = _PATTERNS.get(name.removesuffix(".tiktoken"), ([], LLAMA3_PATTERN))
    return _model(ranks, named_tokens(files, config, ranks, {}), normalizer, pattern, name)


def read_tekken(files: Readable) -> Model:
    """What a `tekken.json` says: ids are ranks plus the number of special tokens. Raises BadCheckpoint."""
    document = as_object(parse_document(files.read(_TEKKEN, FILE_LIMIT), _TEKKEN), _TEKKEN, "the document")
    config = as_object(document.get("config"), _TEKKEN, "config")
    first = _count(config, "default_num_special_tokens", _MOST_SPECIAL)
    size = _count(config, "default_vocab_size", 2**31 - 1)
    names = [*_TEKKEN_SPECIAL, *(f"<SPECIAL_{rank}>" for rank in range(len(_TEKKEN_SPECIAL), first))][:first]
    for place, entry in enumerate(as_list(document.get("special_tokens") or [], _TEKKEN, "special_tokens")):
        fields = as_object(entry, _TEKKEN, "a special token")
        rank = fields.get("rank")
        if type(rank) is not int or not 0 <= rank < first:
            raise bad(_TEKKEN, f"special token {place} has the rank {quoted(rank)}, which is not below {first}")
        names[rank] = token_of(fields.get("token_str"), _TEKKEN, f"special token {place}")
    if len(set(names)) != len(names):
        raise bad(_TEKKEN, "a special token occurs twice")
    ids: dict[str, int] = {}
    for place, entry in enumerate(as_list(document.get("vocab"), _TEKKEN, "vocab")):
        fields = as_object(entry, _TEKKEN, "a token")
        checked_ids({f"{place}": fields.get("rank")}, _TEKKEN)
        if fields["rank"] < size - first:
            data = token_of(fields.get("token_bytes"), _TEKKEN, f"token_bytes of token {place}")
            _put(ids, data.encode(), fields["rank"] + first, f"token {place}", _TEKKEN)
    checked_ids(ids, _TEKKEN)
    pattern = token_of(config.get("pattern"), _TEKKEN, "pattern")
    added = {name: AddedToken(id) for id, name in enumerate(names)}
    return _model(ids, added, [], pattern, _TEKKEN)


def _count(config: Mapping[str, Any], key: str, most: int) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise bad(_TEKKEN, f"{key} is no integer from 0 to {most}: {quoted(value)}")
    return value


def _put(ranks: dict[str, int], encoded: bytes, id: int, what: str, file: str) -> None:
    try:
        token = base64.b64decode(encoded, validate=True).decode("latin-1").translate(_CHARACTERS)
    except binascii.Error as error:
        raise bad(file, f"{what} is not base64") from error
    if ranks.setdefault(token, id) != id:
        raise bad(file, f"{what} is the token {quoted(token)} again")


def _model(
    ids: Mapping[str, int], added: Mapping[str, AddedToken], normalizer: list[Step], pattern: str, file: str
) -> Model:
    special = {token.id for token in added.values()}
    core = [token for token, id in sorted(ids.items(), key=lambda item: item[1]) if id not in special]
    return Model(
        format="tiktoken",
        kind="bpe",
        tokens=ids,
        added=added,
        normalizer=normalizer,
        pre_tokenizer=[isolate(pattern), BYTES],
        options={"ignore_merges": True},
        ranks=by_rank(core, set(core), file),
        file=file,
    )
