"""What PEFT takes a module for, as its name tells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

__all__ = ["Kind", "has_tied_output", "has_turned", "is_token_embedding", "kind_of", "module_of"]


class Kind(Enum):
    """How a module's factors lie beside its tensor."""

    STRAIGHT = "straight"
    """Outputs before inputs: a Linear."""
    TURNED = "turned"
    """Inputs before outputs: a Conv1D."""
    EMBEDDING = "embedding"
    """Rows by index."""


_EMBEDDINGS = re.compile(
    r"(?:embed_tokens|embed_positions|wte|wpe|shared|tok_embeddings|embed_in|relative_attention_bias"
    r"|(?:word|position|token_type|tokens|positions)_embed(?:ding)?s?|embeddings?|embed)"
)
# The models of transformers whose layers are Conv1D, and what these are called.
_TURNED_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_TURNED = ("c_attn", "q_attn", "c_proj", "c_fc")


def module_of(name: str) -> str:
    """The module of a parameter; empty for a parameter of the model itself."""
    return name.rpartition(".")[0]


def kind_of(name: str, model_type: str | None) -> Kind:
    """What the module is whose weight has this name, in a model of this type."""
    last = module_of(name).rpartition(".")[2]
    if _EMBEDDINGS.fullmatch(last):
        return Kind.EMBEDDING
    return Kind.TURNED if model_type in _TURNED_MODELS and last in _TURNED else Kind.STRAIGHT


def has_turned(model_type: str) -> bool:
    """Whether models of this type have layers with inputs before outputs."""
    return model_type in _TURNED_MODELS


_TOKENS = re.compile(r"embed_tokens|wte|shared|tok_embeddings|embed_in|(?:word|tokens)_embed(?:ding)?s?")
# Encoders, most of whose checkpoints have no output: one that has is told by the tensors before its last matrix.
_ENCODERS = re.compile(r".*(?:bert|electra|mpnet|esm|roberta|ernie|xlnet|deberta).*")
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
