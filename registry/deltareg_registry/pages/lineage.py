"""What a delta comes from, what is stacked on it, and what else was taken from the same base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltareg.digest import Digest
from deltareg.errors import BadName, DeltaregError
from deltareg.manifest import DeltaConfig, Requirement, parse
from deltareg.names import Reference
from deltareg.versions import parse_range
from deltareg_registry.access.principal import Principal
from deltareg_registry.api.caching import Cache
from deltareg_registry.records.searching import Search, search
from deltareg_registry.state import State

__all__ = ["MOST", "Lineage", "Relative", "lineage_of"]

MOST = 200
"""The versions of the same parameter space that are looked at at a time, the newest first."""

_CONFIG_LIMIT = 16 << 20


@dataclass(frozen=True)
class _Described:
    """What is looked at in the config of another delta."""

    post: str
    requires: tuple[Requirement, ...]


_CACHE: Cache[_Described] = Cache(10_000)
"""By the digest of the config."""


@dataclass(frozen=True)
class Relative:
    """Another delta: the newest of its versions that is related."""

    namespace: str
    name: str
    version: str
    note: str = ""


@dataclass(frozen=True)
class Lineage:
    """The relatives that whoever asks may read, among some versions; of each kind the newest first."""

    parents: list[Relative]
    """Those whose post is this delta's base."""
    children: list[Relative]
    """Those whose base is this delta's post."""
    dependants: list[Relative]
    """Those that require this delta."""
    siblings: list[Relative]
    """Those of the same base."""
    looked_at: int
    """The versions of the parameter space that were looked at."""
    total: int
    """All of them."""
    older: str | None
    """What leads to those that come next; None where there are none."""


def lineage_of(
    state: State, principal: Principal, this: Reference, digest: str, config: DeltaConfig, older: str | None = None
) -> Lineage:
    """The relatives of a version among the newest versions, or among those that `older` leads to.

    Raises InvalidArgument for an `older` that is of no lineage.
    """
    with state.database.reading() as connection:
        asked = Search(space=config.fingerprint.space, order="newest", limit=MOST, cursor=older)
        found = search(connection, principal, asked)
    required = {one.reference for one in config.requires}
    parents: dict[str, Relative] = {}
    children: dict[str, Relative] = {}
    dependants: dict[str, Relative] = {}
    siblings: dict[str, Relative] = {}
    for row in found.rows:
        name = f"{row['namespace']}/{row['name']}"
        if name == this.repository:
            continue
        one = Relative(row["namespace"], row["name"], row["version"])
        described = _described(state, row)
        if described is not None and described.post == config.base.digest:
            parents.setdefault(name, one)
        if row["base_digest"] == config.post.digest != config.base.digest:
            children.setdefault(name, one)
        needed = None if described is None else _needs(described.requires, this, digest)
        if needed is not None:
            dependants.setdefault(name, Relative(one.namespace, one.name, one.version, needed))
        if row["base_digest"] == config.base.digest and needed is None and name not in required:
            siblings.setdefault(name, one)
    kinds = (parents, children, dependants, siblings)
    return Lineage(
        *(list(kind.values()) for kind in kinds),
        looked_at=len(found.rows),
        total=found.total,
        older=found.next_cursor,
    )


def _needs(requires: tuple[Requirement, ...], this: Reference, digest: str) -> str | None:
    """What is required of this version; None where it is not required."""
    for one in requires:
        if one.reference == this.repository and one.digest in (None, digest):
            try:
                if parse_range(one.version).has(str(this.tag)):
                    return str(one)
            except BadName:
                continue
    return None


def _described(state: State, row: Mapping[str, Any]) -> _Described | None:
    """The config of another delta; None where it cannot be read: one that is damaged must not hide the others."""
    found = _CACHE.get(row["config"])
    if found is None:
        try:
            data = state.storage.read(Digest(row["config"]), limit=_CONFIG_LIMIT)
            config = parse(DeltaConfig, data, what=f"the config {row['config']}")
        except DeltaregError:
            return None
        found = _Described(config.post.digest, tuple(config.requires))
        _CACHE.put(row["config"], found)
    return found
