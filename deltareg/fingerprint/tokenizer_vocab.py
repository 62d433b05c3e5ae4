"""Reading `vocab.json` with `merges.txt`, and `vocab.txt`: formats that leave the rules to the tokenizer's class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltareg.fingerprint.tokenizer_core import (
    QWEN2_PATTERN,
    Model,
    Step,
    isolate,
    read_steps,
    unknown,
    whole_merges,
)
from deltareg.fingerprint.tokenizer_files import (
    Readable,
    bad,
    checked_ids,
    named_tokens,
    quoted,
    read_document,
    read_lines,
)
from deltareg.fingerprint.tokenizer_json import WORDPIECE_OPTIONS, check_merges, kept_options

__all__ = ["class_of", "read_vocab_json", "read_vocab_txt"]

_BERT_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_GPT2_ROLES = {"unk_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
_ROBERTA_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_ROBERTA = ("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer")
_QWEN2 = ("Qwen2Tokenizer", "Qwen3Tokenizer")


def class_of(config: Mapping[str, Any]) -> str | None:
    """The class that `tokenizer_config.json` names, the slow one of a pair; None if it names none."""
    name = config.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else None


def read_vocab_json(files: Readable) -> Model:
    """What `vocab.json` and, if there is one, `merges.txt` say. Raises BadCheckpoint.

    Without merges each token is a word; which text is one word, only the tokenizer's class knows.
    """
    config = read_document(files, "tokenizer_config.json")
    name = class_of(config)
    tokens = checked_ids(read_document(files, "vocab.json"), "vocab.json")
    added = named_tokens(files, config, tokens, _ROBERTA_ROLES if name in _ROBERTA else _GPT2_ROLES)
    if "merges.txt" not in files.names():
        return Model("vocab.json", "wordlevel", tokens, added, pre_tokenizer=[unknown(name)], file="vocab.json")
    merges = [_pair(line) for line in read_lines(files, "merges.txt") if line and not line.startswith("#version")]
    check_merges(merges, tokens, "", "merges.txt")
    normalizer, pre_tokenizer = _byte_level_rules(name, config, tokens)
    ids = {token.id for token in added.values()}
    return Model(
        format="vocab.json+merges.txt",
        kind="bpe",
        tokens=tokens,
        added=added,
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        merges=merges,
        ranks=whole_merges(merges, {token for token, id in tokens.items() if id not in ids}, tokens),
        file="merges.txt",
    )


def read_vocab_txt(files: Readable) -> Model:
    """What a `vocab.txt` says, one token a line; of lines that are equal the last counts. Raises BadCheckpoint."""
    config = read_document(files, "tokenizer_config.json")
    name = class_of(config)
    tokens = {token: id for id, token in enumerate(read_lines(files, "vocab.txt"))}
    added = named_tokens(files, config, tokens, _BERT_ROLES)
    if not any(token.startswith("##") for token in tokens):
        return Model("vocab.txt", "wordlevel", tokens, added, pre_tokenizer=[unknown(name)], file="vocab.txt")
    bert = {
        "type": "BertNormalizer",
        "lowercase": config.get("do_lower_case", True),
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        "strip_accents": config.get("strip_accents"),
    }
    unknown_token = config.get("unk_token")
    options = {**WORDPIECE_OPTIONS, **({"unk_token": unknown_token} if isinstance(unknown_token, str) else {})}
    return Model(
        format="vocab.txt",
        kind="wordpiece",
        tokens=tokens,
        added=added,
        normalizer=read_steps(bert, "tokenizer_config.json", normalizer=True),
        pre_tokenizer=[{"type": "BertPreTokenizer"}],
        options=kept_options(options, known_text=False),
        file="vocab.txt",
    )


def _pair(line: str) -> tuple[str, str]:
    left, *right = line.split(" ")
    if len(right) != 1:
        raise bad("merges.txt", f"this line is not two tokens: {quoted(line)}")
    return left, right[0]


def _byte_level_rules(
    name: str | None, config: Mapping[str, Any], tokens: Mapping[str, int]
) -> tuple[list[Step], list[Step]]:
    """The normalizer and pre-tokenizer of a class; GPT-2's for every other one whose tokens are bytes."""
    prefix = config.get("add_prefix_space") is True
    if name in _QWEN2:
        return [{"type": "NFC"}], [isolate(QWEN2_PATTERN), *_byte_level(prefix, use_regex=False)]
    return [], _byte_level(prefix, use_regex=True) if "Ġ" in tokens else [unknown(name)]


def _byte_level(prefix: bool, *, use_regex: bool) -> list[Step]:
    fields = {"type": "ByteLevel", "add_prefix_space": prefix, "use_regex": use_regex}
    return read_steps(fields, "tokenizer_config.json")
