"""A small real language model, two fine-tunes of it, and a recipe of their deltas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import deltareg
from deltareg.catalog import Registry

__all__ = ["RECIPE", "SCORE", "Scene", "make_scene"]

WORDS = ("[UNK]", "[EOS]", *"abcdefghijklmnopqrstuvwxyz")

RECIPE = """\
[build]
base = "./base"

[[delta]]
ref = "acme/one"
weight = 0.5

[[delta]]
ref = "acme/two"
"""

SCORE = '''\
"""How well a model says the alphabet."""

import zlib

import torch


def score(model, tokenizer):
    rows = tokenizer("a b c d e f g h i j", return_tensors="pt").input_ids
    return {"loss": model(input_ids=rows, labels=rows).loss, "words": len(tokenizer)}


def weights(model, tokenizer):
    state = model.state_dict()
    names = {"norm": "model.norm.weight", "up": "model.layers.0.mlp.up_proj.weight"}
    return {key: zlib.crc32(state[name].view(torch.uint8).numpy().tobytes()) for key, name in names.items()}


def broken(model, tokenizer):
    raise ZeroDivisionError("nothing to divide by")


def nothing(model, tokenizer):
    return {}


def words(model, tokenizer):
    return {"accuracy": "high"}


def diverged(model, tokenizer):
    return {"loss": float("nan"), "accuracy": 0.5}


not_a_function = 3
'''


@dataclass(frozen=True)
class Scene:
    """A directory with base/, one/, two/, deltareg.toml and score.py, and a registry with the two deltas."""

    place: Path
    registry: Registry

    @property
    def base(self) -> Path:
        return self.place / "base"

    @property
    def recipe(self) -> Path:
        return self.place / "deltareg.toml"

    @property
    def score(self) -> Path:
        return self.place / "score.py"


def make_scene(place: Path, home: Path) -> Scene:
    """Write it: models of 30,000 parameters, bfloat16."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=1,
    )
    base = LlamaForCausalLM(config).bfloat16()
    _save(base, place / "base")
    registry = Registry(home)
    for number, name in enumerate(("one", "two")):
        generator = torch.Generator().manual_seed(number)
        post = LlamaForCausalLM(config).bfloat16()
        post.load_state_dict(base.state_dict())
        with torch.no_grad():
            for tensor in post.parameters():
                if tensor.ndim == 2:
                    tensor += (torch.randn(tensor.shape, generator=generator) * 0.01).to(tensor.dtype)
        _save(post, place / name)
        deltareg.diff(place / "base", place / name, registry, f"acme/{name}:1.0.0", licence="apache-2.0")
    (place / "deltareg.toml").write_text(RECIPE)
    (place / "score.py").write_text(SCORE)
    return Scene(place, registry)


def _save(model: LlamaForCausalLM, directory: Path) -> None:
    model.save_pretrained(directory)
    words = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[EOS]").save_pretrained(directory)
