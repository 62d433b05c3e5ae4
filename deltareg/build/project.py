"""A recipe and its lock, side by side in a directory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deltareg.errors import BadRecipe, LockStale
from deltareg.lock import LOCK_NAME, Lock, read_lock
from deltareg.recipe import RECIPE_NAME, Recipe, read_recipe

__all__ = ["Project"]


@dataclass(frozen=True)
class Project:
    """A recipe's file; the lock lies beside it, and relative paths count from their directory."""

    recipe_path: Path

    @classmethod
    def find(cls, directory: Path, recipe: Path | str | None = None) -> Project:
        """The named recipe, or else the nearest `deltareg.toml` in `directory` or above it. Raises BadRecipe."""
        if recipe is not None:
            path = directory / recipe
            return cls(path / RECIPE_NAME if path.is_dir() else path)
        for place in (directory, *directory.parents):
            if (place / RECIPE_NAME).is_file() or (place / LOCK_NAME).is_file():
                return cls(place / RECIPE_NAME)
        raise BadRecipe(
            f"there is no {RECIPE_NAME} in {directory} or above it", hint="deltareg new writes one", path=directory
        )

    @property
    def directory(self) -> Path:
        """Where relative paths count from."""
        return self.recipe_path.parent

    @property
    def lock_path(self) -> Path:
        """The lock's file: of `chat.toml` it is `chat.lock`."""
        return self.recipe_path.with_suffix(".lock")

    @property
    def name(self) -> str:
        """What the recipe is called in messages."""
        return self.recipe_path.name

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe. Raises BadRecipe, NotAllowed."""
        return read_recipe(self.recipe_path)

    def lock(self) -> Lock:
        """The lock. Raises LockStale where there is none, BadLock, UnsupportedFormat, NotAllowed."""
        return read_lock(self.lock_path)

    def lock_if_any(self) -> Lock | None:
        """The lock; None where there is none. Raises BadLock, UnsupportedFormat, NotAllowed."""
        try:
            return self.lock()
        except LockStale:  # it may be taken away at any time
            return None

    def current_lock(self) -> Lock:
        """The lock, if it was made for the recipe as it is now. Raises LockStale and what `lock` raises."""
        found = self.lock()
        if found.recipe != self.recipe.digest:
            raise LockStale(
                f"{self.lock_path} was made for another state of {self.name}",
                hint="deltareg lock brings it up to date",
                path=self.lock_path,
            )
        return found
