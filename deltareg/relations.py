"""What a delta is said to require and to exclude: other deltas, by name, range and digest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from deltareg.catalog import Registry
from deltareg.errors import BadName, InvalidArgument
from deltareg.manifest import Conflict, Requirement
from deltareg.names import Reference, parse_reference
from deltareg.versions import parse_range

__all__ = ["On", "conflicts_of", "requirements_of"]

On = Mapping[str, float] | Sequence[tuple[str | Reference, float]]
"""The deltas that a base holds already, each with the weight that it was applied with."""

# Beyond float32 a weight of 16-bit deltas would be infinite.
_HEAVIEST = 3.4e38


def requirements_of(on: On, registry: Registry, name: Reference) -> list[Requirement]:
    """What the delta `name` requires that is taken on top of the deltas `on`: these very bytes, at these weights.

    In the order of their names, so that the same delta gets the same digest. Raises NotFound where the registry lacks
    one; InvalidArgument for a delta without a version or a name that is given twice, for a weight of 0 or none at all,
    and where `name` would require itself.
    """
    found: dict[str, Requirement] = {}
    for text, weight in list(on.items()) if isinstance(on, Mapping) else list(on):
        version = registry.version_of(text)
        if version.version is None:
            raise InvalidArgument(
                f"{version} is no version, and so nothing that a delta can require",
                hint="publish it under a version first",
            )
        _refuse_itself(version.repository, name, "be taken on top of")
        if version.repository in found:
            raise InvalidArgument(
                f"{version.repository} is named twice", hint="name each delta that the base holds once"
            )
        if not math.isfinite(weight) or not 0 < abs(weight) <= _HEAVIEST:
            raise InvalidArgument(
                f"the weight of {version} is {weight!r}", hint="a weight is a finite number, here other than 0"
            )
        found[version.repository] = Requirement(
            reference=version.repository,
            version=version.version,
            digest=registry.resolve(version),
            weight=float(weight),
        )
    return [found[repository] for repository in sorted(found)]


def conflicts_of(conflicts: Iterable[str], name: Reference) -> list[Conflict]:
    """What the delta `name` excludes: each `namespace/name`, or `namespace/name RANGE`, in the order of their names.

    Raises BadName for what is no name or no range, InvalidArgument where `name` would exclude itself.
    """
    found: dict[tuple[str, str], Conflict] = {}
    for text in conflicts:
        repository, _, versions = text.strip().partition(" ")
        reference = parse_reference(repository)
        if reference.tag is not None or reference.digest is not None:
            raise BadName(
                f"{repository!r} is more than a name",
                hint=f"write the versions apart: '{reference.repository} >=2, <3'",
            )
        _refuse_itself(reference.repository, name, "exclude")
        told = str(parse_range(versions)) if versions.strip() else "*"
        found[reference.repository, told] = Conflict(reference=reference.repository, version=told)
    return [found[key] for key in sorted(found)]


def _refuse_itself(repository: str, name: Reference, what: str) -> None:
    if repository == name.repository:
        raise InvalidArgument(
            f"{name} cannot {what} {repository}",
            cause="of one name only one version is applied at a time",
            hint="give the delta another name, or take it from the original base",
        )
