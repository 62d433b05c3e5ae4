"""What each setting of a configuration comes to: a model's before that for all, and mergekit's default at last."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from deltareg.errors import InvalidArgument
from deltareg.merge import Method, method_of
from deltareg.mergekit.config import MergeConfig, lines_of
from deltareg.mergekit.document import refuse
from deltareg.mergekit.methods import Flag, Number
from deltareg.mergekit.models import Model
from deltareg.mergekit.plan import Wanted
from deltareg.mergekit.values import (
    Places,
    Rule,
    Scalar,
    Table,
    Theirs,
    matching,
    recipe_setting,
    schedule_of,
    value_at,
)

__all__ = ["Settings", "number_of"]


class Settings:
    """The settings of one configuration, whose `models` and `base` were found; deltas are taken from `before`.

    `notes` is what the user should know, `sources` where each value of the recipe comes from, `own` the parameters that
    models have for themselves.
    """

    def __init__(
        self, config: MergeConfig, models: list[Model], base: Model | None, before: Model, places: Places
    ) -> None:
        self.config = config
        self.known = config.known
        self.models = models
        self.base = base
        self.before = before
        self.places = places
        self.notes = list(config.notes)
        self.sources: dict[str, str] = {}
        self.own: dict[tuple[str, str | None], dict[str, tuple[Table, str]]] = {}

    def _inputs(self) -> list[Model]:
        """The models that are merged. Where whole models are, mergekit adds the base to them if it is not listed."""
        listed = {model.key for model in self.models}
        unlisted = self.base is not None and self.known.base == "none" and self.base.key not in listed
        return [*self.models, self.base] if self.base is not None and unlisted else self.models

    def _beside(self) -> list[Model]:
        """Those of them that are not the base."""
        return [model for model in self._inputs() if model.key != self.before.key]

    def _of_model(self, model: Model) -> Mapping[str, list[Rule]]:
        for given, found in zip(self.config.models, self.models, strict=True):
            if found.key == model.key:
                return given.parameters
        return {}

    def _rules(self, name: str, kind: Number | Flag, model: Model | None) -> list[Rule]:
        """What is set, first match first, down to a rule for all tensors. Raises BadMergeConfig."""
        given = [*(self._of_model(model).get(name, []) if model else []), *self.config.parameters.get(name, [])]
        for rule in given:
            self._check_kind(name, kind, rule)
        kept, lost = matching(given, self.places.subjects)
        for rule in lost:
            note = f"line {rule.line}: no tensor has {rule.filter!r} in its name: the condition is left out"
            if note not in self.notes:
                self.notes.append(note)
        if kept and kept[-1].filter is None:
            return kept
        if kind.default is not None:
            return [*kept, Rule(None, kind.default, 0)]
        line = model.said.line if model is not None else self.config.method.line
        without = next((one for one in self.places.subjects if value_at(kept, one, 0.0) is None), None)
        if without is not None:
            whose = f" of {model.said.text}" if model is not None else ""
            raise refuse(
                self.config.path,
                kept[0].line if kept else line,
                f"{name}{whose} is missing" + (f" for {without}" if kept else "") + ", and mergekit has no default",
                f"give the {name}",
            )
        return [*kept, Rule(None, kept[-1].value, kept[-1].line)]

    def _check_kind(self, name: str, kind: Number | Flag, rule: Rule) -> None:
        value = rule.value
        if isinstance(kind, Flag):
            fits = not isinstance(value, tuple | str) and float(value) in (0.0, 1.0)
        elif kind.whole:
            fits = isinstance(value, float) and value.is_integer()
        else:
            fits = not isinstance(value, bool | str)
        if not fits:
            wanted = "yes or no" if isinstance(kind, Flag) else "one whole number" if kind.whole else "a number"
            raise refuse(self.config.path, rule.line, f"{name} takes {wanted}, not {_shown(value)}")

    def _parameters(self) -> dict[str, Table]:
        """The parameters of our method. Raises BadMergeConfig."""
        found: dict[str, Table] = {}
        for name, value in self.known.only.items():
            rules = self._rules(name, Flag(name, value, True, False), None)
            other = next((rule for rule in rules if bool(rule.value) != value), None)
            if other is not None:
                told = str(value).lower()
                raise refuse(self.config.path, other.line, f"{name} has no equal here unless it is {told}")
        for name, kind in self.known.parameters.items():
            rules = self._shared(name, kind)
            if rules is not None:
                found[kind.name] = self._table(kind, rules)
                self.sources[f"parameters.{kind.name}"] = self._told(name, rules)
        for name, value in self.known.fixed.items():
            found[name] = {"*": value}
            self.sources[f"parameters.{name}"] = "mergekit's variant"
        return found

    def _shared(self, name: str, kind: Number | Flag) -> list[Rule] | None:
        """A parameter that all deltas share; None where each has its own. Raises BadMergeConfig."""
        if isinstance(kind, Flag) or not kind.by_model:
            for given in self.config.models:
                if name in given.parameters:
                    self.notes.append(f"{lines_of(given.parameters[name])}: mergekit reads {name} for all models alone")
            return self._rules(name, kind, None)
        columns = {model.key: self._rules(name, kind, model) for model in self._beside()}
        first, *others = columns.values()
        if all(_said(column) == _said(first) for column in others):
            return first
        general = self._rules(name, kind, None)
        own = {key: column for key, column in columns.items() if _said(column) != _said(general)}
        for key, column in own.items():
            self.own.setdefault(key, {})[kind.name] = self._table(kind, column), self._told(name, column)
        return None if len(own) == len(columns) else general

    def _table(self, kind: Number | Flag, rules: Sequence[Rule]) -> Table:
        if isinstance(kind, Flag):
            rules = [replace(rule, value=kind.yes if rule.value else kind.no) for rule in rules]
        elif kind.whole:
            rules = [replace(rule, value=int(float(number_of(rule.value)))) for rule in rules]
        return recipe_setting(rules, self.places)

    def _told(self, name: str, rules: Sequence[Rule]) -> str:
        lines = [rule for rule in rules if rule.line]
        if not lines:
            return f"mergekit's default of {name}"
        return f"{lines_of(lines)}: {name}"

    def _constant_flag(self, name: str, kind: Number | Flag) -> bool:
        rules = self._rules(name, kind, None)
        if len({bool(rule.value) for rule in rules}) > 1:
            raise refuse(self.config.path, rules[0].line, f"{name} differs by tensor, which has no equal here")
        self.sources[f"parameters.{name}"] = self._told(name, rules)
        return bool(rules[0].value)

    def _check_values(self, ours: str, parameters: Mapping[str, Table], deltas: Sequence[Wanted]) -> None:
        """Raise BadMergeConfig for what our method does not take."""
        method = method_of(ours)
        self._check_numbers(method, parameters, self.config.method.line)
        for one in deltas:
            own = {name: table for name, (table, _) in one.parameters.items()}
            self._check_numbers(method, own, one.model.said.line)
            self._check_together(method, {**parameters, **own}, one.model.said.line if own else self.config.method.line)

    def _check_numbers(self, method: Method, parameters: Mapping[str, Table], line: int) -> None:
        with self._refusing(line):
            for name, table in parameters.items():
                for value in table.values():
                    for point in value if isinstance(value, list) else [value]:
                        method.check(name, point)

    def _check_together(self, method: Method, parameters: Mapping[str, Table], line: int) -> None:
        combinations = {
            tuple((name, self._at(table, subject)) for name, table in parameters.items())
            for subject in self.places.subjects
        }
        with self._refusing(line):
            for combination in combinations:
                method.stages(dict(combination))

    @contextmanager
    def _refusing(self, line: int) -> Generator[None]:
        try:
            yield
        except InvalidArgument as error:
            raise refuse(self.config.path, line, error.message, error.hint) from error

    def _at(self, table: Table, name: str) -> Scalar:
        value = schedule_of(table).at(self.places.subjects[name])
        assert value is not None
        return value


def number_of(value: Theirs | None) -> Scalar:
    """What is known to be there, and no gradient."""
    assert value is not None and not isinstance(value, tuple)
    return value


def _said(rules: Sequence[Rule]) -> list[tuple[str | None, Theirs]]:
    return [(rule.filter, rule.value) for rule in rules]


def _shown(value: Theirs) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "a list" if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else repr(value)
