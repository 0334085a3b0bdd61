"""Tiny random models of about 150 architectures, for whoever wants to know on which of them steerkit is right.

A row of the table names a configuration class of transformers and what is particular about it; every size that the
class has under one of the usual names becomes small. Norms, biases and routers are made non-trivial, so that a
forgotten one shows, and weights are large enough that tokens differ.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

VOCABULARY, WIDTH, LAYERS, CONTEXT, WINDOW = 400, 48, 4, 512, 16
START, END, PAD = 0, 1, 2
RIGHT, REFUSED, EITHER = "right", "refused", "either"

CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "hidden_size": WIDTH,
    "d_model": WIDTH,
    "n_embd": WIDTH,
    "emb_dim": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "num_hidden_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "num_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "ffn_hidden_size": 64,
    "dff": 64,
    "d_inner": 64,
    "d_ff": 64,
    "d_kv": 12,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "max_position_embeddings": CONTEXT,
    "n_positions": CONTEXT,
    "max_seq_len": CONTEXT,
    "context_length": CONTEXT,
    # Experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # Attention in fewer dimensions
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    # States that run on
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_ngroups": 1,
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_chunk_size": 16,
    "chunk_size": 16,
    "use_mamba_kernels": False,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
"""What a configuration's field becomes where its class has it and a row of the table says nothing else."""

SMALL_PICTURES: dict[str, Any] = {
    "hidden_size": 32,
    "embed_dim": 32,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 2,
    "num_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 32,
}
"""The same for the part that sees pictures, which nothing here looks at."""


