"""What PEFT takes a module for, as its name tells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

__all__ = ["PREFIX", "Kind", "has_tied_output", "has_turned", "is_token_embedding", "kind_of", "module_of"]

# What PEFT puts before the names of all modules.
PREFIX = "base_model.model."


class Kind(Enum):
    """How a module's factors lie beside its tensor."""

    STRAIGHT = "straight"
    """Outputs before inputs: a Linear."""
    TURNED = "turned"
    """Inputs before outputs: a Conv1D."""
    EMBEDDING = "embedding"
    """Rows by index."""
    CONVOLUTION = "convolution"
    """Outputs, inputs, and the sides of the kernel."""
    UNKNOWN = "unknown"
    """The one or the other, or a class of its own, which no factors fit."""


_EMBEDDINGS = re.compile(
    r"(?:embed_tokens|embed_positions|wte|wpe|shared|tok_embeddings|embed_in|relative_attention_bias"
    r"|(?:word|position|token_type|token|tokens|positions)_embed(?:ding)?s?|embeddings?|embed)"
)
# Of 549 models of transformers 5.23 with their 25,000 matrices these names and the missing bias tell all embeddings; a
# few of so called matrices are linear, such as the embedding of patches. Some embeddings are never called, but their
# weight is read: no factors would have an effect.
_MAYBE_EMBEDDING = re.compile(
    r"emb|tokens?$|codebook|quer(?:y|ies)_feat|reference_points|bias_values|pe_[kv]|^w$", re.I
)
_BUT_LINEAR = re.compile(r".*_(?:dense|linear|head|norm|proj(?:ect(?:ion|or))?)")
# What chooses experts is a Linear in some models, and in most a class of its own.
_ROUTERS = ("gate", "router")
# Quantised classes of its own throughout.
_OWN_CLASSES = ("ibert",)
# The models of transformers whose layers are Conv1D, and what these are called.
_TURNED_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_TURNED = ("c_attn", "q_attn", "c_proj", "c_fc")


def module_of(name: str) -> str:
    """The module of a parameter; empty for a parameter of the model itself."""
    return name.rpartition(".")[0]


def kind_of(name: str, model_type: str | None, *, biased: bool = False, adapted: bool = False) -> Kind:
    """What the module is whose weight has this name, in a model of this type.

    `biased`: whether it has a bias too; `adapted`: whether an adapter had factors for it.
    """
    named = [part for part in module_of(name).split(".") if not part.isdigit()]
    last = named[-1] if named else ""
    if not adapted and (last in _ROUTERS or model_type in _OWN_CLASSES):
        return Kind.UNKNOWN
    if not biased and _EMBEDDINGS.fullmatch(last):
        return Kind.EMBEDDING
    if not biased and _MAYBE_EMBEDDING.search(last) and not _BUT_LINEAR.fullmatch(last):
        return Kind.UNKNOWN
    return Kind.TURNED if model_type in _TURNED_MODELS and last in _TURNED else Kind.STRAIGHT


def has_turned(model_type: str) -> bool:
    """Whether models of this type have layers with inputs before outputs."""
    return model_type in _TURNED_MODELS


_TOKENS = re.compile(r"embed_tokens|wte|w|shared|tok_embeddings|embed_in|(?:word|tokens)_embed(?:ding)?s?")
# Encoders, most of whose checkpoints have no output: one that has is told by the tensors before its last matrix.
_ENCODERS = re.compile(r".*(?:bert|electra|mpnet|esm|roberta|ernie(?!4)|xlnet|deberta).*")
_OUTPUTS = re.compile(r"(?:^|\.)(?:cls\.predictions|lm_head|generator_|vocab_|mlm_|head\.dense|decoder\.bias)")
_OTHER_HEADS = re.compile(r"(?:^|\.)(?:score|classifier|qa_outputs|classification_head)\.")


def is_token_embedding(name: str) -> bool:
    """Whether the weight of this name has a row for each token."""
    return _TOKENS.fullmatch(module_of(name).rpartition(".")[2]) is not None


def has_tied_output(structure: Mapping[str, Any], model_type: str | None, names: Iterable[str]) -> bool:
    """Whether the token embedding is the output's matrix too, as far as a fingerprint and the tensors' names tell."""
    if structure.get("tied_embeddings") is not True:
        return False
    known = list(names)
    if any(_OTHER_HEADS.search(name) for name in known):
        return False
    return not _ENCODERS.fullmatch(model_type or "") or any(_OUTPUTS.search(name) for name in known)
