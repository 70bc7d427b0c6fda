"""ModelConfig from transformers' configurations and back, per family.

transformers' own classes parse config.json (they need no torch): they know the defaults and the
legacy spellings of every checkpoint on the hub. Here their fields become ours, with what they leave
implicit made explicit.
"""

import math
from typing import Any

from jaxedit.models.config import ModelConfig, Rope

ACTS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
GELU = {"gelu_tanh": "gelu_pytorch_tanh"}  # the same function has three names


def act(name: str) -> str:
    if name not in ACTS:
        raise ValueError(f"activation {name!r} is not supported: {', '.join(ACTS)}")
    return ACTS[name]


def refuse(c: Any, **wanted: Any) -> None:
    """Raises where a config asks for something that the forward pass does not do."""
    for name, value in wanted.items():
        if (got := getattr(c, name, None)) is not None and got != value:
            raise ValueError(f"{c.model_type} with {name}={got!r} is not supported, only {value!r}")


def read_common(c: Any) -> dict[str, Any]:
    eos = c.eos_token_id
    mlp = getattr(c, "n_inner", None) or getattr(c, "intermediate_size", None)
    return {
        "family": c.model_type,
        "layers": c.num_hidden_layers,
        "embed": c.hidden_size,
        "heads": c.num_attention_heads,
        "kv_heads": getattr(c, "num_key_value_heads", None) or c.num_attention_heads,
        "head_dim": getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
        "mlp": mlp or 4 * c.hidden_size,
        "vocab": c.vocab_size,
        "max_len": c.max_position_embeddings,
        "tied": bool(c.tie_word_embeddings),
        "bos_id": c.bos_token_id,
        "eos_ids": tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
    }


def write_common(cfg: ModelConfig) -> dict[str, Any]:
    eos = list(cfg.eos_ids)
    return {
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.embed,
        "num_attention_heads": cfg.heads,
        "vocab_size": cfg.vocab,
        "max_position_embeddings": cfg.max_len,
        "tie_word_embeddings": cfg.tied,
        "bos_token_id": cfg.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": None,
    }


def read_rope(r: dict[str, Any], c: Any) -> Rope:
    """transformers' rope_parameters, with what it derives from them made explicit."""
    kind = r.get("rope_type", "default")
    length = r.get("original_max_position_embeddings") or c.max_position_embeddings
    factor = float(r.get("factor") or 0)
    kw: dict[str, Any] = {"theta": float(r["rope_theta"]), "kind": kind}
    if kind == "default":
        return Rope(**kw)
    if kind == "dynamic":
        length = c.max_position_embeddings
    if kind in ("yarn", "longrope") and not factor:
        factor = c.max_position_embeddings / length
    kw |= {"factor": factor, "original_len": length}
    attention_factor = r.get("attention_factor")
    if kind == "yarn":
        scale = lambda m: 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1
        m, m_all = r.get("mscale"), r.get("mscale_all_dim")
        default = scale(m) / scale(m_all) if m and m_all else scale(1)
        kw |= {
            "beta_fast": float(r.get("beta_fast") or 32),
            "beta_slow": float(r.get("beta_slow") or 1),
        }
        kw |= {"truncate": bool(r.get("truncate", True))}
        kw |= {"attention_factor": float(default if attention_factor is None else attention_factor)}
    elif kind == "longrope":
        default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(length))
        kw |= {"short_factor": tuple(map(float, r["short_factor"]))}
        kw |= {"long_factor": tuple(map(float, r["long_factor"]))}
        kw |= {"attention_factor": float(default if attention_factor is None else attention_factor)}
    elif kind == "llama3":
        kw |= {"low_freq": float(r["low_freq_factor"]), "high_freq": float(r["high_freq_factor"])}
    elif kind not in ("linear", "dynamic"):
        raise ValueError(
            f"rope type {kind!r} is not supported: default, linear, dynamic, llama3, yarn, longrope"
        )
    return Rope(**kw)


