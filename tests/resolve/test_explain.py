"""What would make it fit is tried; what a remote does not answer is no answer."""

from __future__ import annotations

import pytest

from deltareg.errors import NothingFits, RemoteUnavailable
from deltareg.manifest import Requirement
from deltareg.resolve import Candidate, Policy
from deltareg.resolve.explain import nothing_fits
from deltareg.resolve.search import Unsatisfiable, search
from tests.resolve.registries import Published, Registries
from tests.resolve.test_search import pool_of, wishes_of


class Failing(Registries):
    """A registry that does not answer for one name."""

    def candidates(self, repository: str) -> list[Candidate]:
        if repository == "acme/gone":
            raise RemoteUnavailable("the remote does not answer")
        return super().candidates(repository)


def explained(registry: Registries, wanted: dict[str, str], policy: Policy | None = None) -> NothingFits:
    """The error for a recipe that nothing fits."""
    wishes, pool = wishes_of(wanted), pool_of(registry, policy)
    with pytest.raises(Unsatisfiable) as caught:
        search(wishes, pool)
    return nothing_fits(wishes, pool, caught.value, "the recipe")


def needing(*names: str) -> tuple[Requirement, ...]:
    return tuple(Requirement(reference=name) for name in names)


def test_a_remote_that_does_not_answer_while_remedies_are_tried_is_an_error() -> None:
    versions = {"acme/a": [Published("acme/a", "2.0.0", requires=needing("acme/gone"))]}
    with pytest.raises(RemoteUnavailable, match="does not answer"):
        explained(Failing(versions), {"acme/a": "^1"})


def test_what_would_end_in_a_circle_is_no_remedy() -> None:
    versions = {
        "acme/a": [Published("acme/a", "2.0.0", requires=needing("acme/b"))],
        "acme/b": [Published("acme/b", "1.0.0", requires=needing("acme/a"))],
    }
    assert explained(Registries(versions), {"acme/a": "^1"}).data["remedies"] == []
    sound = {**versions, "acme/b": [Published("acme/b", "1.0.0")]}
    assert explained(Registries(sound), {"acme/a": "^1"}).data["remedies"] == [
        "acme/a 2.0.0 would fit: ask for acme/a 2.0.0"
    ]


def test_the_licences_to_allow_are_those_that_are_refused_by_now() -> None:
    versions = {
        "acme/a": [Published("acme/a", "1.0.0", requires=needing("acme/b", "acme/c"), licence="cc-by-nc-4.0")],
        "acme/b": [Published("acme/b", "1.0.0", licence="gpl-3.0")],
        "acme/c": [Published("acme/c", "1.0.0", licence="mit")],
    }
    error = explained(Registries(versions), {"acme/a": "^1"}, Policy(licences=frozenset({"mit"})))
    assert error.data["remedies"] == ["with --allow-licence cc-by-nc-4.0 --allow-licence gpl-3.0 it fits"]
