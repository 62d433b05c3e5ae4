"""The fingerprint of a tokenizer, in three layers: its core, the tokens added to it, its chat template.

The same tokenizer has the same core in every format that it is stored in; `deltareg.fingerprint.tokenizer_core` says
what "the same" means. Added tokens leave the core, in every format: so Llama 3 and 3.1, which give reserved special
tokens other names, have one core. Of several formats in one folder the first of these is read: `tokenizer.json`,
`vocab.json` with `merges.txt`, `vocab.txt`, SentencePiece, `tekken.json`, `*.tiktoken`, `vocab.json` alone. What
`tokenizer_config.json` tells a class to change in a `tokenizer.json` (`do_lower_case`, `add_prefix_space`) does not
count: the two are written together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deltareg.checkpoint import Checkpoint
from deltareg.checkpoint.source import too_large
from deltareg.digest import Digest
from deltareg.errors import CheckpointNotFound
from deltareg.fingerprint.tokenizer_core import Model, core_digest, core_vocabulary, rules_digest
from deltareg.fingerprint.tokenizer_files import (
    FILE_LIMIT,
    Readable,
    added_digest,
    bad,
    quoted,
    read_chat_template,
    read_document,
)
from deltareg.fingerprint.tokenizer_json import read_tokenizer_json
from deltareg.fingerprint.tokenizer_ranks import is_tiktoken, read_tekken, read_tiktoken
from deltareg.fingerprint.tokenizer_sentencepiece import read_sentencepiece
from deltareg.fingerprint.tokenizer_vocab import read_vocab_json, read_vocab_txt

__all__ = [
    "Readable",
    "SideFiles",
    "Tokenizer",
    "TokenizerDifference",
    "compare_tokenizers",
    "read_tokenizer",
    "tokenizer_of",
]

_SENTENCEPIECE = (
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spiece.model",
    "spm.model",
    "spm_char.model",
)
_SHOWN = 20
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer by its three layers; `vocabulary` holds the tokens that are not added.

    `rules` is the part of the core that is not the vocabulary: how text becomes tokens. `rows` is the highest id and
    one, added tokens included: what the embedding must have at least.
    """

    format: str
    kind: str
    vocabulary: Mapping[str, int] = field(repr=False)
    added: Mapping[str, int] = field(repr=False)
    core: Digest
    rules: Digest
    added_digest: Digest
    chat_template: Digest | None
    rows: int

    @property
    def tokens(self) -> Mapping[str, int]:
        """All tokens, added ones too."""
        return {**self.vocabulary, **self.added}


@dataclass(frozen=True)
class TokenizerDifference:
    """Where two tokenizers differ. The lists hold the first few, long tokens shortened; the counts are exact.

    One change can count in several ways: a token that moved to the id of another was moved, and that id was renamed.
    `core_equal` is also true where nothing of the core differs but which of its tokens count as added.
    """

    core_equal: bool
    rules_equal: bool
    added_equal: bool
    chat_template_equal: bool
    renamed: Sequence[tuple[int, str, str]]
    """Ids with another token: id, the delta's token, the target's."""
    renamed_count: int
    moved: Sequence[tuple[str, int, int]]
    """Tokens with another id: token, the delta's id, the target's."""
    moved_count: int
    only_delta: Sequence[tuple[int, str]]
    only_delta_count: int
    only_target: Sequence[tuple[int, str]]
    only_target_count: int

    @property
    def tokens_equal(self) -> bool:
        """Whether both have the same tokens with the same ids, added or not."""
        return not (self.renamed_count or self.moved_count or self.only_delta_count or self.only_target_count)


class SideFiles:
    """Files that are in memory, such as an artifact's side files, by POSIX name."""

    def __init__(self, files: Mapping[str, bytes], label: str = "the side files") -> None:
        self._files = files
        self.label = label

    def names(self) -> Sequence[str]:
        """The files' names, sorted."""
        return sorted(self._files)

    def read(self, name: str, limit: int) -> bytes:
        """One file. Raises BadCheckpoint if it has more than `limit` bytes, CheckpointNotFound if there is none."""
        if name not in self._files:
            raise CheckpointNotFound(f"{self.label} lack {name}")
        if len(self._files[name]) > limit:
            raise too_large(name, self.label, len(self._files[name]), limit)
        return self._files[name]


class _OfCheckpoint:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def names(self) -> Sequence[str]:
        return [path.as_posix() for path in self._checkpoint.side_files]

    def read(self, name: str, limit: int) -> bytes:
        data = self._checkpoint.read_file(name)
        if len(data) > limit:
            raise too_large(name, self._checkpoint.id, len(data), limit)
        return data


