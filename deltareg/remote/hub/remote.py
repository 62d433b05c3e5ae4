"""The remote on the Hugging Face Hub: names and blobs of each delta in a repository, changed by commits."""

from __future__ import annotations

import builtins
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deltareg.checkpoint.hub import Hub, hub_errors, hub_library
from deltareg.digest import Digest, parse_digest, sha256
from deltareg.errors import InvalidArgument, NotAllowed, NotFound, RemoteUnavailable, translate_os_errors
from deltareg.manifest import CONFIG_TYPE, DeltaConfig, Descriptor, Index, Manifest
from deltareg.names import Reference, parse_reason
from deltareg.progress import SILENT, Progress
from deltareg.remote.bandwidth import Bandwidth
from deltareg.remote.hub.card import TAG
from deltareg.remote.hub.commits import CONFIG_LIMIT, Change, State, commit, found, look, path_of, present
from deltareg.remote.hub.names import parse_place
from deltareg.remote.hub.repository import Conflict, HubRepository, LargeFileLost, addition
from deltareg.remote.hub.staging import StagedBlob, Staging
from deltareg.remote.protocol import Capabilities, RemoteEntry
from deltareg.store import MANIFEST_LIMIT, changes, parse_manifest, parse_referrer
from deltareg.store.index import DEPRECATED, YANKED, Snapshot
from deltareg.store.referrers import referrers_among
from deltareg.store.writer import mismatch

__all__ = ["HubRemote"]

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OURS = ("index.json", "oci-layout", "README.md")
_ATTEMPTS = 12
_WAIT = 0.1
_MOST_WAIT = 5.0
_THREADS = 8


