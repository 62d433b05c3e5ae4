"""From a merge configuration to what a recipe says of it. Nothing is taken, and nothing written.

A merge of whole models is one of deltas where it keeps the sum of all weights at 1: Σ wᵢΘᵢ = Θ_base + Σ wᵢΔᵢ. Turns of
whole models about the origin (slerp, karcher) are not, as deltas do not tell of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from deltareg.errors import InvalidArgument
from deltareg.merge import Gradient, Schedule, method_of
from deltareg.mergekit.config import MergeConfig, Said, lines_of
from deltareg.mergekit.document import refuse
from deltareg.mergekit.methods import Flag, Number
from deltareg.mergekit.models import Model, find_model
from deltareg.mergekit.values import Places, Rule, Scalar, Table, Theirs, matching, recipe_setting, shares, value_at

__all__ = ["Choices", "Plan", "Wanted", "base_of", "plan"]

_WEIGHT = Number("weight", None, by_model=True)
_SUM = 1e-6
"""How far from 1 weights may add up: less than float32 tells apart."""


@dataclass(frozen=True)
class Choices:
    """What the user says beside the configuration."""

    base: Model | None = None
    new_base: Model | None = None
    keep_base: bool = False


@dataclass(frozen=True)
class Wanted:
    """A delta that the recipe needs: what turns the base into `model`. `source` tells where its weight comes from."""

    model: Model
    weight: Table
    source: str


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


def base_of(config: MergeConfig, models: Sequence[Model], base: Model | None, choices: Choices) -> Model:
    """The base that deltas are taken from. Raises BadMergeConfig, InvalidArgument."""
    method, known = config.method, config.known
    if choices.base is not None:
        if base is not None and known.base != "none":
            raise InvalidArgument(
                f"{config.path} has a base_model already: {base.said.text}", hint="leave --base out", path=config.path
            )
        return choices.base
    if base is not None and method.text != "karcher":
        return base
    if known.base == "required" or method.text == "slerp":
        raise refuse(config.path, method.line, f"{method.text} needs a base_model", "add base_model")
    if method.text == "linear":
        return models[0]
    raise refuse(
        config.path,
        method.line,
        f"{method.text} without a base_model turns whole models about the origin, which deltas do not tell of",
        "name the model that all of them were trained from, --base MODEL, to merge their deltas by this method instead",
    )


def plan(config: MergeConfig, models: Sequence[Model], base: Model | None, choices: Choices, places: Places) -> Plan:
    """The plan of a configuration whose `models` and `base` were found, for a base with the tensors of `places`.

    Raises BadMergeConfig, InvalidArgument.
    """
    return _Planner(config, list(models), base, choices, places).plan()


class _Planner:
    """Works one configuration out."""

    def __init__(
        self, config: MergeConfig, models: list[Model], base: Model | None, choices: Choices, places: Places
    ) -> None:
        self.config = config
        self.known = config.known
        self.models = models
        self.base = base
        self.choices = choices
        self.places = places
        self.before = base_of(config, models, base, choices)
        self.notes = list(config.notes)
        self.sources: dict[str, str] = {}

    def plan(self) -> Plan:
        self._check_models()
        name = self.config.method.text
        if name == "linear":
            found = self._linear()
        elif name == "slerp":
            found = self._slerp()
        elif name == "nuslerp":
            found = self._nuslerp()
        else:
            parameters = self._parameters()
            found = self._planned(self.known.ours, [self._wanted(model) for model in self._beside()], parameters)
        self._check_values(found)
        if name == "task_arithmetic":
            found = self._onto_new_base(found)
        elif self.choices.new_base is not None:
            raise InvalidArgument(f"--new-base is for task_arithmetic, and this is {name}", hint="leave --new-base out")
        return found

    # --- models -------------------------------------------------------------------------------------------------------

    def _inputs(self) -> list[Model]:
        """The models that are merged. Where whole models are, mergekit adds the base to them if it is not listed."""
        listed = {model.key for model in self.models}
        unlisted = self.base is not None and self.known.base == "none" and self.base.key not in listed
        return [*self.models, self.base] if self.base is not None and unlisted else self.models

    def _beside(self) -> list[Model]:
        """Those of them that are not the base."""
        return [model for model in self._inputs() if model.key != self.before.key]

    def _check_models(self) -> None:
        known, method = self.known, self.config.method
        seen: dict[tuple[str, str | None], Model] = {}
        for model in self.models:
            if model.key in seen:
                line = seen[model.key].said.line
                raise refuse(self.config.path, model.said.line, f"{model.said.text} is the model of line {line} again")
            seen[model.key] = model
        for model in self.models:
            if model.lora is not None and model.place != self.before.place:
                raise refuse(
                    self.config.path,
                    model.said.line,
                    f"the adapter of {model.said.text} is on another model than the base, {self.before.said.text}",
                    "merge it with peft, and name the result",
                )
        for given, model in zip(self.config.models, self.models, strict=True):
            if known.base != "none" and model.key == self.before.key and given.parameters:
                self.notes.append(f"line {model.said.line}: parameters of the base itself change nothing")
        if self.before.lora is not None:
            raise refuse(self.config.path, self.before.said.line, "the base has an adapter", "merge it with peft first")
        count = len(self._beside())
        least, most = known.least, known.most
        if method.text in ("slerp", "karcher") and self.choices.base is not None:
            least, most = (2, 2) if method.text == "slerp" else (1, None)
        if count < least or (most is not None and count > most):
            wanted = f"{least}" if most == least else f"at least {least}"
            raise refuse(
                self.config.path,
                method.line,
                f"{method.text} takes {wanted} model{'' if least == 1 else 's'} beside the base, not {count}",
            )
        if known.note:
            self.notes.append(f"line {method.line}: {known.note}")

    # --- settings -----------------------------------------------------------------------------------------------------

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
            found[kind.name] = self._table(kind, rules)
            self.sources[f"parameters.{kind.name}"] = self._told(name, rules)
        for name, value in self.known.fixed.items():
            found[name] = {"*": value}
            self.sources[f"parameters.{name}"] = "mergekit's variant"
        return found

    def _shared(self, name: str, kind: Number | Flag) -> list[Rule]:
        """A parameter that all deltas share. Raises BadMergeConfig where models have others."""
        if isinstance(kind, Flag) or not kind.by_model:
            for given in self.config.models:
                if name in given.parameters:
                    self.notes.append(f"{lines_of(given.parameters[name])}: mergekit reads {name} for all models alone")
            return self._rules(name, kind, None)
        columns = [self._rules(name, kind, model) for model in self._beside()]
        for model, column in zip(self._beside(), columns, strict=True):
            if _said(column) != _said(columns[0]):
                line = next((rule.line for rule in column if rule.line), model.said.line)
                first = self._beside()[0].said.text
                raise refuse(
                    self.config.path,
                    line,
                    f"{name} of {model.said.text} is another one than that of {first}",
                    f"a method has one {name} for all deltas; give all models the same, or merge with mergekit",
                )
        return columns[0]

    def _table(self, kind: Number | Flag, rules: Sequence[Rule]) -> Table:
        if isinstance(kind, Flag):
            rules = [replace(rule, value=kind.yes if rule.value else kind.no) for rule in rules]
        elif kind.whole:
            rules = [replace(rule, value=int(float(_number(rule.value)))) for rule in rules]
        return recipe_setting(rules, self.places)

    def _told(self, name: str, rules: Sequence[Rule]) -> str:
        lines = [rule for rule in rules if rule.line]
        if not lines:
            return f"mergekit's default of {name}"
        return f"{lines_of(lines)}: {name}"

    def _wanted(self, model: Model, rules: Sequence[Rule] | None = None, *, told: str = "") -> Wanted:
        """A delta with its weight, which is 1 where the method has none."""
        if rules is None and not self.known.weight:
            return Wanted(model, {"*": 1.0}, "the method has no weights")
        known = self._rules("weight", _WEIGHT, model) if rules is None else rules
        return Wanted(model, recipe_setting(known, self.places), self._told("weight", known) + told)

    # --- methods of their own -----------------------------------------------------------------------------------------

    def _linear(self) -> Plan:
        """Σ wᵢΘᵢ as a sum of deltas: of the base's own share nothing is left to be said."""
        inputs = self._inputs()
        columns = [self._rules("weight", _WEIGHT, model) for model in inputs]
        flag = self._constant_flag("normalize", self.known.parameters["normalize"])
        beside = [number for number, model in enumerate(inputs) if model.key != self.before.key]
        if self.base is None and self.choices.base is None:
            self.notes.append(
                f"line {self.before.said.line}: there is no base_model: deltas are taken from the first model, "
                f"{self.before.said.text}; --base takes another one, with the same result"
            )
        own = [column for model, column in zip(inputs, columns, strict=True) if model.key == self.before.key]
        if flag and all(rule.value == 0.0 for column in own for rule in column):
            deltas = [self._wanted(inputs[number], columns[number]) for number in beside]
            return self._planned("linear", deltas, {"normalize": {"*": True}, "lambda": {"*": 1.0}})
        if not flag:
            self._check_sum(columns)
            deltas = [self._wanted(inputs[number], columns[number]) for number in beside]
            return self._planned("linear", deltas, {"normalize": {"*": False}, "lambda": {"*": 1.0}})
        divided = shares(columns)
        if divided is None:
            raise refuse(
                self.config.path,
                next((rule.line for column in columns for rule in column if rule.line), self.config.method.line),
                "these weights divided by their sum are no gradients any more",
                "take the deltas from a model that is not merged, with --base MODEL: its share is then 0",
            )
        deltas = [
            self._wanted(inputs[number], divided[number], told=", over the sum of all weights") for number in beside
        ]
        return self._planned("linear", deltas, {"normalize": {"*": False}, "lambda": {"*": 1.0}})

    def _constant_flag(self, name: str, kind: Number | Flag) -> bool:
        rules = self._rules(name, kind, None)
        if len({bool(rule.value) for rule in rules}) > 1:
            raise refuse(self.config.path, rules[0].line, f"{name} differs by tensor, which has no equal here")
        self.sources[f"parameters.{name}"] = self._told(name, rules)
        return bool(rules[0].value)

    def _check_sum(self, columns: Sequence[Sequence[Rule]]) -> None:
        """Raise BadMergeConfig where weights that are not divided by their sum scale the base."""
        for name in self.places.subjects:
            along = self.places.along(name)
            total = math.fsum(float(_number(value_at(column, name, along))) for column in columns)
            if abs(total - 1) > _SUM:
                raise refuse(
                    self.config.path,
                    self.config.method.line,
                    f"without normalize the weights of {name} add up to {total:g}, which scales the base as well",
                    "let them add up to 1, or write normalize: true",
                )

    def _slerp(self) -> Plan:
        rules = self._rules("t", Number("t", None), None)
        source = self._told("t", rules)
        if self.choices.base is not None:
            assert self.base is not None or self.models
            first = self.base or self.models[0]
            others = [model for model in self._beside() if model.key != first.key]
            deltas = [Wanted(model, {"*": 1.0}, "the method has no weights") for model in (first, *others)]
            self.sources["parameters.t"] = source
            self.notes.append(
                f"line {self.config.method.line}: what is turned are the deltas from {self.before.said.text}, "
                "not whole models: another result than mergekit's"
            )
            parameters: dict[str, Table] = {"t": recipe_setting(rules, self.places), "lambda": {"*": 1.0}}
            return self._planned("slerp", deltas, parameters)
        (other,) = self._beside()
        deltas = [Wanted(other, recipe_setting(rules, self.places), source)]
        self.notes.append(
            f"line {self.config.method.line}: where two tensors point nearly the same way, mergekit's slerp is "
            "(1 − t)·base + t·model, and so is the recipe: linear, with t as the weight"
        )
        found = self._planned("linear", deltas, {"normalize": {"*": False}, "lambda": {"*": 1.0}})
        return replace(found, nearly_parallel=other)

    def _nuslerp(self) -> Plan:
        self._parameters()
        columns = [self._rules("weight", _WEIGHT, model) for model in self._beside()]
        constant = all(len(column) == 1 and not isinstance(column[0].value, tuple) for column in columns)
        if constant and abs(sum(float(_number(column[0].value)) for column in columns)) < 1e-6:
            divided = [[replace(column[0], value=0.5)] for column in columns]
        else:
            divided = shares(columns)
        if divided is None:
            raise refuse(
                self.config.path,
                columns[0][0].line,
                "these weights divided by their sum are no gradient any more",
                "let both weights add up to the same in every layer",
            )
        deltas = [Wanted(model, {"*": 1.0}, "see t") for model in self._beside()]
        lines = [rule for column in columns for rule in column]
        self.sources["parameters.t"] = f"{lines_of(lines)}: the second weight over both"
        parameters: dict[str, Table] = {"t": recipe_setting(divided[1], self.places), "lambda": {"*": 1.0}}
        return self._planned("slerp", deltas, parameters)

    # --- the whole ----------------------------------------------------------------------------------------------------

    def _planned(self, method: str, deltas: list[Wanted], parameters: Mapping[str, Table]) -> Plan:
        if self.choices.base is not None and self.known.base == "optional":
            self.notes.append(
                f"line {self.config.method.line}: what is merged are the deltas from {self.before.said.text}, "
                "not whole models: another result than mergekit's"
            )
        if self.config.method.text == "karcher":
            self.notes.append(
                f"line {self.config.method.line}: the mean is that of the deltas from {self.before.said.text}, "
                "not of whole models: another result than mergekit's"
            )
        return Plan(
            method,
            self.before,
            self.before,
            deltas,
            parameters,
            self.sources,
            self._side_files(deltas),
            self._dtype(),
            self.notes,
        )

    def _side_files(self, deltas: Sequence[Wanted]) -> Literal["post", "target"]:
        said = self.config.tokenizer
        if said is None:
            self.sources["side-files"] = "mergekit copies the base's tokenizer"
            return "target"
        self.sources["side-files"] = f"line {said.line}: {said.text}"
        if said.text == "base":
            return "target"
        model = find_model(said, self.config.path)
        if model.key == self.before.key:
            return "target"
        if deltas and model.key == deltas[0].model.key:
            return "post"
        raise refuse(
            self.config.path,
            said.line,
            f"the tokenizer of {said.text} is neither the base's nor that of the first model beside it",
            "list that model first",
        )

    def _dtype(self) -> str | None:
        inner, outer = self.config.dtype, self.config.out_dtype
        chosen: Said | None = outer or inner
        if chosen is None:
            return None
        self.sources["dtype"] = f"line {chosen.line}: {'out_dtype' if outer else 'dtype'}"
        if inner is not None and outer is not None and inner.text != outer.text:
            self.notes.append(
                f"line {inner.line}: mergekit computes in {inner.text}; deltareg computes in float32 or float64 and "
                f"rounds once, to {outer.text}"
            )
        return chosen.text

    def _check_values(self, found: Plan) -> None:
        """Raise BadMergeConfig for what our method does not take."""
        method = method_of(found.method)
        try:
            for name, table in found.parameters.items():
                for value in table.values():
                    for point in value if isinstance(value, list) else [value]:
                        method.check(name, point)
            combinations = {
                tuple((name, _at(table, self.places, subject)) for name, table in found.parameters.items())
                for subject in self.places.subjects
            }
            for combination in combinations:
                method.stages(dict(combination))
        except InvalidArgument as error:
            raise refuse(self.config.path, self.config.method.line, error.message, error.hint) from error

    def _onto_new_base(self, found: Plan) -> Plan:
        """The ParamΔ idiom: old + (new − old) + Σ wᵢ(postᵢ − old) is new + Σ wᵢΔᵢ, if it is certain which is new."""
        whole = [one.model for one in found.deltas if dict(one.weight) == {"*": 1.0}]
        plain = found.parameters["lambda"] == {"*": 1.0} and found.parameters["normalize"] == {"*": False}
        asked = self.choices.new_base
        if asked is not None:
            new = next((model for model in whole if model.key == asked.key), None)
            if new is None or not plain or len(found.deltas) < 2:
                raise InvalidArgument(
                    f"{asked.said.text} is not added whole: it cannot be the new base",
                    cause="a new base is one of several models, with weight 1, without normalize, and with lambda 1",
                    hint="leave --new-base out",
                )
        elif self.choices.keep_base or not plain or not whole or len(found.deltas) < 2:
            return found
        elif len(found.deltas) == 2 and len(whole) == 1:
            (new,) = whole
        else:
            names = ", ".join(model.said.text for model in whole)
            hint = f"if one of {names} is a newer base, --new-base MODEL applies the other deltas to it directly"
            return replace(found, hints=[*found.hints, hint])
        if new.lora is not None:
            return found
        rest = [one for one in found.deltas if one.model.key != new.key]
        note = f"line {new.said.line}: {new.said.text} is taken for the new base, as it is added whole: "
        note += "base + (new − base) + Σ wᵢΔᵢ = new + Σ wᵢΔᵢ"
        hint = "--keep-base leaves the base as it is"
        tokens = self.config.tokenizer
        if tokens is not None and tokens.text != "base" and find_model(tokens, self.config.path).key == new.key:
            found = replace(found, side_files="target")
        elif found.side_files == "target":
            note += "; the side files are the new base's"
        return replace(
            found, base=new, deltas=rest, notes=[*found.notes, note], hints=[*found.hints, hint], rewritten=True
        )


def _at(table: Table, places: Places, name: str) -> Scalar:
    schedule = Schedule(
        tuple(
            (None if selector == "*" else selector, Gradient(tuple(value)) if isinstance(value, list) else value)
            for selector, value in table.items()
        )
    )
    value = schedule.at(places.subjects[name])
    assert value is not None
    return value


def _number(value: Theirs | None) -> Scalar:
    assert value is not None and not isinstance(value, tuple)
    return value


def _said(rules: Sequence[Rule]) -> list[tuple[str | None, Theirs]]:
    return [(rule.filter, rule.value) for rule in rules]


def _shown(value: Theirs) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "a list" if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else repr(value)