class _Remembered:
    """A folder whose list of files, and each file, are asked for once: it may lie on the hub."""

    def __init__(self, folder: Readable) -> None:
        self._folder = folder
        self._names = tuple(folder.names())
        self._read: dict[str, bytes] = {}

    def names(self) -> Sequence[str]:
        return self._names

    def read(self, name: str, limit: int) -> bytes:
        if name not in self._read:
            self._read[name] = self._folder.read(name, limit)
        return self._read[name]


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of a checkpoint, None if it has none. Raises BadCheckpoint, and what reading a file raises."""
    return read_tokenizer(_OfCheckpoint(checkpoint))


def read_tokenizer(folder: Readable) -> Tokenizer | None:
    """The tokenizer whose files are in `folder`, None if there are none.

    Raises BadCheckpoint with the file and what is wrong in it; files beyond 64 MiB are not read.
    """
    files = _Remembered(folder)
    model = _read_model(files)
    if model is None:
        return None
    _refuse_clashes(model)
    vocabulary = core_vocabulary(model)
    rules = rules_digest(model)
    added = {content: token.id for content, token in model.added.items()}
    return Tokenizer(
        format=model.format,
        kind=model.kind,
        vocabulary=vocabulary,
        added=added,
        core=core_digest(rules, vocabulary),
        rules=rules,
        added_digest=added_digest(model.added),
        chat_template=read_chat_template(files, read_document(files, "tokenizer_config.json")),
        rows=max([*vocabulary.values(), *added.values()]) + 1,
    )


def _read_model(folder: Readable) -> Model | None:
    names = folder.names()
    if "tokenizer.json" in names:
        return read_tokenizer_json(folder)
    if "vocab.json" in names and "merges.txt" in names:
        return read_vocab_json(folder)
    if "vocab.txt" in names:
        return read_vocab_txt(folder)
    for name in _SENTENCEPIECE:
        if name in names:
            ranks = is_tiktoken(folder.read(name, FILE_LIMIT)[:4096])
            return read_tiktoken(folder, name) if ranks else read_sentencepiece(folder, name)
    if "tekken.json" in names:
        return read_tekken(folder)
    for name in names:
        if name.endswith(".tiktoken"):
            return read_tiktoken(folder, name)
    return read_vocab_json(folder) if "vocab.json" in names else None


def _refuse_clashes(model: Model) -> None:
    """Raise BadCheckpoint where an added token has two ids, or its id two tokens, or there is no token at all."""
    if not model.tokens and not model.added:
        raise bad(model.file, "it holds no tokens")
    holders = {id: token for token, id in model.tokens.items()}
    for content, token in model.added.items():
        own = model.tokens.get(content, token.id)
        if own != token.id:
            raise bad(model.file, f"the added token {quoted(content)} has the ids {own} and {token.id}")
        if holders.setdefault(token.id, content) != content:
            other = holders[token.id]
            raise bad(model.file, f"tokens {quoted(other)} and {quoted(content)} have the same id {token.id}")


def compare_tokenizers(delta: Tokenizer, target: Tokenizer) -> TokenizerDifference:
    """How the tokenizer that a delta was trained with differs from that of the target."""
    ours, theirs = delta.tokens, target.tokens
    by_id = {id: token for token, id in theirs.items()}
    renamed = [(id, token, by_id[id]) for token, id in ours.items() if by_id.get(id, token) != token]
    moved = [(token, id, theirs[token]) for token, id in ours.items() if theirs.get(token, id) != id]
    only_delta = [(id, token) for token, id in ours.items() if token not in theirs]
    only_target = [(id, token) for token, id in theirs.items() if token not in ours]
    rules_equal = delta.rules == target.rules
    return TokenizerDifference(
        core_equal=delta.core == target.core or (rules_equal and _core_without_added(delta, target)),
        rules_equal=rules_equal,
        added_equal=delta.added_digest == target.added_digest,
        chat_template_equal=delta.chat_template == target.chat_template,
        renamed=[(id, _short(a), _short(b)) for id, a, b in sorted(renamed)[:_SHOWN]],
        renamed_count=len(renamed),
        moved=sorted(((_short(token), a, b) for token, a, b in moved), key=lambda entry: entry[1])[:_SHOWN],
        moved_count=len(moved),
        only_delta=[(id, _short(token)) for id, token in sorted(only_delta)[:_SHOWN]],
        only_delta_count=len(only_delta),
        only_target=[(id, _short(token)) for id, token in sorted(only_target)[:_SHOWN]],
        only_target_count=len(only_target),
    )


def _core_without_added(delta: Tokenizer, target: Tokenizer) -> bool:
    """Whether the vocabularies agree once the tokens that either side counts as added are left out of both."""
    ids = {*delta.added.values(), *target.added.values()}
    left, right = ({token: id for token, id in side.vocabulary.items() if id not in ids} for side in (delta, target))
    return left == right


def _short(token: str) -> str:
    return token if len(token) <= _SHOWN_CHARACTERS else f"{token[: _SHOWN_CHARACTERS - 1]}…"
