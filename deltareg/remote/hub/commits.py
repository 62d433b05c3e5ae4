"""The names of a delta at one commit of its repository, and the commits that change them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltareg.digest import Digest, canonical_json, parse_json, sha256
from deltareg.errors import BadManifest, DeltaregError, NotAllowed, UnsupportedFormat
from deltareg.manifest import DeltaConfig, Index, Manifest, parse
from deltareg.names import Reference, parse_reference
from deltareg.remote.hub.card import MARK, card, first_card
from deltareg.remote.hub.repository import Conflict, HubRepository, addition
from deltareg.store import LAYOUT, MANIFEST_LIMIT, Entry, changes, parse_manifest
from deltareg.store.index import Snapshot, encode_index, parse_index

__all__ = ["CONFIG_LIMIT", "Change", "State", "commit", "found", "look", "path_of", "present"]

CONFIG_LIMIT = 16 << 20
_INDEX_LIMIT = 256 << 20
_SMALL_LIMIT = 1 << 20
_ATTRIBUTES = "blobs/sha256/* filter=lfs diff=lfs merge=lfs -text"
# Blobs are large files whatever their size: these can be sent before the commit that names them.
_BESIDE = "vnd.deltareg.beside"
"""The annotation of an index: the names of the files beside the latest version."""
_EMPTY = parse_index(encode_index(Index()), what="an empty index")

Described = tuple[Manifest, DeltaConfig]


@dataclass(frozen=True)
class State:
    """The names of a delta at one commit, and the paths of its files; without a commit there is no repository yet."""

    repository: HubRepository
    commit: str | None
    files: frozenset[str]
    snapshot: Snapshot

    @property
    def is_founded(self) -> bool:
        """Whether it is a repository of a delta."""
        return "oci-layout" in self.files

    def read(self, digest: Digest, *, limit: int) -> bytes:
        """The verified bytes of a small blob. Raises BadManifest."""
        data = None if self.commit is None else self.repository.read(path_of(digest), self.commit, limit)
        if data is None or sha256(data) != digest:
            raise BadManifest(f"{self.repository.label} does not have {digest}")
        return data


@dataclass(frozen=True)
class Change:
    """What a commit is to make: another index; blobs; of the version that it publishes, documents and files beside."""

    index: Index
    additions: Sequence[Any] = ()
    published: tuple[Reference, Described] | None = None
    beside: Mapping[str, Any] = field(default_factory=dict[str, Any])


def look(repository: HubRepository, known: State | None = None) -> State:
    """The names as they are now; `known` is given back where nothing was committed since."""
    head = repository.head()
    if head is None:
        return State(repository, None, frozenset(), _EMPTY)
    revision, files = head[0], frozenset(head[1])
    if known is not None and known.commit == revision:
        return known
    if "oci-layout" not in files:
        return State(repository, revision, files, _EMPTY)
    layout = repository.read("oci-layout", revision, _SMALL_LIMIT)
    if layout is None or parse_json(layout, what=f"{repository.label}/oci-layout") != LAYOUT:
        raise UnsupportedFormat(
            f"{repository.label} does not say image layout version 1.0.0, the only one that this deltareg reads",
            hint="install a newer deltareg",
        )
    data = repository.read("index.json", revision, _INDEX_LIMIT)
    if data is None:
        raise BadManifest(f"{repository.label} has no index.json: its names are gone")
    return State(repository, revision, files, parse_index(data, what=f"{repository.label}/index.json"))


def present(state: State, digests: Iterable[Digest]) -> dict[Digest, int]:
    """The sizes of those blobs that a commit has."""
    paths = {path: digest for digest in digests if (path := path_of(digest)) in state.files}
    if state.commit is None or not paths:
        return {}
    files = state.repository.files(paths, state.commit)
    return {paths[path]: file.size for path, file in files.items() if file.digest in (None, paths[path])}


def found(repository: HubRepository, delta: str, *, public: bool) -> None:
    """Make the repository of a delta, unless it is one. Raises NotAllowed where it is another model's."""
    state = look(repository)
    if state.commit is None:
        repository.create(public=public)
        state = look(repository)
    while not state.is_founded:
        foreign = sorted(state.files - {".gitattributes"})
        if state.commit is None or foreign:
            raise NotAllowed(
                f"{repository.label} is there, and is no delta's repository",
                cause=f"it holds {', '.join(foreign[:3])}" if foreign else "it cannot be seen",
                hint="name the remote with a prefix, hf://owner/prefix, or push the delta under another name",
            )
        before = repository.read(".gitattributes", state.commit, _SMALL_LIMIT) or b""
        attributes = before.rstrip() + (b"\n" if before.strip() else b"") + f"{_ATTRIBUTES}\n".encode()
        files = {
            ".gitattributes": attributes,
            "README.md": first_card(delta),
            "index.json": encode_index(Index()),
            "oci-layout": canonical_json(LAYOUT),
        }
        try:
            repository.commit("Make a repository of a delta", state.commit, [addition(*file) for file in files.items()])
            return
        except Conflict:
            # Another client made it at the same time: then it is there now.
            state = look(repository)


