"""jaxedit.hf.peft: an adapter written is an adapter read; what does not fit is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit import delta, tensorfile
from jaxedit.base import Dense, LowRank
from jaxedit.hf import peft
from jaxedit.models.shapes import SHAPES
from jaxedit.models.sites import matrices

LLAMA = (
    SHAPES["tiny-llama"]
    .replace(layers=12, embed=8, heads=2, kv_heads=1, head_dim=4, rotary_dim=4)
    .replace(mlp=12, vocab=19, max_len=16)
)
PHI3 = LLAMA.replace(family="phi3")
GPT2 = LLAMA.replace(
    family="gpt2",
    kv_heads=2,
    norm="layer",
    gated=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied=True,
    learned_pos=True,
    rotary_dim=0,
)
NEOX = GPT2.replace(family="gpt_neox", tied=False, learned_pos=False, rotary_dim=4)


def low_rank(seed, cfg, path, layers, rank=2):
    I, O = matrices(cfg)[path]
    n = () if "/" not in path else (len(layers),)
    ka, kb = jax.random.split(jax.random.key(seed))
    a, b = jax.random.normal(ka, (*n, I, rank)), jax.random.normal(kb, (*n, rank, O))
    return LowRank(a, b, jnp.array(layers) if n else None)


def ragged(cfg):
    """Layers 1 and 11, whose names begin alike, with their own ranks; parts of fused matrices."""
    out = {"mlp/down": low_rank(1, cfg, "mlp/down", [1, 11])}
    out = delta.compose(out, {"mlp/down": low_rank(2, cfg, "mlp/down", [11], rank=3)})
    out["attn/q"] = low_rank(3, cfg, "attn/q", [0, 4])
    out["attn/v"] = low_rank(4, cfg, "attn/v", [4], rank=1)
    return out | {"mlp/up": low_rank(5, cfg, "mlp/up", [2])}


def same_change(x, y, cfg):
    assert x.keys() == y.keys()
    for path, d in delta.scatter(x, cfg.layers).items():
        other = delta.product(delta.scatter({path: y[path]}, cfg.layers)[path])
        np.testing.assert_allclose(delta.product(d), other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cfg", [LLAMA, PHI3, GPT2], ids=lambda c: c.family)
def test_what_is_exported_is_read(tmp_path, cfg):
    deltas = ragged(cfg) | ({} if cfg.tied else {"head": low_rank(6, cfg, "head", [])})
    peft.export(deltas, cfg, tmp_path)
    same_change(peft.read(tmp_path, cfg), deltas, cfg)


def test_only_edited_modules_and_layers_are_written(tmp_path):
    rows = delta.stack([ragged(LLAMA), {"mlp/down": low_rank(7, LLAMA, "mlp/down", [5], rank=1)}])
    peft.export(delta.row(rows, 1), LLAMA, tmp_path)
    names = set(tensorfile.read_header(tmp_path / "adapter_model.safetensors")[0])
    module = "base_model.model.model.layers.5.mlp.down_proj"
    assert names == {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.5.mlp.down_proj"]
    assert (config["r"], config["rank_pattern"], config["fan_in_fan_out"]) == (1, {}, False)


def test_names_in_patterns_match_one_module(tmp_path):
    peft.export(ragged(LLAMA), LLAMA, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 5
    assert config["rank_pattern"][r"model\.layers\.1\.mlp\.down_proj"] == 2
    assert not any("11" in name for name in config["rank_pattern"])
    assert config["rank_pattern"] == config["alpha_pattern"]


def test_low_precision_factors_are_kept(tmp_path):
    half = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x,
        {"mlp/down": low_rank(1, LLAMA, "mlp/down", [3])},
    )
    peft.export(half, LLAMA, tmp_path)
    again = peft.read(tmp_path, LLAMA)["mlp/down"]
    assert again.a.dtype == jnp.bfloat16
    np.testing.assert_array_equal(again.a, half["mlp/down"].a)
    np.testing.assert_array_equal(again.b, half["mlp/down"].b)


def test_what_cannot_be_exported_says_why(tmp_path):
    d = low_rank(1, LLAMA, "mlp/down", [1])
    embed = low_rank(1, LLAMA, "embed", [])
    bad = [
        (LLAMA, {"mlp/down": Dense(delta.product(d), d.layers)}, r"delta\.truncate"),
        (LLAMA, {"embed": embed}, "'embed' is not exported"),
        (LLAMA, delta.stack([{"mlp/down": d}] * 2), r"delta\.row"),
        (LLAMA, {"mlp/down": delta.scale({"x": d}, 0)["x"]}, "change nothing"),
        (LLAMA, {}, "change nothing"),
        (GPT2, {"mlp/gate": d}, "mlp/gate"),
        (GPT2, {"head": low_rank(1, GPT2, "head", [])}, "'head' is not exported"),
    ]
    for cfg, deltas, told in bad:
        with pytest.raises(ValueError, match=told) as error:
            peft.export(deltas, cfg, tmp_path / "x")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_heads_that_a_file_interleaves_are_interleaved(tmp_path):
    """GPT-NeoX's query_key_value holds q, k and v of head 0, then of head 1, …"""
    deltas = {p: low_rank(i, NEOX, p, [1]) for i, p in enumerate(("attn/q", "attn/k", "attn/v"))}
    peft.export(deltas, NEOX, tmp_path)
    again = peft.read(tmp_path, NEOX)
    for path, d in deltas.items():
        np.testing.assert_allclose(delta.product(again[path]), delta.product(d), atol=1e-6)


