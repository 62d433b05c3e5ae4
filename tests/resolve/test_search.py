"""The search, against one that looks at every set of versions."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltareg.errors import NothingFits
from deltareg.manifest import Conflict, Requirement
from deltareg.resolve import Policy, Pool, Sources
from deltareg.resolve.search import Unsatisfiable, Wish, in_order, search
from deltareg.versions import parse_range
from tests.resolve.registries import Published, Registries, best

NAMES = ("acme/a", "acme/b", "acme/c", "acme/d")
VERSIONS = ("1.0.0", "1.1.0", "2.0.0")
RANGES = ("*", "*", "*", "^1", "1.0.0", ">=1.1", "2.*", "<2")


def pool_of(registry: Registries, policy: Policy | None = None, **more: Any) -> Pool:
    """A pool of the candidates of one registry in memory."""
    sources = Sources(cast(Any, SimpleNamespace()))
    sources._opened[registry.name] = registry  # the seam that remotes are opened through
    return Pool(sources, policy or Policy(), **more)


def wishes_of(wanted: Mapping[str, str]) -> list[Wish]:
    """A recipe's wishes."""
    return [Wish(name, "local", parse_range(text)) for name, text in wanted.items()]


def chosen_of(registry: Registries, wanted: Mapping[str, str], **more: Any) -> dict[str, str]:
    """The versions that the resolver chooses, by name."""
    return {name: one.version for name, one in search(wishes_of(wanted), pool_of(registry, **more)).items()}


@st.composite
def registries(draw: st.DrawFn) -> Registries:
    names = draw(st.sampled_from([NAMES, NAMES, NAMES, NAMES[:3], NAMES[:1]]))
    found: dict[str, list[Published]] = {}
    for name in names:
        others = st.sampled_from([other for other in NAMES if other != name])
        found[name] = [
            Published(
                name,
                version,
                requires=tuple(
                    draw(
                        st.lists(
                            st.builds(
                                Requirement,
                                reference=others,
                                version=st.sampled_from(RANGES),
                                weight=st.sampled_from([1.0] * 7 + [0.5]),
                            ),
                            max_size=2,
                            unique_by=lambda one: one.reference,
                        )
                    )
                ),
                conflicts=tuple(
                    draw(
                        st.lists(
                            st.builds(Conflict, reference=others, version=st.sampled_from(RANGES)),
                            max_size=1,
                        )
                    )
                ),
                yanked=draw(st.sampled_from([None] * 7 + ["wrong data"])),
            )
            for version in draw(st.lists(st.sampled_from(VERSIONS), min_size=2, max_size=3, unique=True))
        ]
    return Registries(found)


recipes = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(RANGES), min_size=1, max_size=3)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(registries(), recipes)
def test_the_answer_is_that_of_a_search_through_everything(registry: Registries, wanted: dict[str, str]) -> None:
    expected = best(registry, wanted)
    try:
        found = chosen_of(registry, wanted)
    except Unsatisfiable:
        assert expected is None
    except NothingFits:
        assert expected is not None
        assert has_circle(expected)
    else:
        assert expected is not None
        assert not has_circle(expected)
        assert found == {name: one.version for name, one in expected.items()}


def has_circle(chosen: Mapping[str, Published]) -> bool:
    """Whether versions require one another in a circle: removing what requires nothing leaves something."""
    needs = {name: {one.reference for one in published.requires} for name, published in chosen.items()}
    while free := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in free:
            del needs[name]
    return bool(needs)


@settings(max_examples=100, deadline=None)
@given(registries(), recipes, st.randoms(use_true_random=False))
def test_the_answer_does_not_depend_on_the_order_of_publication(
    registry: Registries, wanted: dict[str, str], random: Any
) -> None:
    def answer(one: Registries) -> object:
        try:
            return chosen_of(one, wanted)
        except (Unsatisfiable, NothingFits) as error:
            return type(error)

    shuffled = {name: random.sample(list(found), len(found)) for name, found in registry.versions.items()}
    assert answer(Registries(shuffled)) == answer(registry)


def test_what_is_required_comes_before_what_requires_it() -> None:
    registry = Registries(
        {
            "acme/chat": [Published("acme/chat", "1.0.0")],
            "acme/tone": [
                Published("acme/tone", "1.0.0", requires=(Requirement(reference="acme/chat", version="^1"),))
            ],
            "acme/a": [Published("acme/a", "1.0.0")],
        }
    )
    pool = pool_of(registry)
    chosen = search(wishes_of({"acme/a": "*", "acme/tone": "*"}), pool)
    assert [str(one) for one in in_order(chosen, pool)] == ["acme/a 1.0.0", "acme/chat 1.0.0", "acme/tone 1.0.0"]


def test_a_chain_of_hundreds_of_requirements_is_followed() -> None:
    def needs(number: int) -> tuple[Requirement, ...]:
        return (Requirement(reference=f"acme/n{number + 1}"),) if number < 400 else ()

    registry = Registries(
        {f"acme/n{number}": [Published(f"acme/n{number}", "1.0.0", requires=needs(number))] for number in range(401)}
    )
    pool = pool_of(registry)
    chosen = search(wishes_of({"acme/n0": "*"}), pool)
    assert [one.repository for one in in_order(chosen, pool)][:2] == ["acme/n400", "acme/n399"]


def test_a_circle_of_requirements_is_told_as_one() -> None:
    registry = Registries(
        {
            "acme/a": [Published("acme/a", "1.0.0", requires=(Requirement(reference="acme/b"),))],
            "acme/b": [Published("acme/b", "1.0.0", requires=(Requirement(reference="acme/a"),))],
        }
    )
    with pytest.raises(NothingFits, match=r"in a circle: acme/a 1\.0\.0 → acme/b 1\.0\.0 → acme/a 1\.0\.0"):
        search(wishes_of({"acme/a": "*"}), pool_of(registry))