def write_rope(r: Rope) -> dict[str, Any]:
    out: dict[str, Any] = {"rope_type": r.kind, "rope_theta": r.theta}
    if r.kind == "default":
        return out
    out["factor"] = r.factor
    if r.kind in ("llama3", "yarn", "longrope"):
        out["original_max_position_embeddings"] = r.original_len
    if r.kind == "llama3":
        out |= {"low_freq_factor": r.low_freq, "high_freq_factor": r.high_freq}
    elif r.kind == "yarn":
        out |= {"beta_fast": r.beta_fast, "beta_slow": r.beta_slow, "truncate": r.truncate}
        out |= {"attention_factor": r.attention_factor}
    elif r.kind == "longrope":
        out |= {"short_factor": list(r.short_factor), "long_factor": list(r.long_factor)}
        out |= {"attention_factor": r.attention_factor}
    return out


def read_windows(c: Any) -> tuple[int, ...]:
    """How far each layer's attention reaches back; () where all see everything."""
    width, kinds = getattr(c, "sliding_window", None), getattr(c, "layer_types", None)
    if not width:
        return ()
    if kinds is None:
        return (width,) * c.num_hidden_layers
    windows = tuple(width if kind == "sliding_attention" else 0 for kind in kinds)
    return windows if any(windows) else ()


def write_windows(cfg: ModelConfig) -> dict[str, Any]:
    width = max(cfg.windows, default=0) or None
    kinds = [
        "sliding_attention" if w else "full_attention" for w in cfg.windows or (0,) * cfg.layers
    ]
    return {"sliding_window": width, "layer_types": kinds}


def read_gpt2(c: Any) -> dict[str, Any]:
    refuse(
        c, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
    )
    kw = {"norm": "layer", "eps": c.layer_norm_epsilon, "act": act(c.activation_function)}
    kw |= {
        "gated": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "learned_pos": True,
    }
    return read_common(c) | kw


def write_gpt2(cfg: ModelConfig) -> dict[str, Any]:
    kw = {"layer_norm_epsilon": cfg.eps, "activation_function": GELU.get(cfg.act, cfg.act)}
    return write_common(cfg) | kw | {"n_inner": None if cfg.mlp == 4 * cfg.embed else cfg.mlp}


def read_gptj(c: Any) -> dict[str, Any]:
    refuse(c, tie_word_embeddings=False)  # its head has a bias, which ours has only untied
    kw = {"norm": "layer", "eps": c.layer_norm_epsilon, "act": act(c.activation_function)}
    kw |= {"gated": False, "mlp_bias": True, "head_bias": True}
    kw |= {"parallel": True, "shared_norm": True, "rope_interleaved": True}
    common = read_common(c)
    return common | kw | {"rotary_dim": c.rotary_dim or common["head_dim"]}


def write_gptj(cfg: ModelConfig) -> dict[str, Any]:
    return write_gpt2(cfg) | {"rotary_dim": cfg.rotary_dim}


def read_neox(c: Any) -> dict[str, Any]:
    kw = {"norm": "layer", "eps": c.layer_norm_eps, "act": act(c.hidden_act), "gated": False}
    kw |= {"qkv_bias": c.attention_bias, "out_bias": c.attention_bias, "mlp_bias": True}
    common = read_common(c)
    share = c.rope_parameters.get("partial_rotary_factor", 1.0)
    kw |= {
        "rotary_dim": int(common["head_dim"] * share),
        "ropes": (read_rope(c.rope_parameters, c),),
    }
    return common | kw | {"parallel": c.use_parallel_residual}


def write_neox(cfg: ModelConfig) -> dict[str, Any]:
    kw = {"layer_norm_eps": cfg.eps, "hidden_act": GELU.get(cfg.act, cfg.act)}
    kw |= {"attention_bias": cfg.qkv_bias, "use_parallel_residual": cfg.parallel}
    rope = write_rope(cfg.ropes[0]) | {"partial_rotary_factor": cfg.rotary_dim / cfg.head_dim}
    return write_common(cfg) | kw | {"intermediate_size": cfg.mlp, "rope_parameters": rope}


