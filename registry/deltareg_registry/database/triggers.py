"""What SQLAlchemy has no words for: indexes of words, and triggers, in the language of each database.

The first migration runs these. Once a version of the server has been released, they do not change: another migration
drops what it replaces.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["FULLTEXT", "REVISIONS"]

FULLTEXT: Mapping[str, tuple[str, ...]] = {
    "sqlite": (
        "create virtual table words using fts5(reference, base, description, model_type, prefix='1 2 3')",
        """create trigger words_delete after delete on searchable begin
            delete from words where rowid = old.version;
        end""",
    ),
    "postgresql": (
        """create table words (
            version bigint primary key references searchable (version) on delete cascade, vector tsvector not null
        )""",
        "create index ix_words_vector on words using gin (vector) with (fastupdate = off)",
    ),
}
"""The index of words of the versions that can be searched for, as `records.fulltext` uses it."""


def _sqlite(table: str, event: str, row: str, namespace: str) -> str:
    return f"""create trigger {table}_{event} after {event} on {table} begin
        update namespaces set revision = revision + 1 where name = {namespace.format(row=row)};
    end"""


def _postgresql(table: str, namespace: str) -> tuple[str, str]:
    return (
        f"""create function {table}_changed() returns trigger language plpgsql as $$
        declare changed record;
        begin
            if tg_op = 'DELETE' then changed := old; else changed := new; end if;
            update namespaces set revision = revision + 1 where name = {namespace.format(row="changed")};
            return null;
        end $$""",
        f"""create trigger {table}_changed after insert or update or delete on {table}
        for each row execute function {table}_changed()""",
    )


_NAMESPACES = {
    "versions": "{row}.namespace",
    "tags": "(select namespace from repositories where id = {row}.repository)",
}

REVISIONS: Mapping[str, tuple[str, ...]] = {
    "sqlite": tuple(
        _sqlite(table, event, "old" if event == "delete" else "new", namespace)
        for table, namespace in _NAMESPACES.items()
        for event in ("insert", "update", "delete")
    ),
    "postgresql": tuple(
        statement for table, namespace in _NAMESPACES.items() for statement in _postgresql(table, namespace)
    ),
}
"""Each change of a version or a tag raises the revision of its namespace: whoever has an index knows that it is old."""
