"""The object store keeps what it is given, for those it knows."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from tests.servers.object_store import Bucket


def test_object_is_kept_for_those_who_have_the_key(bucket: Bucket) -> None:
    bucket.put("some/object", b"bytes")
    assert bucket.files("some") == {"object": b"bytes"}
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{bucket.server.endpoint}/{bucket.name}/some/object")
