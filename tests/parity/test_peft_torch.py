"""Adapters beside peft itself: what we write it runs, what it writes we run, with equal logits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit import delta, merge
from jaxedit.base import LowRank
from jaxedit.hf import peft as ours
from jaxedit.hf.load import load
from jaxedit.models.sites import matrices
from jaxedit.models.transformer import forward

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
tf = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

LLAMA = {
    "vocab_size": 53,
    "hidden_size": 32,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**LLAMA),
    "tied": lambda: tf.Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=53, n_embd=32, n_layer=12, n_head=4, n_positions=32, bos_token_id=1
    ),
    "phi3": lambda: tf.Phi3Config(**LLAMA),
    "glm": lambda: tf.GlmConfig(**LLAMA, head_dim=8),
    "gpt_neox": lambda: tf.GPTNeoXConfig(
        **{k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
    ),
}
TOKENS = np.random.RandomState(0).randint(0, 53, (3, 9))


@pytest.fixture(params=CONFIGS)
def pair(request, tmp_path):
    """The same random model in torch and here."""
    torch.manual_seed(0)
    theirs = tf.AutoModelForCausalLM.from_config(CONFIGS[request.param]()).eval()
    theirs.save_pretrained(tmp_path / "model")
    return theirs, load(tmp_path / "model")


def theirs_logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def ours_logits(params, cfg, deltas=None):
    return np.asarray(forward(params, jnp.asarray(TOKENS), cfg, deltas=deltas).logits)


def close(x, y):
    error = np.abs(x - y).max() / np.abs(y).max()
    print(f"relative difference {error:.1e}")
    assert error <= 1e-5


def low_rank(seed, cfg, path, layers, rank):
    I, O = matrices(cfg)[path]
    n = () if "/" not in path else (len(layers),)
    ka, kb = jax.random.split(jax.random.key(seed))
    a = 0.1 * jax.random.normal(ka, (*n, I, rank))
    b = 0.1 * jax.random.normal(kb, (*n, rank, O))
    return LowRank(a, b, jnp.array(layers) if n else None)


def test_our_adapters_run_there(pair, tmp_path):
    theirs, model = pair
    cfg = model.cfg
    base = theirs_logits(theirs)
    deltas = {
        "mlp/down": low_rank(1, cfg, "mlp/down", [1, 11], 2),
        "mlp/up": low_rank(2, cfg, "mlp/up", [3], 1),
        "attn/o": low_rank(3, cfg, "attn/o", [0], 3),
    }
    deltas = delta.compose(deltas, {"mlp/down": low_rank(4, cfg, "mlp/down", [10, 11], 3)})
    deltas["attn/q"] = low_rank(5, cfg, "attn/q", [1, 2], 2)
    deltas["attn/v"] = low_rank(6, cfg, "attn/v", [2, 11], 1)
    if cfg.gated:
        deltas["mlp/gate"] = low_rank(7, cfg, "mlp/gate", [3, 4], 2)
    if not cfg.tied:
        deltas["head"] = low_rank(8, cfg, "head", [], 1)
    ours.export(deltas, cfg, tmp_path / "adapter")
    want = theirs_logits(peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter"))
    assert np.abs(want - base).max() > 1e-2 * np.abs(base).max()
    close(ours_logits(model.params, cfg, deltas), want)
    close(ours_logits(merge.apply(model.params, deltas), cfg), want)


TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj", "lm_head"],
    "glm": ["q_proj", "gate_up_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h", "lm_head"],
}


@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_their_adapters_run_here(pair, tmp_path, rslora):
    theirs, model = pair
    cfg = model.cfg
    down = {"gpt2": "mlp.c_proj", "gpt_neox": "dense_4h_to_h"}.get(cfg.family, "down_proj")
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        use_rslora=rslora,
        target_modules=TARGETS.get(cfg.family, ["q_proj", "v_proj", "gate_proj", "down_proj"]),
        rank_pattern={rf"1\.mlp\.{down.split('.')[-1]}": 4, down: 2},
        alpha_pattern={rf".*\.11\.mlp\.{down.split('.')[-1]}": 7},
        fan_in_fan_out=cfg.family == "gpt2",
        task_type="CAUSAL_LM",
    )
    base = theirs_logits(theirs)
    wrapped = peft.get_peft_model(theirs, config)
    for name, p in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.1)
    wrapped.eval().save_pretrained(tmp_path / "adapter")
    want = theirs_logits(wrapped)
    assert np.abs(want - base).max() > 1e-2 * np.abs(base).max()
    deltas = ours.read(tmp_path / "adapter", cfg)
    assert deltas["mlp/down"].a.shape[-1] == 4
    close(ours_logits(model.params, cfg, deltas), want)
    close(ours_logits(merge.apply(model.params, deltas), cfg), want)


def test_every_field_of_their_config_is_known():
    """A field that a new peft adds may change what a module computes; it is to be looked at."""
    fields = set(peft.LoraConfig(r=1, target_modules=["x"]).to_dict())
    harmless = {"alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config"}
    harmless |= {"ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out"}
    harmless |= {"inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"}
    harmless |= {"loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config"}
    harmless |= {"megatron_core", "peft_type", "peft_version", "qalora_group_size", "r"}
    harmless |= {"rank_pattern", "revision", "target_modules", "task_type", "use_rslora"}
    harmless |= {"velora_config"}
    assert fields <= harmless | set(ours.BEYOND), json.dumps(sorted(fields - harmless))
