"""The records are tested over both databases."""

from __future__ import annotations

import pytest

from deltareg_registry.state import State


@pytest.fixture
def state(any_state: State) -> State:
    """What a new server works with, over SQLite and over PostgreSQL."""
    return any_state
