"""The full-text index of the catalog: what is searched as words, and what as keys.

A key stands for one value, such as a licence: SQLite joins lists of keys and of words by the same quick merge.
"""

from __future__ import annotations

import hashlib

from deltareg.catalog.rows import CatalogRow
from deltareg.errors import InvalidArgument

__all__ = ["EVERY", "WORDS", "YANKED", "key", "keys_of", "split_words", "words_in"]

WORDS = """
create virtual table words using fts5(
    reference, base, description, model_type, keys, content='names', content_rowid='number', prefix='1 2 3'
);
create trigger words_insert after insert on names when new.keys is not null begin
    insert into words (rowid, reference, base, description, model_type, keys)
    values (new.number, new.reference, new.base, new.description, new.model_type, new.keys);
end;
create trigger words_delete after delete on names when old.keys is not null begin
    insert into words (words, rowid, reference, base, description, model_type, keys)
    values ('delete', old.number, old.reference, old.base, old.description, old.model_type, old.keys);
end;
"""

EVERY = "keys:every"
"""The expression that every row of the index matches."""

YANKED = "keys:yanked"
"""The expression for the rows that are yanked."""

_KINDS = ("fingerprint", "space", "tokenizer_core", "tokenizer_added", "namespace", "licence", "model_type")
_WORDS = 32


def keys_of(row: CatalogRow) -> str:
    """The keys of a row, with spaces between them."""
    marks = ["every"] if row.yanked is None else ["every", "yanked"]
    return " ".join([*marks, *(_key(kind, getattr(row, kind)) for kind in _KINDS)])


def key(kind: str, value: str | None) -> str:
    """The expression for the rows whose field `kind` is `value`, whatever the case of its letters."""
    return f"keys:{_key(kind, value)}"


def words_in(text: str) -> str | None:
    """The expression for the rows that have all words of `text`, or words that begin so; None for an empty text.

    Raises InvalidArgument for more than 32 words.
    """
    words = split_words(text)
    if len(words) > _WORDS:
        raise InvalidArgument(f"the text has {len(words)} words; a search takes {_WORDS} at most")
    # Quoted, nothing is an operator.
    quoted = ('"' + word.replace('"', '""') + '" *' for word in words)
    return f"{{reference base description model_type}}:({' AND '.join(quoted)})" if words else None


def split_words(text: str) -> list[str]:
    """What a text asks for: its words as they stand between spaces, each once."""
    return list(dict.fromkeys(text.replace("\0", " ").encode("utf-8", "replace").decode().split()))


def _key(kind: str, value: str | None) -> str:
    told = "" if value is None else f"={value.casefold()}"
    return hashlib.sha256(f"{kind}{told}".encode("utf-8", "replace")).hexdigest()[:24]