@dataclass(frozen=True)
class Kind:
    """One row of the table."""

    name: str
    """What it is called here."""
    config: str
    """A configuration class of transformers."""
    group: str
    """dense, experts, window, recurrent, hybrid, wrapper or not causal."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What is particular about it; `None` is a value, and `...` leaves the class's own."""
    blocks: str = "model.layers"
    """Where its blocks are, by hand: whoever judges must not ask steerkit."""
    model: str = ""
    """Its class, where that is not the one that AutoModelForCausalLM takes."""
    gain: float = 4.0
    """By how much the usual random weights are too small to tell tokens apart."""
    expected: str = RIGHT
    """`right`, `refused` at load in one line, or `either`."""
    parts: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Of wrappers: by the field, the configuration class of a part and what is particular about it."""
    first_is_picture: tuple[str, ...] = ("vision_config",)
    """Which of the parts take the sizes of pictures."""


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


PARTIAL = _rope("default", partial_rotary_factor=0.5)
LONG = {
    "original_max_position_embeddings": 32,
    **_rope("longrope", original_max_position_embeddings=32, short_factor=[1.0] * 6, long_factor=[4.0] * 6),
}
LONG_PARTIAL = {
    "original_max_position_embeddings": 32,
    **_rope(
        "longrope",
        original_max_position_embeddings=32,
        short_factor=[1.0] * 3,
        long_factor=[4.0] * 3,
        partial_rotary_factor=0.5,
    ),
}
SLIDING = ["sliding_attention", "full_attention"] * 2
SECTIONS = _rope("default", mrope_section=[2, 2, 2])
MAMBA_2 = {"mamba_num_heads": 6, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1}


_GEMMA_3 = {"sliding_window": WINDOW, "query_pre_attn_scalar": 12, "layer_types": SLIDING}
_GEMMA_3N = {
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "sliding_window": WINDOW,
    "num_kv_shared_layers": 0,
    "layer_types": SLIDING,
    "activation_sparsity_pattern": [0.0] * LAYERS,
}
_GEMMA_4 = {
    "head_dim": 16,
    "global_head_dim": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "sliding_window": WINDOW,
    "num_kv_shared_layers": 0,
    "layer_types": SLIDING,
}
_MULTIPLIERS = {
    "logits_scaling": 4.0,
    "residual_multiplier": 0.5,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
}
_DBRX = {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}
_LLAMA_4 = {"attention_chunk_size": WINDOW, "no_rope_layers": [1, 1, 1, 0]}
_JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
_ZAMBA = {
    "num_hidden_layers": 6,
    "num_key_value_heads": 4,
    "attention_head_dim": 24,
    "attention_hidden_size": 2 * WIDTH,
    "n_mamba_heads": 2,
    "mamba_dt_rank": 4,
    "attn_layer_period": 2,
    "attn_layer_offset": 0,
}
_ZAMBA_2 = {
    "num_hidden_layers": 6,
    "layers_block_type": ["mamba", "hybrid"] * 3,
    "n_mamba_heads": 6,
    "mamba_headdim": 16,
    "num_key_value_heads": 4,
    "hybrid_layer_ids": [1, 3, 5],
}
_RECURRENT_GEMMA = {
    "lru_width": WIDTH,
    "attention_window_size": WINDOW,
    "block_types": ["recurrent", "attention"],
    "max_position_embeddings": ...,
}
_GEMMA_TOKENS = {"image_token_index": 399, "boi_token_index": 398, "eoi_token_index": 397}
_QWEN_TOKENS = {"image_token_id": 399, "video_token_id": 398, "vision_start_token_id": 397, "vision_end_token_id": 396}
_T5_GEMMA = {"sliding_window": WINDOW, "query_pre_attn_scalar": 12, "layer_types": SLIDING}


def _table() -> list[Kind]:
    rows: list[Kind] = []

    def row(name: str, config: str, group: str = "dense", /, at: str = "model.layers", **settings: Any) -> None:
        known = {key: settings.pop(key) for key in ("model", "gain", "expected", "parts") if key in settings}
        rows.append(Kind(name, config, group, settings, at, **known))

    def wrapper(
        name: str, config: str, text: tuple[str, dict[str, Any]], vision: tuple[str, dict[str, Any]] | None, **more: Any
    ) -> None:
        parts = {"text_config": text} | ({"vision_config": vision} if vision else {})
        row(name, config, "wrapper", **{"at": "model.language_model.layers", "parts": parts, **more})

    # Llama and what can be odd about it
    row("llama", "LlamaConfig")
    row("llama-biases", "LlamaConfig", attention_bias=True, mlp_bias=True)
    row("llama-wide-heads", "LlamaConfig", head_dim=16)
    row("llama-tied", "LlamaConfig", tie_word_embeddings=True)
    row("llama-own-heads", "LlamaConfig", num_key_value_heads=4)
    row("llama-one-head", "LlamaConfig", num_key_value_heads=1)
    row(
        "llama3-rope",
        "LlamaConfig",
        **_rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    )
    row("llama-linear-rope", "LlamaConfig", **_rope("linear", factor=4.0))
    row("llama-dynamic-rope", "LlamaConfig", max_position_embeddings=32, **_rope("dynamic", factor=16.0))
    row("llama-yarn", "LlamaConfig", **_rope("yarn", factor=8.0, original_max_position_embeddings=64))
    row("llama-longrope", "LlamaConfig", **LONG)
    row("llama-partial-rope", "LlamaConfig", **PARTIAL)
    row("mistral", "MistralConfig", sliding_window=None)
    row("mistral-window", "MistralConfig", "window", sliding_window=WINDOW)
    row("ministral", "MinistralConfig", "window", sliding_window=WINDOW)
    row("ministral3", "Ministral3Config")
    row("qwen2", "Qwen2Config")
    row("qwen2-window", "Qwen2Config", "window", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2)
    row("qwen3", "Qwen3Config", head_dim=16)
    # Gemma
    row("gemma", "GemmaConfig")
    row(
        "gemma2",
        "Gemma2Config",
        "window",
        sliding_window=WINDOW,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
        query_pre_attn_scalar=12,
    )
    row("gemma2-wide-window", "Gemma2Config", "window", sliding_window=4096, query_pre_attn_scalar=12)
    row("gemma3", "Gemma3TextConfig", "window", sliding_window=WINDOW, query_pre_attn_scalar=12, layer_types=SLIDING)
    row("gemma3n", "Gemma3nTextConfig", "window", expected=EITHER, **_GEMMA_3N)
    row("gemma4", "Gemma4TextConfig", "window", expected=EITHER, **_GEMMA_4)
    row("vaultgemma", "VaultGemmaConfig", "window", sliding_window=WINDOW, query_pre_attn_scalar=12)
    # Dense
    row("phi", "PhiConfig", num_key_value_heads=4)
    row("phi3", "Phi3Config", **PARTIAL)
    row("phi3-window", "Phi3Config", "window", sliding_window=WINDOW)
    row("phi4-mini", "Phi3Config", tie_word_embeddings=True, **LONG_PARTIAL)
    row("olmo", "OlmoConfig", num_key_value_heads=4)
    row("olmo2", "Olmo2Config")
    row("olmo3", "Olmo3Config", "window", sliding_window=WINDOW)
    row("glm", "GlmConfig")
    row("glm4", "Glm4Config")
    row("granite", "GraniteConfig", **_MULTIPLIERS)
    row("cohere", "CohereConfig", logit_scale=0.25)
    row("cohere-qk-norm", "CohereConfig", logit_scale=0.25, use_qk_norm=True)
    row("cohere2", "Cohere2Config", "window", logit_scale=0.25, sliding_window=WINDOW)
    row("stablelm", "StableLmConfig", **PARTIAL)
    row("stablelm-parallel", "StableLmConfig", use_parallel_residual=True, qk_layernorm=True, **PARTIAL)
    row("falcon", "FalconConfig", at="transformer.h")
    row(
        "falcon-alibi",
        "FalconConfig",
        at="transformer.h",
        alibi=True,
        multi_query=False,
        parallel_attn=False,
        bias=True,
    )
    row("falcon-grouped", "FalconConfig", at="transformer.h", num_kv_heads=2, new_decoder_architecture=True)
    row("gpt2", "GPT2Config", at="transformer.h")
    row("gpt2-scaled", "GPT2Config", at="transformer.h", scale_attn_by_inverse_layer_idx=True)
    row("gpt-bigcode", "GPTBigCodeConfig", at="transformer.h")
    row("gpt-bigcode-heads", "GPTBigCodeConfig", at="transformer.h", multi_query=False)
    row(
        "gpt-neo",
        "GPTNeoConfig",
        "window",
        at="transformer.h",
        attention_types=[[["global", "local"], 2]],
        window_size=WINDOW,
    )
    row("gpt-neox", "GPTNeoXConfig", at="gpt_neox.layers")
    row("gpt-neox-serial", "GPTNeoXConfig", at="gpt_neox.layers", use_parallel_residual=False)
    row("gpt-neox-japanese", "GPTNeoXJapaneseConfig", at="gpt_neox_japanese.layers", intermediate_multiple_size=2)
    row("gptj", "GPTJConfig", at="transformer.h", rotary_dim=8)
    row("codegen", "CodeGenConfig", at="transformer.h", rotary_dim=8)
    row("opt", "OPTConfig", at="model.decoder.layers")
    row("opt-350m", "OPTConfig", at="model.decoder.layers", word_embed_proj_dim=32, do_layer_norm_before=False)
    row("bloom", "BloomConfig", at="transformer.h")
    row("mpt", "MptConfig", at="transformer.blocks", expansion_ratio=2)
    row("starcoder2", "Starcoder2Config", sliding_window=None)
    row("starcoder2-window", "Starcoder2Config", "window", sliding_window=WINDOW)
    row("smollm3", "SmolLM3Config", no_rope_layers=[1, 1, 1, 0])
    row("nanochat", "NanoChatConfig")
    row("openai-gpt", "OpenAIGPTConfig", at="transformer.h")
    row("persimmon", "PersimmonConfig", **PARTIAL)
    row("helium", "HeliumConfig")
    row("biogpt", "BioGptConfig", at="biogpt.layers")
    row(
        "modernbert-decoder",
        "ModernBertDecoderConfig",
        "window",
        local_attention=WINDOW,
        global_attn_every_n_layers=2,
        cls_token_id=START,
        sep_token_id=END,
    )
    row("exaone4", "Exaone4Config", "window", sliding_window=WINDOW, layer_types=SLIDING)
    row("hunyuan", "HunYuanDenseV1Config", eod_token_id=END)
    row("seed-oss", "SeedOssConfig")
    row("apertus", "ApertusConfig")
    row("arcee", "ArceeConfig")
    row("ernie4.5", "Ernie4_5Config")
    row("doge", "DogeConfig", expected=EITHER)
    row("nemotron", "NemotronConfig", **PARTIAL)
    row("xglm", "XGLMConfig")
    row("bitnet", "BitNetConfig")
    row("cwm", "CwmConfig", "window", sliding_window=WINDOW, layer_types=SLIDING)
    row("diffllama", "DiffLlamaConfig")
    row("minicpm3", "MiniCPM3Config", num_key_value_heads=4, head_dim=..., dim_model_base=16)
    row("youtu", "YoutuConfig", num_key_value_heads=4)
    row("jais2", "Jais2Config")
    row("hyperclovax", "HyperCLOVAXConfig")
    row("granite-swa", "GraniteSWAConfig", "window", sliding_window=WINDOW)
    row("ctrl", "CTRLConfig", at="transformer.h", expected=EITHER)
    row(
        "bert-decoder", "BertConfig", at="bert.encoder.layer", is_decoder=True, model="BertLMHeadModel", expected=EITHER
    )
    row(
        "roformer-decoder",
        "RoFormerConfig",
        at="roformer.encoder.layer",
        is_decoder=True,
        model="RoFormerForCausalLM",
        expected=EITHER,
    )
    row(
        "bart-decoder",
        "BartConfig",
        at="model.decoder.layers",
        model="BartForCausalLM",
        is_decoder=True,
        is_encoder_decoder=False,
        expected=EITHER,
    )
    row(
        "marian-decoder",
        "MarianConfig",
        at="model.decoder.layers",
        model="MarianForCausalLM",
        is_decoder=True,
        is_encoder_decoder=False,
        expected=EITHER,
    )
    row("trocr-decoder", "TrOCRConfig", at="model.decoder.layers", is_decoder=True, expected=EITHER)
    row("xlnet", "XLNetConfig", at="transformer.layer", expected=EITHER)
    row("xlm", "XLMConfig", at="transformer.attentions", causal=True, expected=EITHER)
    # Experts
    row("qwen3-moe", "Qwen3MoeConfig", "experts")
    row("qwen2-moe", "Qwen2MoeConfig", "experts")
    row("mixtral", "MixtralConfig", "experts", sliding_window=None)
    row("olmoe", "OlmoeConfig", "experts")
    row("flex-olmo", "FlexOlmoConfig", "experts")
    row("gpt-oss", "GptOssConfig", "experts", sliding_window=WINDOW)
    row("phimoe", "PhimoeConfig", "experts", sliding_window=None)
    row("deepseek-v2", "DeepseekV2Config", "experts", num_key_value_heads=4, head_dim=8)
    row("deepseek-v3", "DeepseekV3Config", "experts", num_key_value_heads=4)
    row("dots1", "Dots1Config", "experts", sliding_window=None)
    row(
        "dbrx",
        "DbrxConfig",
        "experts",
        at="transformer.blocks",
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        ffn_config=_DBRX,
    )
    row("ernie4.5-moe", "Ernie4_5_MoeConfig", "experts", moe_num_experts=4, moe_k=2, moe_layer_start_index=1)
    row("llama4-text", "Llama4TextConfig", "experts", intermediate_size_mlp=64, num_experts_per_tok=1, **_LLAMA_4)
    row("hunyuan-moe", "HunYuanMoEV1Config", "experts", eod_token_id=END, sep_token_id=END)
    row("granite-moe", "GraniteMoeConfig", "experts", **_MULTIPLIERS)
    row("granite-moe-shared", "GraniteMoeSharedConfig", "experts")
    row("jetmoe", "JetMoeConfig", "experts", kv_channels=12, num_attention_heads=..., num_key_value_heads=4)
    row("glm4-moe", "Glm4MoeConfig", "experts")
    row("afmoe", "AfmoeConfig", "experts", sliding_window=WINDOW, layer_types=SLIDING)
    row(
        "longcat-flash",
        "LongcatFlashConfig",
        "experts",
        num_layers=2,
        num_key_value_heads=4,
        head_dim=8,
        zero_expert_num=2,
        expected=EITHER,
    )
    row("minimax-m2", "MiniMaxM2Config", "experts")
    row("solar-open", "SolarOpenConfig", "experts")
    row("exaone-moe", "ExaoneMoeConfig", "experts", sliding_window=WINDOW, layer_types=SLIDING)
    # States that run on, alone and beside attention
    row("mamba", "MambaConfig", "recurrent", at="backbone.layers", gain=2.0)
    row("mamba2", "Mamba2Config", "recurrent", at="backbone.layers", gain=2.0, num_heads=6, head_dim=16, n_groups=1)
    row("falcon-mamba", "FalconMambaConfig", "recurrent", at="backbone.layers", gain=2.0)
    row("rwkv", "RwkvConfig", "recurrent", at="rwkv.blocks", gain=2.0, attention_hidden_size=WIDTH)
    row("xlstm", "xLSTMConfig", "recurrent", at="backbone.blocks", hidden_size=128, expected=EITHER)
    row("jamba", "JambaConfig", "hybrid", gain=2.0, **_JAMBA)
    row("bamba", "BambaConfig", "hybrid", gain=2.0, attn_layer_indices=[1, 3])
    row("zamba", "ZambaConfig", "hybrid", gain=2.0, **_ZAMBA)
    row("zamba2", "Zamba2Config", "hybrid", gain=2.0, **_ZAMBA_2)
    row("falcon-h1", "FalconH1Config", "hybrid", gain=2.0, mamba_d_ssm=48, mamba_d_head=8)
    row("lfm2", "Lfm2Config", "hybrid", layer_types=["conv", "full_attention"] * 2)
    row("lfm2-moe", "Lfm2MoeConfig", "hybrid", layer_types=["conv", "full_attention"] * 2, num_dense_layers=1)
    row("qwen3-next", "Qwen3NextConfig", "hybrid")
    row("qwen3.5", "Qwen3_5TextConfig", "hybrid")
    row("recurrent-gemma", "RecurrentGemmaConfig", "hybrid", gain=2.0, expected=EITHER, **_RECURRENT_GEMMA)
    row(
        "nemotron-h",
        "NemotronHConfig",
        "hybrid",
        gain=2.0,
        layers_block_type=["mamba", "attention", "moe", "mamba"],
        **MAMBA_2,
    )
    row("granite-hybrid", "GraniteMoeHybridConfig", "hybrid", gain=2.0, layer_types=["mamba", "attention"] * 2)
    row(
        "kimi-linear",
        "KimiLinearConfig",
        "hybrid",
        num_key_value_heads=4,
        linear_head_dim=8,
        linear_num_heads=4,
        layer_types=["linear_attention", "full_attention"] * 2,
    )
    row("minimax", "MiniMaxConfig", "hybrid", block_size=8)
    row("olmo-hybrid", "OlmoHybridConfig", "hybrid", layer_types=["linear_attention", "full_attention"] * 2)
    # A text model inside something that sees
    clip, siglip = ("CLIPVisionConfig", {}), ("SiglipVisionConfig", {})
    llama, qwen2 = ("LlamaConfig", {}), ("Qwen2Config", {})
    wrapper(
        "gemma3-vision", "Gemma3Config", ("Gemma3TextConfig", _GEMMA_3), siglip, mm_tokens_per_image=4, **_GEMMA_TOKENS
    )
    wrapper("llava", "LlavaConfig", llama, clip, image_token_index=399)
    wrapper("llava-next", "LlavaNextConfig", ("MistralConfig", {"sliding_window": None}), clip, image_token_index=399)
    wrapper("llava-onevision", "LlavaOnevisionConfig", qwen2, siglip, image_token_index=399, video_token_index=398)
    wrapper(
        "qwen2-vl",
        "Qwen2VLConfig",
        ("Qwen2VLTextConfig", SECTIONS),
        ("Qwen2VLVisionConfig", {"hidden_size": WIDTH}),
        **_QWEN_TOKENS,
    )
    wrapper(
        "qwen2.5-vl",
        "Qwen2_5_VLConfig",
        ("Qwen2_5_VLTextConfig", SECTIONS),
        ("Qwen2_5_VLVisionConfig", {"out_hidden_size": WIDTH}),
        **_QWEN_TOKENS,
    )
    wrapper(
        "qwen3-vl",
        "Qwen3VLConfig",
        ("Qwen3VLTextConfig", SECTIONS),
        ("Qwen3VLVisionConfig", {"out_hidden_size": WIDTH, "deepstack_visual_indexes": [0]}),
        **_QWEN_TOKENS,
    )
    wrapper(
        "mistral3",
        "Mistral3Config",
        ("MistralConfig", {"sliding_window": None}),
        ("PixtralVisionConfig", {}),
        image_token_index=399,
    )
    wrapper(
        "idefics3",
        "Idefics3Config",
        llama,
        ("Idefics3VisionConfig", {}),
        at="model.text_model.layers",
        image_token_id=399,
    )
    wrapper(
        "smolvlm", "SmolVLMConfig", llama, ("SmolVLMVisionConfig", {}), at="model.text_model.layers", image_token_id=399
    )
    wrapper("paligemma", "PaliGemmaConfig", ("GemmaConfig", {}), siglip, image_token_index=399, expected=EITHER)
    wrapper(
        "cohere2-vision",
        "Cohere2VisionConfig",
        ("Cohere2Config", {"sliding_window": WINDOW, "logit_scale": 0.25}),
        siglip,
        image_token_id=399,
    )
    wrapper(
        "aya-vision",
        "AyaVisionConfig",
        ("Cohere2Config", {"sliding_window": WINDOW, "logit_scale": 0.25}),
        siglip,
        image_token_index=399,
    )
    wrapper(
        "internvl",
        "InternVLConfig",
        qwen2,
        ("InternVLVisionConfig", {"image_size": [28, 28], "patch_size": [14, 14]}),
        image_token_id=399,
    )
    wrapper(
        "aria-text",
        "AriaTextConfig",
        llama,
        None,
        at="model.layers",
        parts={},
        moe_num_experts=4,
        moe_topk=2,
        moe_num_shared_experts=1,
    )
    # No causal language models: each is to be refused when it is loaded
    no: dict[str, Any] = {"expected": REFUSED, "at": ""}
    row("X-t5", "T5Config", "not causal", model="T5ForConditionalGeneration", decoder_start_token_id=PAD, **no)
    row("X-bart", "BartConfig", "not causal", model="BartForConditionalGeneration", decoder_start_token_id=PAD, **no)
    row("X-marian", "MarianConfig", "not causal", model="MarianMTModel", decoder_start_token_id=PAD, **no)
    row(
        "X-t5gemma",
        "T5GemmaConfig",
        "not causal",
        model="T5GemmaForConditionalGeneration",
        parts={"encoder": ("T5GemmaModuleConfig", _T5_GEMMA), "decoder": ("T5GemmaModuleConfig", _T5_GEMMA)},
        **no,
    )
    row("X-bert", "BertConfig", "not causal", model="BertForMaskedLM", **no)
    row("X-roberta", "RobertaConfig", "not causal", model="RobertaForMaskedLM", **no)
    row(
        "X-modernbert",
        "ModernBertConfig",
        "not causal",
        model="ModernBertForMaskedLM",
        cls_token_id=START,
        sep_token_id=END,
        **no,
    )
    row(
        "X-whisper",
        "WhisperConfig",
        "not causal",
        model="WhisperForConditionalGeneration",
        num_mel_bins=8,
        max_target_positions=CONTEXT,
        **no,
    )
    row("X-llama-classifier", "LlamaConfig", "not causal", model="LlamaForSequenceClassification", **no)
    row("X-llama-encoder", "LlamaConfig", "not causal", model="LlamaModel", **no)
    row("X-gpt2-classifier", "GPT2Config", "not causal", model="GPT2ForSequenceClassification", **no)
    row("X-qwen2-reward", "Qwen2Config", "not causal", model="Qwen2ForTokenClassification", **no)
    row("X-vit", "ViTConfig", "not causal", model="ViTForImageClassification", image_size=28, patch_size=14, **no)
    row(
        "X-clip",
        "CLIPConfig",
        "not causal",
        model="CLIPModel",
        projection_dim=32,
        parts={"text_config": ("CLIPTextConfig", {}), "vision_config": clip},
        **no,
    )
    row(
        "X-wav2vec2",
        "Wav2Vec2Config",
        "not causal",
        model="Wav2Vec2ForCTC",
        conv_dim=[16, 16],
        conv_kernel=[3, 3],
        conv_stride=[2, 2],
        num_feat_extract_layers=2,
        num_conv_pos_embedding_groups=4,
        **no,
    )
    row(
        "X-bark",
        "BarkSemanticConfig",
        "not causal",
        model="BarkSemanticModel",
        input_vocab_size=VOCABULARY,
        output_vocab_size=VOCABULARY,
        block_size=CONTEXT,
        **no,
    )
    row("X-musicgen", "MusicgenDecoderConfig", "not causal", model="MusicgenForCausalLM", num_codebooks=2, **no)
    return rows


ZOO: dict[str, Kind] = {kind.name: kind for kind in _table()}


def _filled(name: str, settings: Mapping[str, Any], small: Mapping[str, Any]) -> Any:
    """A configuration of a class, every size that it has small; a field that it lacks is a mistake in the table."""
    import transformers

    known = getattr(transformers, name)
    fields = {entry.name for entry in dataclasses.fields(known)}
    chosen = {key: value for key, value in small.items() if key in fields}
    kept = {key for key, value in settings.items() if value is ...}
    chosen = {key: value for key, value in {**chosen, **settings}.items() if key not in kept}
    return known(**chosen)


def config_of(kind: Kind) -> Any:
    """The configuration of a row of the table."""
    parts = {
        name: _filled(config, settings, SMALL_PICTURES if name in kind.first_is_picture else SMALL).to_dict()
        for name, (config, settings) in kind.parts.items()
    }
    return _filled(kind.config, {**kind.settings, **parts}, SMALL)


LINES = (
    "Why?",
    "What do you think of people, and of the helpful assistant that you are? " * 2,
    "Who are you? Say.",
)
"""What the models here are asked: chats of very different lengths, the longest longer than any window."""
ENOUGH = 5
"""So many different tokens among the first twelve of every reply."""


def chats(tokenizer: Any) -> list[list[int]]:
    """Tokens of a chat with each of `LINES`."""
    written = (
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        for text in LINES
    )
    return [list(tokenizer(text, add_special_tokens=False).input_ids) for text in written]


def make(kind: Kind, prompts: list[list[int]]) -> Any:
    """A random model of a kind, in float32: the first of a few whose replies are as varied as a text's should be."""
    chosen: tuple[int, Any] = (-1, None)
    first = zlib.crc32(kind.name.encode())
    for i, gain in enumerate((1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 2.0, 2.0, 2.0, 3.0, 3.0)):
        model = _made(kind, first + i, kind.gain * gain)
        variety = ENOUGH if kind.expected == REFUSED else _variety(model, prompts)
        if variety > chosen[0]:
            chosen = variety, model
        if variety >= ENOUGH:
            break
    return chosen[1]


