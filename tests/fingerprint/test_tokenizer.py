"""One tokenizer has one core in every format; what makes another tokenizer of it is told apart."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from deltareg.checkpoint import Checkpoint, LocalFolder
from deltareg.digest import canonical_json, sha256
from deltareg.errors import BadCheckpoint
from deltareg.fingerprint.tokenizer import (
    SideFiles,
    Tokenizer,
    compare_tokenizers,
    read_tokenizer,
    tokenizer_of,
)
from tests import weights
from tests.fingerprint import tokenizers as build

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TOKENS = build.byte_level_tokens(600)
END = "<|endoftext|>"


def read_json(document: Any, **more: Any) -> Tokenizer:
    return build.read({"tokenizer.json": build.as_json(document), **{k: build.as_json(v) for k, v in more.items()}})


def gpt2(**changes: Any) -> dict[str, Any]:
    fields = {"added_tokens": [build.added(END, 600)], "pre_tokenizer": build.byte_level(), **changes}
    return build.bpe([*TOKENS, END], build.one_merge(TOKENS), **fields)


# --- real ones ----------------------------------------------------------------------------------------------------


def test_minilm_has_one_core_in_both_formats_and_after_fine_tuning(minilm: weights.Pair) -> None:
    found: list[Tokenizer] = []
    for folder in (minilm.base, minilm.post):
        with Checkpoint.open(folder) as checkpoint:
            fast = tokenizer_of(checkpoint)
        slow = {name: (folder / name).read_bytes() for name in ("vocab.txt", "tokenizer_config.json")}
        found += [fast, read_tokenizer(LocalFolder(folder)), build.read(slow)]  # type: ignore[list-item]
    assert [each.format for each in found[:3]] == ["tokenizer.json", "tokenizer.json", "vocab.txt"]
    assert {each.core for each in found} == {found[0].core}
    assert {each.added_digest for each in found} == {found[0].added_digest}
    assert {(each.kind, each.rows, len(each.vocabulary), len(each.added)) for each in found} == {
        ("wordpiece", 30522, 30517, 5)
    }
    assert found[0].tokens["[MASK]"] == 103


def test_cased_bert_has_another_core(minilm: weights.Pair) -> None:
    vocabulary = (minilm.base / "vocab.txt").read_bytes()
    uncased = build.read({"vocab.txt": vocabulary})
    cased = build.read({"vocab.txt": vocabulary, "tokenizer_config.json": b'{"do_lower_case": false}'})
    found = compare_tokenizers(uncased, cased)
    assert (found.core_equal, found.rules_equal, found.tokens_equal) == (False, False, True)


def test_what_the_tokenizers_library_saves_agrees(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    trained = library.Tokenizer(library.models.BPE())
    trained.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train(
        [str(path) for path in sorted(Path(__file__).parent.glob("*.py"))],
        library.trainers.BpeTrainer(
            vocab_size=1000,
            special_tokens=[END],
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    trained.save(str(tmp_path / "tokenizer.json"))
    fast = build.read({"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()})
    trained.model.save(str(tmp_path))
    slow = build.read({name: (tmp_path / name).read_bytes() for name in ("vocab.json", "merges.txt")})
    assert (fast.core, fast.added_digest, fast.rows) == (slow.core, slow.added_digest, 1000)
    assert dict(fast.tokens) == trained.get_vocab()


# --- one tokenizer in many formats --------------------------------------------------------------------------------


def test_core_is_the_digest_of_canonical_json() -> None:
    tokens = ["a", "b", "c", "ab", "bc", "abc", '\x7f"\\\n\x01\u2028é😀']
    found = read_json(build.bpe(tokens, [("b", "c"), ("a", "b"), ("a", "bc")], unk_token="c"))
    rules = {
        "kind": "bpe",
        "merges": ["b", "c", "a", "b", "a", "bc"],
        "normalizer": [],
        "options": {"unk_token": "c"},
        "pre_tokenizer": [],
        "ranks": None,
        "scores": None,
    }
    assert found.rules == sha256(canonical_json(rules))
    core = {"ids": list(range(7)), "rules": found.rules, "tokens": tokens}
    assert found.core == sha256(canonical_json(core))


def test_byte_level_bpe_has_one_core_in_all_spellings() -> None:
    document = gpt2()
    model = document["model"]
    no_type = {key: value for key, value in model.items() if key != "type"}
    regex = {"type": "Split", "pattern": {"Regex": GPT2_PATTERN}, "behavior": "Isolated"}
    spelled = [
        document,
        {**document, "model": {**model, "merges": [" ".join(pair) for pair in model["merges"]]}},
        {**document, "model": {**no_type, "dropout": 0.1, "end_of_word_suffix": None, "fuse_unk": False}},
        {**document, "truncation": {"max_length": 5}, "post_processor": {"type": "ByteLevel"}},
        gpt2(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}),
        gpt2(pre_tokenizer={"type": "Sequence", "pretokenizers": [regex, build.byte_level(use_regex=False)]}),
        gpt2(normalizer={"type": "Sequence", "normalizers": []}),
    ]
    slow = build.vocab_and_merges(document)
    found = [read_json(each) for each in spelled]
    found.append(build.read(slow))
    found.append(build.read({**slow, "tokenizer_config.json": b'{"tokenizer_class": "GPT2TokenizerFast"}'}))
    found.append(build.read({**slow, "merges.txt": slow["merges.txt"].replace(b"\n", b"\r\n")}))
    assert {each.core for each in found} == {found[0].core}
    assert {each.added_digest for each in found} == {found[0].added_digest}
    assert {each.rows for each in found} == {601}


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": build.byte_level(add_prefix_space=True)},
        {"pre_tokenizer": build.split(build.LLAMA3_PATTERN)},
        {"pre_tokenizer": None},
        {"normalizer": {"type": "NFC"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}},
        {"ignore_merges": True},
        {"byte_fallback": True},
        {"end_of_word_suffix": "</w>"},
        {"an_option_of_a_later_version": 1e-7},
    ],
)
def test_another_rule_is_another_core(change: dict[str, Any]) -> None:
    found = compare_tokenizers(read_json(gpt2()), read_json(gpt2(**change)))
    assert (found.core_equal, found.rules_equal, found.added_equal, found.tokens_equal) == (False, False, True, True)


def test_order_of_merges_counts() -> None:
    document = gpt2()
    merges = document["model"]["merges"]
    document["model"]["merges"] = [merges[1], merges[0], *merges[2:]]
    assert not compare_tokenizers(read_json(gpt2()), read_json(document)).core_equal


def test_steps_keep_their_order() -> None:
    steps = [{"type": "NFC"}, {"type": "Lowercase"}]
    there, back = ({"type": "Sequence", "normalizers": order} for order in (steps, steps[::-1]))
    nested = {"type": "Sequence", "normalizers": [there]}
    assert read_json(gpt2(normalizer=there)).core == read_json(gpt2(normalizer=nested)).core
    assert read_json(gpt2(normalizer=there)).core != read_json(gpt2(normalizer=back)).core


def test_qwen_has_one_core_in_both_formats() -> None:
    document = build.qwen25(600)
    slow = build.vocab_and_merges(document)
    ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    config = {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, "additional_special_tokens": list(ids)}
    fast = read_json(document)
    found = build.read(
        {**slow, "tokenizer_config.json": build.as_json(config), "added_tokens.json": build.as_json(ids)}
    )
    assert (found.core, found.added_digest, found.rows) == (fast.core, fast.added_digest, 622)
    decoder = {str(token.pop("id")): token for token in document["added_tokens"]}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder}
    found = build.read({**slow, "tokenizer_config.json": build.as_json(config)})
    assert (found.core, found.added_digest, found.rows) == (fast.core, fast.added_digest, 622)


def test_tiktoken_ranks_imply_the_merges_of_its_conversion() -> None:
    document = build.llama3(build.LLAMA3_SPECIAL, 600)
    ranks = build.tiktoken(TOKENS)
    fast = read_json(document)
    for name in ("tokenizer.model", "cl100k_base.tiktoken"):
        found = build.read({name: ranks})
        assert (found.format, found.kind, found.core, found.rows) == ("tiktoken", "bpe", fast.core, 600)
    assert build.read({"qwen.tiktoken": ranks}).core != fast.core
    vocab = [{"rank": int(line.split()[1]), "token_bytes": line.split()[0]} for line in ranks.decode().splitlines()]
    config = {"pattern": build.LLAMA3_PATTERN, "default_num_special_tokens": 30, "default_vocab_size": 630}
    beyond = {"rank": 600, "token_bytes": base64.b64encode(b"beyond").decode()}
    special = [{"rank": 1, "token_str": "<begin>", "is_control": True}]
    tekken = build.read(
        {"tekken.json": build.as_json({"config": config, "vocab": [*vocab, beyond], "special_tokens": special})}
    )
    names = [f"<{place}>" for place in range(30)]
    behind = build.bpe([*names, *TOKENS], build.every_merge(TOKENS), ignore_merges=True)
    behind["pre_tokenizer"] = build.split(build.LLAMA3_PATTERN)
    behind["added_tokens"] = [build.added(name, place) for place, name in enumerate(names)]
    assert (tekken.core, tekken.rows) == (read_json(behind).core, 630)
    assert (tekken.added["<begin>"], tekken.added["<SPECIAL_29>"]) == (1, 29)


LEARNED = ["ab", "▁a", "▁ab", "abab"]
PIECES = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    *((piece, -float(place), 1) for place, piece in enumerate([*LEARNED, "▁", "a", "b"])),
]
PREPEND = {"type": "Prepend", "prepend": "▁"}
UNDERLINE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LEGACY = {"type": "Sequence", "normalizers": [PREPEND, UNDERLINE]}
# In the order of transformers' converter: by score, then the longer left side first.
CONVERTED = [("a", "b"), ("▁", "a"), ("▁a", "b"), ("▁", "ab"), ("ab", "ab")]


def converted(merges: Any = CONVERTED, **fields: Any) -> dict[str, Any]:
    special = [build.added(text, id, normalized=True) for id, text in enumerate(["<unk>", "<s>", "</s>"])]
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "added_tokens": special, **fields}
    return build.bpe([text for text, _, _ in PIECES], merges, **options)


@pytest.mark.parametrize(
    "document",
    [
        converted(normalizer=LEGACY),
        converted([CONVERTED[place] for place in (0, 1, 3, 2, 4)], normalizer=LEGACY),
        converted(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}),
        converted(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}),
        converted(normalizer=LEGACY, added_tokens=[build.added("<s>", 1), build.added("</s>", 2)]),
    ],
)
def test_sentencepiece_bpe_has_the_core_of_its_conversion(document: dict[str, Any]) -> None:
    model = build.sentencepiece(PIECES, model_type=2, byte_fallback=True)
    found, fast = build.read({"tokenizer.model": model}), read_json(document)
    assert (found.format, found.kind, found.rows) == ("sentencepiece", "bpe", len(PIECES))
    assert found.core == fast.core
    assert found.added == fast.added == {"<unk>": 0, "<s>": 1, "</s>": 2}


@pytest.mark.parametrize(
    "document",
    [
        converted(CONVERTED[:-1], normalizer=LEGACY),
        converted([CONVERTED[place] for place in (1, 0, 2, 3, 4)], normalizer=LEGACY),
        converted(normalizer=UNDERLINE),
        converted(normalizer=LEGACY, byte_fallback=False),
        converted(normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}, PREPEND, UNDERLINE]}),
    ],
)
def test_another_sentencepiece_bpe_has_another_core(document: dict[str, Any]) -> None:
    model = build.sentencepiece(PIECES, model_type=2, byte_fallback=True)
    assert build.read({"tokenizer.model": model}).core != read_json(document).core


def test_sentencepiece_unigram_has_the_core_of_its_conversion() -> None:
    charsmap = b"\x00\x01map"
    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁a", -2.1, 1), ("b", -3.3333333, 1)]
    found = build.read({"spiece.model": build.sentencepiece(pieces, model_type=1, charsmap=charsmap)})
    rounded = [[text, float(np.float32(score))] for text, score, _ in pieces]
    more = [*rounded, ["<extra_id_0>", 0.0]]
    special = [build.added(text, id) for id, (text, _) in enumerate(more) if text.startswith("<")]
    precompiled = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    document: dict[str, Any] = {
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [precompiled, strip, spaces]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": more, "byte_fallback": False},
    }
    fast = read_json(document)
    assert (fast.kind, fast.core, fast.rows) == ("unigram", found.core, 6)
    old = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, document["pre_tokenizer"]]}
    assert read_json({**document, "normalizer": precompiled, "pre_tokenizer": old}).core == found.core
    other = [*more[:3], ["▁a", -2.2], *more[4:]]
    assert read_json({**document, "model": {**document["model"], "vocab": other}}).core != found.core
    assert read_json({**document, "normalizer": None}).core != found.core


def test_fairseq_classes_number_their_pieces_anew() -> None:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("a", -1.0, 1)]
    files = {"sentencepiece.bpe.model": build.sentencepiece(pieces, model_type=1)}
    assert build.read(files).tokens == {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}
    found = build.read({**files, "tokenizer_config.json": b'{"tokenizer_class": "XLMRobertaTokenizer"}'})
    assert found.tokens == {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}


@pytest.mark.parametrize(("number", "kind"), [(1, "unigram"), (2, "bpe"), (3, "wordlevel"), (4, "char")])
def test_sentencepiece_names_its_kind(number: int, kind: str) -> None:
    assert build.read({"spm.model": build.sentencepiece(PIECES, model_type=number)}).kind == kind


def test_words_alone_are_known_by_their_class() -> None:
    first, second = (
        build.read({"vocab.txt": b"A\nB\n", "tokenizer_config.json": build.as_json({"tokenizer_class": name})})
        for name in ("EsmTokenizer", "OtherTokenizer")
    )
    assert first.kind == second.kind == "wordlevel"
    assert first.core != second.core
    assert build.read({"vocab.json": b'{"A": 0}'}).format == "vocab.json"


def test_no_tokenizer_files_are_no_tokenizer(tmp_path: Path) -> None:
    assert read_tokenizer(SideFiles({"tokenizer_config.json": b"{}", "modules.json": b"[]"})) is None
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert tokenizer_of(checkpoint) is None


# --- added tokens and chat templates ------------------------------------------------------------------------------


def test_llama_3_and_3_1_differ_in_names_of_special_tokens_alone() -> None:
    delta = read_json(build.llama3(build.LLAMA3_SPECIAL))
    target = read_json(build.llama3(build.LLAMA31_SPECIAL))
    assert (len(delta.vocabulary), len(delta.added), delta.rows) == (128_000, 256, 128_256)
    assert delta.core == target.core
    found = compare_tokenizers(delta, target)
    assert (found.core_equal, found.rules_equal, found.added_equal) == (True, True, False)
    assert found.renamed[0] == (128_004, "<|reserved_special_token_2|>", "<|finetune_right_pad_id|>")
    # 128004, 128005, 128008, and 128010 to the end.
    assert (found.renamed_count, len(found.renamed)) == (3 + 246, 20)
    assert [token for _, token in found.only_target] == [build.LLAMA31_SPECIAL[place] for place in (4, 8, 10)]
    assert found.only_delta == [(128_253 + place, f"<|reserved_special_token_{248 + place}|>") for place in range(3)]
    assert found.moved[0] == ("<|reserved_special_token_2|>", 128_004, 128_005)
    assert found.moved_count == 246


def test_qwen_2_5_has_fewer_tokens_than_rows_and_is_read_in_a_second() -> None:
    raw = build.as_json(build.qwen25(), ensure_ascii=False, indent=2)
    start = time.perf_counter()
    found = build.read({"tokenizer.json": raw})
    seconds = time.perf_counter() - start
    assert (len(found.vocabulary), len(found.added), found.rows) == (151_643, 22, 151_665)
    assert found.added["<|file_sep|>"] == 151_664
    assert seconds < 10  # one, on a machine that does nothing else
    fewer = read_json(build.qwen25(more=build.QWEN25_ADDED[:3]))
    difference = compare_tokenizers(fewer, found)
    assert (difference.core_equal, difference.only_target_count, difference.renamed_count) == (True, 19, 0)
    assert difference.only_target[0] == (151_646, "<|object_ref_start|>")


def test_core_token_that_became_special_leaves_the_core_equal() -> None:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[unused0]": 2, "a": 3, "##b": 4}
    model = {"type": "WordPiece", "vocab": vocabulary}
    base = read_json({"model": model, "added_tokens": []})
    post = read_json({"model": model, "added_tokens": [build.added("[unused0]", 2)]})
    assert base.core != post.core
    found = compare_tokenizers(base, post)
    assert (found.core_equal, found.added_equal, found.tokens_equal) == (True, False, True)


@pytest.mark.parametrize("flag", ["special", "lstrip", "rstrip", "normalized", "single_word"])
def test_every_flag_of_an_added_token_counts(flag: str) -> None:
    plain = gpt2()
    changed = gpt2(added_tokens=[build.added(END, 600, **{flag: flag != "special"})])
    found = compare_tokenizers(read_json(plain), read_json(changed))
    assert (found.core_equal, found.added_equal) == (True, False)


def test_long_tokens_are_shortened_and_counts_stay_exact() -> None:
    names = ["x" * 200 + str(place) for place in range(50)]
    more = [build.added(name, 600 + place) for place, name in enumerate(names)]
    delta = read_json(build.bpe(TOKENS, [], added_tokens=more))
    found = compare_tokenizers(delta, read_json(build.bpe(TOKENS, [])))
    assert (found.only_delta_count, len(found.only_delta)) == (50, 20)
    assert found.only_delta[0] == (600, "x" * 79 + "…")


def test_chat_template_counts_wherever_it_is_written() -> None:
    text = "{% for m in messages %}\n{{ m }}\n{% endfor %}"
    files = {"tokenizer.json": build.as_json(gpt2())}
    named = [{"name": "default", "template": text}]
    written = [
        {"tokenizer_config.json": build.as_json({"chat_template": text})},
        {"tokenizer_config.json": build.as_json({"chat_template": text.replace("\n", "\r\n")})},
        {"tokenizer_config.json": build.as_json({"chat_template": named})},
        {"chat_template.jinja": f"{text}\n".encode()},
        {"chat_template.json": build.as_json({"chat_template": text})},
        {"chat_template.jinja": text.encode(), "tokenizer_config.json": b'{"chat_template": "another"}'},
    ]
    found = [build.read({**files, **each}) for each in written]
    assert {each.chat_template for each in found} == {found[0].chat_template}
    assert found[0].chat_template is not None
    none, other = build.read(files), build.read({**files, "chat_template.jinja": b"other"})
    both = build.as_json({"chat_template": [*named, {"name": "tool_use", "template": ""}]})
    two = build.read({**files, "tokenizer_config.json": both})
    assert none.chat_template is None
    assert len({each.chat_template for each in (found[0], none, other, two)}) == 4
    assert not compare_tokenizers(found[0], other).chat_template_equal
    assert compare_tokenizers(found[0], other).core_equal


def test_equal_tokenizers_do_not_differ() -> None:
    found = compare_tokenizers(read_json(gpt2()), build.read(build.vocab_and_merges(gpt2())))
    assert found.core_equal and found.rules_equal and found.added_equal and found.chat_template_equal
    assert found.tokens_equal and not (found.renamed or found.moved or found.only_delta or found.only_target)


# --- damaged and hostile ------------------------------------------------------------------------------------------


def with_model(**fields: Any) -> bytes:
    return build.as_json({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [], **fields}})


def with_added(*entries: Any) -> bytes:
    return build.as_json({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}}, "added_tokens": list(entries)})


def step(which: str, **fields: Any) -> bytes:
    return build.as_json({"model": {"vocab": {"a": 0}}, which: fields})


HOSTILE_JSON: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not valid JSON"),
    "null": (b"null", "no object"),
    "array": (b"[]", "no object"),
    "no model": (b"{}", "model is no object"),
    "truncated": (with_model()[:-5], "not valid JSON"),
    "not UTF-8": (b'{"model": "\xff"}', "not valid JSON"),
    "deep": (b'{"model": ' + b"[" * 1_000_000, "nested deeper than 64"),
    "deep and closed": (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
    "deep normalizer": (
        b'{"model": {"vocab": {}}, "normalizer": ' + b'{"type": "Sequence", "normalizers": [' * 40,
        "nested deeper than 64",
    ),
    "many objects": (b"[" + b"[]," * 4_000_001 + b"1]", "more than 4000000 objects"),
    "duplicate key": (b'{"model": {"vocab": {"a": 0, "a": 1}}}', "'a' occurs twice"),
    "NaN": (b'{"model": NaN}', "not JSON"),
    "lone surrogate": (b'{"model": {"vocab": {"\\ud800": 0}}}', "not valid JSON"),
    "unknown type": (with_model(type="Quantum"), "'Quantum' is not one of"),
    "type of another kind": (with_model(type=["BPE"]), "is not one of"),
    "vocab is text": (with_model(vocab="a"), "vocabulary is no object"),
    "no tokens": (with_model(vocab={}), "no tokens"),
    "duplicate ids": (with_model(vocab={"a": 0, "b": 0}), "'a' and 'b' have the same id 0"),
    "negative id": (with_model(vocab={"a": -1}), "'a' has the id -1"),
    "huge id": (with_model(vocab={"a": 2**31}), "'a' has the id 2147483648"),
    "immense id": (with_model(vocab={"a": 10**4000}), "a huge integer"),
    "digits without end": (b'{"model": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    "float id": (with_model(vocab={"a": 1.0}), "'a' has the id 1.0"),
    "true as id": (with_model(vocab={"a": True}), "'a' has the id True"),
    "null as id": (with_model(vocab={"a": None}), "'a' has the id None"),
    "list as id": (with_model(vocab={"a": [1]}), "'a' has the id"),
    "merge of unknown": (with_model(merges=["a x"]), "merge 0 needs the token 'x'"),
    "merge to unknown": (with_model(merges=[["a", "b"]]), "merge 0 needs the token 'ab'"),
    "merge of three": (with_model(merges=["a b a"]), "merge 0 is not two tokens"),
    "merge of one": (with_model(merges=["a"]), "merge 0 is not two tokens"),
    "merge of numbers": (with_model(merges=[[0, 1]]), "merge 0 is not two tokens"),
    "merges is null": (with_model(merges=None), "merges is no array"),
    "prefix is a number": (with_model(continuing_subword_prefix=3, merges=["a b"]), "no text"),
    "option beyond JSON": (with_model(other=2**60), "no canonical form"),
    "unigram without score": (with_model(type="Unigram", vocab=[["a"]]), "not a text and a score"),
    "unigram with text as score": (with_model(type="Unigram", vocab=[["a", "1"]]), "not a text and a score"),
    "unigram with immense score": (with_model(type="Unigram", vocab=[["a", 1e300]]), "no 32-bit float"),
    "unigram with infinite score": (b'{"model": {"type": "Unigram", "vocab": [["a", 1e999]]}}', "larger than a double"),
    "unigram with number as piece": (with_model(type="Unigram", vocab=[[7, 1.0]]), "no text"),
    "unigram with piece twice": (with_model(type="Unigram", vocab=[["a", 1], ["a", 2]]), "'a' occurs twice"),
    "unigram of objects": (with_model(type="Unigram", vocab=[{}]), "no array"),
    "added tokens as object": (build.as_json({"model": {"vocab": {"a": 0}}, "added_tokens": {"a": 1}}), "no array"),
    "added token as text": (with_added("c"), "no object"),
    "added token without id": (with_added({"content": "c"}), "'c' has the id None"),
    "added token of number": (with_added({"content": 7, "id": 7}), "no text"),
    "added token with wrong flag": (with_added({"content": "c", "id": 7, "special": 1}), "neither true nor false"),
    "added token twice": (with_added(build.added("c", 7), build.added("c", 7)), "'c' occurs twice"),
    "added tokens with one id": (with_added(build.added("c", 7), build.added("d", 7)), "the same id 7"),
    "added token on another's id": (with_added(build.added("c", 1)), "'b' and 'c' have the same id 1"),
    "added token with two ids": (with_added(build.added("a", 7)), "'a' has the ids 0 and 7"),
    "step without type": (build.as_json({"model": {"vocab": {"a": 0}}, "normalizer": {}}), "has no type"),
    "step as text": (build.as_json({"model": {"vocab": {"a": 0}}, "pre_tokenizer": "NFC"}), "no object"),
    "sequence of nothing": (
        build.as_json({"model": {"vocab": {"a": 0}}, "normalizer": {"type": "Sequence"}}),
        "no array",
    ),
    "map that is not base64": (
        step("normalizer", type="Precompiled", precompiled_charsmap="é"),
        "not base64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_damaged_tokenizer_json_is_refused_with_what_is_wrong(name: str) -> None:
    raw, complaint = HOSTILE_JSON[name]
    with pytest.raises(BadCheckpoint) as caught:
        build.read({"tokenizer.json": raw})
    assert "tokenizer.json" in caught.value.message
    assert complaint in caught.value.message
    assert len(caught.value.message) < 1000


def piece(number: int, value: bytes | float) -> bytes:
    return build.message(1, build.message(number, value))


GOOD_SPM = build.sentencepiece(PIECES, model_type=2)
HOSTILE_FILES: dict[str, tuple[dict[str, bytes], str, str]] = {
    "empty vocab.txt": ({"vocab.txt": b""}, "vocab.txt", "no tokens"),
    "vocab.txt in another encoding": ({"vocab.txt": b"a\n\xff\n"}, "vocab.txt", "not UTF-8 at byte 2"),
    "vocab.json is a list": ({"vocab.json": b"[]", "merges.txt": b""}, "vocab.json", "no object"),
    "empty vocab.json": ({"vocab.json": b"{}", "merges.txt": b""}, "merges.txt", "no tokens"),
    "merge of three": ({"vocab.json": b'{"a": 0}', "merges.txt": b"a a a"}, "merges.txt", "not two tokens"),
    "merge of unknown": ({"vocab.json": b'{"a": 0}', "merges.txt": b"a b"}, "merges.txt", "'b'"),
    "special tokens as list": (
        {"vocab.txt": b"a\n##b", "special_tokens_map.json": b"[]"}, "special_tokens_map.json", "no object"
    ),
    "special token with a wrong flag": (
        {"vocab.txt": b"a\n##b", "special_tokens_map.json": b'{"pad_token": {"content": "a", "lstrip": 1}}'},
        "special_tokens_map.json",
        "lstrip of the added token 'a'",
    ),
    "added tokens with one id": (
        {"vocab.txt": b"a\n##b", "added_tokens.json": b'{"c": 2, "d": 2}'}, "added_tokens.json", "the same id 2"
    ),
    "added token with text as id": (
        {"vocab.txt": b"a\n##b", "added_tokens.json": b'{"c": "2"}'}, "added_tokens.json", "'c' has the id '2'"
    ),
    "decoder with a word as id": (
        {"vocab.txt": b"a\n##b", "tokenizer_config.json": b'{"added_tokens_decoder": {"x": {"content": "c"}}}'},
        "tokenizer_config.json",
        "'c' has the id 'x'",
    ),
    "broken tokenizer_config": (
        {"tokenizer.json": build.as_json(gpt2()), "tokenizer_config.json": b"{"}, "tokenizer_config.json", "JSON"
    ),
    "chat template of number": (
        {"tokenizer.json": build.as_json(gpt2()), "tokenizer_config.json": b'{"chat_template": 7}'},
        "tokenizer_config.json",
        "no array",
    ),
    "chat template in another encoding": (
        {"tokenizer.json": build.as_json(gpt2()), "chat_template.jinja": b"\xff"}, "chat_template.jinja", "not UTF-8"
    ),
    "empty model": ({"tokenizer.model": b""}, "tokenizer.model", "no pieces"),
    "model without its end": ({"tokenizer.model": piece(1, b"a")}, "tokenizer.model", "ends before"),
    "number without end": ({"tokenizer.model": b"\xff" * 100}, "tokenizer.model", "more than ten bytes"),
    "length beyond the end": ({"tokenizer.model": b"\x0a\xff\xff\xff\xff\x0f"}, "tokenizer.model", "truncated"),
    "group": ({"tokenizer.model": b"\x0b"}, "tokenizer.model", "wire type 3"),
    "piece twice": (
        {"tokenizer.model": piece(1, b"a") + GOOD_SPM + piece(1, b"a")}, "tokenizer.model", "'a' occurs twice"
    ),
    "piece that is not UTF-8": ({"tokenizer.model": piece(1, b"\xff")}, "tokenizer.model", "piece 0 is not UTF-8"),
    "piece that is a number": ({"tokenizer.model": piece(1, 7)}, "tokenizer.model", "piece 0"),
    "score that is no number": ({"tokenizer.model": piece(2, float("nan"))}, "tokenizer.model", "not finite"),
    "model of unknown type": (
        {"tokenizer.model": build.sentencepiece(PIECES, model_type=9)}, "tokenizer.model", "type 9"
    ),
    "token beyond measure": (
        {"spm.model": build.sentencepiece([("a" * 600, 0.0, 1)], model_type=2)}, "spm.model", "longer than 512"
    ),
    "ranks that are words": ({"x.tiktoken": b"YQ== one\n"}, "x.tiktoken", "line 1"),
    "rank without end": ({"x.tiktoken": b"YQ== " + b"9" * 10_000}, "x.tiktoken", "line 1"),
    "huge rank": ({"x.tiktoken": b"YQ== 9999999999\n"}, "x.tiktoken", "has the id"),
    "token that is not base64": ({"x.tiktoken": b"Y! 0\n"}, "x.tiktoken", "line 1 is not base64"),
    "rank twice": ({"x.tiktoken": b"YQ== 0\nYg== 0\n"}, "x.tiktoken", "the same id 0"),
    "token twice": ({"x.tiktoken": b"YQ== 0\nYQ== 1\n"}, "x.tiktoken", "again"),
    "empty ranks": ({"x.tiktoken": b""}, "x.tiktoken", "no tokens"),
    "tekken without config": ({"tekken.json": b"{}"}, "tekken.json", "config is no object"),
    "tekken with immense count": (
        {"tekken.json": b'{"config": {"default_num_special_tokens": 1000000000}}'}, "tekken.json", "no integer from 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_other_damaged_files_are_refused_by_name(name: str) -> None:
    files, file, complaint = HOSTILE_FILES[name]
    with pytest.raises(BadCheckpoint) as caught:
        build.read(files)
    assert caught.value.data["file"] == file
    assert file in caught.value.message
    assert complaint in caught.value.message


def test_file_of_100_mb_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json of .* has 100000000 bytes, at most 67108864 are read"):
        read_tokenizer(LocalFolder(tmp_path))
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json of the side files has 67108865 bytes"):
        build.read({"tokenizer.json": bytes(2**26 + 1)})
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(BadCheckpoint, match=r"at most 67108864 are read"):
        tokenizer_of(checkpoint)


@pytest.mark.parametrize(
    "token",
    ["a" * 10_000_000, '"' * 1000, "\\" * 1000, "[" * 100_000],
    ids=["long", "quotes", "backslashes", "brackets"],
)
def test_strange_tokens_take_no_longer_than_others(token: str) -> None:
    start = time.perf_counter()
    found = read_json(build.bpe(["a", "b", token], []))
    assert found.tokens[token] == 2
    assert time.perf_counter() - start < 10


def test_every_truncation_of_a_sentencepiece_model_is_refused() -> None:
    model = build.sentencepiece(PIECES[:3] + PIECES[-3:], model_type=2)
    # What is left out at the very end may be a whole optional field.
    for length in range(len(model) - 1):
        with pytest.raises(BadCheckpoint):
            build.read({"tokenizer.model": model[:length]})


@given(place=st.integers(0, len(GOOD_SPM) - 1), value=st.integers(0, 255))
def test_damaged_sentencepiece_models_are_read_or_refused(place: int, value: int) -> None:
    damaged = bytearray(GOOD_SPM)
    damaged[place] = value
    refused_or_read({"tokenizer.model": bytes(damaged)})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: Any = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [path, *itertools.chain.from_iterable(places(value, (*path, key)) for key, value in inner)]


SMALL = {
    "byte level": build.bpe(["a", "b", "ab", "c"], ["a b"], pre_tokenizer=build.split("x"), normalizer=LEGACY,
                            added_tokens=[build.added("c", 3)]),
    "wordpiece": {"model": {"type": "WordPiece", "vocab": {"a": 0}}, "normalizer": {"type": "BertNormalizer"},
                  "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "split": True}},
    "unigram": {"model": {"type": "Unigram", "vocab": [["a", -1.5]], "unk_id": 0},
                "normalizer": {"type": "Precompiled", "precompiled_charsmap": "YQ=="}},
    "config": {"chat_template": [{"name": "default", "template": "x"}], "additional_special_tokens": ["a"],
               "added_tokens_decoder": {"9": {"content": "z", "special": True}}, "unk_token": {"content": "a"}},
}  # fmt: skip


@given(data=st.data(), which=st.sampled_from(sorted(SMALL)), value=JSON_VALUES)
def test_documents_with_one_wrong_value_are_read_or_refused(data: st.DataObject, which: str, value: Any) -> None:
    document = json.loads(json.dumps(SMALL[which]))
    path = data.draw(st.sampled_from(places(document)))
    if path:
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
    else:
        document = value
    raw = build.as_json(document)
    if which == "config":
        refused_or_read({"vocab.txt": b"a\n##b", "tokenizer_config.json": raw})
        refused_or_read({"vocab.json": b'{"a": 0}', "merges.txt": b"", "tokenizer_config.json": raw})
        refused_or_read({"tokenizer.model": GOOD_SPM, "tokenizer_config.json": raw})
    else:
        refused_or_read({"tokenizer.json": raw})


def refused_or_read(files: Mapping[str, bytes]) -> None:
    try:
        found = read_tokenizer(SideFiles(files))
    except BadCheckpoint as error:
        assert error.data["file"] in files
    else:
        assert found is not None and found.rows > 0


def test_order_of_a_vocabulary_in_its_file_does_not_count() -> None:
    document = gpt2()
    turned = dict(reversed(list(document["model"]["vocab"].items())))
    other = {**document, "model": {**document["model"], "vocab": turned}}
    assert read_json(document).core == read_json(other).core
