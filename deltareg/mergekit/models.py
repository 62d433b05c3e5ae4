"""The models of a merge configuration: where they lie, and what their deltas are called."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltareg.checkpoint import parse_hub_name
from deltareg.checkpoint.hub import PREFIX
from deltareg.errors import BadName
from deltareg.mergekit.config import Said
from deltareg.mergekit.document import refuse
from deltareg.paths import expand_home

__all__ = ["Model", "find_model", "repository_names", "spelled_for"]

_NAME_LIMIT = 64


@dataclass(frozen=True)
class Model:
    """A model: `place` is an absolute path or an `hf://` name, and so is `lora`, the adapter on top of it."""

    said: Said
    place: str
    lora: str | None = None

    @property
    def key(self) -> tuple[str, str | None]:
        """What two spellings of one model have in common."""
        return self.place, self.lora

    @property
    def is_on_hub(self) -> bool:
        """Whether its place is a name of the hub."""
        return self.place.startswith(PREFIX)


def find_model(said: Said, config: Path) -> Model:
    """The model that a configuration names: a path that exists, counted from the file's directory, or a hub name.

    Raises BadMergeConfig.
    """
    whole = _place(said.text, config.parent)
    if whole is not None and (not whole.startswith(PREFIX) or "+" not in said.text):
        return Model(said, whole)
    model, plus, lora = said.text.partition("+")
    places = [_place(part.strip(), config.parent) for part in ([model, lora] if plus else [model])]
    lost = next((part for part, place in zip([model, lora], places, strict=False) if place is None), None)
    if lost is not None:
        raise refuse(
            config,
            said.line,
            f"there is no {lost!r} beside the configuration, and it is no name of a model on the hub",
            "name a directory, counted from that of the configuration, or org/name@revision",
        )
    return Model(said, str(places[0]), places[1] if plus else None)


def _place(text: str, directory: Path) -> str | None:
    if not text:
        return None
    path = directory / expand_home(text)
    if os.path.exists(path):
        return os.path.realpath(path)
    try:
        return parse_hub_name(text if text.startswith(PREFIX) else PREFIX + text).text
    except BadName:
        return None


def spelled_for(model: Model, directory: Path) -> str:
    """The place of a model as a recipe in `directory` names it: what was a relative path stays one."""
    if model.is_on_hub or os.path.isabs(model.said.text) or model.said.text.startswith("~"):
        return model.place
    relative = os.path.relpath(model.place, os.path.realpath(directory))
    return relative if relative.startswith("..") else f"./{relative}"


def repository_names(models: Sequence[Model]) -> list[str]:
    """A name for the delta of each model: the last part of its place, and where two agree, the part before as well."""
    short = [_slug(_parts(model)[-1:]) for model in models]
    found: list[str] = []
    for model, name in zip(models, short, strict=True):
        wanted = name if short.count(name) == 1 else _slug(_parts(model)[-2:])
        free, number = wanted, 2
        while free in found:
            free, number = f"{wanted[: _NAME_LIMIT - 4]}-{number}", number + 1
        found.append(free)
    return found


def _parts(model: Model) -> list[str]:
    place = (model.lora or model.place).removeprefix(PREFIX)
    if (model.lora or model.place).startswith(PREFIX):
        place = place.partition("@")[0]
    return [part for part in place.split("/") if part]


def _slug(parts: Sequence[str]) -> str:
    """Text as names of deltas are written: lower-case letters and digits, single marks between them."""
    text = re.sub(r"[^a-z0-9]+", lambda mark: mark[0] if mark[0] in ("-", "_", ".") else "-", "-".join(parts).lower())
    return text.strip("-_.")[:_NAME_LIMIT].strip("-_.") or "model"
