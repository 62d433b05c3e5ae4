"""A small language model with two deltas, for every test here to read."""

from __future__ import annotations

import pytest

from tests.analysis.scene import Scene, make_scene

__all__: list[str] = []


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Read only, but for the lock beside its recipe."""
    place = tmp_path_factory.mktemp("language")
    return make_scene(place, place / "home")
