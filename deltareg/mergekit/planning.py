"""From a merge configuration to what a recipe says of it. Nothing is taken, and nothing written.

A merge of whole models is one of deltas where it keeps the sum of all weights at 1: Σ wᵢΘᵢ = Θ_base + Σ wᵢΔᵢ. Turns of
whole models about the origin (slerp, karcher) are not, as deltas do not tell of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from deltareg.errors import InvalidArgument
from deltareg.mergekit.config import MergeConfig, Said, lines_of
from deltareg.mergekit.document import refuse
from deltareg.mergekit.methods import Number
from deltareg.mergekit.models import Model, find_model
from deltareg.mergekit.new_base import onto_new_base
from deltareg.mergekit.plan import Choices, Plan, Wanted
from deltareg.mergekit.settings import Settings, number_of
from deltareg.mergekit.values import Places, Rule, Table, recipe_setting, shares, value_at

__all__ = ["base_of", "plan"]

_WEIGHT = Number("weight", None, by_model=True)
_SUM = 1e-6
"""How far from 1 weights may add up: less than float32 tells apart."""


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


class _Planner(Settings):
    """Works one configuration out."""

    def __init__(
        self, config: MergeConfig, models: list[Model], base: Model | None, choices: Choices, places: Places
    ) -> None:
        super().__init__(config, models, base, base_of(config, models, base, choices), places)
        self.choices = choices

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
        self._check_values(found.method, found.parameters, found.deltas)
        if name == "task_arithmetic":
            found = onto_new_base(self.config, self.choices, found)
        elif self.choices.new_base is not None:
            raise InvalidArgument(f"--new-base is for task_arithmetic, and this is {name}", hint="leave --new-base out")
        return found

    # --- models -------------------------------------------------------------------------------------------------------

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

    def _wanted(self, model: Model, rules: Sequence[Rule] | None = None, *, told: str = "") -> Wanted:
        """A delta with its weight, which is 1 where the method has none, and what it has for itself."""
        own = self.own.get(model.key, {})
        if rules is None and not self.known.weight:
            return Wanted(model, {"*": 1.0}, "the method has no weights", own)
        known = self._rules("weight", _WEIGHT, model) if rules is None else rules
        return Wanted(model, recipe_setting(known, self.places), self._told("weight", known) + told, own)

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

    def _check_sum(self, columns: Sequence[Sequence[Rule]]) -> None:
        """Raise BadMergeConfig where weights that are not divided by their sum scale the base."""
        for name in self.places.subjects:
            along = self.places.along(name)
            total = math.fsum(float(number_of(value_at(column, name, along))) for column in columns)
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
        if constant and abs(sum(float(number_of(column[0].value)) for column in columns)) < 1e-6:
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
