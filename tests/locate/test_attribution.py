"""What vectors add to an answer, against the definition written out, and what must add up."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import write_model
from small_models import planted, rows

import jaxedit
from jaxedit.locate import attribution, direct
from jaxedit.models.layers import norm

TOKENS, POS = rows([[5, 17, 42, 8, 61, 30], [9, 3, 7]])
FAMILIES = ("gpt2", "llama", "gptj", "gemma2", "olmo2", "qwen3")


@cache
def model(variant, folder=None):
    return jaxedit.load(write_model(variant, folder), dtype="float32")


@pytest.fixture(params=FAMILIES)
def loaded(request, tmp_path_factory):
    name = request.param
    return name, model(name, tmp_path_factory.getbasetemp() / f"attribution-{name}")


def readout(params, cfg, x, scale, answer):
    """log p of the answer by the definition: the norm's gain, no biases, its scale held."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True) if cfg.norm == "layer" else x
    x = x * scale * (np.asarray(params["norm"]["w"], np.float64) + (cfg.norm == "rms1p"))
    w = params["embed"]["w"].T if cfg.tied else params["head"]["w"]
    z = x @ np.asarray(w, np.float64)
    z = cfg.logit_softcap * np.tanh(z / cfg.logit_softcap) if cfg.logit_softcap else z
    return z[..., answer] - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1)) - z.max(-1)


def seen(m, b):
    out = jaxedit.forward(
        m.params, TOKENS, m.cfg, pos_BT=POS,
        reads=dict.fromkeys(["resid_pre", "attn_out", "mlp_key", "mlp_down", "mlp_out", "attn_z",
                             "attn_o", "attn_v", "resid_post"]),
    )  # fmt: skip
    last = np.asarray(out.reads["resid_post"][-1, b, -1], np.float64)
    centred = last - last.mean() if m.cfg.norm == "layer" else last
    scale = 1 / np.sqrt((centred**2).mean() + m.cfg.eps)
    return (
        {k: np.asarray(v[:, b]) for k, v in out.reads.items()},
        scale,
        int(out.logits[b, -1].argmax()),
    )


def test_importance_is_what_the_definition_says(loaded):
    """Every neuron of a layer, by hand; Gemma 2 and OLMo 2 norm what their MLPs add."""
    name, m = loaded
    every = m.cfg.layers * m.cfg.mlp
    found = attribution.importance(m.params, TOKENS, POS, None, m.cfg, exact=every)
    first = attribution.importance(m.params, TOKENS, POS, None, m.cfg, exact=0)
    blocks = m.params["blocks"]
    for b in range(len(TOKENS)):
        reads, scale, answer = seen(m, b)
        for layer in (0, m.cfg.layers - 1):
            x = (reads["resid_pre"] + reads["attn_out"])[layer, -1]
            add = reads["mlp_key"][layer, -1][:, None] * blocks["mlp"]["down"]["w"][layer]
            if "post_norm2" in blocks:
                down = reads["mlp_down"][layer, -1]
                p = jax.tree.map(lambda z, layer=layer: z[layer], blocks["post_norm2"])
                add = add * np.asarray(norm(p, jnp.asarray(down), m.cfg)) / down
            want = readout(m.params, m.cfg, x + add, scale, answer)
            want -= readout(m.params, m.cfg, x, scale, answer)
            np.testing.assert_allclose(found[b, layer], want, atol=2e-4, err_msg=name)
    ranks = np.argsort(-np.asarray(first), axis=None)[:10]
    assert len(np.intersect1d(ranks, np.argsort(-np.asarray(found), axis=None)[:10])) >= 6


def test_few_exact_ones_are_those_of_all(loaded):
    _, m = loaded
    every = attribution.importance(m.params, TOKENS, POS, None, m.cfg, exact=10**6)
    few = attribution.importance(m.params, TOKENS, POS, None, m.cfg, exact=9)
    first = np.asarray(attribution.importance(m.params, TOKENS, POS, None, m.cfg, exact=0))
    for b in range(len(TOKENS)):
        best = np.argsort(-first[b], axis=None)[:9]
        np.testing.assert_allclose(few[b].ravel()[best], every[b].ravel()[best], atol=1e-5)
        rest = np.setdiff1d(np.arange(first[b].size), best)
        np.testing.assert_allclose(few[b].ravel()[rest], first[b].ravel()[rest], atol=1e-6)


def test_what_heads_bring_from_every_source_adds_up_to_what_attention_does(loaded):
    name, m = loaded
    cfg = m.cfg
    run = direct.observe(m.params, TOKENS, POS, None, cfg, {})
    weight = direct.patterns(m.params, TOKENS, POS, cfg, run.attn_out)
    np.testing.assert_allclose(weight.sum(-1), 1, atol=1e-5)
    assert float(jnp.abs(weight[:, 1, :, :3]).max()) < 1e-6  # padding is not attended to
    sub = direct.subvalues(run.value, weight, cfg)
    z = jaxedit.forward(m.params, TOKENS, cfg, pos_BT=POS, reads={"attn_z": None}).reads["attn_z"]
    want = z[:, :, -1].reshape(sub.shape[:4])
    np.testing.assert_allclose(sub.sum(-1), want, atol=1e-4, err_msg=name)


