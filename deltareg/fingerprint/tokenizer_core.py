"""The canonical form of what a tokenizer does, in which its file format no longer shows.

The core of a tokenizer is its *vocabulary* (token → id, without the added tokens) and its *rules*: all else that turns
text into these tokens. Formats write the same rules in different ways, and some leave out what the tokenizer's class
implies. So the rules are brought into one form:

- **Steps.** Normalizer and pre-tokenizer are lists of steps, nested sequences flattened, omitted parameters set to
  their defaults. `ByteLevel` is taken apart into what it does: `PrefixSpace` (`add_prefix_space`), `Split` by GPT-2's
  expression (`use_regex`), `Bytes`; so a `Split` by that expression before a `ByteLevel` without one is the same. Any
  other expression is another step, hence another core. `trim_offsets` moves no token and does not count; nor does
  `invert` of a `Split` that isolates. `strip_accents: null` of BERT's normalizer is what `lowercase` is.
- **Merges.** Where they are all the ways to put each token together of two others, token after token, they say no
  more than the order of the tokens does: the rules then hold these tokens' ids in that order (`ranks`), and the order
  of one token's own merges does not count. SentencePiece (by score) and tiktoken (by rank) have no merges at all and
  imply just these. Any other merges are held as pairs, in order. A tokenizer.json made of tiktoken ranks with *one*
  merge for each token works the same and yet has another core; to find that out means tokenizing each token.
- **SentencePiece.** Its converters write one and the same normalization in many ways, and drop parts of it. What
  replaces or collapses spaces is left out; that a `▁` is put before the text is kept (`prefix`), whether before each
  part or the first alone is not; the character map is kept as its digest.
- **Options.** Every other field of the model that is set, except dropout (which is not used in inference) and what
  concerns the unknown token of byte-level and SentencePiece models, where it is an added token or never used.
- **Scores** of a Unigram model are rounded to 32-bit floats and held as their bits.
- **Unknown.** What cannot be known of a format and class without their code is a step of that type which holds the
  class's name, equal only to itself.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from deltareg.digest import Digest, canonical_json, sha256
from deltareg.errors import InvalidArgument
from deltareg.fingerprint.tokenizer_files import AddedToken, as_list, as_object, bad

__all__ = [
    "BYTES",
    "GPT2_PATTERN",
    "LLAMA3_PATTERN",
    "QWEN2_PATTERN",
    "Model",
    "Step",
    "by_rank",
    "core_digest",
    "core_vocabulary",
    "isolate",
    "prefix_step",
    "read_steps",
    "rules_digest",
    "score_bits",
    "sentencepiece_steps",
    "unknown",
    "whole_merges",
]

Step = dict[str, Any]

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 splits text before it merges, and what `ByteLevel` means by `use_regex`."""
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen 2 and 2.5 split: every digit alone."""
LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
"""How Llama 3 splits, and how transformers reads a tiktoken file of no known class."""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# What bounds the work on hostile vocabularies: published tokens have at most a few hundred characters.
_LONGEST = 512
_CHARACTERS = 8_000_000

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "BertNormalizer": {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    "Strip": {"strip_left": True, "strip_right": True},
    "Digits": {"individual_digits": False},
    "Punctuation": {"behavior": "Isolated"},
    "Split": {"invert": False},
    "Metaspace": {"replacement": _SPACE, "add_prefix_space": True, "split": True},
    "ByteLevel": {"add_prefix_space": True, "use_regex": True},
}

BYTES: Step = {"type": "Bytes"}
_PREFIX: Step = {"type": "PrefixSpace"}


@dataclass(frozen=True)
class Model:
    """What a tokenizer's files say, in canonical form. `tokens` are the model's own, added ones among them included.

    `ranks` are the tokens whose order implies the merges; None where `merges` (or nothing at all) says how.
    """

    format: str
    kind: str
    tokens: Mapping[str, int]
    added: Mapping[str, AddedToken]
    normalizer: Sequence[Step] = ()
    pre_tokenizer: Sequence[Step] = ()
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    merges: Sequence[tuple[str, str]] = ()
    ranks: Sequence[str] | None = None
    scores: Mapping[str, float] | None = None
    file: str = ""


# --- digests ------------------------------------------------------------------------------------------------------


def core_vocabulary(model: Model) -> dict[str, int]:
    """The model's tokens without those that are added, whether by name or by id."""
    ids = {token.id for token in model.added.values()}
    return {token: id for token, id in model.tokens.items() if id not in ids and token not in model.added}


