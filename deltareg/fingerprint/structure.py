"""What two checkpoints must agree in to share a parameter space, for any architecture.

Read from `config.json` and the names and shapes of the tensors, with no template of the model: spellings of the same
thing are made one, what follows from other keys is filled in, and what the config does not say the shapes tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

from deltareg.digest import Digest, canonical_json, sha256
from deltareg.fingerprint.structure_config import Fields, Value, read_config
from deltareg.fingerprint.structure_names import (
    canonical_names,
    is_buffer,
    is_head,
    is_output,
    is_token_embedding,
)
from deltareg.fingerprint.structure_shapes import sizes_of

__all__ = [
    "FieldDifference",
    "Structure",
    "Value",
    "canonical_names",
    "compare_structures",
    "space_digest",
    "space_shapes",
    "structure_digest",
    "structure_of",
]

_TIED = "tied_embeddings"
_VOCABULARIES = ("vocabulary_size", "output_vocabulary_size")
# A longer vocabulary, and an output embedding of its own, are differences with a remedy.
_BRIDGED = frozenset({_TIED, *_VOCABULARIES})

Shapes = Mapping[str, tuple[int, ...]]
Dimension = int | Literal["vocabulary"]


@dataclass(frozen=True)
class Structure:
    """The configuration of a model, in one spelling; keys are dotted where it has parts (`text.hidden_size`).

    `structure` is what must agree for two checkpoints to share a parameter space: layers, hidden_size, heads, kv_heads,
    head_size, intermediate_size, experts, activation, vocabulary_size, tied_embeddings and the like. A key that is
    absent is not known. `behaviour` is what changes the outputs and not the space, and what this version does not
    know: rope_scaling, max_position_embeddings, dtype, norm epsilons, and experts *per token*, which no shape depends
    on. Switches that add or remove tensors (`attention_bias`) are there too: the names of the tensors tell.
    """

    model_type: str | None
    structure: Mapping[str, Value]
    behaviour: Mapping[str, Value]


@dataclass(frozen=True)
class FieldDifference:
    """A field in which two structures differ; None is a value that is absent."""

    key: str
    structural: bool
    delta: Value
    target: Value


def structure_of(config: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]) -> Structure:
    """The structure of a checkpoint: its parsed `config.json`, if it has one, and the shapes of its tensors by name.

    Raises nothing: `read_config` says what becomes of values that are wrong, huge or deep. Sizes that the config does
    not say come from the shapes where they are plain there; heads and activation never are. Embeddings are tied as
    the config says; where it does not, they are if no output embedding is stored; without shapes that is not known.
    """
    fields = Fields(None, {}, {}, None) if config is None else read_config(config)
    structure = fields.structure
    canonical = _canonical(shapes)
    for key, value in sizes_of(canonical, structure).items():
        structure.setdefault(key, value)
    tied = fields.tied
    # What an architecture does by default differs between versions of transformers: not said is not known.
    told = config is not None and bool(canonical)
    if tied is None and (told or any(is_token_embedding(*tensor) for tensor in canonical.items())):
        rows = _vocabularies(canonical, structure)
        tied = not any(len(shape) == 2 and is_output(name, shape, rows) for name, shape in canonical.items())
    if tied is not None:
        structure[_TIED] = tied
    return Structure(fields.model_type, _ordered(structure), _ordered(fields.behaviour))


def compare_structures(delta: Structure, target: Structure) -> list[FieldDifference]:
    """Every field that differs, ordered by key; `model_type` is one of them. 12 and 12.0 are equal, 1 and true not."""
    pairs = [
        (
            True,
            {**delta.structure, "model_type": delta.model_type},
            {**target.structure, "model_type": target.model_type},
        ),
        (False, delta.behaviour, target.behaviour),
    ]
    found = [
        FieldDifference(key, structural, left.get(key), right.get(key))
        for structural, left, right in pairs
        for key in left.keys() | right.keys()
        if canonical_json(left.get(key)) != canonical_json(right.get(key))
    ]
    return sorted(found, key=lambda difference: (difference.key, not difference.structural))


# --- the space ----------------------------------------------------------------------------------------------------


def space_shapes(
    shapes: Mapping[str, tuple[int, ...]], structure: Structure
) -> dict[str, tuple[int | Literal["vocabulary"], ...]]:
    """The shapes of the backbone's parameters by canonical name, in the order of `shapes`.

    The rows of token and output embeddings, and the biases of the latter, are "vocabulary". Left out are buffers, task
    heads and poolers, and tensors that are stored again: the output embedding of a model with tied embeddings, and
    the embeddings of encoder and decoder beside the `shared` one.
    """
    canonical = _parameters(shapes, structure)
    rows = _vocabularies(canonical, structure.structure)
    found: dict[str, tuple[Dimension, ...]] = {}
    for name, shape in canonical.items():
        if is_token_embedding(name, shape) or is_output(name, shape, rows):
            found[name] = ("vocabulary", *shape[1:])
        elif not is_head(name):
            found[name] = shape
    return found


def structure_digest(structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> Digest:
    """The digest of model type, structure, and the canonical names and shapes of all parameters, heads included.

    Buffers and tensors that are stored again, as `space_shapes` has them, are no parameters and do not count.
    """
    return _digest(structure.model_type, structure.structure, _parameters(shapes, structure))


def space_digest(structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> Digest:
    """The digest of what no remedy can bridge: without vocabulary sizes, output embeddings, tying and task heads."""
    kept = {key: value for key, value in structure.structure.items() if key.rpartition(".")[2] not in _BRIDGED}
    inventory = {
        name: shape
        for name, shape in space_shapes(shapes, structure).items()
        if shape[:1] != ("vocabulary",) or is_token_embedding(name, (0,) * len(shape))
    }
    return _digest(structure.model_type, kept, inventory)


def _digest(
    model_type: str | None, structure: Mapping[str, Value], inventory: Mapping[str, tuple[Dimension, ...]]
) -> Digest:
    # Names, lists and whole numbers are written by json as RFC 8785 has them, four times as fast as by rfc8785.
    tensors = json.dumps(sorted(inventory.items()), ensure_ascii=False, separators=(",", ":"))
    document = {
        "inventory": sha256(tensors.encode("utf-8", "surrogatepass")),
        "modelType": model_type,
        "structure": dict(structure),
    }
    return sha256(canonical_json(document))


def _canonical(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    names = canonical_names(shapes)
    return {names[name]: shape for name, shape in shapes.items()}


def _parameters(shapes: Shapes, structure: Structure) -> dict[str, tuple[int, ...]]:
    """The canonical shapes without buffers and without what is stored again."""
    canonical = _canonical(shapes)
    tied = structure.structure.get(_TIED) is True
    rows = _vocabularies(canonical, structure.structure)
    shared = canonical.get("shared.weight")
    return {
        name: shape
        for name, shape in canonical.items()
        if not is_buffer(name, shape)
        and not (tied and (is_output(name, shape, rows) or _is_tied_head(name, shape, rows)))
        and not (shared == shape and name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"))
    }


def _is_tied_head(name: str, shape: tuple[int, ...], rows: Set[int]) -> bool:
    """Whether it is the output embedding within a masked language model's head, or the copy of that head's bias."""
    return bool(shape) and shape[0] in rows and is_head(name) and name.endswith((".decoder.weight", ".decoder.bias"))


def _vocabularies(canonical: Shapes, structure: Mapping[str, Value]) -> Set[int]:
    """The sizes of the model's vocabularies: as its config says, and as the token embeddings have rows."""
    stated = [value for key, value in structure.items() if key.rpartition(".")[2] in _VOCABULARIES]
    rows = {value for value in stated if isinstance(value, int) and not isinstance(value, bool)}
    return rows | {shape[0] for name, shape in canonical.items() if is_token_embedding(name, shape)}


def _ordered(fields: Mapping[str, Value]) -> dict[str, Value]:
    return {key: fields[key] for key in sorted(fields)}