def test_long_prompts_are_read_in_parts(loaded):
    """More columns than a head has numbers."""
    name, m = loaded
    tokens, pos = rows([np.arange(1, 2 * m.cfg.head_dim + 4)])
    run = direct.observe(m.params, tokens, pos, None, m.cfg, {})
    weight = direct.patterns(m.params, tokens, pos, m.cfg, run.attn_out)
    assert weight.shape[-1] == tokens.shape[1]
    np.testing.assert_allclose(weight.sum(-1), 1, atol=1e-5, err_msg=name)


def test_layers_and_heads_are_sums_of_their_neurons(loaded):
    name, m = loaded
    cfg, blocks = m.cfg, m.params["blocks"]
    found = attribution.parts(m.params, TOKENS, POS, None, cfg)
    best = attribution.attention_neurons(m.params, TOKENS, POS, None, cfg, most=20)
    assert (jnp.diff(best.score, axis=1) <= 1e-6).all()
    for b in range(len(TOKENS)):
        reads, scale, answer = seen(m, b)
        at = lambda x, scale=scale, answer=answer: readout(m.params, cfg, x, scale, answer)
        pre, mid = reads["resid_pre"][:, -1], (reads["resid_pre"] + reads["attn_out"])[:, -1]
        np.testing.assert_allclose(found["attn"][b], at(mid) - at(pre), atol=2e-4, err_msg=name)
        want = at(mid + reads["mlp_out"][:, -1]) - at(mid)
        np.testing.assert_allclose(found["mlp"][b], want, atol=2e-4, err_msg=name)
        # a head, and a neuron of one, in the last layer
        layer, n = cfg.layers - 1, cfg.heads - 1
        z = reads["attn_z"][layer, -1].reshape(cfg.heads, cfg.head_dim)[n]
        w = np.asarray(blocks["attn"]["o"]["w"][layer]).reshape(cfg.heads, cfg.head_dim, -1)[n]
        gain = 1.0
        if "post_norm1" in blocks:
            o = reads["attn_o"][layer, -1]
            p = jax.tree.map(lambda z: z[-1], blocks["post_norm1"])
            gain = np.asarray(norm(p, jnp.asarray(o), cfg)) / o
        want = at(pre[layer] + gain * (z @ w)) - at(pre[layer])
        assert float(found["heads"][b, layer, n]) == pytest.approx(want, abs=2e-4)


def test_query_neurons_share_what_attention_reads():
    """What all MLPs, all attention, biases and the embedding bring to a key is the whole of it."""
    (params, cfg), tokens, _, _ = planted()
    tokens, pos = rows([tokens])
    found = attribution.query_neurons(params, tokens, pos, None, cfg, top=1)
    best = attribution.attention_neurons(params, tokens, pos, None, cfg)
    layer, n, dim, source = (int(x[0, 0]) for x in (best.layer, best.head, best.dim, best.source))
    assert not found[0, layer:].any()  # only lower layers can
    out = jaxedit.forward(params, tokens, cfg, pos_BT=pos,
                          reads=dict.fromkeys(["resid_pre", "mlp_out"])).reads  # fmt: skip
    w = np.asarray(params["blocks"]["attn"]["v"]["w"][layer])[:, n * cfg.head_dim + dim]
    key = w * np.asarray(params["blocks"]["norm1"]["w"][layer])
    key = key - key.mean()
    whole = out["resid_pre"][layer, 0, source] @ key
    bias = params["blocks"]["mlp"]["down"]["b"]
    for below in range(layer):
        share = (out["mlp_out"][below, 0, source] - bias[below]) @ key / whole
        assert float(found[0, below].sum()) == pytest.approx(
            float(share * best.score[0, 0]), rel=1e-3, abs=1e-6
        )


def test_a_planted_neuron_is_the_highest_and_taking_heads_out_is_seen():
    (params, cfg), tokens, answer, place = planted()
    given = (params, *rows([tokens]), jnp.array([answer]), cfg)
    found = attribution.importance(*given)
    assert np.unravel_index(int(found[0].argmax()), found[0].shape) == place
    without = attribution.importance(*given, writes=attribution.silence(cfg, 0, [0, 1]))
    assert float(jnp.abs(without - found).max()) > 0
    gone = attribution.difference(*given, writes=attribution.silence(cfg, 0, [0, 1]))
    np.testing.assert_allclose(gone, found - without, atol=1e-6)
    # another model whose planted neuron says nothing: what is gone is all that it said
    (layer, unit), down = place, params["blocks"]["mlp"]["down"]
    mlp = params["blocks"]["mlp"] | {"down": down | {"w": down["w"].at[layer, unit].set(0)}}
    other = params | {"blocks": params["blocks"] | {"mlp": mlp}}
    asked = (params, *rows([tokens]), None, cfg)  # the answer is the first model's, in both
    gone = attribution.difference(*asked, other=other)
    assert np.unravel_index(int(gone[0].argmax()), gone[0].shape) == place
    np.testing.assert_allclose(gone[0][place], found[0][place], rtol=1e-4)
    with pytest.raises(ValueError, match="give other"):
        attribution.difference(*given)
    with pytest.raises(ValueError, match=r"layer 0, heads \[9\]"):
        attribution.silence(cfg, 0, [9])
