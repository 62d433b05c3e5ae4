"""One repository of a server, spoken to by plain requests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import httpx2

from deltareg.digest import Digest, sha256
from deltareg.manifest import INDEX_TYPE, MANIFEST_TYPE, Manifest, parse
from deltareg.store import Store

__all__ = ["Repository", "code_of", "described"]

EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


@dataclass(frozen=True)
class Repository:
    """`namespace/name` at a server, as the user of a client sees it."""

    client: httpx2.Client
    name: str

    @property
    def path(self) -> str:
        """Where its routes begin."""
        return f"/v2/{self.name}"

    def begin(self) -> str:
        """Begin an upload; return its location."""
        answer = self.client.post(f"{self.path}/blobs/uploads/")
        assert answer.status_code == 202, answer.text
        return answer.headers["location"]

    def push(self, data: bytes) -> Digest:
        """Push a blob."""
        digest = sha256(data)
        answer = self.client.put(self.begin(), params={"digest": digest}, content=data)
        assert answer.status_code == 201, answer.text
        return digest

    def blob(self, digest: str, headers: Mapping[str, str] | None = None) -> httpx2.Response:
        """Ask for a blob."""
        return self.client.get(f"{self.path}/blobs/{digest}", headers=headers, follow_redirects=True)

    def put(self, reference: str, data: bytes, media_type: str = MANIFEST_TYPE) -> httpx2.Response:
        """Put a manifest."""
        return self.client.put(f"{self.path}/manifests/{reference}", content=data, headers={"Content-Type": media_type})

    def manifest(self, reference: str, accept: str = "*/*") -> httpx2.Response:
        """Ask for a manifest."""
        return self.client.get(f"{self.path}/manifests/{reference}", headers={"Accept": accept})

    def delete(self, rest: str) -> httpx2.Response:
        """Delete something."""
        return self.client.delete(f"{self.path}/{rest}")

    def tags(self) -> list[str]:
        """Every tag."""
        return self.client.get(f"{self.path}/tags/list").json()["tags"]

    def push_image(
        self,
        tag: str | None = None,
        *,
        layers: Iterable[bytes] = (b"layer",),
        artifact_type: str | None = None,
        subject: str | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Digest:
        """Push a small manifest of another program, with its blobs."""
        for data in (b"{}", *layers):
            self.push(data)
        document: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": described(b"{}", EMPTY_TYPE),
            "layers": [described(data) for data in layers],
        }
        if artifact_type is not None:
            document["artifactType"] = artifact_type
        if subject is not None:
            document["subject"] = {"mediaType": MANIFEST_TYPE, "digest": subject, "size": 2}
        if annotations is not None:
            document["annotations"] = dict(annotations)
        data = json.dumps(document).encode()
        answer = self.put(tag or sha256(data), data)
        assert answer.status_code == 201, answer.text
        return sha256(data)

    def push_index(self, tag: str, manifests: Iterable[bytes]) -> httpx2.Response:
        """Push an index of manifests that are here."""
        listed = [described(data, MANIFEST_TYPE) for data in manifests]
        document = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": listed}
        return self.put(tag, json.dumps(document).encode(), INDEX_TYPE)

    def push_delta(self, local: Store, manifest: bytes, reference: str) -> httpx2.Response:
        """Push a delta of a store, under a tag or its digest."""
        for blob in parse(Manifest, manifest, what="test").blobs:
            self.push(local.read(Digest(blob.digest)))
        return self.put(reference, manifest)


def described(data: bytes, media_type: str = "application/octet-stream") -> dict[str, object]:
    """What names `data` in a manifest."""
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}


def code_of(answer: httpx2.Response) -> tuple[int, str]:
    """The status of an error, and its code as OCI has it."""
    return answer.status_code, answer.json()["errors"][0]["code"]
