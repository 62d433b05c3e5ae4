"""Which tensor of the base a name in an adapter means: the one or the other may have a wrapper's prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

__all__ = ["Places"]

_DEEPEST = 3
_SHOWN = 8
# What versions of transformers call the text part of a model that sees.
_MODEL, _TOWER = "language_model.model.", "model.language_model."
_EXCHANGED = ((_MODEL, _TOWER), (_TOWER, _MODEL))
# Names that transformers gives on loading to what older checkpoints call otherwise.
_OLD_NAMES = ((".weight", ".gamma"), (".bias", ".beta"))
_OLD_PARTS = ((".mlp.", ".block_sparse_moe."), ("lm_head.", "embed_out."))

_Exchange = tuple[str, str]
_NOTHING: _Exchange = ("", "")


class Places:
    """Finds names of an adapter among the base's tensors.

    An adapter that was trained on `AutoModelForX` says `bert.encoder…` where a checkpoint of the bare model says
    `encoder…`, and the other way round. A prefix is put before all names or taken away from them, the one that finds
    most of `wanted`, and of those that find as many, most of `others`; nothing is exchanged for another thing, but
    where transformers itself has done so. Where several find equally many, as with two towers that are built alike, no
    guess is made: `unclear` has a tensor of each.
    """

    def __init__(self, names: Collection[str], wanted: Sequence[str], others: Sequence[str] = ()) -> None:
        self._names = set(names)
        found, more = self._found(wanted), self._found(others)
        best = max((found[choice], more[choice]) for choice in {_NOTHING, *found})
        choices = sorted((choice for choice in {_NOTHING, *found} if (found[choice], more[choice]) == best), key=_order)
        self._exchange = choices[0]
        self.unclear = self._meanings(choices, [*wanted, *others]) if choices[0] != _NOTHING else []

    def of(self, name: str) -> str:
        """The base's name for it; the name as it is where the base has none."""
        for candidate in (name, _exchanged(name, *self._exchange)):
            if candidate is None:
                continue
            if candidate in self._names:
                return candidate
            for new, old in _OLD_PARTS:
                if (older := candidate.replace(new, old)) in self._names:
                    return older
            for new, old in _OLD_NAMES:
                if candidate.endswith(new) and candidate.removesuffix(new) + old in self._names:
                    return candidate.removesuffix(new) + old
        return name

    def _found(self, asked: Iterable[str]) -> Counter[_Exchange]:
        """How many of these names each exchange finds. Each name of either side is looked at once."""
        found: Counter[_Exchange] = Counter()
        times = Counter(asked)
        for name, count in times.items():
            found[_NOTHING] += count * (name in self._names)
            for prefix in _prefixes(name):
                found[prefix, ""] += count * (name.removeprefix(prefix) in self._names)
            for old, new in _EXCHANGED:
                found[old, new] += count * (_exchanged(name, old, new) in self._names)
        for name in self._names:
            for prefix in _prefixes(name):
                found["", prefix] += times[name.removeprefix(prefix)]
        return +found

    def _meanings(self, choices: Sequence[_Exchange], asked: Sequence[str]) -> list[str]:
        """What exchanges that are equally good find, where that is not the same.

        Of prefixes that are taken away the shortest leaves most of the adapter's own name, and is the right one.
        """
        first = next(((old, new) for old, new in choices if not new), None)
        kept = [choice for choice in choices if choice[1] or choice == first]
        name = next(name for name in asked if _exchanged(name, *kept[0]) in self._names)
        if all(_exchanged(name, *choice) == _exchanged(name, *kept[0]) for choice in kept):
            return []
        found = ((_exchanged(name, *choice) for name in asked) for choice in kept[:_SHOWN])
        return [next(place for place in places if place is not None and place in self._names) for places in found]


def _prefixes(name: str) -> Iterator[str]:
    """The first one to three parts of a name before its module's own, as far as they are no numbers."""
    at = 0
    for part in name.split(".", _DEEPEST + 2)[:-2][:_DEEPEST]:
        if part.isdigit():
            return
        at += len(part) + 1
        yield name[:at]


def _order(choice: _Exchange) -> tuple[bool, int, bool, str, str]:
    """No change, then what is taken away, then what is put, the shortest first; then what transformers exchanges."""
    old, new = choice
    prefix = old + new
    return bool(old and new), prefix.count(".") if prefix else -1, bool(new), old, new


def _exchanged(name: str, old: str, new: str) -> str | None:
    return new + name.removeprefix(old) if name.startswith(old) else None
