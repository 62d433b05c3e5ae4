"""Writing an imported recipe: TOML that says of each value where it comes from."""

from __future__ import annotations

import os
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tomlkit

from deltareg.errors import BadRecipe, OutputExists, translate_os_errors
from deltareg.mergekit.config import MergeConfig
from deltareg.mergekit.models import spelled_for
from deltareg.mergekit.plan import Plan, Wanted
from deltareg.mergekit.taking import ImportedDelta
from deltareg.mergekit.values import Table
from deltareg.names import LOCAL, parse_reference
from deltareg.recipe import RECIPE_TABLES, parse_recipe
from deltareg.store.files import write_atomically

__all__ = ["RecipeFile"]

EVERY = "*"


@dataclass(frozen=True)
class RecipeFile:
    """The file that the recipe goes to. What it holds beside a recipe stays as it is."""

    path: Path
    before: str

    @classmethod
    def open(cls, path: Path, *, overwrite: bool) -> RecipeFile:
        """Raises OutputExists where it holds a recipe already and is not to be overwritten, BadRecipe."""
        place = path.resolve()
        with translate_os_errors("read the recipe", path):
            try:
                before = place.read_text(encoding="utf-8") if place.exists() else ""
            except UnicodeDecodeError as error:
                raise BadRecipe(f"{path} is no text in UTF-8", path=path) from error
        try:
            values = tomllib.loads(before)
        except ValueError as error:
            raise BadRecipe(f"{path} is not valid TOML: {error}", cause=str(error), path=path) from error
        if values.keys() & set(RECIPE_TABLES) and not overwrite:
            raise OutputExists(
                f"{path} holds a recipe already", hint="name another file with -o, or add --overwrite", path=path
            )
        return cls(place, before)

    def text(self, config: MergeConfig, plan: Plan, deltas: Sequence[ImportedDelta]) -> str:
        """The whole file with the recipe of a plan. Raises BadRecipe where it cannot be changed safely."""
        document: Any = tomlkit.parse(self.before)
        for key in RECIPE_TABLES:
            document.pop(key, None)
        document["build"] = self._build(config, plan)
        tables: Any = tomlkit.aot()
        for wanted, delta in zip(plan.deltas, deltas, strict=True):
            tables.append(_delta(wanted, delta))
        document["delta"] = tables
        text = tomlkit.dumps(document)
        settings, after = tomllib.loads(self.before), tomllib.loads(text)
        for values in (settings, after):
            for key in RECIPE_TABLES:
                values.pop(key, None)
        if settings != after:
            raise BadRecipe(
                f"{self.path} is written in a way that cannot be changed safely",
                hint="name another file with -o, and copy the tables",
                path=self.path,
            )
        parse_recipe(text.encode(), self.path)
        return text

    def write(self, text: str) -> None:
        """Put the text in the file's place, at once."""
        with translate_os_errors("write the recipe", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        write_atomically(self.path, text.encode(), temporary=temporary)

    def _build(self, config: MergeConfig, plan: Plan) -> Any:
        table: Any = tomlkit.table()
        file = os.path.relpath(config.path.resolve(), self.path.parent)
        table.add(tomlkit.comment(f"Made by deltareg import-mergekit. Lines are those of {_one_line(file)}."))
        _put(table, "base", spelled_for(plan.base, self.path.parent), _said(plan.base.said.line, plan.base.said.text))
        _put(table, "method", plan.method, _said(config.method.line, f"merge_method: {config.method.text}"))
        if plan.dtype is not None:
            _put(table, "dtype", plan.dtype, plan.sources["dtype"])
        _put(table, "side-files", plan.side_files, plan.sources["side-files"])
        sources = {name: plan.sources.get(f"parameters.{name}") for name in plan.parameters}
        table["parameters"] = _parameters({name: (value, sources[name]) for name, value in plan.parameters.items()})
        return table


def _delta(wanted: Wanted, delta: ImportedDelta) -> Any:
    table: Any = tomlkit.table()
    reference = parse_reference(delta.reference)
    _put(table, "ref", reference.repository, _said(delta.line, f"model: {delta.model}"))
    # Where a remote is set up, the delta would be looked for there.
    _put(table, "remote", LOCAL, "taken on this machine; push it and take this out, for others to build it")
    _put(table, "version", str(reference.version), None)
    _put(table, "weight", wanted.weight[EVERY], wanted.source)
    others = {selector: value for selector, value in wanted.weight.items() if selector != EVERY}
    if others:
        table["where"] = _selected(others, None)
    if wanted.parameters:
        table["parameters"] = _parameters(wanted.parameters)
    return table


def _parameters(values: Mapping[str, tuple[Table, str | None]]) -> Any:
    table: Any = tomlkit.table()
    plain = [name for name, (value, _) in values.items() if list(value) == [EVERY]]
    for name in plain:
        value, source = values[name]
        _put(table, name, value[EVERY], source)
    for name, (value, source) in values.items():
        if name not in plain:
            table[name] = _selected(value, source)
    return table


def _selected(values: Table, source: str | None) -> Any:
    table: Any = tomlkit.table()
    if source:
        table.add(tomlkit.comment(_one_line(source)))
    for selector, value in values.items():
        _put(table, selector, value, None)
    return table


def _put(table: Any, key: str, value: Any, comment: str | None) -> None:
    item = cast(Any, tomlkit.item(value))
    if comment:
        item.comment(_one_line(comment))
    table.add(key, item)


def _said(line: int, text: str) -> str:
    return f"line {line}: {text}" if line else text


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
