"""Tiny random models of many architectures, with the tokenizer of the built-in model: ``build("mistral", folder)``."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path
from typing import Any

from oblivion.models.loading import TINY

CONTEXT = 256
_STD = 0.08
"""Of weight matrices, at least: with the 0.02 that transformers draws, a tiny model hardly looks at its input."""

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "vocab_size": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8}
_PADDED = {"vocab_size": 1032}  # transformers gives every tokenizer of this type a token more
_WINDOW = {"sliding_window": 12}
_MIXED = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
_EXPERTS = {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}

_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", _GROUPED | _WINDOW),
    "ministral": ("ministral", _GROUPED | _MIXED),
    "qwen2": ("qwen2", _GROUPED | _PADDED),
    "qwen2-window": (
        "qwen2",
        _GROUPED
        | _PADDED
        | _WINDOW
        | {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "qwen3": ("qwen3", _GROUPED),
    "gemma": ("gemma", _GROUPED),
    "gemma2": (
        "gemma2",
        _GROUPED | _MIXED | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 1.0, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": ("gemma3_text", _GROUPED | _MIXED | {"query_pre_attn_scalar": 8}),
    "gemma3-nested": ("gemma3", {"text_config": _SIZES | _GROUPED | _MIXED, "vision_config": _VISION}),
    "phi": ("phi", {"intermediate_size": 64, "resid_pdrop": 0.1}),
    "phi3": ("phi3", _GROUPED | _WINDOW),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.1}),
    "gpt2": ("gpt2", {}),
    "gpt-neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 12}),
    "gpt-neox": ("gpt_neox", {"intermediate_size": 64}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "codegen": ("codegen", {"rotary_dim": 4}),
    "bloom": ("bloom", {}),
    "falcon": ("falcon", {}),
    "falcon-alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "mpt": ("mpt", {}),
    "stablelm": ("stablelm", {"intermediate_size": 64, "num_key_value_heads": 2}),
    "starcoder2": ("starcoder2", _GROUPED | _WINDOW | {"residual_dropout": 0.1, "embedding_dropout": 0.1}),
    "gpt-bigcode": ("gpt_bigcode", {}),
    "olmo": ("olmo", _GROUPED),
    "olmo2": ("olmo2", _GROUPED),
    "cohere": ("cohere", _GROUPED | {"logit_scale": 0.25}),
    "cohere2": ("cohere2", _GROUPED | _MIXED | {"logit_scale": 0.25}),
    "granite": (
        "granite",
        _GROUPED | {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    ),
    "mixtral": ("mixtral", _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2-moe": ("qwen2_moe", _EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3-moe": ("qwen3_moe", _EXPERTS),
    "olmoe": ("olmoe", _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": ("gpt_oss", _GROUPED | _MIXED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek-v2": ("deepseek_v2", _LATENT),
    "deepseek-v3": ("deepseek_v3", _LATENT),
    "mamba": ("mamba", {"state_size": 8}),
    "mamba2": ("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "recurrent-gemma": (
        "recurrent_gemma",
        {"num_hidden_layers": 3, "intermediate_size": 64, "lru_width": 32, "attention_window_size": 12},
    ),
    "falcon-h1": (
        "falcon_h1",
        _GROUPED | _MAMBA | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5, "embedding_multiplier": 2.0},
    ),
    "jamba": (
        "jamba",
        _GROUPED
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
        | {"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8, "use_mamba_kernels": False},
    ),
    "bamba": ("bamba", _GROUPED | _MAMBA | {"attn_layer_indices": [1]}),
    "lfm2": ("lfm2", _GROUPED | {"layer_types": ["conv", "full_attention"]}),
    "nemotron": ("nemotron", _GROUPED),
    "persimmon": ("persimmon", {"intermediate_size": 64}),
    "xglm": ("xglm", {"ffn_dim": 64, "layerdrop": 0.1}),
    "biogpt": ("biogpt", {"intermediate_size": 64, "layerdrop": 0.1}),
    "llama4": (
        "llama4_text",
        _GROUPED
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 64,
            "interleave_moe_layer_step": 2,
        }
        | {"attention_chunk_size": 16},
    ),
    "smollm3": ("smollm3", _GROUPED | {"no_rope_layers": [1, 0]}),
    "ernie4-5": ("ernie4_5", _GROUPED),
    "glm": ("glm", _GROUPED),
    "glm4": ("glm4", _GROUPED),
    "exaone4": ("exaone4", _GROUPED | _MIXED),
    "helium": ("helium", _GROUPED),
    "modernbert-decoder": ("modernbert-decoder", {"intermediate_size": 64, "local_attention": 24}),
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "context_length": CONTEXT}),
    "ctrl": ("ctrl", {"dff": 64}),
    "openai-gpt": ("openai-gpt", {}),
    "olmo3": ("olmo3", _GROUPED | _MIXED),
    "bert": ("bert", {"intermediate_size": 64}),
    "bert-decoder": ("bert", {"intermediate_size": 64, "is_decoder": True}),
    "roberta-decoder": ("roberta", {"intermediate_size": 64, "is_decoder": True}),
    "bart": ("bart", {"decoder_ffn_dim": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "is_decoder": True}),
    "qwen3-next": (
        "qwen3_next",
        _EXPERTS
        | {"shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"]}
        | {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "gemma3n": (
        "gemma3n_text",
        _GROUPED
        | _MIXED
        | {"intermediate_size": [64, 64], "vocab_size_per_layer_input": 1024, "hidden_size_per_layer_input": 8}
        | {"num_kv_shared_layers": 0, "laurel_rank": 4, "activation_sparsity_pattern": [0.0, 0.0]},
    ),
    "gemma4": (
        "gemma4_text",
        _GROUPED
        | _MIXED
        | {"vocab_size_per_layer_input": 1024, "hidden_size_per_layer_input": 8, "global_head_dim": 8}
        | {"num_kv_shared_layers": 0},
    ),
    "nemotron-h": (
        "nemotron_h",
        _GROUPED
        | {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1}
        | {"ssm_state_size": 8, "chunk_size": 8},
    ),
    "phimoe": ("phimoe", _GROUPED | _WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "seed-oss": ("seed_oss", _GROUPED),
    "minimax": (
        "minimax",
        _GROUPED
        | {"layer_types": ["linear_attention", "full_attention"], "num_local_experts": 4, "num_experts_per_tok": 2}
        | {"block_size": 16},
    ),
    "diffllama": ("diffllama", _GROUPED),
    "doge": ("doge", _GROUPED),
    "arcee": ("arcee", _GROUPED),
    "apertus": ("apertus", _GROUPED),
}
KINDS = tuple(_KINDS)
"""Names of the architectures, as the model's type in transformers and what is special about this one."""


def build(kind: str, folder: Path, **changes: Any) -> Path:
    """Write a random causal language model: two layers of width 32, context 256, float32, safetensors.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    folder : Path
        Where to; it is made.
    **changes
        Values of the model's config in place of the table's, sizes by their general names (`num_hidden_layers`).

    Returns
    -------
    Path
        `folder`: the model with the built-in tokenizer. The same kind and changes give the same weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model_type, own = _KINDS[kind]
    settings = {**(_SIZES | own if "text_config" not in own else own), **changes}
    config = AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(zlib.crc32(kind.encode()))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # biases and norms begin at 0 and 1, where a mix-up would not show
                parameter.add_(0.05 * torch.randn_like(parameter))
            elif not name.endswith("A_log") and 0 < float(parameter.std()) < _STD:
                parameter.mul_(_STD / parameter.std())
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder / name)
    return folder
