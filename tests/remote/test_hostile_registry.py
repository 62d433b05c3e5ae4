"""What a registry may answer that no registry should: lists that lead elsewhere, or have no end."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltareg.digest import sha256
from deltareg.errors import BadManifest, RemoteUnavailable
from deltareg.progress import SILENT
from deltareg.remote.http import HttpClient
from deltareg.remote.oci import OciClient
from deltareg.remote.uploads import UploadMemory
from tests.deltas import descriptor
from tests.remote.site import IMPATIENT, Asked, Site, say, serve_site


def tags(site: Site, tmp_path: Path) -> list[str]:
    return OciClient(HttpClient(site.url, IMPATIENT), memory=UploadMemory(tmp_path)).tags("acme/search")


@pytest.mark.parametrize(
    "target",
    ["ftp://host/x", "http://[::1", "http://host:99999/x", "file:///etc/passwd", "http://evil.example/x", "//evil/x"],
)
def test_list_that_goes_on_elsewhere_is_not_followed(target: str, tmp_path: Path) -> None:
    headers = {"Link": f'<{target}>; rel="next"'}
    with serve_site(lambda asked, before: say(asked, 200, {"tags": ["1.0.0"]}, headers)) as site:
        with pytest.raises(RemoteUnavailable, match="goes on elsewhere"):
            tags(site, tmp_path)
        assert len(site.requests) == 1


@pytest.mark.parametrize("digits", [19, 5000])
def test_size_and_range_of_absurdly_many_digits_are_no_error(digits: int, tmp_path: Path) -> None:
    number = "9" * digits

    def answer(asked: Asked, before: int) -> None:
        if asked.method == "HEAD":
            say(asked, 405)
        elif asked.method == "GET" and "/blobs/uploads/" not in asked.path:
            say(asked, 206, b"x", {"Content-Range": f"bytes 0-0/{number}"})
        elif asked.method == "POST":
            say(asked, 202, headers={"Location": "/v2/acme/search/blobs/uploads/1"})
        else:
            say(asked, 202, headers={"Location": asked.path, "Range": f"0-{number}"})

    with serve_site(answer) as site:
        client = OciClient(HttpClient(site.url, IMPATIENT), memory=UploadMemory(tmp_path))
        assert (client.blob_size("acme/search", sha256(b"x")) or 0) > 1 << 59
        (tmp_path / "x").write_bytes(b"x")
        # A chunk of which the registry says that it has more than was sent is lost.
        with pytest.raises(RemoteUnavailable, match="lost the upload"):
            client.put_blob("acme/search", descriptor(b"x", "application/x"), tmp_path / "x", SILENT)


def test_list_that_leads_back_ends(tmp_path: Path) -> None:
    headers = {"Link": '</v2/acme/search/tags/list?n=1000>; rel="next"'}
    with serve_site(lambda asked, before: say(asked, 200, {"tags": ["1.0.0"]}, headers)) as site:
        assert tags(site, tmp_path) == ["1.0.0"]
        assert len(site.requests) == 1


def test_list_without_end_is_refused_and_not_taken_for_the_whole(tmp_path: Path) -> None:
    def answer(asked: Asked, before: int) -> None:
        say(asked, 200, {"tags": [f"1.0.{before}"]}, {"Link": f'</v2/acme/search/tags/list?last={before}>; rel="next"'})

    with serve_site(answer) as site:
        with pytest.raises(BadManifest, match="more than 1000 pages"):
            tags(site, tmp_path)
        assert len(site.requests) == 1000
