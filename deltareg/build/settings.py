"""What a recipe or a lock says of weights and parameters, as `apply` takes it."""

from __future__ import annotations

from collections.abc import Mapping

from deltareg.apply.plan import Merge, naming
from deltareg.errors import InvalidArgument
from deltareg.merge import Gradient, Schedule, method_of
from deltareg.merge.parameter import Value
from deltareg.names import Reference
from deltareg.recipe import Number, Plain, Setting

__all__ = ["own_schedules", "own_settings", "parameter_schedules", "parameter_settings", "weight_schedule"]

EVERY = "*"


def weight_schedule(weight: Number, where: Mapping[str, Number]) -> Schedule:
    """The weight of a delta: one for all tensors, and others by selector."""
    return Schedule(((None, _number(weight)), *((selector, _number(value)) for selector, value in where.items())))


def parameter_schedules(method: str, settings: Mapping[str, Setting]) -> dict[str, Schedule]:
    """The parameters of a method. Raises InvalidArgument for what the method does not have."""
    known = method_of(method)
    found: dict[str, Schedule] = {}
    for name, setting in settings.items():
        if name not in known.parameters:
            raise InvalidArgument(
                f"{method} has no parameter {name!r}",
                hint=f"parameters of {method}: {', '.join(known.parameters) or 'none'}",
            )
        rules = setting.items() if isinstance(setting, dict) else [(EVERY, setting)]
        found[name] = Schedule(
            tuple((None if selector == EVERY else selector, _value(value)) for selector, value in rules)
        )
    return found


def parameter_settings(schedules: Mapping[str, Schedule]) -> dict[str, Setting]:
    """The other way: parameters as a lock writes them."""
    found: dict[str, Setting] = {}
    for name, schedule in schedules.items():
        values: dict[str, Plain] = {}
        for selector, value in schedule.rules:
            # Anew and last: of the rules that match, the last one counts.
            values.pop(selector or EVERY, None)
            values[selector or EVERY] = list(value.points) if isinstance(value, Gradient) else value
        found[name] = values[EVERY] if list(values) == [EVERY] else values
    return found


def own_schedules(method: str, reference: Reference, settings: Mapping[str, Setting]) -> dict[str, Schedule]:
    """The parameters that a delta has for itself. Raises InvalidArgument as `parameter_schedules`, naming the delta."""
    with naming(reference):
        return parameter_schedules(method, settings)


def own_settings(merge: Merge, reference: Reference, settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """The parameters that a delta has for itself, as a lock writes them.

    Raises InvalidArgument, naming the delta, also where it has none of those that the method needs.
    """
    schedules = own_schedules(merge.method.name, reference, settings)
    merge.check_own(reference, schedules)
    with naming(reference):
        merge.method.refuse_missing({*merge.parameters, *schedules})
    return parameter_settings(schedules)


def _number(value: Number) -> float | Gradient:
    return Gradient(tuple(value)) if isinstance(value, list) else float(value)


def _value(value: bool | float | str | list[float]) -> Value | Gradient:
    return Gradient(tuple(value)) if isinstance(value, list) else value
