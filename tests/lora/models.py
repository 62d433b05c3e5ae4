"""Tiny real models, and adapters that PEFT itself makes of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft", reason="needs the extra `oracle`")
from safetensors.torch import load_file, save_file  # noqa: E402

__all__ = [
    "MODELS",
    "Adapted",
    "adapted",
    "changed",
    "load_file",
    "peft",
    "save_file",
    "tokens",
    "torch",
    "transformers",
]


def _bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


def _llama(tied: bool = False) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config)


def _gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def _resnet() -> Any:
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=2
    )
    return transformers.ResNetForImageClassification(config)


def _clip() -> Any:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 50, "max_position_embeddings": 16, "projection_dim": 8},
        vision_config={**tower, "image_size": 8, "patch_size": 4, "projection_dim": 8},
        projection_dim=8,
    )
    return transformers.CLIPModel(config)


def _deberta() -> Any:
    config = transformers.DebertaV2Config(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
    )
    return transformers.DebertaV2Model(config)


def _gpt_oss() -> Any:
    config = transformers.GptOssConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
    )
    return transformers.GptOssForCausalLM(config)


def _vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    return transformers.ViTForImageClassification(config)


def _gpt_neox() -> Any:
    config = transformers.GPTNeoXConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return transformers.GPTNeoXForCausalLM(config)


_SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}
_LATENT = {
    **_SMALL,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
# What each has beside `_SMALL`, and the names of its classes.
_EXPERTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mixtral": ("Mixtral", _SMALL | {"num_local_experts": 4}),
    "minimax": ("MiniMax", _SMALL | {"num_local_experts": 4, "head_dim": 8}),
    "qwen2_moe": (
        "Qwen2Moe",
        _SMALL | {"num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 20},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        _SMALL | {"num_experts": 4, "moe_intermediate_size": 12, "head_dim": 8, "attention_bias": True},
    ),
    "olmoe": ("Olmoe", _SMALL | {"num_experts": 4}),
    "deepseek_v2": ("DeepseekV2", _LATENT),
    "deepseek_v3": ("DeepseekV3", _LATENT),
    "dots1": (
        "Dots1",
        _SMALL
        | {"n_routed_experts": 4, "moe_intermediate_size": 12, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    ),
    "glm4_moe": (
        "Glm4Moe",
        _SMALL | {"n_routed_experts": 4, "moe_intermediate_size": 12, "n_group": 1, "topk_group": 1, "head_dim": 8},
    ),
    "ernie4_5_moe": ("Ernie4_5_Moe", _SMALL | {"moe_num_experts": 4, "moe_intermediate_size": 12, "moe_k": 2}),
    "phimoe": ("Phimoe", _SMALL | {"num_local_experts": 4}),
}


def _experts(name: str) -> Any:
    start, settings = _EXPERTS[name]
    config = getattr(transformers, f"{start}Config")(**settings)
    return getattr(transformers, f"{start}ForCausalLM")(config)


MODELS: Mapping[str, Callable[[], Any]] = {
    "bert": _bert,
    "llama": _llama,
    "tied-llama": lambda: _llama(tied=True),
    "gpt2": _gpt2,
    "resnet": _resnet,
    "clip": _clip,
    "clip-text": lambda: transformers.CLIPTextModel(_clip().config.text_config),
    "deberta": _deberta,
    "gpt-oss": _gpt_oss,
    "vit": _vit,
    "gpt_neox": _gpt_neox,
    **{name: partial(_experts, name) for name in _EXPERTS},
}


@dataclass(frozen=True)
class Adapted:
    """A base, an adapter of it on disk, and the model that PEFT has with it."""

    base: Path
    adapter: Path
    model: Any

    def merged(self) -> dict[str, Any]:
        """PEFT's own merge, by the names of the base's file."""
        return copy.deepcopy(self.model).merge_and_unload().state_dict()

    @property
    def config(self) -> dict[str, Any]:
        """The adapter's config."""
        return json.loads((self.adapter / "adapter_config.json").read_text())

    def with_config(self, **more: Any) -> None:
        """Change the adapter's config on disk."""
        (self.adapter / "adapter_config.json").write_text(json.dumps(self.config | more))

    @property
    def tensors(self) -> dict[str, Any]:
        """The adapter's tensors."""
        return load_file(self.adapter / "adapter_model.safetensors")

    def with_tensors(self, tensors: Mapping[str, Any]) -> None:
        """Put other tensors into the adapter's file."""
        save_file(dict(tensors), self.adapter / "adapter_model.safetensors", {"format": "pt"})


def adapted(path: Path, model: str, *, dtype: Any = None, seed: int = 0, **config: Any) -> Adapted:
    """A tiny model below `path`, and a random adapter of it; `config` is that of PEFT's `LoraConfig`."""
    torch.manual_seed(seed)
    base = MODELS[model]()
    if dtype is not None:
        base = base.to(dtype)
    base.save_pretrained(path / "base")
    wrapped = peft.get_peft_model(base.eval(), peft.LoraConfig(**config)).eval()
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += (0.1 * torch.randn_like(parameter, dtype=torch.float32)).to(parameter.dtype)
    wrapped.save_pretrained(path / "adapter", save_embedding_layers=False)
    return Adapted(path / "base", path / "adapter", wrapped)


def changed(path: Path, model: str, *, width: float = 0.05, seed: int = 0) -> tuple[Any, Any]:
    """A tiny model and a fine-tune of it in which every parameter differs, stored below `path`."""
    torch.manual_seed(seed)
    base = MODELS[model]().eval()
    post = copy.deepcopy(base)
    for parameter in post.parameters():
        parameter.data += width * torch.randn_like(parameter)
    base.save_pretrained(path / "base")
    post.save_pretrained(path / "post")
    return base, post


def tokens() -> Any:
    """A text of ten tokens."""
    return torch.arange(10)[None]