def commit(state: State, change: Change, message: str, url: str) -> None:
    """Make the change on top of the state. Raises Conflict where somebody else committed since."""
    assert state.commit is not None
    index = change.index
    additions = list(change.additions)
    deletions: list[str] = []
    latest = _latest(parse_index(encode_index(index), what="the new index"))
    before = _beside(state.snapshot.index)
    beside = before
    if latest is not None and latest.digest != _digest_of(_latest(state.snapshot)):
        is_new = change.published is not None and change.published[0] == latest.reference
        beside = sorted(change.beside) if is_new else []
        additions += [change.beside[name] for name in beside]
        deletions = [name for name in before if name not in beside and name in state.files]
        index = index.model_copy(update={"annotations": {**(index.annotations or {}), _BESIDE: ",".join(beside)}})
    additions.append(addition("index.json", encode_index(index)))
    if latest is not None and (text := _new_card(state, change, latest, url, beside)) is not None:
        additions.append(addition("README.md", text))
    state.repository.commit(message, state.commit, additions, deletions)


def path_of(digest: Digest) -> str:
    """Where a blob lies in the repository."""
    algorithm, _, hexadecimal = digest.partition(":")
    return f"blobs/{algorithm}/{hexadecimal}"


def _new_card(state: State, change: Change, latest: Entry, url: str, beside: Sequence[str]) -> bytes | None:
    """The model card of the latest version; None where it is as it should be, or its owner's own."""
    assert state.commit is not None
    if "README.md" in state.files:
        now = state.repository.read("README.md", state.commit, _SMALL_LIMIT) or b""
        if MARK.encode() not in now:
            return None
    else:
        now = b""
    if change.published is not None and change.published[0] == latest.reference:
        described = change.published[1]
    else:
        try:
            described = _described(state, latest)
        except DeltaregError:
            # Names must change even where a version cannot be read, above all in order to yank it.
            return None
    text = card(latest, *described, url, beside)
    return None if text == now else text


def _described(state: State, entry: Entry) -> Described:
    data = state.read(entry.digest, limit=MANIFEST_LIMIT)
    manifest = parse_manifest(data, what=f"the manifest of {entry.reference}")
    config = state.read(Digest(manifest.config.digest), limit=CONFIG_LIMIT)
    return manifest, parse(DeltaConfig, config, what=f"the config of {entry.reference}")


def _latest(snapshot: Snapshot) -> Entry | None:
    """What the card tells of: the latest version of the repository's delta, which is the only one there."""
    names = list(snapshot.repositories)
    if not names:
        return None
    try:
        return changes.find(snapshot, parse_reference(names[0]), "the repository")
    except DeltaregError:
        return None


def _digest_of(entry: Entry | None) -> Digest | None:
    return None if entry is None else entry.digest


def _beside(index: Index) -> list[str]:
    return [name for name in (index.annotations or {}).get(_BESIDE, "").split(",") if name]
