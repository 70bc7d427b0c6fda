"""The fused kernels are chosen where they can do what the einsum does, and then they do it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxedit import sharding
from jaxedit.models import attention
from jaxedit.models.attention import attend, choose
from jaxedit.models.shapes import SHAPES

LLAMA = SHAPES["llama-3.1-8b"].replace(heads=4, kv_heads=2, head_dim=128)


def inputs(T=256, H=128, N=4, K=2, dtype=jnp.float32, padding=100):
    draw = lambda i, heads: jax.random.normal(jax.random.key(i), (2, T, heads, H)).astype(dtype)
    pos = np.tile(np.arange(T), (2, 1))
    pos[1] = np.r_[np.full(padding, -1), np.arange(T - padding)]  # left padded
    q, k, v = draw(0, N), draw(1, K).swapaxes(1, 2), draw(2, K).swapaxes(1, 2)
    return q, k, v, jnp.asarray(pos)


def compare(cfg, dtype, tolerance):
    q, k, v, pos = inputs(dtype=dtype)
    run = lambda kernel: attend(
        q, k, v, cfg.replace(attention=kernel), pos_BT=pos, pos_BS=pos, window=None
    )
    real = (pos >= 0)[..., None, None]
    want = jnp.where(real, run("einsum"), 0)
    kernel = {"tpu": "flash", "gpu": "cudnn", "cpu": "flash"}[jax.default_backend()]
    got = jnp.where(real, run(kernel), 0)
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(want, np.float32), atol=tolerance
    )


def test_the_tpu_kernel_equals_the_einsum():
    """In Pallas' interpreter; rows padded on the left, grouped heads."""
    with pltpu.force_tpu_interpret_mode():
        compare(LLAMA, jnp.float32, 1e-5)


def test_the_tpu_kernel_on_a_mesh():
    q, k, v, pos = inputs()
    mesh = sharding.make_mesh(data=2, tensor=2)
    cfg = LLAMA.replace(attention="flash")
    run = jax.jit(
        lambda cfg: attend(q, k, v, cfg, pos_BT=pos, pos_BS=pos, window=None), static_argnums=0
    )
    want = run(LLAMA.replace(attention="einsum"))
    with jax.set_mesh(mesh), pltpu.force_tpu_interpret_mode():
        got = run(cfg)
    real = np.asarray(pos >= 0)
    np.testing.assert_allclose(np.asarray(got)[real], np.asarray(want)[real], atol=1e-5)


@pytest.mark.parametrize("padding", [0, 100])
def test_cudnn_is_asked_for_what_the_einsum_computes(monkeypatch, padding):
    """The call that the GPU gets, carried out by XLA; unpadded rows go without a mask."""
    asked = []

    def xla(*args, implementation, **kwargs):
        asked.append((implementation, kwargs["is_causal"], kwargs["mask"] is None))
        return real(*args, implementation="xla", **kwargs)

    real = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", xla)
    q, k, v, pos = inputs(padding=padding)
    run = lambda kernel, plain: attend(
        *(q, k, v, LLAMA.replace(attention=kernel)),
        pos_BT=pos,
        pos_BS=pos,
        window=None,
        plain=plain,
    )
    plain = padding == 0
    keep = np.asarray(pos >= 0)
    got, want = np.asarray(run("cudnn", plain))[keep], np.asarray(run("einsum", plain))[keep]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert asked == [("cudnn", plain, plain)]


def right_padded(kernel, dtype):
    """What real tokens get, where padding is on the right and the mask is left out."""
    q, k, v, pos = inputs(dtype=dtype)
    pos = jnp.where(jnp.arange(256) < jnp.array([[256], [156]]), jnp.arange(256), -1)
    cfg = LLAMA.replace(attention=kernel)
    out = attend(q, k, v, cfg, pos_BT=pos, pos_BS=pos, window=None, plain=True)
    return np.asarray(out, np.float32)[np.asarray(pos >= 0)]


def test_padding_on_the_right_needs_no_mask(monkeypatch):
    real = jax.nn.dot_product_attention
    xla = lambda *args, implementation, **kwargs: real(*args, implementation="xla", **kwargs)
    monkeypatch.setattr(jax.nn, "dot_product_attention", xla)
    got, want = (right_padded(kernel, jnp.float32) for kernel in ("cudnn", "einsum"))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.gpu
def test_cudnn_equals_the_einsum():
    compare(LLAMA, jnp.bfloat16, 2e-2)
    got, want = (right_padded(kernel, jnp.bfloat16) for kernel in ("cudnn", "einsum"))
    np.testing.assert_allclose(got, want, atol=2e-2)


@pytest.mark.tpu
def test_the_real_tpu_kernel_equals_the_einsum():
    compare(LLAMA, jnp.bfloat16, 2e-2)


def test_kernels_are_chosen_where_their_features_suffice(monkeypatch):
    half, full = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    cfg = LLAMA

    def pick(platform, cfg=cfg, T=256, H=128, dtype=half, no_cache=True):
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        return choose(cfg, (2, T, 4, H), dtype, no_cache)

    assert pick("cpu") == "einsum"
    assert pick("gpu") == "cudnn"
    assert pick("gpu", dtype=full) == "einsum"
    assert pick("gpu", cfg=cfg.replace(attn_softcap=50.0)) == "einsum"
    assert pick("gpu", T=1) == "einsum"  # decoding is one row of scores
    assert pick("gpu", H=256) == "einsum"
    assert pick("tpu") == "flash"
    assert pick("tpu", T=200) == "einsum"
    assert pick("tpu", no_cache=False) == "einsum"
    assert pick("tpu", cfg=cfg.replace(windows=(128,) * cfg.layers)) == "einsum"
    assert pick("gpu", cfg=cfg.replace(attention="einsum")) == "einsum"
    with pytest.raises(ValueError, match="attention 'flashy': one of auto"):
        pick("cpu", cfg=cfg.replace(attention="flashy"))


def test_padding_attends_to_nothing_that_matters():
    """Whatever stands in padding columns, real columns do not change; nothing is NaN."""
    q, k, v, pos = inputs(T=16, H=8, padding=5)
    cfg = LLAMA.replace(head_dim=8, rotary_dim=8, attention="einsum")
    junk = jnp.where((pos < 0)[:, None, :, None], 1e4, 0.0)
    run = lambda k, v: attention.attend(q, k, v, cfg, pos_BT=pos, pos_BS=pos, window=None)
    clean, dirty = run(k, v), run(k + junk, v + junk)
    assert bool(jnp.isfinite(dirty).all())
    np.testing.assert_array_equal(clean[1, 5:], dirty[1, 5:])
    np.testing.assert_array_equal(clean[0], dirty[0])
