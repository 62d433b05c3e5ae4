"""Remotes are told apart by their URL's scheme."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltareg.errors import UsageError
from deltareg.remote import REMOTES, DirectoryRemote, open_remote


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "FILE://{path}"])
def test_paths_and_file_urls_are_directories(tmp_path: Path, form: str) -> None:
    remote = open_remote(form.format(path=tmp_path))
    assert isinstance(remote, DirectoryRemote)
    assert remote.url == tmp_path.as_uri()


@pytest.mark.parametrize("url", ["gopher://host/x", "ftp://host", "s4://bucket/key"])
def test_unknown_scheme_names_the_known_ones(url: str) -> None:
    with pytest.raises(UsageError, match=url.partition(":")[0]) as caught:
        open_remote(url)
    assert all(f"{scheme}://" in str(caught.value.hint) for scheme in REMOTES)


def test_nothing_is_reached_by_opening(tmp_path: Path) -> None:
    assert open_remote(str(tmp_path / "absent")).url.endswith("/absent")
