"""What Hugging Face calls things: one table of keys and one pair of config functions per family.

A key table is used in both directions, to load and to save; `hf.config` has the functions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxedit.hf import config
from jaxedit.models.config import ModelConfig
from jaxedit.models.specs import specs


class Key(NamedTuple):
    """One tensor of a file and the weights of ours that it holds.

    hf: its name, {} for the layer. ours: one path, or several where it fuses matrices along their
    outputs. out_in: stored [out, in] (torch's Linear), ours are [in, out]. by_head: fused head by
    head (GPT-NeoX).
    """

    hf: str
    ours: tuple[str, ...]
    out_in: bool = False
    by_head: bool = False


class Family(NamedTuple):
    """A model_type of Hugging Face."""

    architecture: str
    keys: tuple[Key, ...]
    read: Callable[[Any], dict[str, Any]]  # transformers' config -> fields of ModelConfig
    write: Callable[[ModelConfig], dict[str, Any]]  # and back
    renames: tuple[tuple[str, str], ...] = ()  # other beginnings that files use -> ours
    ignore: tuple[str, ...] = ()  # tensors that files hold and nobody needs: regular expressions
    model_type: str = ""  # what is written, where it differs from what was read


def linear(hf: str, *ours: str, out_in: bool = True, by_head: bool = False) -> tuple[Key, Key]:
    """A matrix and its bias; `family_keys` drops the bias where a config has none."""
    weights, biases = tuple(f"{o}/w" for o in ours), tuple(f"{o}/b" for o in ours)
    return (
        Key(f"{hf}.weight", weights, out_in, by_head),
        Key(f"{hf}.bias", biases, False, by_head),
    )


def norm(hf: str, ours: str) -> tuple[Key, Key]:
    return Key(f"{hf}.weight", (f"{ours}/w",)), Key(f"{hf}.bias", (f"{ours}/b",))


HEAD = linear("lm_head", "head")
QKV = ("blocks/attn/q", "blocks/attn/k", "blocks/attn/v")
GATE_UP = ("blocks/mlp/gate", "blocks/mlp/up")


def llama_keys(
    *, fused_qkv: bool = False, fused_gate: bool = False, norms: dict[str, str] | None = None
) -> tuple[Key, ...]:
    """The names that Llama set and most families keep."""
    at = "model.layers.{}."
    keys = [Key("model.embed_tokens.weight", ("embed/w",)), *norm("model.norm", "norm"), *HEAD]
    if fused_qkv:
        keys += linear(f"{at}self_attn.qkv_proj", *QKV)
    else:
        for name in "qkv":
            keys += linear(f"{at}self_attn.{name}_proj", f"blocks/attn/{name}")
    keys += linear(f"{at}self_attn.o_proj", "blocks/attn/o")
    keys += [*norm(f"{at}self_attn.q_norm", "blocks/attn/q_norm")]
    keys += [*norm(f"{at}self_attn.k_norm", "blocks/attn/k_norm")]
    if fused_gate:
        keys += linear(f"{at}mlp.gate_up_proj", *GATE_UP)
    else:
        keys += [*linear(f"{at}mlp.gate_proj", GATE_UP[0]), *linear(f"{at}mlp.up_proj", GATE_UP[1])]
    keys += linear(f"{at}mlp.down_proj", "blocks/mlp/down")
    norms = norms or {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
    for ours, hf in norms.items():
        keys += norm(f"{at}{hf}", f"blocks/{ours}")
    return tuple(keys)


def gpt2_keys() -> tuple[Key, ...]:
    at = "transformer.h.{}."
    return (
        Key("transformer.wte.weight", ("embed/w",)),
        Key("transformer.wpe.weight", ("pos/w",)),
        *norm("transformer.ln_f", "norm"),
        *HEAD,
        *norm(f"{at}ln_1", "blocks/norm1"),
        *norm(f"{at}ln_2", "blocks/norm2"),
        *linear(f"{at}attn.c_attn", *QKV, out_in=False),  # Conv1D stores [in, out]
        *linear(f"{at}attn.c_proj", "blocks/attn/o", out_in=False),
        *linear(f"{at}mlp.c_fc", "blocks/mlp/up", out_in=False),
        *linear(f"{at}mlp.c_proj", "blocks/mlp/down", out_in=False),
    )


def gptj_keys() -> tuple[Key, ...]:
    at = "transformer.h.{}."
    return (
        Key("transformer.wte.weight", ("embed/w",)),
        *norm("transformer.ln_f", "norm"),
        *HEAD,
        *norm(f"{at}ln_1", "blocks/norm1"),
        *(k for n in "qkv" for k in linear(f"{at}attn.{n}_proj", f"blocks/attn/{n}")),
        *linear(f"{at}attn.out_proj", "blocks/attn/o"),
        *linear(f"{at}mlp.fc_in", "blocks/mlp/up"),
        *linear(f"{at}mlp.fc_out", "blocks/mlp/down"),
    )


def neox_keys() -> tuple[Key, ...]:
    at = "gpt_neox.layers.{}."
    return (
        Key("gpt_neox.embed_in.weight", ("embed/w",)),
        *norm("gpt_neox.final_layer_norm", "norm"),
        *linear("embed_out", "head"),
        *norm(f"{at}input_layernorm", "blocks/norm1"),
        *norm(f"{at}post_attention_layernorm", "blocks/norm2"),
        *linear(f"{at}attention.query_key_value", *QKV, by_head=True),
        *linear(f"{at}attention.dense", "blocks/attn/o"),
        *linear(f"{at}mlp.dense_h_to_4h", "blocks/mlp/up"),
        *linear(f"{at}mlp.dense_4h_to_h", "blocks/mlp/down"),
    )


SANDWICH = {
    "norm1": "input_layernorm",
    "post_norm1": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm",
    "post_norm2": "post_feedforward_layernorm",
}
OLMO2 = {"post_norm1": "post_attention_layernorm", "post_norm2": "post_feedforward_layernorm"}
GLM4 = {
    "norm1": "input_layernorm",
    "post_norm1": "post_self_attn_layernorm",
    "norm2": "post_attention_layernorm",
    "post_norm2": "post_mlp_layernorm",
}


def plus(read: Callable[[Any], dict[str, Any]], **fields: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda c: read(c) | fields


GPT2_BUFFERS = (r"\.attn\.bias$", r"\.attn\.masked_bias$", r"\.attention\.(bias|masked_bias)$")
ROPE_BUFFERS = (r"rotary_emb\.inv_freq$",)
GEMMA3 = Family(
    "Gemma3ForCausalLM",
    llama_keys(norms=SANDWICH),
    config.read_gemma2,
    config.write_gemma2,
    renames=(("model.language_model.", "model."), ("language_model.", "")),
    ignore=(r"vision_tower\.", r"multi_modal_projector\."),
    model_type="gemma3_text",
)

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        gpt2_keys(),
        config.read_gpt2,
        config.write_gpt2,
        renames=tuple((n, f"transformer.{n}") for n in ("wte.", "wpe.", "h.", "ln_f.")),
        ignore=GPT2_BUFFERS,
    ),
    "gptj": Family(
        "GPTJForCausalLM", gptj_keys(), config.read_gptj, config.write_gptj, ignore=GPT2_BUFFERS
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        neox_keys(),
        config.read_neox,
        config.write_neox,
        renames=(("lm_head.", "embed_out."),),
        ignore=GPT2_BUFFERS + ROPE_BUFFERS,
    ),
    "llama": Family(
        "LlamaForCausalLM",
        llama_keys(),
        config.read_llama,
        lambda cfg: config.write_llama(cfg) | {"mlp_bias": cfg.mlp_bias},
        ignore=ROPE_BUFFERS,
    ),
    "mistral": Family(
        "MistralForCausalLM", llama_keys(), config.read_llama, config.write_flat_window
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        llama_keys(),
        plus(config.read_llama, qkv_bias=True, out_bias=False),
        config.write_qwen2,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM", llama_keys(), plus(config.read_llama, qk_norm="head"), config.write_qwen
    ),
    "gemma": Family("GemmaForCausalLM", llama_keys(), config.read_gemma, config.write_llama),
    "gemma2": Family(
        "Gemma2ForCausalLM", llama_keys(norms=SANDWICH), config.read_gemma2, config.write_gemma2
    ),
    "gemma3_text": GEMMA3,
    "gemma3": GEMMA3,  # text and vision: the text half
    "phi3": Family(
        "Phi3ForCausalLM",
        llama_keys(fused_qkv=True, fused_gate=True),
        config.read_llama,
        config.write_phi3,
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        llama_keys(norms=OLMO2),
        plus(config.read_llama, qk_norm="full", pre_norm=False, post_norm=True),
        config.write_llama,
    ),
    "glm": Family(
        "GlmForCausalLM", llama_keys(fused_gate=True), config.read_glm, config.write_llama
    ),
    "glm4": Family(
        "Glm4ForCausalLM",
        llama_keys(fused_gate=True, norms=GLM4),
        plus(config.read_glm, post_norm=True),
        config.write_llama,
    ),
}


def family_keys(cfg: ModelConfig) -> list[Key]:
    """The tensors of this config's files: the table without what the architecture lacks."""
    table = specs(cfg)
    keys = [k for k in FAMILIES[cfg.family].keys if all(path in table for path in k.ours)]
    missing = set(table) - {path for k in keys for path in k.ours}
    assert not missing, f"{cfg.family}: no tensor of the file holds {sorted(missing)}"
    return keys
