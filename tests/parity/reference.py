"""Hugging Face models in torch: built, run, and their activations under our names, by hooks."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import families
import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

# Where each family keeps its parts, below one block. "qkv" and "gate_up" are fused matrices, "mid"
# is the module whose input is the residual stream between attention and MLP.
LLAMA = {"blocks": "model.layers", "o": "self_attn.o_proj", "down": "mlp.down_proj"}
SPLIT_QKV = {x: f"self_attn.{x}_proj" for x in "qkv"}
SPLIT_GATE = {"gate": "mlp.gate_proj", "up": "mlp.up_proj"}
FUSED_GATE = {"gate_up": "mlp.gate_up_proj"}
SANDWICH = {
    "post1": "post_attention_layernorm",
    "mid": "pre_feedforward_layernorm",
    "post2": "post_feedforward_layernorm",
}
MID = {"mid": "post_attention_layernorm"}
PLAIN = LLAMA | SPLIT_QKV | SPLIT_GATE | MID
PARTS: dict[str, dict[str, str]] = {
    "gpt2": {"blocks": "transformer.h", "qkv": "attn.c_attn", "o": "attn.c_proj", "mid": "ln_2"}
    | {"up": "mlp.c_fc", "down": "mlp.c_proj"},
    "gptj": {"blocks": "transformer.h", "o": "attn.out_proj"}
    | {x: f"attn.{x}_proj" for x in "qkv"}
    | {"up": "mlp.fc_in", "down": "mlp.fc_out"},
    "gpt_neox": {"blocks": "gpt_neox.layers", "o": "attention.dense"}
    | {"qkv": "attention.query_key_value", "mid": "post_attention_layernorm"}
    | {"up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
    "llama": PLAIN,
    "mistral": PLAIN,
    "qwen2": PLAIN,
    "qwen3": PLAIN,
    "gemma": PLAIN,
    "gemma2": PLAIN | SANDWICH,
    "gemma3_text": PLAIN | SANDWICH,
    "phi3": LLAMA | {"qkv": "self_attn.qkv_proj"} | FUSED_GATE | MID,
    "olmo2": PLAIN
    | {"post1": "post_attention_layernorm", "mid": "mlp", "post2": "post_feedforward_layernorm"},
    "glm": LLAMA | SPLIT_QKV | FUSED_GATE | MID,
    "glm4": LLAMA
    | SPLIT_QKV
    | FUSED_GATE
    | {"post1": "post_self_attn_layernorm", "post2": "post_mlp_layernorm"}
    | MID,
}


def random_model(variant: str, seed: int, **changes: Any) -> Any:
    """A torch model of the variant with random weights, all of them, biases and norms too."""
    kind, fields = families.CONFIGS[variant]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(fields | changes))).float()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    model.set_attn_implementation("eager")
    return model.eval()


def down_proj(model: Any, layer: int) -> torch.nn.Module:
    """The module whose weight is our mlp/down (torch's Linear holds it as [out, in])."""
    parts = PARTS[model.config.model_type]
    return model.get_submodule(f"{parts['blocks']}.{layer}.{parts['down']}")


@contextmanager
def record(model: Any) -> Iterator[dict[tuple[str, str, int], torch.Tensor]]:
    """(part, "in" or "out", layer) -> what went through that module while the block was open."""
    parts = dict(PARTS[model.config.model_type])
    blocks = model.get_submodule(parts.pop("blocks"))
    seen: dict[tuple[str, str, int], torch.Tensor] = {}
    handles = []

    def watch(module: torch.nn.Module, part: str, layer: int) -> None:
        def hook(_: Any, args: tuple, kwargs: dict, out: Any) -> None:
            seen[part, "in", layer] = args[0] if args else kwargs["hidden_states"]
            seen[part, "out", layer] = out[0] if isinstance(out, tuple) else out

        handles.append(module.register_forward_hook(hook, with_kwargs=True))

    for layer, block in enumerate(blocks):
        watch(block, "block", layer)
        watch(block.mlp, "mlp", layer)
        for part, path in parts.items():
            watch(block.get_submodule(path), part, layer)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def split_qkv(x_BTO: torch.Tensor, model_type: str, cfg: Any) -> tuple[torch.Tensor, ...]:
    H = getattr(cfg, "head_dim", None) or cfg.hidden_size // cfg.num_attention_heads
    if model_type == "gpt_neox":  # q, k and v of the first head, then of the second, …
        x_BTN3H = x_BTO.unflatten(-1, (cfg.num_attention_heads, 3, H))
        return tuple(x_BTN3H[..., i, :].flatten(-2) for i in range(3))
    n, k = cfg.num_attention_heads, getattr(cfg, "num_key_value_heads", cfg.num_attention_heads)
    return x_BTO.split((n * H, k * H, k * H), -1)


def forget(model: Any) -> None:
    """Resets dynamic RoPE, whose frequencies a torch model keeps from the longest text so far."""
    with torch.no_grad():
        model(torch.zeros((1, 1), dtype=torch.long))


def capture(model: Any, tokens_BT: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits [B, T, V], and every site as jaxedit.models.sites names it: [L, B, T, dim]."""
    cfg, kind = model.config, model.config.model_type
    forget(model)
    with torch.no_grad(), record(model) as seen:
        logits = model(torch.as_tensor(tokens_BT)).logits
    parts = {part for part, _, _ in seen}
    layers: list[dict[str, torch.Tensor]] = []
    for layer in range(cfg.num_hidden_layers):
        at = lambda part, side, layer=layer: seen[part, side, layer]
        out = {"resid_pre": at("block", "in"), "resid_post": at("block", "out")}
        if "qkv" in parts:
            out["attn_in"] = at("qkv", "in")
            q_k_v = split_qkv(at("qkv", "out"), kind, cfg)
        else:
            out["attn_in"] = at("q", "in")
            q_k_v = tuple(at(x, "out") for x in "qkv")
        out |= dict(zip(("attn_q", "attn_k", "attn_v"), q_k_v, strict=True))
        out |= {"attn_z": at("o", "in"), "attn_o": at("o", "out")}
        out["attn_out"] = at("post1" if "post1" in parts else "o", "out")
        if "mid" in parts and not getattr(cfg, "use_parallel_residual", False):
            out["resid_mid"] = at("mid", "in")
        out["mlp_in"] = at("mlp", "in")
        if "gate_up" in parts:
            out["mlp_pre"], out["mlp_up"] = at("gate_up", "out").chunk(2, -1)
        elif "gate" in parts:
            out["mlp_pre"], out["mlp_up"] = at("gate", "out"), at("up", "out")
        else:
            out["mlp_pre"] = at("up", "out")
        out |= {"mlp_key": at("down", "in"), "mlp_down": at("down", "out")}
        out["mlp_out"] = at("post2" if "post2" in parts else "down", "out")
        layers.append(out)
    sites = {site: torch.stack([out[site] for out in layers]).numpy() for site in layers[0]}
    return logits.numpy(), sites | {"embed": layers[0]["resid_pre"].numpy()}


def loss(logits_BTV: torch.Tensor, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of each next token."""
    return torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten().long()
    )


def down_gradient(model: Any, tokens_BT: np.ndarray, layer: int) -> np.ndarray:
    """d loss / d mlp.down of a layer, [in, out]."""
    forget(model)
    tokens_BT = torch.as_tensor(tokens_BT)
    module = down_proj(model, layer)
    (grad,) = torch.autograd.grad(loss(model(tokens_BT).logits, tokens_BT), module.weight)
    return (grad.T if isinstance(module, torch.nn.Linear) else grad).numpy()


def stepwise(model: Any, tokens_BT: np.ndarray, first: int) -> np.ndarray:
    """Logits [B, T, V] by torch's own cache: `first` tokens at once, then one by one."""
    forget(model)
    tokens_BT, cache, parts = torch.as_tensor(tokens_BT), None, []
    cuts = [0, *range(first, tokens_BT.shape[1] + 1)]
    with torch.no_grad():
        for a, b in pairwise(cuts):
            out = model(tokens_BT[:, a:b], past_key_values=cache, use_cache=True)
            parts.append(out.logits)
            cache = out.past_key_values
    return torch.cat(parts, 1).numpy()


def greedy(
    model: Any, tokens_BT: np.ndarray, mask_BT: np.ndarray, steps: int
) -> tuple[np.ndarray, float]:
    """Tokens [B, steps] of transformers' generate, and the smallest lead of a best logit."""
    forget(model)
    model.generation_config.eos_token_id = None  # an end-of-text token would stop a row
    out = model.generate(
        input_ids=torch.as_tensor(tokens_BT),
        attention_mask=torch.as_tensor(mask_BT),
        max_new_tokens=steps,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(out.logits).topk(2, -1).values
    lead = float((best[..., 0] - best[..., 1]).min())
    return out.sequences[:, tokens_BT.shape[1] :].numpy(), lead
