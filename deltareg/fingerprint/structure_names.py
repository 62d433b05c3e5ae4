"""Tensor names without what a wrapping class put in front, and what a tensor is beside a parameter of the backbone.

A backbone is saved under other names by each class that wraps it: `BertModel` writes `encoder.layer.0…`,
`BertForMaskedLM` writes `bert.encoder.layer.0…` and a head beside it. Which prefix is a wrapper's is read from what
the names share, so that it holds for models that nobody has listed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import takewhile

__all__ = ["canonical_names", "is_buffer", "is_head", "is_output", "is_token_embedding"]

# Modules beside the backbone, by the first component of their canonical names: poolers, task heads, extra predictors.
_HEADS = frozenset(
    [
        "answer_classifier",
        "cls",
        "classification_head",
        "classifier",
        "contact_head",
        "discriminator_predictions",
        "final_logits_bias",
        "generator_lm_head",
        "generator_predictions",
        "head",
        "heads",
        "lm_head",
        "logits_proj",
        "medusa_head",
        "mlm_head",
        "mtp",
        "multiple_choice_head",
        "nsp_classifier",
        "pooler",
        "pre_classifier",
        "prediction_head",
        "predictions",
        "project_hid",
        "project_q",
        "qa_classifier",
        "qa_outputs",
        "quantizer",
        "regression_head",
        "reward_head",
        "score",
        "seq_relationship",
        "sop_classifier",
        "summary",
        "v_head",
        "value_head",
        "vocab_layer_norm",
        "vocab_projector",
        "vocab_transform",
    ]
)
# Output embeddings, a row for each token. Names that other modules may have too count with a vocabulary's rows only.
_OUTPUTS = frozenset({"embed_out", "lm_head"})
_BESIDE = _HEADS | _OUTPUTS
_POSSIBLE_OUTPUTS = frozenset(
    {"decoder", "decoder.fc_out", "fc_out", "head", "output", "output_layer", "output_projection", "proj_out"}
)

_TOKEN_EMBEDDINGS = frozenset(
    {"embed_in", "embed_tokens", "embed_tokens_per_layer", "embedding", "embeddings", "shared", "tok_embedding"}
    | {"tok_embeddings", "token_embedding", "token_embeddings", "tokens_embed", "word_embedding", "word_embeddings"}
    | {"wte"}
)
# What surely belongs to the backbone: the members of a stack, and embeddings.
_ANCHOR = re.compile(r"(?:^|\.)(?:[0-9]+(?:\.|$)|[^.]*embed|wte\.|wpe\.|shared\.)")
_NUMBERED = re.compile(r"(?:^|\.)[0-9]+(?:\.|$)")
# The tower of a model with several towers that reads and writes text: its name depends on the version that saved it.
_LANGUAGE_TOWERS = ("language_model", "llm", "model")


# --- wrappers -----------------------------------------------------------------------------------------------------


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Each of `names` → the name without the prefixes of wrapping modules. Two names never become one.

    1. What all names share goes (`module.`, `base_model.`, `_orig_mod.`).
    2. What all *anchors* share goes from every name that has it. Anchors are the members of stacks (a component is a
       number) and the embeddings, heads left out: `bert.` goes where `cls.…` stands beside it.
    3. Where several towers are left, that of the language model is called `language_model`, its own wrapper goes too,
       and its head stands where the head of a model without towers does.

    A prefix never takes in a number nor the name of the stack before it, and leaves two components where no name has
    a number: one layer, or one module, is no wrapper. If two names became one, all stay as they are.
    """
    originals = list(dict.fromkeys(names))
    found = _without(originals, _wrapper(originals))
    anchors = [name for name in found if _is_anchor(name)]
    wrapper = _wrapper(anchors)
    found = _name_tower(_without(found, wrapper), _without(anchors, wrapper))
    return dict(zip(originals, found if len(set(found)) == len(found) else originals, strict=True))


def _is_anchor(name: str) -> bool:
    return name.partition(".")[0] not in _BESIDE and _ANCHOR.search(name) is not None