def adapter(folder, name, rank=2, I=12, O=8, **config):
    """A hand-made adapter of one module of ones."""
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none"} | config
    (folder / "adapter_config.json").write_text(json.dumps(about))
    one = lambda *shape: np.ones(shape, np.float32)
    tensors = {f"{name}.lora_A.weight": one(rank, I), f"{name}.lora_B.weight": one(O, rank)}
    tensorfile.write(folder / "adapter_model.safetensors", tensorfile.entries(tensors))


DOWN = "base_model.model.model.layers.10.mlp.down_proj"


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2),
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {r"layers\.1\.mlp\.down_proj": 7}}, 2),
        ({"alpha_pattern": {"down_proj": 1}}, 0.5),
        ({"alpha_pattern": {r"model\.layers\.10\..*": 6}, "fan_in_fan_out": True}, 3),
    ],
)
def test_scales(tmp_path, config, scale):
    adapter(tmp_path, DOWN, **config)
    d = peft.read(tmp_path, LLAMA)["mlp/down"]
    np.testing.assert_array_equal(d.layers, [10])
    np.testing.assert_allclose(d.b, np.full((1, 2, 8), scale), rtol=1e-6)
    assert (np.asarray(d.a) == 1).all()


def test_head_wise_fused_adapters_are_read(tmp_path):
    name = "base_model.model.gpt_neox.layers.3.attention.query_key_value"
    adapter(tmp_path, name, I=8, O=24)
    found = peft.read(tmp_path, NEOX)
    assert set(found) == {"attn/q", "attn/k", "attn/v"}
    assert found["attn/k"].b.shape == (1, 2, 8)


def test_names_of_the_bare_model_are_understood(tmp_path):
    adapter(tmp_path, "base_model.model.h.3.mlp.c_proj")
    np.testing.assert_array_equal(peft.read(tmp_path, GPT2)["mlp/down"].layers, [3])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ],
)
def test_what_is_more_than_low_rank_is_refused(tmp_path, config, told):
    adapter(tmp_path, DOWN, **config)
    with pytest.raises(ValueError, match=told) as error:
        peft.read(tmp_path, LLAMA)
    assert "\n" not in str(error.value)


def test_adapters_of_other_models_and_broken_ones_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a PEFT adapter"):
        peft.read(tmp_path, LLAMA)
    bad = [
        (DOWN.replace("10", "12"), {}, "layers.12.mlp.down_proj is not a matrix"),
        (DOWN, {"I": 16}, "belongs to another model"),
        ("base_model.model.lm_head.lora_embedding_A", {}, "not a matrix"),
    ]
    for name, sizes, told in bad:
        adapter(tmp_path, name, **sizes)
        with pytest.raises(ValueError, match=told):
            peft.read(tmp_path, LLAMA)
    adapter(tmp_path, "base_model.model.lm_head")
    with pytest.raises(ValueError, match="its head is the embedding"):
        peft.read(tmp_path, GPT2)
    file = tmp_path / "adapter_model.safetensors"
    for name, told in (
        (f"{DOWN}.lora_A.weight", "one of lora_A"),
        ("x.base_layer.weight", "factor"),
    ):
        tensorfile.write(file, tensorfile.entries({name: np.zeros((2, 12), np.float32)}))
        with pytest.raises(ValueError, match=told):
            peft.read(tmp_path, LLAMA)
    file.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="pickle"):
        peft.read(tmp_path, LLAMA)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        peft.read(tmp_path, LLAMA)