def read_llama(c: Any, rope: dict[str, Any] | None = None) -> dict[str, Any]:
    """Llama and all that descends from it; what a family lacks, its config does not mention."""
    rope = rope or c.rope_parameters
    common = read_common(c)
    share = rope.get("partial_rotary_factor") or 1.0
    bias = bool(getattr(c, "attention_bias", False))
    kw = {"norm": "rms", "eps": c.rms_norm_eps, "windows": read_windows(c), "qkv_bias": bias}
    kw |= {"act": act(getattr(c, "hidden_activation", None) or c.hidden_act)}
    kw |= {"out_bias": bias, "mlp_bias": bool(getattr(c, "mlp_bias", False))}
    kw |= {"rotary_dim": int(common["head_dim"] * share), "ropes": (read_rope(rope, c),)}
    return common | kw


def write_llama(cfg: ModelConfig) -> dict[str, Any]:
    kw: dict[str, Any] = {"rms_norm_eps": cfg.eps, "head_dim": cfg.head_dim}
    kw |= {"num_key_value_heads": cfg.kv_heads, "intermediate_size": cfg.mlp}
    kw |= {"hidden_act": GELU.get(cfg.act, cfg.act)}
    kw |= {"attention_bias": cfg.qkv_bias, "rope_parameters": write_rope(cfg.ropes[0])}
    if cfg.rotary_dim != cfg.head_dim:
        kw["rope_parameters"] |= {"partial_rotary_factor": cfg.rotary_dim / cfg.head_dim}
    return write_common(cfg) | kw


def read_glm(c: Any) -> dict[str, Any]:
    """Pairs of neighbours are turned; queries, keys and values have biases, the output has none."""
    return read_llama(c) | {"rope_interleaved": True, "out_bias": False}


def read_gemma(c: Any, rope: dict[str, Any] | None = None) -> dict[str, Any]:
    scale = {"norm": "rms1p", "embed_scale": float(c.hidden_size**0.5)}
    return read_llama(c, rope) | scale


ROPE_KINDS = ("sliding_attention", "full_attention")  # Gemma 3 has a rotary base for each


def read_gemma2(c: Any) -> dict[str, Any]:
    refuse(c, use_bidirectional_attention=False)
    ropes = c.rope_parameters
    out = {"post_norm": True, "attn_scale": c.query_pre_attn_scalar**-0.5}
    out |= {"attn_softcap": c.attn_logit_softcapping or 0.0}
    out |= {"logit_softcap": c.final_logit_softcapping or 0.0}
    if "full_attention" not in ropes:
        return read_gemma(c) | out
    out |= {"ropes": tuple(read_rope(ropes[k], c) for k in ROPE_KINDS), "qk_norm": "head"}
    out |= {"rope_kind": tuple(ROPE_KINDS.index(kind) for kind in c.layer_types)}
    return read_gemma(c, ropes["full_attention"]) | out


def write_gemma2(cfg: ModelConfig) -> dict[str, Any]:
    kw = write_llama(cfg) | write_windows(cfg)
    scalar = cfg.head_dim if cfg.attn_scale is None else cfg.attn_scale**-2
    kw |= {"query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar}
    kw |= {"attn_logit_softcapping": cfg.attn_softcap or None}
    kw |= {"final_logit_softcapping": cfg.logit_softcap or None}
    kw |= {"hidden_activation": kw.pop("hidden_act")}
    if len(cfg.ropes) == 2:
        kw["rope_parameters"] = {
            k: write_rope(r) for k, r in zip(ROPE_KINDS, cfg.ropes, strict=True)
        }
        kw["layer_types"] = [ROPE_KINDS[i] for i in cfg.rope_kind]
    return kw


def write_qwen(cfg: ModelConfig) -> dict[str, Any]:
    return write_llama(cfg) | write_windows(cfg) | {"use_sliding_window": any(cfg.windows)}


def write_qwen2(cfg: ModelConfig) -> dict[str, Any]:
    out = write_qwen(cfg)
    del out["attention_bias"]  # not a choice in this family
    return out


def write_flat_window(cfg: ModelConfig) -> dict[str, Any]:
    return write_llama(cfg) | {"sliding_window": max(cfg.windows, default=0) or None}


def write_phi3(cfg: ModelConfig) -> dict[str, Any]:
    rope = cfg.ropes[0]
    length = rope.original_len or cfg.max_len
    return write_flat_window(cfg) | {"original_max_position_embeddings": length}