def _without(names: list[str], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in names] if prefix else names


def _wrapper(names: Collection[str]) -> str:
    """The components that all of `names` begin with and that wrap them: "" or a text that ends in a dot."""
    if not names:
        return ""
    # What the least and the greatest begin with, all that lie between them do.
    pairs = zip(min(names).split(".")[:-1], max(names).split("."), strict=False)
    shared = [part for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    # A number belongs to the name of the stack before it.
    number = next((place for place, part in enumerate(shared) if _is_number(part)), None)
    shared = shared if number is None else shared[: max(number - 1, 0)]
    numbered = any(_NUMBERED.search(name) for name in names)
    while shared:
        prefix = ".".join(shared) + "."
        rests = (name[len(prefix) :].partition(".") for name in names)
        if not any(_is_number(first) or not (numbered or rest) for first, _, rest in rests):
            return prefix
        shared.pop()
    return ""


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit()


def _name_tower(names: list[str], anchors: list[str]) -> list[str]:
    towers = {name.partition(".")[0] for name in anchors} - _BESIDE
    tower = next((tower for tower in _LANGUAGE_TOWERS if tower in towers), None)
    if tower is None or len(towers) == 1:
        return names
    inside = [name[len(tower) + 1 :] for name in names if name.startswith(f"{tower}.")]
    wrapper = _wrapper([name for name in inside if _is_anchor(name)])

    def canonical(name: str) -> str:
        rest = name.removeprefix(f"{tower}.")
        if rest == name or is_head(rest) or rest.partition(".")[0] in _OUTPUTS:
            return rest
        return f"language_model.{rest.removeprefix(wrapper)}"

    return [canonical(name) for name in names]


# --- what a tensor is ---------------------------------------------------------------------------------------------


def is_token_embedding(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor has a row for each token that the model reads."""
    if len(shape) != 2:
        return False
    rest, _, module = name.removesuffix(".weight").rpartition(".")
    # One for each codebook: embed_tokens.0
    return (rest.rpartition(".")[2] if _is_number(module) else module) in _TOKEN_EMBEDDINGS


def is_output(name: str, shape: tuple[int, ...], rows: Collection[int]) -> bool:
    """Whether the tensor of that canonical name has a row for each token that the model writes: weight or bias.

    `rows` are the sizes of the model's vocabularies. `lm_head.dense` and its like are parts of a task head.
    """
    module, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias") or len(shape) != (2 if kind == "weight" else 1):
        return False
    return module in _OUTPUTS or (module in _POSSIBLE_OUTPUTS and shape[0] in rows)


def is_head(name: str) -> bool:
    """Whether the tensor of that canonical name is of a pooler, a task head or an extra predictor.

    An output embedding may be called like one: ask `is_output` first.
    """
    return name.partition(".")[0] in _HEADS


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor is no parameter but computed from the configuration, or a counter. Name and shape decide.

    `position_ids` and `token_type_ids`: one row of indices. `inv_freq` and its like: the rotary table, a vector (the
    cached cosines and sines have more axes). `bias` of an attention is the causal mask where its last two axes are
    equal and one axis of length 1 or more comes before them; a real bias is a vector. `masked_bias`: one number.
    `relative_position_index`: a square of indices. `num_batches_tracked`: a counter.
    """
    parent, _, last = name.rpartition(".")
    match last:
        case "position_ids" | "token_type_ids":
            return len(shape) == 1 or (len(shape) == 2 and shape[0] == 1)
        case "inv_freq" | "original_inv_freq":
            return len(shape) == 1
        case "cos_cached" | "sin_cached":
            return len(shape) >= 2
        case "bias":
            square = len(shape) in (3, 4) and shape[-1] == shape[-2] and set(shape[:-2]) == {1}
            return square and "att" in parent.rpartition(".")[2]
        case "masked_bias" | "num_batches_tracked":
            return shape in ((), (1,))
        case "relative_position_index":
            return len(shape) == 2 and shape[0] == shape[1]
        case _:
            return False
