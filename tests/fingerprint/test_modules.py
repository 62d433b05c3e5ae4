"""What a tensor is for, by the names that the families give theirs."""

from __future__ import annotations

import random

import pytest

from deltareg.fingerprint import layer_order, module_class

NAMES = {
    # Llama, and what follows it
    "model.embed_tokens.weight": "embedding",
    "model.layers.0.self_attn.q_proj.weight": "attention",
    "model.layers.0.self_attn.k_proj.bias": "attention",
    "model.layers.0.self_attn.o_proj.weight": "attention",
    "model.layers.0.self_attn.q_norm.weight": "norm",
    "model.layers.0.mlp.gate_proj.weight": "mlp",
    "model.layers.0.mlp.down_proj.weight": "mlp",
    "model.layers.0.input_layernorm.weight": "norm",
    "model.layers.0.post_attention_layernorm.weight": "norm",
    "model.norm.weight": "norm",
    "lm_head.weight": "lm_head",
    # BERT
    "embeddings.word_embeddings.weight": "embedding",
    "bert.embeddings.position_embeddings.weight": "embedding",
    "bert.embeddings.LayerNorm.weight": "norm",
    "bert.encoder.layer.3.attention.self.query.weight": "attention",
    "bert.encoder.layer.3.attention.output.dense.bias": "attention",
    "bert.encoder.layer.3.attention.output.LayerNorm.weight": "norm",
    "bert.encoder.layer.3.intermediate.dense.weight": "mlp",
    "bert.encoder.layer.3.output.dense.weight": "mlp",
    "bert.encoder.layer.3.output.LayerNorm.bias": "norm",
    # GPT-2
    "wte.weight": "embedding",
    "transformer.wpe.weight": "embedding",
    "transformer.h.0.ln_1.weight": "norm",
    "transformer.h.0.attn.c_attn.weight": "attention",
    "transformer.h.0.attn.c_proj.weight": "attention",
    "transformer.h.0.mlp.c_fc.weight": "mlp",
    "transformer.h.0.mlp.c_proj.weight": "mlp",
    "transformer.ln_f.bias": "norm",
    # T5
    "shared.weight": "embedding",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "attention",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "attention",
    "decoder.block.0.layer.1.EncDecAttention.o.weight": "attention",
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": "mlp",
    "encoder.block.0.layer.1.DenseReluDense.wo.weight": "mlp",
    "encoder.block.0.layer.0.layer_norm.weight": "norm",
    "encoder.final_layer_norm.weight": "norm",
    # Mixtral
    "model.layers.0.block_sparse_moe.gate.weight": "mlp",
    "model.layers.0.block_sparse_moe.experts.7.w1.weight": "mlp",
    "model.layers.0.mlp.shared_experts.up_proj.weight": "mlp",
    # GPT-NeoX
    "gpt_neox.layers.0.attention.query_key_value.weight": "attention",
    "gpt_neox.layers.0.mlp.dense_h_to_4h.weight": "mlp",
    "embed_out.weight": "lm_head",
    # Mamba: its mixers are none of the classes
    "backbone.embeddings.weight": "embedding",
    "backbone.layers.0.mixer.A_log": "other",
    "backbone.layers.0.mixer.conv1d.weight": "other",
    "backbone.layers.0.mixer.in_proj.weight": "other",
    "backbone.layers.0.norm.weight": "norm",
    "backbone.norm_f.weight": "norm",
    # and what is none of them
    "": "other",
    "scale": "other",
}


@pytest.mark.parametrize(("name", "found"), NAMES.items(), ids=NAMES.keys())
def test_class_of_a_tensor_is_told_by_its_name(name: str, found: str) -> None:
    assert module_class(name) == found


def test_layer_2_comes_before_layer_10() -> None:
    ordered = [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.experts.2.w1.weight",
        "model.layers.0.mlp.experts.10.w1.weight",
        "model.layers.2.mlp.experts.0.w1.weight",
        "model.layers.10.mlp.experts.0.w1.weight",
        "model.norm.weight",
    ]
    shuffled = random.Random(3).sample(ordered, len(ordered))
    assert sorted(shuffled, key=layer_order) == ordered


def test_numbers_and_words_in_one_place_can_be_compared() -> None:
    names = ["", "7", "a", "a7", "a.7", "7.a", "a.b", "07", "a" + "9" * 50, "a٣", "a²"]
    assert len(sorted(names, key=layer_order)) == len(names)
