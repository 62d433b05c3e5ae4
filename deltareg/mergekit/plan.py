"""What a configuration comes to: everything that a recipe says, and the deltas that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from deltareg.mergekit.models import Model
from deltareg.mergekit.values import Table

__all__ = ["Choices", "Plan", "Wanted"]


@dataclass(frozen=True)
class Choices:
    """What the user says beside the configuration."""

    base: Model | None = None
    new_base: Model | None = None
    keep_base: bool = False


@dataclass(frozen=True)
class Wanted:
    """A delta that the recipe needs: what turns the base into `model`. `source` tells where its weight comes from.

    `parameters` are those of the method that it has for itself, each with where it comes from.
    """

    model: Model
    weight: Table
    source: str
    parameters: Mapping[str, tuple[Table, str]] = field(default_factory=dict[str, tuple[Table, str]])


@dataclass(frozen=True)
class Plan:
    """What the recipe says. `before` is the base that deltas are taken from, `base` the one that they are applied to.

    `sources` tells for each key of the recipe where its value comes from. `nearly_parallel` is the model whose tensors
    must point nearly where the base's do, or else the method is another one than mergekit's.
    """

    method: str
    base: Model
    before: Model
    deltas: list[Wanted]
    parameters: Mapping[str, Table]
    sources: Mapping[str, str]
    side_files: Literal["post", "target"]
    dtype: str | None
    notes: list[str] = field(default_factory=list[str])
    hints: list[str] = field(default_factory=list[str])
    rewritten: bool = False
    nearly_parallel: Model | None = None