class HubRemote:
    """`hf://owner[/prefix]`: each delta is a model repository there, in the OCI image layout.

    The Hub's address, token and offline mode are those of huggingface_hub: HF_ENDPOINT, HF_TOKEN or `hf auth login`,
    HF_HUB_OFFLINE. A change of names is one commit, which the Hub refuses where another one came first. What is
    resolved is read from the commit that it was found in, even where the branch has moved since.
    """

    def __init__(
        self,
        url: str,
        hub: Hub | None = None,
        *,
        bandwidth: Bandwidth | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._place = parse_place(url)
        self._hub = hub or Hub()
        self._bandwidth = bandwidth or Bandwidth()
        self._pause = pause
        self.url = self._place.url
        self._lock = threading.Lock()
        self._staged: dict[str, Staging] = {}
        self._states: dict[str, State] = {}
        self._pins: dict[str, str] = {}
        self._writable: bool | None = None

    def capabilities(self) -> Capabilities:
        """What it can do. Whether this user may write is what the Hub says of the token."""
        if self._writable is None:
            self._writable = self._may_write()
        return Capabilities(writable=self._writable, resumable=False, conditional_put=True, search=False)

    def missing(self, repository: str, digests: Iterable[Digest]) -> set[Digest]:
        """Those of `digests` that neither the newest commit has nor this client has sent."""
        wanted = {parse_digest(digest) for digest in digests}
        staging = self._staging(repository)
        unsent = {digest for digest in wanted if staging.blob(digest) is None}
        return unsent - present(self._look(repository), unsent).keys()

    def put_blob(self, repository: str, descriptor: Descriptor, source: Path, progress: Progress) -> int:
        """Send a blob, unless the Hub has it; it shows once a version names it."""
        digest = parse_digest(descriptor.digest)
        staging = self._staging(repository)
        if staging.blob(digest) is not None:
            progress.advance(descriptor.size)
            return 0
        upload = self._founded(repository).upload(path_of(digest), source, descriptor, progress)
        config = None
        if descriptor.media_type == CONFIG_TYPE and descriptor.size <= CONFIG_LIMIT:
            with translate_os_errors("read a blob", source):
                config = source.read_bytes()
        staging.add(digest, StagedBlob(descriptor.size, upload.operation, config))
        return upload.sent

    def put_files(self, reference: Reference, files: Mapping[str, Path]) -> None:
        """Send files that lie beside a version, for programs that know no deltas, while it is the latest one."""
        for name in files:
            if _FILE_NAME.fullmatch(name) is None or name in _OURS:
                raise InvalidArgument(f"{name!r} cannot be the name of a file beside a version")
        repository = self._founded(reference.repository)
        sent = {name: repository.upload(name, path, None, SILENT).operation for name, path in files.items()}
        self._staging(reference.repository).add_files(reference, sent)

    def get_blob(self, repository: str, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """The bytes of a blob from `offset` on, from the commit that was resolved where that has it."""
        path = path_of(parse_digest(descriptor.digest))
        hub_repository = self._repository(repository)
        for revision in self._commits(repository):
            try:
                yield from hub_repository.chunks(path, revision, offset)
                return
            except NotFound:
                continue
        raise self._absent(repository, descriptor.digest)

    def put_manifest(self, reference: Reference, manifest: bytes, *, if_absent: bool = True) -> Digest:
        """Publish a manifest: one commit of the blobs that were sent, the index and the model card."""
        if not if_absent:
            raise NotAllowed(f"{self.url} keeps versions as they are", hint="publish under a new version number")
        changes.check_version(reference)
        document = parse_manifest(manifest, what=f"the manifest of {reference}")
        digest = sha256(manifest)
        staging = self._staging(reference.repository)

        def publish(state: State) -> Change | None:
            index = changes.published(state.snapshot, reference, digest, len(manifest), where=f" at {self.url}")
            if index is None:
                return None
            additions = self._additions(state, reference.repository, reference, document.blobs)
            config = self._config(state, reference, document)
            additions.append(addition(path_of(digest), manifest))
            return Change(index, additions, (reference, (document, config)), staging.files(reference))

        self._publish(reference.repository, f"Publish {reference}", publish, document.blobs)
        staging.forget_files(reference)
        return digest

    def get_manifest(self, repository: str, digest: Digest) -> bytes:
        """The bytes of a manifest, from the commit that was resolved where that has it."""
        path = path_of(parse_digest(digest))
        hub_repository = self._repository(repository)
        for revision in self._commits(repository):
            data = hub_repository.read(path, revision, MANIFEST_LIMIT)
            if data is not None:
                return data
        raise self._absent(repository, digest)

    def resolve(self, reference: Reference) -> Digest:
        """The digest that a name means at the newest commit, from which blobs are read afterwards."""
        state = self._look(reference.repository)
        found = changes.find(state.snapshot, reference, self.url)
        if state.commit is not None:
            self._pins[reference.repository] = state.commit
        return found.digest

    def list(self, repository: str | None = None) -> builtins.list[RemoteEntry]:
        """The names of one delta, or of all whose repositories the Hub lists for this user."""
        if repository is not None:
            return sorted(self._look(repository).snapshot.entries_of(repository))
        with hub_errors(self.url):
            models = [str(model.id) for model in self._api().list_models(author=self._place.owner, filter=TAG)]
        deltas = [delta for delta in map(self._place.delta_of, models) if delta is not None]
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="list") as pool:
            return sorted(entry for entries in pool.map(self.list, deltas) for entry in entries)

    def put_referrer(self, repository: str, manifest: bytes) -> Digest:
        """Store the manifest of a referrer, by one commit with the blobs of it that were sent."""
        document = parse_referrer(manifest, what=f"the manifest of a referrer in {repository}")
        digest = sha256(manifest)

        def refer(state: State) -> Change | None:
            index = changes.with_referrer_of(state.snapshot, repository, manifest, document)
            told = f"{digest}, which refers to {document.subject.digest},"
            additions = self._additions(state, repository, told, document.blobs)
            return None if index is None else Change(index, [*additions, addition(path_of(digest), manifest)])

        self._publish(repository, f"Add {digest}", refer, document.blobs)
        return digest

    def referrers(self, repository: str, digest: Digest, artifact_type: str | None = None) -> builtins.list[Descriptor]:
        """The referrers of a manifest, as the newest index tells them."""
        state = self._look(repository)
        return referrers_among(state, state.snapshot.untagged, parse_digest(digest), artifact_type)

    def yank(self, reference: Reference, reason: str) -> None:
        """Yank a version."""
        self._mark(reference, YANKED, parse_reason(reason), f"Yank {reference}")

    def unyank(self, reference: Reference) -> None:
        """Take back that a version was yanked."""
        self._mark(reference, YANKED, None, f"Unyank {reference}")

    def deprecate(self, reference: Reference, reason: str) -> None:
        """Advise against a version."""
        self._mark(reference, DEPRECATED, parse_reason(reason), f"Deprecate {reference}")

    def undeprecate(self, reference: Reference) -> None:
        """Take back that a version was deprecated."""
        self._mark(reference, DEPRECATED, None, f"Undeprecate {reference}")

    def set_channel(self, repository: str, channel: str, digest: Digest, expected: Digest | None) -> None:
        """Let a channel name a version, if it still points to `expected`."""
        self._rename(
            repository,
            f"Set the channel {channel}",
            lambda names: changes.with_channel(names, repository, channel, digest, expected, self.url),
        )

    def remove_channel(self, repository: str, channel: str) -> None:
        """Drop a channel."""
        self._rename(
            repository,
            f"Remove the channel {channel}",
            lambda names: changes.without_channel(names, repository, channel, self.url),
        )

    # --- reading ---

    def _look(self, delta: str) -> State:
        """The names of a delta as they are now."""
        state = self._states[delta] = look(self._repository(delta), self._states.get(delta))
        return state

    def _commits(self, delta: str) -> Iterator[str]:
        """Where to look for a blob: in the commit that was resolved, then in the newest one."""
        pinned = self._pins.get(delta)
        if pinned is not None:
            yield pinned
        head = self._repository(delta).head()
        if head is not None and head[0] != pinned:
            yield head[0]

    def _absent(self, delta: str, digest: str) -> NotFound:
        return NotFound(f"{delta} at {self.url} has no {digest}", hint="deltareg list", digest=digest)

    def _may_write(self) -> bool:
        if not (self._hub.token or hub_library().get_token()):
            # Asked all the same, so that who looks whether it can be reached is told.
            HubRepository(self._hub, f"{self._place.owner}/{TAG}", self._bandwidth).head()
            return False
        with hub_errors(self.url):
            user: Any = self._api().whoami()
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        orgs = [one["name"] for one in user.get("orgs", ()) if one.get("roleInOrg") != "read"]
        return role != "read" and self._place.owner.lower() in {str(name).lower() for name in [user["name"], *orgs]}

    # --- changing ---

    def _founded(self, delta: str) -> HubRepository:
        """The repository of a delta, made where there is none."""
        staging, repository = self._staging(delta), self._repository(delta)
        with staging.founding:
            if not staging.founded:
                found(repository, delta, public=self._place.public)
                staging.founded = True
        return repository

    def _mark(self, reference: Reference, mark: str, reason: str | None, message: str) -> None:
        self._rename(
            reference.repository,
            message,
            lambda names: changes.marked(names, reference, mark, reason, self.url),
        )

    def _rename(self, delta: str, message: str, change: Callable[[Snapshot], Index | None]) -> None:
        def make(state: State) -> Change | None:
            index = change(state.snapshot)
            return None if index is None else Change(index)

        self._change(delta, message, make)

    def _publish(
        self, delta: str, message: str, make: Callable[[State], Change | None], blobs: Sequence[Descriptor]
    ) -> None:
        """Commit a change that needs blobs which were sent. Raises NotFound where they have to be sent again."""
        staging, sent = self._staging(delta), [blob.digest for blob in blobs]
        try:
            self._change(delta, message, make)
        except LargeFileLost as error:
            staging.forget(sent)
            # The Hub keeps what no commit has for some time only.
            raise NotFound(
                f"the hub lost some of the blobs of {delta} that were sent to {self.url}",
                cause=str(error),
                hint="run the command again",
            ) from error
        staging.forget(sent)

    def _change(self, delta: str, message: str, make: Callable[[State], Change | None]) -> None:
        """Commit what `make` makes of the names as they are; again, where somebody else was first."""
        with self._staging(delta).committing:
            for attempt in range(_ATTEMPTS):
                state = self._look(delta)
                change = make(state)
                if change is None:
                    return
                try:
                    commit(state, change, message, self.url)
                    return
                except Conflict:
                    self._pause(random.uniform(0, min(_MOST_WAIT, _WAIT * 2**attempt)))
        raise RemoteUnavailable(
            f"{delta} at {self.url} is being changed by others all the time",
            cause=f"{_ATTEMPTS} commits came after another one",
            hint="run the command again",
        )

    def _additions(
        self, state: State, delta: str, what: Reference | str, blobs: Sequence[Descriptor]
    ) -> builtins.list[Any]:
        """The blobs that a commit has to add. Raises NotFound where some were not sent, DigestMismatch."""
        there = present(state, [parse_digest(blob.digest) for blob in blobs])
        staging = self._staging(delta)
        additions: builtins.list[Any] = []
        absent: builtins.list[str] = []
        for blob in blobs:
            size = there.get(Digest(blob.digest))
            staged = staging.blob(blob.digest) if size is None else None
            if staged is not None:
                size = staged.size
                additions.append(staged.operation)
            if size is None:
                absent.append(blob.digest)
            elif size != blob.size:
                raise mismatch(blob.digest, self.url, expected=blob.size, found=size)
        if absent:
            raise changes.blobs_missing(what, absent)
        return additions

    def _config(self, state: State, reference: Reference, document: Manifest) -> DeltaConfig:
        """The config of a version that is published. Raises UnsupportedFormat, BadManifest."""
        staged = self._staging(reference.repository).blob(document.config.digest)
        data = None if staged is None else staged.config
        if data is None and state.commit is not None:
            data = state.repository.read(path_of(Digest(document.config.digest)), state.commit, CONFIG_LIMIT)
        if data is None:
            raise changes.blobs_missing(reference, [document.config.digest])
        return changes.config_of(reference, document.config, data)

    def _repository(self, delta: str) -> HubRepository:
        return HubRepository(self._hub, self._place.repository_of(delta), self._bandwidth)

    def _staging(self, delta: str) -> Staging:
        with self._lock:
            return self._staged.setdefault(delta, Staging())

    def _api(self) -> Any:
        return hub_library().HfApi(endpoint=self._hub.endpoint, token=self._hub.token)
