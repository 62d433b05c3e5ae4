"""The structure of a checkpoint is the same however its config is spelled and its tensors are wrapped."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from deltareg.checkpoint import Checkpoint
from deltareg.digest import canonical_json, sha256
from deltareg.fingerprint.structure import (
    FieldDifference,
    Structure,
    canonical_names,
    compare_structures,
    space_digest,
    space_shapes,
    structure_digest,
    structure_of,
)
from tests.fingerprint import configs
from tests.fingerprint.configs import Config, Shapes, decoder_shapes
from tests.weights import Pair

PUBLISHED = {name: getattr(configs, name) for name in configs.__all__ if name.isupper()}


def digests(config: Config | None, shapes: Shapes) -> tuple[str, str]:
    structure = structure_of(config, shapes)
    return structure_digest(structure, shapes), space_digest(structure, shapes)


def of_model(name: str, config: transformers.PretrainedConfig) -> tuple[Structure, Shapes]:
    """The structure of a real model of transformers, with the names and shapes that its class gives."""
    written = json.loads(config.to_json_string(use_diff=False))
    with torch.device("meta"):
        model = getattr(transformers, name)(copy.deepcopy(config))  # some classes change it
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return structure_of(written, shapes), shapes


def of_directory(path: Path) -> tuple[Structure, Shapes]:
    with Checkpoint.open(path) as checkpoint:
        shapes = {tensor.name: tensor.shape for tensor in checkpoint.tensors.values()}
        return structure_of(checkpoint.config, shapes), shapes


# --- published pairs ----------------------------------------------------------------------------------------------


def test_llama_3_and_3_1_share_their_space() -> None:
    shapes = decoder_shapes(configs.LLAMA_3_8B)
    assert digests(configs.LLAMA_3_8B, shapes) == digests(configs.LLAMA_3_1_8B, shapes)
    found = compare_structures(structure_of(configs.LLAMA_3_8B, shapes), structure_of(configs.LLAMA_3_1_8B, shapes))
    assert [difference.key for difference in found] == ["max_position_embeddings", "mlp_bias", "rope_scaling"]
    assert not any(difference.structural for difference in found)
    assert found[0] == FieldDifference("max_position_embeddings", False, 8192, 131072)


def test_qwen_2_5_base_and_instruct_share_their_space() -> None:
    shapes = decoder_shapes(configs.QWEN_2_5_7B)
    assert digests(configs.QWEN_2_5_7B, shapes) == digests(configs.QWEN_2_5_7B_INSTRUCT, shapes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 16),
        ("num_key_value_heads", 4),
        ("hidden_act", "gelu"),
        ("num_hidden_layers", 31),
        ("model_type", "mistral"),
        ("head_dim", 64),
        ("vocab_size", 128264),
        ("tie_word_embeddings", True),
    ],
)
def test_structural_fields_count(key: str, value: object) -> None:
    shapes = decoder_shapes(configs.LLAMA_3_8B)
    changed = configs.LLAMA_3_8B | {key: value}
    ours, theirs = digests(configs.LLAMA_3_8B, shapes), digests(changed, shapes)
    assert ours[0] != theirs[0]
    # A vocabulary and an output embedding can be bridged.
    assert (ours[1] != theirs[1]) == (key not in ("vocab_size", "tie_word_embeddings"))
    found = compare_structures(structure_of(configs.LLAMA_3_8B, shapes), structure_of(changed, shapes))
    assert found and all(difference.structural for difference in found)


def test_another_model_of_the_same_shapes_is_another_space() -> None:
    shapes = decoder_shapes(configs.MISTRAL_7B)
    assert digests(configs.MISTRAL_7B, shapes)[1] != digests(configs.MISTRAL_7B | {"model_type": "llama"}, shapes)[1]


def test_real_fine_tune_lacks_a_buffer_and_shares_the_space(minilm: Pair) -> None:
    base, base_shapes = of_directory(minilm.base)
    post, post_shapes = of_directory(minilm.post)
    assert base_shapes.keys() - post_shapes.keys() == {"embeddings.position_ids"}
    assert structure_digest(base, base_shapes) == structure_digest(post, post_shapes)
    assert space_digest(base, base_shapes) == space_digest(post, post_shapes)
    assert compare_structures(base, post) == [FieldDifference("dtype", False, None, "float32")]


def test_real_fine_tune_with_a_longer_vocabulary_shares_the_space(anarcii: Mapping[str, Path]) -> None:
    base, base_shapes = of_directory(anarcii["antibody_4_2"])
    post, post_shapes = of_directory(anarcii["tcr_4_2"])
    assert structure_digest(base, base_shapes) != structure_digest(post, post_shapes)
    assert space_digest(base, base_shapes) == space_digest(post, post_shapes)
    assert compare_structures(base, post) == [FieldDifference("output_vocabulary_size", True, 136, 137)]
    other, other_shapes = of_directory(anarcii["antibody_4_1"])
    assert space_digest(other, other_shapes) != space_digest(base, base_shapes)


# --- configs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LLAMA_3_8B", {"layers": 32, "hidden_size": 4096, "heads": 32, "kv_heads": 8, "head_size": 128}),
        ("GEMMA_2_9B", {"head_size": 256, "activation": "gelu_tanh", "tied_embeddings": None}),
        ("GPT_2", {"layers": 12, "hidden_size": 768, "heads": 12, "kv_heads": 12, "activation": "gelu_tanh"}),
        ("MIXTRAL_8X7B", {"experts": 8, "intermediate_size": 14336}),
        ("DEEPSEEK_V3", {"experts": 256, "shared_experts": 1, "expert_intermediate_size": 2048, "head_size": None}),
        ("T5_SMALL", {"layers": 6, "decoder.layers": 6, "head_size": 64, "activation": "relu"}),
        ("WHISPER_TINY", {"layers": None, "encoder.layers": 4, "decoder.heads": 6, "hidden_size": 384}),
        ("MAMBA_130M", {"state_size": 16, "conv_kernel": 4, "time_step_rank": 48, "heads": None}),
        ("PHI_3_MINI", {"head_size": 96, "kv_heads": 32}),
        ("BERT", {"activation": "gelu", "tied_embeddings": None, "head_size": 64}),
        ("FALCON_7B", {"kv_heads": 1, "heads": 71}),
        ("FALCON_40B", {"kv_heads": 8, "heads": 128}),
        ("QWEN_2_VL_7B", {"text.hidden_size": 3584, "vision.layers": 32, "vision.head_size": 80, "hidden_size": None}),
        ("LLAVA_1_5", {"text.model_type": "llama", "vision.layers": 24, "text.vocabulary_size": 32064}),
    ],
)
def test_published_configs_are_read(name: str, expected: Mapping[str, object]) -> None:
    found = structure_of(PUBLISHED[name], {})
    assert found.model_type == PUBLISHED[name]["model_type"]
    assert {key: found.structure.get(key) for key in expected} == expected


def test_experts_per_token_are_behaviour() -> None:
    found = structure_of(configs.MIXTRAL_8X7B, {})
    assert found.behaviour["num_experts_per_tok"] == 2


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"n_head": 4, "n_embd": 64, "n_layer": 2}, {"num_heads": 4, "dim": 64, "num_layers": 2}),
        ({"n_heads": 4, "d_model": 64}, {"num_attention_heads": 4, "hidden_size": 64, "head_dim": 16}),
        ({"num_attention_heads": 4}, {"num_attention_heads": 4, "num_key_value_heads": 4}),
        ({"num_attention_heads": 4, "multi_query": True}, {"num_attention_heads": 4, "num_key_value_heads": 1}),
        ({"n_inner": None, "ffn_dim": 8}, {"d_ff": 8.0}),
        ({"hidden_act": "gelu_new"}, {"activation_function": "gelu_pytorch_tanh"}),
        ({"hidden_act": "swish"}, {"hidden_act": "silu"}),
        ({"model_type": "gemma", "hidden_act": "gelu"}, {"model_type": "gemma", "hidden_activation": "gelu_new"}),
        ({"ffn_config": {"ffn_act_fn": {"name": "silu"}}}, {"ffn_config": {"ffn_act_fn": "silu"}}),
        ({"hidden_size": 8, "embedding_size": 8, "num_experts": 0}, {"hidden_size": 8}),
        ({"feed_forward_proj": "gated-gelu"}, {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new"}),
        ({"model_type": "t5"}, {"model_type": "t5", "feed_forward_proj": "relu"}),
        ({"torch_dtype": "torch.bfloat16"}, {"dtype": "bfloat16"}),
        ({"rope_theta": 1e4, "rope_scaling": None}, {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ({"n_routed_experts": 8}, {"num_local_experts": 8}),
        ({"hidden_size": 100, "time_step_rank": "auto"}, {"hidden_size": 100, "time_step_rank": 7}),
        ({"multi_query_attention": False, "multi_query_group_num": 2}, {}),
        ({"use_cache": True, "transformers_version": "4", "architectures": ["X"]}, {"use_cache": True}),
        ({"vision_config": {"depth": 1, "output_attentions": False}}, {"visual": {"num_hidden_layers": 1}}),
    ],
)
def test_spellings_of_one_thing_are_one(given: Config, same: Config) -> None:
    assert compare_structures(structure_of(given, {}), structure_of(same, {})) == []


@pytest.mark.parametrize(
    ("one", "other", "key", "structural"),
    [
        ({"hidden_act": "gelu"}, {"hidden_act": "gelu_new"}, "activation", True),
        ({"hidden_size": 1}, {"hidden_size": True}, "hidden_size", True),
        ({"a_field_of_tomorrow": 1}, {}, "a_field_of_tomorrow", False),
        ({"id2label": {str(at): "x" * 9 for at in range(999)}}, {}, "id2label", False),
        ({"n_embd": 8, "d_model": 9}, {"n_embd": 8}, "d_model", True),
        ({"text_config": {"n_layer": 2}}, {"text_config": {"n_layer": 3}}, "text.layers", True),
        ({"tie_word_embeddings": False}, {"tie_word_embeddings": True}, "tied_embeddings", True),
        ({"model_type": "a"}, {"model_type": "b"}, "model_type", True),
    ],
)
def test_differences_are_found(one: Config, other: Config, key: str, structural: bool) -> None:
    found = compare_structures(structure_of(one, {}), structure_of(other, {}))
    assert [(difference.key, difference.structural) for difference in found] == [(key, structural)]


def test_differences_come_by_key_with_both_values() -> None:
    found = compare_structures(
        structure_of({"n_layer": 2, "rope_theta": 5}, {}), structure_of({"n_layer": 3, "b": "x", "a": "y"}, {})
    )
    assert found == [
        FieldDifference("a", False, None, "y"),
        FieldDifference("b", False, None, "x"),
        FieldDifference("layers", True, 2, 3),
        FieldDifference("rope_theta", False, 5, None),
    ]


def test_flat_and_nested_config_of_one_model_are_one() -> None:
    flat, nested = structure_of(configs.QWEN_2_VL_7B, {}), structure_of(configs.QWEN_2_VL_7B_NESTED, {})
    assert compare_structures(flat, nested) == []
    assert flat.behaviour["text.rope_theta"] == 1000000


# --- names --------------------------------------------------------------------------------------------------------

# As saved, and canonical.
WRAPPED = [
    ("model.embed.w model.layers.0.q lm_head.weight", "embed.w layers.0.q lm_head.weight"),
    ("embed.w layers.0.q lm_head.weight", "embed.w layers.0.q lm_head.weight"),
    ("bert.embeddings.w bert.encoder.layer.0.q cls.bias", "embeddings.w encoder.layer.0.q cls.bias"),
    ("never_seen.embedder.w never_seen.blocks.7.q my_head.w", "embedder.w blocks.7.q my_head.w"),
    ("x.model.layers.0.q x.model.embed.w x.lm_head.weight", "layers.0.q embed.w lm_head.weight"),
    ("wte.weight h.0.q h.1.q", "wte.weight h.0.q h.1.q"),
    ("layers.0.q layers.1.q", "layers.0.q layers.1.q"),
    ("encoder.layer.0.q encoder.layer.0.k", "layer.0.q layer.0.k"),
    ("a.weight a.bias", "a.weight a.bias"),
    ("w", "w"),
    ("", ""),
    ("shared.weight encoder.block.0.q decoder.block.0.q", "shared.weight encoder.block.0.q decoder.block.0.q"),
    # The prefix stays where two names would become one.
    ("model.embed.w model.layers.0.q model.w.x w.x", "model.embed.w model.layers.0.q model.w.x w.x"),
    # Towers, as earlier and later versions save them.
    (
        "language_model.model.layers.0.q language_model.model.embed.w language_model.lm_head.weight vision.blocks.0.q",
        "language_model.layers.0.q language_model.embed.w lm_head.weight vision.blocks.0.q",
    ),
    (
        "model.language_model.layers.0.q model.language_model.embed.w lm_head.weight model.vision.blocks.0.q",
        "language_model.layers.0.q language_model.embed.w lm_head.weight vision.blocks.0.q",
    ),
    (
        "model.layers.0.q model.embed.w visual.blocks.0.q",
        "language_model.layers.0.q language_model.embed.w visual.blocks.0.q",
    ),
    ("model.layers.0.q model.embed.w mtp.layers.0.q", "layers.0.q embed.w mtp.layers.0.q"),
    ("a a. . .. .a 1 1.2", "a a. . .. .a 1 1.2"),
]


@pytest.mark.parametrize(("saved", "canonical"), WRAPPED)
def test_wrappers_go(saved: str, canonical: str) -> None:
    expected = dict(zip(saved.split(), canonical.split(), strict=True))
    assert canonical_names(saved.split()) == expected
    assert canonical_names(reversed(saved.split())) == expected


PARTS = st.sampled_from(["model", "bert", "layers", "0", "1", "embed", "lm_head", "w", "", "language_model", "visual"])


@given(st.lists(st.lists(PARTS, min_size=1, max_size=5).map(".".join) | st.text(max_size=5), max_size=8))
def test_names_never_become_one(names: list[str]) -> None:
    found = canonical_names(names)
    assert found.keys() == set(names)
    assert len(set(found.values())) == len(found)
    assert canonical_names(sorted(names)) == found


# --- real classes of transformers ---------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}
BERT = transformers.BertConfig(**SMALL, num_hidden_layers=2)
ROBERTA = transformers.RobertaConfig(**SMALL, num_hidden_layers=2)
GPT_2 = transformers.GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=99)
LLAMA = transformers.LlamaConfig(**SMALL, num_hidden_layers=2, num_key_value_heads=2)
MAMBA = transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=99)
T5 = transformers.T5Config(d_model=32, d_ff=48, num_layers=2, num_heads=4, vocab_size=99)
BART = transformers.BartConfig(d_model=32, encoder_layers=1, decoder_layers=2, vocab_size=99)
VIT = transformers.ViTConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48)
NEOX = transformers.GPTNeoXConfig(**SMALL, num_hidden_layers=2)


@pytest.mark.parametrize(
    ("backbone", "wrapped", "config"),
    [
        ("BertModel", "BertForMaskedLM", BERT),
        ("BertModel", "BertForSequenceClassification", BERT),
        ("RobertaModel", "RobertaForMaskedLM", ROBERTA),
        ("RobertaModel", "RobertaForQuestionAnswering", ROBERTA),
        ("GPT2Model", "GPT2LMHeadModel", GPT_2),
        ("GPT2Model", "GPT2DoubleHeadsModel", GPT_2),
        ("LlamaModel", "LlamaForCausalLM", LLAMA),
        ("LlamaModel", "LlamaForSequenceClassification", LLAMA),
        ("MambaModel", "MambaForCausalLM", MAMBA),
        ("T5Model", "T5ForConditionalGeneration", T5),
        ("BartModel", "BartForConditionalGeneration", BART),
        ("GPTNeoXModel", "GPTNeoXForCausalLM", NEOX),
        ("ViTModel", "ViTForImageClassification", VIT),
    ],
)
def test_backbone_and_its_wrappers_share_a_space(
    backbone: str, wrapped: str, config: transformers.PretrainedConfig
) -> None:
    bare, bare_shapes = of_model(backbone, config)
    whole, whole_shapes = of_model(wrapped, config)
    assert bare_shapes.keys() != whole_shapes.keys()
    assert compare_structures(bare, whole) == []
    assert space_digest(bare, bare_shapes) == space_digest(whole, whole_shapes)
    assert len(space_shapes(bare_shapes, bare)) > len(bare_shapes) * 0.8


def test_tied_vision_language_model_has_one_space_with_its_head_stored_or_not() -> None:
    text = SMALL | {"num_hidden_layers": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    structure, shapes = of_model("Qwen2VLForConditionalGeneration", config)
    assert structure.structure["text.layers"] == structure.structure["vision.layers"] == 2
    space = space_shapes(shapes, structure)
    assert space["language_model.embed_tokens.weight"] == ("vocabulary", 32)
    without = {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}
    assert len(without) == len(shapes) - 1
    assert structure_digest(structure, shapes) == structure_digest(structure, without)
    assert space == space_shapes(without, structure)


# --- space shapes -------------------------------------------------------------------------------------------------


def test_vocabulary_is_a_word_in_embeddings_and_heads_alone() -> None:
    shapes: Shapes = {
        "transformer.wte.weight": (64, 64),
        "transformer.wpe.weight": (64, 64),
        "transformer.h.0.attn.c_attn.weight": (64, 64),
        "lm_head.weight": (64, 64),
        "lm_head.bias": (64,),
    }
    structure = structure_of({"n_embd": 64, "vocab_size": 64, "tie_word_embeddings": False}, shapes)
    assert space_shapes(shapes, structure) == {
        "wte.weight": ("vocabulary", 64),
        "wpe.weight": (64, 64),
        "h.0.attn.c_attn.weight": (64, 64),
        "lm_head.weight": ("vocabulary", 64),
        "lm_head.bias": ("vocabulary",),
    }


def test_padded_vocabulary_is_the_vocabulary() -> None:
    config = configs.QWEN_2_5_7B | {"vocab_size": 151646}
    shapes = decoder_shapes(config, rows=151936)
    found = space_shapes(shapes, structure_of(config, shapes))
    assert found["embed_tokens.weight"] == found["lm_head.weight"] == ("vocabulary", 3584)
    assert space_digest(structure_of(config, shapes), shapes) == digests(configs.QWEN_2_5_7B, decoder_shapes(config))[1]


@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model.model.", "_orig_mod.model."])
@pytest.mark.parametrize("head", [False, True])
def test_prefix_and_head_do_not_change_the_space(prefix: str, head: bool) -> None:
    expected = digests(configs.MIXTRAL_8X7B, decoder_shapes(configs.MIXTRAL_8X7B))[1]
    assert digests(configs.MIXTRAL_8X7B, decoder_shapes(configs.MIXTRAL_8X7B, prefix=prefix, head=head))[1] == expected


BUFFERS: list[tuple[str, tuple[int, ...], bool]] = [
    ("embeddings.position_ids", (1, 512), True),
    ("embeddings.position_ids", (2, 512), False),
    ("layers.0.self_attn.rotary_emb.inv_freq", (64,), True),
    ("layers.0.self_attn.rotary_emb.inv_freq", (64, 64), False),
    ("h.0.attn.bias", (1, 1, 1024, 1024), True),
    ("h.0.attn.attention.bias", (1, 1, 16, 16), True),
    ("h.0.attn.bias", (2304,), False),
    ("h.0.attn.bias", (16, 16), False),
    ("h.0.attn.bias", (1, 2, 16, 16), False),
    ("h.0.conv.bias", (1, 1, 16, 16), False),
    ("h.0.attn.masked_bias", (), True),
    ("h.0.attn.masked_bias", (64,), False),
    ("h.0.norm.num_batches_tracked", (), True),
    ("h.0.attn.rotary_emb.cos_cached", (1, 1, 64, 8), True),
    ("h.0.norm.running_mean", (64,), False),
    ("h.0.attn.relative_position_index", (49, 49), True),
]


@pytest.mark.parametrize(("name", "shape", "buffer"), BUFFERS)
def test_buffer_is_one_by_name_and_shape(name: str, shape: tuple[int, ...], buffer: bool) -> None:
    shapes: Shapes = {"wte.weight": (99, 64), "h.0.w": (64,), "layers.0.w": (1,), "embeddings.w.x": (1,)}
    structure = structure_of(None, shapes)
    assert (name not in space_shapes(shapes | {name: shape}, structure)) == buffer
    assert (structure_digest(structure, shapes) == structure_digest(structure, shapes | {name: shape})) == buffer


# --- digests ------------------------------------------------------------------------------------------------------


def test_digest_is_of_canonical_json() -> None:
    shapes: Shapes = {'z.é\n\x1f\x7f"': (2, 3), "layers.0.a": (), "embed.w": (1,)}
    structure = structure_of({"model_type": "x", "n_layer": 1, "tie_word_embeddings": False}, shapes)
    inventory = sha256(canonical_json([[name, list(shape)] for name, shape in sorted(shapes.items())]))
    document = {"inventory": inventory, "modelType": "x", "structure": {"layers": 1, "tied_embeddings": False}}
    assert structure_digest(structure, shapes) == sha256(canonical_json(document))


def test_shapes_count_and_their_order_does_not() -> None:
    shapes = decoder_shapes(configs.LLAMA_3_8B)
    ours = digests(configs.LLAMA_3_8B, shapes)
    assert digests(configs.LLAMA_3_8B, dict(reversed(shapes.items()))) == ours
    changed = digests(configs.LLAMA_3_8B, shapes | {"model.norm.weight": (4097,)})
    assert changed[0] != ours[0] and changed[1] != ours[1]


# --- no config ----------------------------------------------------------------------------------------------------


def test_shapes_alone_tell_sizes() -> None:
    found = structure_of(None, decoder_shapes(configs.LLAMA_3_8B))
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "layers": 32, "vocabulary_size": 128256}
    assert found == Structure(None, sizes | {"tied_embeddings": False}, {})
    assert structure_of(None, decoder_shapes(configs.MIXTRAL_8X7B)).structure["experts"] == 8
    assert structure_of(None, {}) == Structure(None, {}, {})


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("GPT2LMHeadModel", GPT_2, {"layers": 2, "hidden_size": 32, "intermediate_size": 128}),
        ("T5ForConditionalGeneration", T5, {"encoder.layers": 2, "decoder.layers": 2, "intermediate_size": 48}),
        ("BartModel", BART, {"encoder.layers": 1, "decoder.layers": 2, "hidden_size": 32}),
        ("MambaForCausalLM", MAMBA, {"layers": 2, "hidden_size": 32, "intermediate_size": None}),
        ("RobertaForMaskedLM", ROBERTA, {"layers": 2, "intermediate_size": 48, "tied_embeddings": True}),
    ],
)
def test_shapes_of_real_models_tell_sizes(
    name: str, config: transformers.PretrainedConfig, expected: Mapping[str, object]
) -> None:
    found = structure_of(None, of_model(name, config)[1]).structure
    assert {key: found.get(key) for key in expected} == expected


def test_size_that_published_config_leaves_out_comes_from_the_shapes() -> None:
    shapes = of_model("GPT2Model", GPT_2)[1]
    given = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_inner": None}
    assert digests(given, shapes) == digests(given | {"n_inner": 128}, shapes)


@pytest.mark.parametrize(("stored", "tied"), [(True, False), (False, True)])
def test_stored_head_decides_where_config_does_not_say(stored: bool, tied: bool) -> None:
    config = {key: value for key, value in configs.LLAMA_3_8B.items() if key != "tie_word_embeddings"}
    assert structure_of(config, decoder_shapes(config, head=stored)).structure["tied_embeddings"] is tied


def test_config_alone_tells_nothing_of_ties_that_it_does_not_say() -> None:
    config = {key: value for key, value in configs.LLAMA_3_8B.items() if key != "tie_word_embeddings"}
    assert "tied_embeddings" not in structure_of(config, {}).structure
    for tied in (True, False):
        assert structure_of(config | {"tie_word_embeddings": tied}, {}).structure["tied_embeddings"] is tied


# --- hostile ------------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    """model_type hidden_size n_embd num_attention_heads num_key_value_heads head_dim hidden_act feed_forward_proj
    text_config vision_config encoder multi_query multi_query_attention new_decoder_architecture time_step_rank
    tie_word_embeddings rope_scaling rope_parameters rope_theta torch_dtype dtype id2label num_experts kv_lora_rank
    is_encoder_decoder encoder_layers num_layers vocab_size type name embedding_size n_positions text.hidden_size
    """.split()  # noqa: SIM905
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 64)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["NaN", "auto", "gelu", "gated-gelu", "default", "\ud800", 10**30, 1e300, float("nan")])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=6),
    max_leaves=20,
)
SHAPES = st.dictionaries(
    st.sampled_from(
        ["model.embed_tokens.weight", "shared.weight", "lm_head.weight", "lm_head.bias", "model.layers.0.mlp.up.weight"]
    )
    | st.text(max_size=6),
    st.lists(st.integers(0, 2**53 - 1) | st.integers(0, 64), max_size=4).map(tuple),
    max_size=6,
)


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


@given(st.dictionaries(KEYS | st.text(max_size=4), JSON, max_size=10), SHAPES)
def test_any_config_has_a_structure_whatever_the_order_of_its_keys(config: Config, shapes: Shapes) -> None:
    found = structure_of(config, shapes)
    turned, turned_shapes = reversed_keys(config), dict(reversed(shapes.items()))
    assert compare_structures(found, structure_of(turned, turned_shapes)) == []
    assert structure_digest(found, shapes) == structure_digest(structure_of(turned, turned_shapes), turned_shapes)
    space_digest(found, shapes)
    json.loads(canonical_json([dict(found.structure), dict(found.behaviour)]))


@pytest.mark.parametrize(
    ("value", "kept"),
    [(-5, -5), (10**30, hex(10**30)), ("32", "32"), (True, True), ("NaN", "NaN"), (4.5, 4.5), ([1], [1])],
)
def test_value_of_a_wrong_type_stays_what_it_is(value: object, kept: object) -> None:
    found = structure_of({"num_hidden_layers": value, "hidden_size": value, "num_attention_heads": 1}, {}).structure
    assert found["layers"] == found["hidden_size"] == kept
    assert "head_size" not in found


@pytest.mark.parametrize(
    "config",
    [
        {f"field_{number}": number for number in range(100_000)},
        {f"part_{number}": {"hidden_size": number, "x": [number]} for number in range(100_000)},
        {"x" * 1_000_000: 1, "y": "z" * 1_000_000, "model_type": "m" * 1_000_000},
        {"id2label": {str(number): "x" for number in range(100_000)}},
        {"num_attention_heads": list(range(100_000))},
    ],
    ids=["keys", "parts", "long", "labels", "heads"],
)
def test_huge_configs_are_bounded_and_quick(config: Config) -> None:
    begun = time.process_time()
    found = structure_of(config, {})
    assert time.process_time() - begun < 5
    assert len(canonical_json([found.model_type, dict(found.structure), dict(found.behaviour)])) < 600_000
    # What is not kept still counts.
    key = max(config)
    assert compare_structures(found, structure_of(config | {key: "other"}, {})) != []


def test_deep_nesting_is_no_error() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [{"text_config": value, "hidden_size": 1}]
    structure = structure_of({"x": value, "text_config": value[0], "num_attention_heads": value}, {})
    assert compare_structures(structure, structure) == []
    while value != 1:  # Python would recurse
        value = value[0].pop("text_config")


def test_ninety_thousand_tensors_take_no_time() -> None:
    shapes: Shapes = {"model.embed_tokens.weight": (99, 32), "lm_head.weight": (99, 32)}
    for number in range(90_000):
        expert = f"model.layers.{number // 1500}.mlp.experts.{number % 1500 // 3}"
        shapes[f"{expert}.{('gate', 'up', 'down')[number % 3]}_proj.weight"] = (32, 48)
    config = configs.DEEPSEEK_V3
    seconds: dict[str, float] = {}
    structure = structure_of(None, shapes)
    for name, call in {
        "canonical_names": lambda: canonical_names(shapes),
        "structure_of": lambda: structure_of(config, shapes),
        "structure_of nothing": lambda: structure_of(None, shapes),
        "space_shapes": lambda: space_shapes(shapes, structure),
        "structure_digest": lambda: structure_digest(structure, shapes),
        "space_digest": lambda: space_digest(structure, shapes),
    }.items():
        begun = time.process_time()
        call()
        seconds[name] = time.process_time() - begun
    assert structure.structure["experts"] == 500
    assert {name: taken for name, taken in seconds.items() if taken > 5} == {}, seconds  # 0.4 s, but traced
