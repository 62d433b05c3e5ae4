"""Sizes of a model that the shapes of its tensors tell, where its config does not."""

from __future__ import annotations

import re
from collections.abc import Mapping

from deltareg.fingerprint.modules import module_class
from deltareg.fingerprint.structure_config import Value
from deltareg.fingerprint.structure_names import is_head, is_token_embedding

__all__ = ["sizes_of"]

_STACK = re.compile(r"(.*?)\.([0-9]+)\.")
_EXPERT = re.compile(r"\.experts\.([0-9]+)\.")
_FEED_FORWARDS = 1000  # tensors of one layer that are looked at


def sizes_of(shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, Value]) -> dict[str, Value]:
    """The sizes that `shapes`, by canonical name, tell beside the `known` ones.

    hidden_size and vocabulary_size are the columns and rows of the first token embedding, layers the length of the
    longest stack (of encoder and decoder each, if both have stacks), experts that of the longest list of experts,
    intermediate_size the other axis of the narrowest feed-forward weight in a first layer without experts. A model in
    parts (`text.…`) is left to its config.
    """
    parts = {key.partition(".")[0] for key in known if "." in key} - {"encoder", "decoder"}
    found: dict[str, Value] = {}
    if parts:
        return found
    embedding = min((name for name, shape in shapes.items() if is_token_embedding(name, shape)), default=None)
    if embedding is not None:
        found["vocabulary_size"], found["hidden_size"] = shapes[embedding]
    found |= _layers(shapes, known)
    hidden = known.get("hidden_size", found.get("hidden_size"))
    if "intermediate_size" not in known and not any(key.endswith(".intermediate_size") for key in known):
        widths = [_other_axis(shape, hidden) for shape in _feed_forwards(shapes)]
        found |= {"intermediate_size": min(width for width in widths if width)} if any(widths) else {}
    return {key: value for key, value in found.items() if key not in known}


def _layers(shapes: Mapping[str, tuple[int, ...]], known: Mapping[str, Value]) -> dict[str, Value]:
    stacks: dict[str, set[str]] = {}
    experts: dict[str, set[str]] = {}
    for name in shapes:
        if (place := _STACK.match(name)) and not is_head(name):
            stacks.setdefault(place[1], set()).add(place[2])
        if expert := _EXPERT.search(name):
            experts.setdefault(name[: expert.start()], set()).add(expert[1])
    found: dict[str, Value] = {}
    if experts:
        found["experts"] = max(map(len, experts.values()))
    if any(key == "layers" or key.endswith(".layers") for key in known) or not stacks:
        return found
    stages = {
        stage: [len(members) for path, members in stacks.items() if path.partition(".")[0] == stage]
        for stage in ("encoder", "decoder")
    }
    if all(stages.values()):
        return found | {f"{stage}.layers": max(lengths) for stage, lengths in stages.items()}
    return found | {"layers": max(map(len, stacks.values()))}


def _feed_forwards(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    zeroth = [name for name, shape in shapes.items() if len(shape) == 2 and ".0." in name]
    first = [name for name in zeroth if (at := _STACK.match(name)) and at[2] == "0"]
    if any("expert" in name for name in first):
        return []
    return [shapes[name] for name in first[:_FEED_FORWARDS] if module_class(name) == "mlp"]


def _other_axis(shape: tuple[int, ...], hidden: Value) -> int | None:
    if hidden not in shape:
        return None
    return shape[1] if shape[0] == hidden else shape[0]
