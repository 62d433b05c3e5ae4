"""A place to work in, and deltas in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.program import Pair, Workplace, write_pair

DELTA = "acme/search:1.0.0"


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tiny base and post. Read only."""
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    """A user who has not used deltareg yet."""
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, pair: Pair) -> Path:
    """A home in which the delta of the pair is acme/search:1.0.0. Read only."""
    root = Workplace(tmp_path_factory.mktemp("published"))
    root.ok("diff", pair.base, pair.post, "--tag", DELTA, "--licence", "apache-2.0", "--description", "finds things")
    return root.home


@pytest.fixture
def stocked(workplace: Workplace, published: Path) -> Workplace:
    """A user who has acme/search:1.0.0."""
    shutil.copytree(published, workplace.home)
    return workplace
