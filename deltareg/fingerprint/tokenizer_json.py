"""Reading `tokenizer.json`, the format of the tokenizers library."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltareg.fingerprint.tokenizer_core import BYTES, Model, read_steps, sentencepiece_steps, whole_merges
from deltareg.fingerprint.tokenizer_files import (
    FILE_LIMIT,
    AddedToken,
    Readable,
    as_list,
    as_object,
    bad,
    checked_ids,
    checked_tokens,
    parse_document,
    quoted,
    stored_tokens,
    token_of,
)

__all__ = ["BYTE_PIECE", "WORDPIECE_OPTIONS", "check_merges", "kept_options", "read_tokenizer_json"]

BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
"""A token that stands for one byte of a character that the vocabulary lacks."""
WORDPIECE_OPTIONS: Mapping[str, Any] = {
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
}
"""BERT's options of a WordPiece model."""

_FILE = "tokenizer.json"
_KINDS = {"BPE": "bpe", "WordPiece": "wordpiece", "Unigram": "unigram", "WordLevel": "wordlevel"}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"WordPiece": WORDPIECE_OPTIONS, "WordLevel": {"unk_token": "<unk>"}}
_NO_OPTIONS = ("type", "vocab", "merges", "dropout", "unk_id")
_OF_UNKNOWN = ("unk_token", "fuse_unk")


def read_tokenizer_json(files: Readable) -> Model:
    """What a `tokenizer.json` says. Raises BadCheckpoint."""
    document = as_object(parse_document(files.read(_FILE, FILE_LIMIT), _FILE), _FILE, "the document")
    model = as_object(document.get("model"), _FILE, "model")
    type_ = _type_of(model)
    added = stored_tokens(document.get("added_tokens") or [], _FILE)
    normalizer = read_steps(document.get("normalizer"), _FILE, normalizer=True)
    pre_tokenizer = read_steps(document.get("pre_tokenizer"), _FILE)
    options = {**_DEFAULTS.get(type_, {}), **model}
    scores: Mapping[str, float] | None = None
    merges: Sequence[tuple[str, str]] = ()
    if type_ == "Unigram":
        scores, tokens = _pieces(model.get("vocab"))
    else:
        tokens = checked_ids(as_object(model.get("vocab"), _FILE, "the vocabulary"), _FILE)
    if type_ == "BPE":
        merges = _merges(model.get("merges"))
        prefix = token_of(options.get("continuing_subword_prefix") or "", _FILE, "continuing_subword_prefix")
        check_merges(merges, tokens, prefix, _FILE)
    converted = sentencepiece_steps(normalizer, pre_tokenizer) if type_ in ("BPE", "Unigram") else None
    if converted is not None:
        normalizer, pre_tokenizer = converted
        added = {**_unknown_piece(model, tokens), **added}
    ranks = None
    if type_ == "BPE" and not options.get("continuing_subword_prefix"):
        ids = {token.id for token in added.values()}
        known = {token for token, id in tokens.items() if id not in ids}
        if options.get("byte_fallback"):
            known = {token for token in known if BYTE_PIECE.fullmatch(token) is None}
        ranks = whole_merges(merges, known, tokens)
    return Model(
        format=_FILE,
        kind=_KINDS[type_],
        tokens=tokens,
        added=added,
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        options=kept_options(options, known_text=converted is not None or BYTES in [*pre_tokenizer, *normalizer]),
        merges=merges,
        ranks=ranks,
        scores=scores,
        file=_FILE,
    )


def kept_options(options: Mapping[str, Any], *, known_text: bool) -> dict[str, Any]:
    """The options that are set and count; with `known_text` those of the unknown token do not."""
    left_out = (*_NO_OPTIONS, *_OF_UNKNOWN) if known_text else _NO_OPTIONS
    return {key: value for key, value in options.items() if key not in left_out and value not in (None, False, "")}


def check_merges(merges: Sequence[tuple[str, str]], tokens: Mapping[str, int], prefix: str, file: str) -> None:
    """Raise BadCheckpoint where a merge names, or makes, a token that the vocabulary lacks."""
    skip = len(prefix)
    for place, (left, right) in enumerate(merges):
        if left not in tokens or right not in tokens or left + right[skip:] not in tokens:
            missing = next(token for token in (left, right, left + right[skip:]) if token not in tokens)
            raise bad(file, f"merge {place} needs the token {quoted(missing)}, which the vocabulary lacks")


def _type_of(model: Mapping[str, Any]) -> str:
    # The oldest files name no type.
    type_ = model.get("type")
    if type_ is None:
        if "merges" in model:
            return "BPE"
        if isinstance(model.get("vocab"), list):
            return "Unigram"
        return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"
    if not isinstance(type_, str) or type_ not in _KINDS:
        raise bad(_FILE, f"the model's type {quoted(type_)} is not one of {', '.join(_KINDS)}")
    return type_


def _pieces(vocabulary: object) -> tuple[dict[str, float], dict[str, int]]:
    entries = [as_list(entry, _FILE, "a piece") for entry in as_list(vocabulary, _FILE, "the vocabulary")]
    for place, entry in enumerate(entries):
        if len(entry) != 2 or type(entry[1]) not in (int, float):
            raise bad(_FILE, f"piece {place} is not a text and a score")
    tokens = checked_tokens((token for token, _ in entries), _FILE)
    return {token: score for token, (_, score) in zip(tokens, entries, strict=True)}, tokens


def _merges(value: object) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for place, entry in enumerate(as_list(value, _FILE, "merges")):
        parts: Any = entry.split(" ") if isinstance(entry, str) else entry
        match parts:
            case [str() as left, str() as right]:
                found.append((left, right))
            case _:
                raise bad(_FILE, f"merge {place} is not two tokens: {quoted(entry)}")
    return found


def _unknown_piece(model: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[str, AddedToken]:
    """The unknown token, which SentencePiece keeps apart from its pieces whether or not added_tokens lists it."""
    if isinstance(name := model.get("unk_token"), str) and name in tokens:
        return {name: AddedToken(tokens[name])}
    number = model.get("unk_id")
    return {token: AddedToken(id) for token, id in tokens.items() if type(number) is int and id == number}