def rules_digest(model: Model) -> Digest:
    """The digest of all that turns text into tokens, except which id each token has."""
    scores = None
    if model.scores is not None:
        core = sorted(core_vocabulary(model).items(), key=lambda item: item[1])
        scores = score_bits([model.scores[token] for token, _ in core], model.file)
    try:
        small = {
            "kind": canonical_json(model.kind),
            "normalizer": canonical_json(list(model.normalizer)),
            "options": canonical_json(dict(model.options)),
            "pre_tokenizer": canonical_json(list(model.pre_tokenizer)),
        }
    except InvalidArgument as error:
        raise bad(model.file, f"a rule has no canonical form: {error}") from error
    ranks = None if model.ranks is None else [model.tokens[token] for token in model.ranks]
    large = {
        "merges": _fast_json(list(chain.from_iterable(model.merges)) if ranks is None else None),
        "ranks": _fast_json(ranks),
        "scores": _fast_json(scores),
    }
    parts = sorted({**small, **large}.items())
    return sha256(b"{" + b",".join(canonical_json(key) + b":" + value for key, value in parts) + b"}")


def core_digest(rules: Digest, vocabulary: Mapping[str, int]) -> Digest:
    """The digest of the rules' digest and the vocabulary: ids in order, and the token of each."""
    ordered = sorted(vocabulary.items(), key=lambda item: item[1])
    document = {"ids": [id for _, id in ordered], "rules": rules, "tokens": [token for token, _ in ordered]}
    return sha256(_fast_json(document))


def _fast_json(value: Any) -> bytes:
    # For text, integers, null and sorted ASCII keys this is RFC 8785, a hundred times as fast.
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def score_bits(scores: Sequence[Any], file: str) -> list[int]:
    """The bits of scores as 32-bit floats, so that JSON's decimals and protobuf agree. Raises BadCheckpoint."""
    try:
        packed = struct.pack(f"<{len(scores)}f", *scores)
    except (struct.error, OverflowError) as error:
        raise bad(file, f"a score is no 32-bit float: {error}") from error
    if not all(map(math.isfinite, scores)):
        raise bad(file, "a score is not finite")
    return list(struct.unpack(f"<{len(scores)}I", packed))


# --- steps --------------------------------------------------------------------------------------------------------


def isolate(pattern: str) -> Step:
    """The step that splits text into the matches of a regular expression and what is between them."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def unknown(name: object) -> Step:
    """The step that stands for what only the code of a tokenizer's class knows."""
    return {"type": "Unknown", "class": name if isinstance(name, str) else None}


def prefix_step(prefix: bool) -> Step:
    """What SentencePiece does to spaces: whether one is put before the text."""
    return {"type": "SentencePiece", "prefix": prefix}


