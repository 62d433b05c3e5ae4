"""Why nothing fits, and what would: told as a compiler tells what it does not understand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from deltareg.errors import NothingFits
from deltareg.names import version_key
from deltareg.resolve.policy import Policy, Pool
from deltareg.resolve.search import Choices, Unsatisfiable, Wish, search
from deltareg.resolve.source import LOCAL, Candidate
from deltareg.versions import ANY

__all__ = ["looked_at", "nothing_fits", "told_of"]

_SHOWN = 12


def nothing_fits(wishes: Sequence[Wish], pool: Pool, found: Unsatisfiable, recipe: str) -> NothingFits:
    """The error for a search that found nothing; `recipe` is what the recipe is called."""
    standing = _culprits(wishes, pool, found)
    names = list(dict.fromkeys(wish.repository for wish in standing))
    explanation: list[str] = []
    for name in names:
        asked = [wish for wish in standing if wish.repository == name]
        explanation += [f"{name}: {told_of(wish, recipe)}" for wish in dict.fromkeys(asked)]
        explanation += [f"  {line}" for line in looked_at(name, asked, pool)]
    remedies = list(_remedies(wishes, pool))
    return NothingFits(
        f"nothing fits {recipe}: no version of {' and '.join(names)} is what is asked for"
        + (" together" if len(names) > 1 or len(standing) > 1 else ""),
        hint="; or ".join(remedies) or _way_out(names, standing, pool),
        explanation=explanation,
        remedies=remedies,
    )


def told_of(wish: Wish, recipe: str) -> str:
    """Which requirement comes from where."""
    if wish.by is None:
        return f"{wish} is asked for by {recipe}"
    if wish.excluded:
        return f"{wish} is excluded by {wish.by}"
    weight = "" if wish.weight in (None, 1.0) else f" at weight {wish.weight:g}"
    return f"{wish}{weight} is required by {wish.by}"


def looked_at(name: str, wishes: Sequence[Wish], pool: Pool, chosen: Candidate | None = None) -> list[str]:
    """Every version of a name with why it was not `chosen`, a line each; what is lower than that is not looked at."""
    wanted = [wish for wish in wishes if not wish.excluded]
    weights = {wish.weight for wish in wanted if wish.weight is not None}
    remote = wanted[0].remote if wanted else wishes[0].remote
    where = "the local registry" if remote == LOCAL else f"the remote {remote}"
    everything = pool.candidates(name, remote)
    if not everything:
        return [f"{where} has no {name}"]
    ordered = sorted(everything, key=lambda one: version_key(one.version), reverse=True)
    lines = [f"{one.version}: {_told(one, chosen, wishes, pool)}" for one in ordered[:_SHOWN]]
    if len(everything) > _SHOWN:
        lines.append(f"and {len(everything) - _SHOWN} more versions, down to {ordered[-1].version}")
    if len({wish.remote for wish in wanted}) > 1:
        asked = ", ".join(sorted({wish.remote for wish in wanted}))
        lines.append(f"it is asked for from several remotes ({asked}): say remote = … of it in the recipe")
    if len(weights) > 1:
        shown = ", ".join(f"{weight:g}" for weight in sorted(weights))
        lines.append(f"it is required at different weights ({shown}): name it in the recipe with the one to use")
    return lines


def _told(one: Candidate, chosen: Candidate | None, wishes: Sequence[Wish], pool: Pool) -> str:
    if chosen is None:
        return _refused(one, wishes, pool) or "fits by itself"
    if one == chosen:
        return "chosen"
    if version_key(one.version) < version_key(chosen.version):
        return f"lower than {chosen.version}"
    return _refused(one, wishes, pool) or _passed_over(chosen, pool)


def _passed_over(chosen: Candidate, pool: Pool) -> str:
    if pool.preferred.get(chosen.repository) == chosen.digest:
        return f"fits; the lock keeps {chosen.version} until deltareg update"
    return "fits by itself, but not with what goes before it"


def _refused(candidate: Candidate, wishes: Sequence[Wish], pool: Pool) -> str | None:
    missed = [wish for wish in wishes if wish.names(candidate) == wish.excluded]
    if missed:
        wish = missed[0]
        if wish.excluded:
            return f"excluded by {wish.by}"
        if wish.channel is not None:
            return f"not what the channel {wish.channel} points to"
        pre_release = version_key(candidate.version).prerelease is not None
        return f"not {wish}" + (", which names no pre-release of it" if pre_release and wish.digest is None else "")
    refused = pool.refusal(candidate)
    if refused is None:
        return None
    return refused.told + (f" ({', '.join(refused.codes)})" if refused.codes else "")


def _culprits(wishes: Sequence[Wish], pool: Pool, found: Unsatisfiable) -> list[Wish]:
    """The wishes to speak of: where one cannot be had by itself, that alone is the reason."""
    for wish in wishes:
        candidates = pool.candidates(wish.repository, wish.remote)
        if not pool.admissible(one for one in candidates if wish.names(one)):
            return [wish]
    names = {wish.repository for wish in found.wishes}
    others = [wish for wish in wishes if wish.repository in names and wish not in found.wishes]
    # What one excludes and what asks for it belong side by side, the recipe's wishes first.
    return sorted([*others, *found.wishes], key=lambda wish: (wish.by is not None, wish.repository))


def _remedies(wishes: Sequence[Wish], pool: Pool) -> Iterator[str]:
    """What would make it fit, each tried by a search of its own."""
    for place, wish in enumerate(wishes):
        if wish.range is ANY and wish.digest is None and wish.channel is None:
            continue
        wider = [*wishes]
        wider[place] = replace(wish, range=ANY, digest=None, channel=None)
        found = _tried(wider, pool)
        if found is not None:
            chosen = found[wish.repository]
            yield f"{chosen} would fit: ask for {chosen.repository} {chosen.version}"
    policy = pool.policy
    for told, relaxed in _relaxations(policy):
        if relaxed == policy:
            continue
        found = _tried(wishes, pool.relaxed(relaxed)) if wishes else None
        if found is not None:
            yield told or _licence_remedy(pool, found)


def _tried(wishes: Sequence[Wish], pool: Pool) -> Choices | None:
    try:
        return search(wishes, pool)
    except (Unsatisfiable, NothingFits):
        return None


def _relaxations(policy: Policy) -> list[tuple[str | None, Policy]]:
    """Other policies, each with what to tell where it helps; None where that has to be made."""
    return [
        (None, replace(policy, licences=None)),
        ("without exclude-newer it fits", replace(policy, exclude_newer=None)),
        ("without exact, approximations being allowed, it fits", replace(policy, exact=False)),
        ("a yanked version would fit: ask its publisher why it was yanked", replace(policy, yanked=True)),
    ]


def _licence_remedy(pool: Pool, found: Choices) -> str:
    """What has to be allowed for what was found without regard to licences."""
    refused = [one for one in found.values() if pool.refusal(one) is not None]
    licences = sorted({pool.details(one).licence or "unknown" for one in refused})
    return f"with --allow-licence {' --allow-licence '.join(licences)} it fits"


def _way_out(names: Sequence[str], standing: Sequence[Wish], pool: Pool) -> str:
    absent = [wish for wish in standing if not wish.excluded and not pool.candidates(wish.repository, wish.remote)]
    if absent:
        one = absent[0]
        if one.remote == LOCAL:
            return f"deltareg search lists what there is; deltareg pull {one.repository} --remote NAME brings it"
        return f"deltareg list --remote {one.remote} tells what is there; deltareg push {one.repository} publishes it"
    return f"deltareg list {names[0]} tells which versions there are; deltareg check tells more of what does not fit"
