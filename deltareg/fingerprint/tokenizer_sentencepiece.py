"""Reading SentencePiece models: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.

A few dozen lines read the fields that are needed; the `sentencepiece` and `protobuf` packages are compiled code that
would be loaded for these lines alone, and neither bounds what a hostile file makes it do.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deltareg.digest import sha256
from deltareg.fingerprint.tokenizer_core import Model, Step, by_rank, prefix_step, unknown
from deltareg.fingerprint.tokenizer_files import (
    FILE_LIMIT,
    AddedToken,
    Readable,
    bad,
    checked_tokens,
    named_tokens,
    read_document,
)
from deltareg.fingerprint.tokenizer_vocab import class_of

__all__ = ["read_sentencepiece"]

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_KINDS = {1: "unigram", 2: "bpe", 3: "wordlevel", 4: "char"}
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5

# fairseq's models: <s>, <pad>, </s> and <unk> first, the pieces from 3 on after them, <mask> last.
_FAIRSEQ = ("XLMRobertaTokenizer", "MBartTokenizer", "MBart50Tokenizer", "NllbTokenizer")
_FAIRSEQ_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
# Classes that number the pieces in a way of their own.
_OTHER_IDS = ("BarthezTokenizer", "CamembertTokenizer", "PegasusTokenizer", "PLBartTokenizer", "XGLMTokenizer")

Field = int | bytes


@dataclass(frozen=True)
class _Piece:
    text: str
    score: float
    type: int


def read_sentencepiece(files: Readable, name: str) -> Model:
    """What the SentencePiece model in the file `name` says. Raises BadCheckpoint."""
    pieces, trainer, normalizer = _read_model(files.read(name, FILE_LIMIT), name)
    kind = _KINDS.get(_integer(trainer, 3, 1))
    if kind is None:
        raise bad(name, f"the model's type {_integer(trainer, 3, 1)} is not one of SentencePiece's")
    config = read_document(files, "tokenizer_config.json")
    tokens = checked_tokens((piece.text for piece in pieces), name)
    ranked = [piece for piece in pieces if piece.type not in (_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE)]
    if class_of(config) in _FAIRSEQ:
        tokens = checked_tokens([*_FAIRSEQ_FIRST, *(piece.text for piece in pieces[3:])], name)
    added = _added(pieces, tokens)
    added.update(named_tokens(files, config, tokens, {}))
    scores = {piece.text: piece.score for piece in pieces}
    ranks = None
    if kind == "bpe":
        ranked = [piece for piece in ranked if piece.text not in added]
        known = {piece.text for piece in ranked}
        ranks = by_rank((piece.text for piece in sorted(ranked, key=lambda piece: -piece.score)), known, name)
    return Model(
        format="sentencepiece",
        kind=kind,
        tokens=tokens,
        added=added,
        normalizer=_normalizer(normalizer, config),
        pre_tokenizer=[unknown(class_of(config))] if class_of(config) in _OTHER_IDS else [],
        options={"byte_fallback": True} if _integer(trainer, 35, 0) else {},
        ranks=ranks,
        scores=scores if kind == "unigram" else None,
        file=name,
    )


def _added(pieces: list[_Piece], tokens: Mapping[str, int]) -> dict[str, AddedToken]:
    """The pieces that no text is merged to: unknown, control and user-defined ones."""
    found: dict[str, AddedToken] = {}
    for piece in pieces:
        if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED) and piece.text in tokens:
            found[piece.text] = AddedToken(tokens[piece.text], special=piece.type != _USER_DEFINED)
    for token in _FAIRSEQ_FIRST if list(tokens)[:4] == list(_FAIRSEQ_FIRST) else ():
        found[token] = AddedToken(tokens[token])
    return found


def _normalizer(fields: Mapping[int, Field], config: Mapping[str, Any]) -> list[Step]:
    charsmap = fields.get(2, b"")
    prefix = config.get("add_prefix_space")
    return [
        *([{"type": "Precompiled", "charsmap": sha256(charsmap)}] if isinstance(charsmap, bytes) and charsmap else []),
        prefix_step(prefix if isinstance(prefix, bool) else bool(_integer(fields, 3, 1))),
    ]


def _integer(fields: Mapping[int, Field], number: int, default: int) -> int:
    value = fields.get(number, default)
    return value if isinstance(value, int) else default


# --- protobuf -----------------------------------------------------------------------------------------------------


def _read_model(data: bytes, file: str) -> tuple[list[_Piece], Mapping[int, Field], Mapping[int, Field]]:
    pieces: list[_Piece] = []
    specs: dict[int, Mapping[int, Field]] = {}
    for number, value in _fields(data, file):
        if isinstance(value, bytes):
            if number == 1:
                pieces.append(_piece(value, file, len(pieces)))
            elif number in (2, 3):
                specs[number] = dict(_fields(value, file))
    if not pieces:
        raise bad(file, "no SentencePiece model: it has no pieces")
    if len(specs) != 2:
        raise bad(file, "truncated, or no SentencePiece model: it ends before the trainer's or normalizer's part")
    return pieces, specs[2], specs[3]


def _piece(data: bytes, file: str, place: int) -> _Piece:
    fields = dict(_fields(data, file))
    text, score = fields.get(1, b""), fields.get(2, bytes(4))
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
        raise bad(file, f"piece {place} is not a text and a score")
    number = struct.unpack("<f", score)[0]
    if not math.isfinite(number):
        raise bad(file, f"the score of piece {place} is not finite")
    try:
        return _Piece(text.decode("utf-8"), number, _integer(fields, 3, 1))
    except UnicodeDecodeError as error:
        raise bad(file, f"piece {place} is not UTF-8") from error


def _fields(data: bytes, file: str) -> Iterator[tuple[int, Field]]:
    """The fields of a message: integers for varints, bytes for all else. Raises BadCheckpoint."""
    place, end = 0, len(data)
    while place < end:
        key, place = _varint(data, place, file)
        wire = key & 7
        if wire == _VARINT:
            value, place = _varint(data, place, file)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            length, place = _varint(data, place, file)
        elif wire in (_FOUR, _EIGHT):
            length = 4 if wire == _FOUR else 8
        else:
            raise bad(file, f"no protobuf message: wire type {wire}")
        if length > end - place:
            raise bad(file, "truncated: a field is longer than the rest of its message")
        yield key >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int, file: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise bad(file, "truncated: it ends within a number")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise bad(file, "no protobuf message: a number has more than ten bytes")