def read_steps(value: object, file: str, *, normalizer: bool = False) -> list[Step]:
    """A pre-tokenizer (or normalizer) of a `tokenizer.json` in canonical form. Raises BadCheckpoint."""
    if value is None:
        return []
    fields = as_object(value, file, "a normalizer or pre-tokenizer")
    type_ = fields.get("type")
    if not isinstance(type_, str):
        raise bad(file, "a normalizer or pre-tokenizer has no type")
    if type_ == "Sequence":
        nested = fields.get("normalizers", fields.get("pretokenizers"))
        # The document is at most 64 deep.
        entries = as_list(nested, file, "a Sequence")
        return [step for entry in entries for step in read_steps(entry, file, normalizer=normalizer)]
    step = {**_DEFAULTS.get(type_, {}), **fields}
    match type_:
        case "ByteLevel" if normalizer:  # it has no parameters
            return [BYTES]
        case "ByteLevel":
            return [
                *([_PREFIX] if step["add_prefix_space"] else []),
                *([isolate(GPT2_PATTERN)] if step["use_regex"] else []),
                BYTES,
            ]
        case "BertNormalizer" if step["strip_accents"] is None:
            step["strip_accents"] = step["lowercase"]
        case "Split" if step.get("behavior") == "Isolated":
            step["invert"] = False
        case "Metaspace":
            scheme = step.get("prepend_scheme") or ("always" if step["add_prefix_space"] else "never")
            step = {"type": type_, "replacement": step["replacement"], "scheme": scheme, "split": step["split"]}
        case "Precompiled":
            step = {"type": type_, "charsmap": _charsmap(step.get("precompiled_charsmap"), file)}
            return [step] if step["charsmap"] else []
        case _:
            pass
    return [step]


def _charsmap(value: object, file: str) -> Digest | None:
    if value is None or value == "":
        return None
    try:
        return sha256(base64.b64decode(value.encode() if isinstance(value, str) else b"?", validate=True))
    except (binascii.Error, UnicodeError) as error:
        raise bad(file, "precompiled_charsmap is not base64") from error


def sentencepiece_steps(
    normalizer: Iterable[Step], pre_tokenizer: Iterable[Step]
) -> tuple[list[Step], list[Step]] | None:
    """The steps of a SentencePiece model that was converted; None where they are not those of one."""
    prefix = found = False
    kept: tuple[list[Step], list[Step]] = ([], [])
    for rest, steps in zip(kept, (normalizer, pre_tokenizer), strict=True):
        for step in steps:
            match step:
                case {"type": "Metaspace", "replacement": "▁"}:
                    found, prefix = True, prefix or step["scheme"] != "never"
                case {"type": "Prepend", "prepend": "▁"}:
                    prefix = True
                case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                    found = True
                case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁" | " "}:
                    pass
                case {"type": "Strip"} | {"type": "WhitespaceSplit"} | {"type": "Split", "pattern": {"String": " "}}:
                    pass
                case _:
                    rest.append(step)
    return ([*kept[0], prefix_step(prefix)], kept[1]) if found else None


# --- merges -------------------------------------------------------------------------------------------------------


def by_rank(tokens: Iterable[str], known: Container[str], file: str) -> list[str]:
    """Those of `tokens` that two known ones make, in their order. Raises BadCheckpoint for immense tokens."""
    ordered = list(tokens)
    if not _bounded(ordered):
        raise bad(file, f"a token is longer than {_LONGEST} characters, or all of them than {_CHARACTERS}")
    return [token for token in ordered if any(t[0] in known and t[1] in known for t in _splits(token))]


def whole_merges(merges: Sequence[tuple[str, str]], known: Container[str], tokens: Iterable[str]) -> list[str] | None:
    """The tokens in the order in which `merges` make them, if merges hold every way to make each; None otherwise.

    `tokens` are all tokens, `known` those that count: merges that make, or are made of, others are left out.
    """
    ordered = [token for token in tokens if token in known]
    if not _bounded(ordered) or len(set(merges)) != len(merges):
        return None
    made: list[str] = []
    ways: Counter[str] = Counter()
    for left, right in merges:
        token = left + right
        if left in known and right in known and token in known:
            if token not in ways:
                made.append(token)
            elif made[-1] != token:
                return None
            ways[token] += 1
    for token in ordered:
        if ways[token] != sum(left in known and right in known for left, right in _splits(token)):
            return None
    return made


def _bounded(tokens: Sequence[str]) -> bool:
    lengths = list(map(len, tokens))
    return max(lengths, default=0) <= _LONGEST and sum(lengths) <= _CHARACTERS


def _splits(token: str) -> Iterable[tuple[str, str]]:
    return ((token[:place], token[place:]) for place in range(1, len(token)))
