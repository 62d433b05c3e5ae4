"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltareg.errors import InvalidArgument
from deltareg.paths import expand_home


def test_home_is_put_in_the_place_of_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert expand_home("~/models") == Path("/home/ann/models")
    assert expand_home(Path("~")) == Path("/home/ann")


@pytest.mark.parametrize("path", ["models/~", "./~ann", "/srv/~ann", "models", "", "a~b"])
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert expand_home(path) == Path(path)


def test_home_of_nobody_is_told_with_the_way_out() -> None:
    with pytest.raises(InvalidArgument, match="nobody's home") as raised:
        expand_home("~nosuch-user/models")
    assert (raised.value.exit_code, raised.value.data["path"]) == (2, "~nosuch-user/models")
    assert "./~nosuch-user" in (raised.value.hint or "")
