"""How configs spell what they say: tables for `structure_config`, of keys and values that published configs have."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "ACTIVATIONS",
    "ASSUMED_ACTIVATION",
    "DEFAULTS",
    "NOISE",
    "NO_PARTS",
    "OF_TEXT",
    "PART_NAMES",
    "SENSES",
    "SPELLINGS",
]

_SPELLINGS = {
    "layers": "num_hidden_layers n_layer n_layers num_layers depth depths num_blocks",
    "hidden_size": "n_embd d_model dim model_dim emb_dim embed_dim width",
    "heads": "num_attention_heads n_head n_heads num_heads attention_heads num_attn_heads",
    "kv_heads": "num_key_value_heads num_kv_heads n_head_kv n_kv_heads kv_n_heads multi_query_group_num",
    "head_size": "head_dim d_kv kv_channels attention_head_size attention_head_dim d_head dim_head",
    "intermediate_size": "n_inner ffn_dim d_ff ffn_hidden_size hidden_dim inner_dim intermediate_dim mlp_dim d_inner",
    "embedding_size": "word_embed_proj_dim d_embed",
    "vocabulary_size": "vocab_size padded_vocab_size n_vocab",
    "output_vocabulary_size": "output_vocab_size",
    # hidden_activation first: where Gemma has both, hidden_act is a relic that is not read.
    "activation": "hidden_activation hidden_act activation_function act_fn ffn_act_fn feed_forward_proj",
    "experts": "n_routed_experts num_local_experts num_experts moe_num_experts n_experts",
    "shared_experts": "n_shared_experts num_shared_experts",
    "expert_intermediate_size": "moe_intermediate_size moe_ffn_hidden_size expert_ffn_hidden_size",
    "shared_expert_intermediate_size": "",
    # Multi-head latent attention: the same shapes can be divided otherwise.
    "q_lora_rank": "",
    "kv_lora_rank": "",
    "qk_nope_head_dim": "",
    "qk_rope_head_dim": "",
    "v_head_dim": "",
    # State-space models.
    "state_size": "ssm_state_size d_state mamba_d_state",
    "conv_kernel": "d_conv mamba_d_conv",
    "expand": "mamba_expand",
    "time_step_rank": "mamba_dt_rank dt_rank",
    # Vision.
    "patch_size": "",
    "temporal_patch_size": "",
    "channels": "num_channels in_channels in_chans",
    "projection_size": "projection_dim",
}
SPELLINGS: Mapping[str, tuple[str, ...]] = {key: (key, *others.split()) for key, others in _SPELLINGS.items()}
"""The spellings of each structural key, its own first; where a config has several, the first counts."""

ACTIVATIONS: Mapping[str, str] = {
    "gelu_python": "gelu",
    # The same polynomial within the same tanh, written differently.
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "identity": "linear",
    "swish": "silu",
}
"""Names of one function."""

ASSUMED_ACTIVATION: Mapping[str, str] = {
    "falcon": "gelu",
    "longt5": "relu",
    "switch_transformers": "relu",
    "t5": "relu",
}
"""What transformers assumes where configs as published say nothing and later ones write it out, by model type."""

_NOISE = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path
    _num_labels architectures attn_implementation auto_map dense_act_fn gradient_checkpointing is_gated_act label2id
    n_ctx name_or_path qk_head_dim transformers_version unsloth_fixed unsloth_version
"""
NOISE = frozenset(_NOISE.split())
"""Who wrote the file, what follows from other keys, and what only loading reads."""

_FALSE = """
    add_cross_attention do_sample early_stopping is_decoder is_encoder_decoder output_attentions output_hidden_states
    output_scores remove_invalid_values return_dict_in_generate tf_legacy_loss tie_encoder_decoder torchscript
    use_bfloat16
"""
_ZERO = "chunk_size_feed_forward diversity_penalty encoder_no_repeat_ngram_size min_length no_repeat_ngram_size"
_ONE = "length_penalty num_beam_groups num_beams num_return_sequences repetition_penalty temperature top_p typical_p"
DEFAULTS: Mapping[str, object] = {
    **dict.fromkeys(_FALSE.split(), False),
    **dict.fromkeys(_ZERO.split(), 0),
    **dict.fromkeys(_ONE.split(), 1),
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "max_length": 20,
    "return_dict": True,
    "top_k": 50,
}
"""What every config class inherits: earlier versions of transformers wrote it into each nested config."""

_OF_TEXT = """
    attention_dropout hidden_dropout initializer_range layer_types max_position_embeddings max_window_layers
    rms_norm_eps rope_scaling rope_theta sliding_window use_cache use_sliding_window
"""
OF_TEXT = frozenset(_OF_TEXT.split())
"""Behaviour of the language model, where a config is flat and only its vision part is nested."""

PART_NAMES: Mapping[str, str] = {"language": "text", "llm": "text", "visual": "vision"}
"""Names of nested configs, `_config` taken off, that mean another one."""

SENSES = frozenset({"audio", "speech", "vision", "vision_tower"})
"""Nested configs that stand beside a language model's."""

NO_PARTS = frozenset({"generation_config", "id2label", "quantization_config", "rope_parameters", "rope_scaling"})
"""Objects that are values, whatever their keys."""