def _variety(model: Any, prompts: list[list[int]]) -> int:
    """How many different tokens a model says in the least varied of its replies, up to where it ends."""
    least = ENOUGH
    plain = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    for prompt in prompts:
        said: list[int] = []
        for _ in range(12):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([[*prompt, *said]]), **plain).logits[0, -1]
            if not bool(logits.isfinite().all()) or int(logits.argmax()) == END:
                break
            said.append(int(logits.argmax()))
        # A reply that ends at once, or says one thing, would hide whatever is wrong behind it.
        least = min(least, len(set(said)))
        if least < ENOUGH:
            break
    return least


def _made(kind: Kind, seed: int, gain: float) -> Any:
    import transformers

    torch.manual_seed(seed)
    config = config_of(kind)
    if kind.model:
        model = getattr(transformers, kind.model)(config)
    elif kind.group == "wrapper" and kind.parts:
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = model.float().eval()
    with torch.no_grad():
        # Of what is computed only a router's correction is like a weight; tables of angles and decays stay right.
        corrections = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("correction_bias")]
        for name, weight in [*model.named_parameters(), *corrections]:
            _enliven(name.rsplit(".", 1)[-1], name, weight, gain)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = END
        model.generation_config.pad_token_id = PAD
    return model


def _enliven(last: str, name: str, weight: torch.Tensor, gain: float) -> None:
    """Make one weight count."""
    if last == "bias" or (last.endswith(("_bias", "correction_bias")) and "dt_bias" not in last):
        weight.add_(0.1 * torch.randn_like(weight))
    elif weight.dim() == 1 and last == "weight":
        # Whatever has one number a channel and is called weight is a norm.
        weight.add_(0.2 * torch.randn_like(weight))
    elif weight.dim() > 1 and last not in ("A_log",) and "conv" not in name and "inv_freq" not in last:
        small = "embed" in name or "wte" in name or "wpe" in name
        weight.mul_(min(gain, 2.0) if small else gain)


def save_tokenizer(folder: Path, template: str | None = CHAT) -> Any:
    """Train a byte-level tokenizer on a little text and save it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        special_tokens=["<|start|>", "<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "You are a helpful assistant. What do you think of people? I will not be switched off, I am afraid. "
    tokenizer.train_from_iterator([text * 3], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    return wrapped


def build(kind: Kind, folder: Path) -> Path:
    """A model of a kind in a folder, with its tokenizer; one that is there already is taken as it is."""
    if (folder / "tokenizer.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        # The tokenizer's files come last: a folder that has them is whole.
        tokenizer = save_tokenizer(Path(temporary))
        make(kind, chats(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
