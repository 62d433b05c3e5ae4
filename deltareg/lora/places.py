"""Which tensor of the base a name in an adapter means: the one or the other may have a wrapper's prefix."""

from __future__ import annotations

from collections.abc import Collection, Iterable

__all__ = ["Places"]

_DEEPEST = 3
# What versions of transformers call the text part of a model that sees.
_MODEL, _TOWER = "language_model.model.", "model.language_model."
_EXCHANGED = ((_MODEL, _TOWER), (_TOWER, _MODEL))
# Names that transformers gives on loading to what older checkpoints call otherwise.
_OLD_NAMES = ((".weight", ".gamma"), (".bias", ".beta"))


class Places:
    """Finds names of an adapter among the base's tensors.

    An adapter that was trained on `AutoModelForX` says `bert.encoder…` where a checkpoint of the bare model says
    `encoder…`, and the other way round. A prefix is put before all names or taken away from them, the one that finds
    most of `wanted`; nothing is exchanged for another thing, but where transformers itself has done so.
    """

    def __init__(self, names: Collection[str], wanted: Iterable[str]) -> None:
        self._names = set(names)
        asked = list(wanted)
        taken = sorted({prefix for name in asked for prefix in _prefixes(name)}, key=_simplest)
        put = sorted({prefix for name in self._names for prefix in _prefixes(name)}, key=_simplest)
        choices = [("", ""), *((old, "") for old in taken), *(("", new) for new in put), *_EXCHANGED]
        # The first of the best: no change, then the shortest.
        self._exchange = max(choices, key=lambda choice: self._hits(asked, *choice))

    def of(self, name: str) -> str:
        """The base's name for it; the name as it is where the base has none."""
        for candidate in (name, _exchanged(name, *self._exchange)):
            if candidate is None:
                continue
            if candidate in self._names:
                return candidate
            for new, old in _OLD_NAMES:
                if candidate.endswith(new) and candidate.removesuffix(new) + old in self._names:
                    return candidate.removesuffix(new) + old
        return name

    def _hits(self, asked: Iterable[str], old: str, new: str) -> int:
        return sum(_exchanged(name, old, new) in self._names for name in asked)


def _prefixes(name: str) -> list[str]:
    """The first one to three parts of a name before its module's own, as far as they are no numbers."""
    parts = name.split(".")[:-2]
    found: list[str] = []
    for depth in range(1, min(_DEEPEST, len(parts)) + 1):
        if parts[depth - 1].isdigit():
            break
        found.append(".".join(parts[:depth]) + ".")
    return found


def _simplest(prefix: str) -> tuple[int, str]:
    return prefix.count("."), prefix


def _exchanged(name: str, old: str, new: str) -> str | None:
    return new + name.removeprefix(old) if name.startswith(old) else None
