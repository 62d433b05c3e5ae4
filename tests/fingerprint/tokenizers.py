"""Tokenizers to test with, in every format that they are stored in, as bytes by file name."""

from __future__ import annotations

import base64
import itertools
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deltareg.fingerprint.tokenizer import SideFiles, Tokenizer, read_tokenizer

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")

LLAMA3_SPECIAL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
LLAMA31_SPECIAL = {**LLAMA3_SPECIAL, 4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}
QWEN25_ADDED = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip


def read(files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer of files in memory, which must be one."""
    found = read_tokenizer(SideFiles(files))
    assert found is not None
    return found


def as_json(value: Any, **options: Any) -> bytes:
    """`value` as JSON in UTF-8."""
    return json.dumps(value, **options).encode()


def byte_characters() -> list[str]:
    """GPT-2's character for each byte, in the order in which its vocabulary has them."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in visible] + [chr(0x100 + place) for place in range(256 - len(visible))]


def byte_level_tokens(count: int) -> list[str]:
    """`count` different tokens: the bytes, pairs of bytes, then triples that begin with a pair."""
    characters = byte_characters()
    pairs = [left + right for left, right in itertools.product(characters, characters)]
    triples = (pair + characters[place % 256] for place, pair in enumerate(itertools.chain(pairs, pairs[1:])))
    return list(dict.fromkeys(itertools.islice(itertools.chain(characters, pairs, triples), count)))


def every_merge(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """All ways to make each token of two others, in the order of the tokens."""
    known = set(tokens)
    return [
        (token[:place], token[place:])
        for token in tokens
        for place in range(1, len(token))
        if token[:place] in known and token[place:] in known
    ]


def one_merge(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """One way to make each token: all but its last character, and that."""
    return [(token[:-1], token[-1]) for token in tokens if len(token) > 1]


def added(content: str, id: int, **flags: bool) -> dict[str, Any]:
    """An entry of added_tokens."""
    defaults = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": content, **defaults, **flags}


def byte_level(**fields: Any) -> dict[str, Any]:
    """GPT-2's pre-tokenizer."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **fields}


def split(pattern: str) -> dict[str, Any]:
    """The pre-tokenizer of Llama 3 and Qwen 2: their own expression, then bytes."""
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [step, byte_level(use_regex=False)]}


def bpe(
    tokens: Sequence[str],
    merges: Iterable[Any],
    *,
    added_tokens: Sequence[Mapping[str, Any]] = (),
    pre_tokenizer: Any = None,
    normalizer: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """A tokenizer.json of the BPE kind, whose ids are the tokens' places."""
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", **options}
    return {
        "version": "1.0",
        "added_tokens": list(added_tokens),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": {**model, "vocab": {token: id for id, token in enumerate(tokens)}, "merges": list(merges)},
    }


def llama3(special: Mapping[int, str], core: int = 128_000) -> dict[str, Any]:
    """Llama 3's layout: `core` tokens with every merge, then 256 special ones, reserved unless they have a name."""
    tokens = byte_level_tokens(core)
    reserved = (f"<|reserved_special_token_{number}|>" for number in itertools.count())
    names = [special.get(place) or next(reserved) for place in range(256)]
    return bpe(
        tokens,
        [f"{left} {right}" for left, right in every_merge(tokens)],
        added_tokens=[added(name, core + place) for place, name in enumerate(names)],
        pre_tokenizer=split(LLAMA3_PATTERN),
        ignore_merges=True,
    )


def qwen25(core: int = 151_643, more: Sequence[str] = QWEN25_ADDED) -> dict[str, Any]:
    """Qwen2.5's layout: `core` tokens with one merge each, and the added ones after them."""
    tokens = byte_level_tokens(core)
    return bpe(
        tokens,
        one_merge(tokens),
        added_tokens=[added(name, core + place) for place, name in enumerate(more)],
        pre_tokenizer=split(QWEN2_PATTERN),
        normalizer={"type": "NFC"},
    )


def vocab_and_merges(document: Mapping[str, Any]) -> dict[str, bytes]:
    """The model of a tokenizer.json as vocab.json and merges.txt."""
    model = document["model"]
    merges = [entry if isinstance(entry, str) else " ".join(entry) for entry in model["merges"]]
    return {
        "vocab.json": as_json(model["vocab"], ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
    }


def tiktoken(tokens: Sequence[str]) -> bytes:
    """Byte-level tokens as a tiktoken file."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    order = [*visible, *(byte for byte in range(256) if byte not in visible)]
    byte_of = dict(zip(byte_characters(), order, strict=True))
    encoded = (base64.b64encode(bytes(byte_of[c] for c in token)).decode() for token in tokens)
    return "".join(f"{token} {rank}\n" for rank, token in enumerate(encoded)).encode()


# --- SentencePiece ------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """A protobuf varint."""
    head = bytearray()
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*head, value])


def message(number: int, value: bytes | int | float) -> bytes:
    """A protobuf field: bytes, varint or 32-bit float."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentencepiece(
    pieces: Iterable[tuple[str, float, int]],
    *,
    model_type: int,
    byte_fallback: bool = False,
    charsmap: bytes = b"",
    dummy_prefix: bool = True,
) -> bytes:
    """A SentencePiece model. Pieces are text, score, type: 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte."""
    encoded = [message(1, text.encode()) + message(2, score) + message(3, kind) for text, score, kind in pieces]
    trainer = message(3, model_type) + message(35, int(byte_fallback))
    normalizer = message(1, b"identity") + message(2, charsmap) + message(3, int(dummy_prefix))
    return b"".join(message(1, piece) for piece in encoded) + message(2, trainer) + message(3, normalizer)
