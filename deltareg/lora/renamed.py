"""Modules that transformers from version 5 on has under other names than the files of their models.

It takes the older names when it reads and writes files; PEFT looks for modules, and what it does not find it leaves out
without an error as soon as it has found one of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["is_renamed"]

# Types of models of transformers 5.23 many of whose modules have other names: an adapter of the rest makes no sense.
_TYPES = """
altclip aria aria_text audio-spectrogram-transformer audioflamingo3 axk1 axk2 aya_vision bailing_hybrid beit
cohere_asr conditional_detr cosmos3_edge cosmos3_omni d_fine deepseek_ocr2 deepseek_v4 deformable_detr deit detr
dinov2 dinov2_with_registers dinov3_convnext dinov3_vit dots3_note dots3_note_audio_encoder
dots3_note_vision_encoder emu3 ernie4_5_vl_moe flint fuyu gemma3 gemma4_unified glm5_next glm5_next_text glmasr
got_ocr2 gradium_phonon_tts granite_speech granite_speech_plus gte hrm_text hunyuan_vl hy_v4 hyperclovax_vision_v2
ijepa inkling2 inkling2_text inkling_mm_model internvl jina_embeddings_v3 kimi_k25 kimi_linear kolibri1 lfm3
lfm3_vl_vision llava llava_next llava_next_video llava_onevision lw_detr maskformer mimi mimi_decoder mimi_encoder
mimo_v2_flash minimax_m3_vl mistral3 mistral_large4 mistral_large4_text mllama molmo2 molmo2_text musicflamingo
nemo_speechlm nemotron_h nemotron_h_omni nomic_bert olmo_hybrid paddleocr_vl paligemma pi0 pixio pp_chart2table
pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4 qianfan_ocr qwen2_5_omni_thinker qwen2_5_vl qwen2_audio qwen2_vl
qwen3_5_moe_text qwen3_omni_moe qwen3_omni_moe_text qwen3_omni_moe_thinker qwen3_vl_moe qwen4_exp_text radio rf_detr
rt_detr rt_detr_v2 sam3_tracker sam3_tracker_video sapiens2 segformer shieldgemma2 step3p5_vision step3p7 swin
t5gemma2_encoder timesfm2_5 tipsv2 tipsv2_dpt tipsv2_text_model tipsv2_vision_model ultrabert ultravbert
unlimited_ocr vibevoice_asr video_llava vipllava vit vit_mae vit_msn vivit voxtral voxtral_realtime
"""
_RENAMED = frozenset(_TYPES.split())
# Those of which a few modules have.
_BLOCK = re.compile(r"\.block_sparse_moe\.")
_PARTS: Mapping[str, re.Pattern[str]] = {
    "gpt_neox": re.compile(r"(?:^|\.)embed_out\."),
    "granitemoe": _BLOCK,
    "granitemoehybrid": _BLOCK,
    "granitemoeshared": _BLOCK,
    "videomae": re.compile(r"\.[qv]_bias$"),
    "yolos": re.compile(r"\.mid_position_embeddings$"),
}


def is_renamed(name: str, model_type: str | None) -> bool:
    """Whether the module of a parameter has another name in transformers than in the files of such a model."""
    if model_type in _RENAMED:
        return True
    part = _PARTS.get(model_type or "")
    return part is not None and part.search(name) is not None
