"""Every family against goldens from torch, without torch: the same numbers, in and out of files.

Tolerances at float32: logits 5e-5 (they are of size 5 to 10), activations 1e-5 of their largest
entry or of 1, gradients 1e-5 of their largest entry.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit import Model, forward
from jaxedit.hf.load import load
from jaxedit.hf.save import save
from jaxedit.models.cache import init_cache
from jaxedit.models.generate import decode
from jaxedit.models.sites import sites
from jaxedit.models.specs import flatten
from jaxedit.tensorfile import read_header

LOGITS, SITES, GRAD = 5e-5, 1e-5, 1e-5


class Loaded(NamedTuple):
    name: str
    folder: Path
    model: Model
    torch: dict[str, np.ndarray]  # what torch computed


@pytest.fixture(scope="module", params=families.VARIANTS)
def variant(request: Any, tmp_path_factory: Any) -> Loaded:
    name = request.param
    folder = families.write_model(name, tmp_path_factory.mktemp("models") / name)
    return Loaded(name, folder, load(folder), families.expected(name))


def same_bits(x: Any, y: Any) -> None:
    """The same tree, dtypes and bits."""
    x, y = flatten(x), flatten(y)
    assert x.keys() == y.keys()
    for path in x:
        assert x[path].dtype == y[path].dtype, path
        np.testing.assert_array_equal(np.asarray(x[path]), np.asarray(y[path]), err_msg=path)


def test_logits_every_site_and_a_gradient_are_torchs(variant):
    params, cfg, _ = variant.model
    assert cfg.dtype == "float32"
    tokens_BT, names = variant.torch["tokens"], sites(cfg)
    reads = dict.fromkeys(names, jnp.asarray([families.AT]))

    @families.jit
    def run(params):
        def loss(down_LFD):
            mlp = params["blocks"]["mlp"]
            mlp = mlp | {"down": mlp["down"] | {"w": down_LFD}}
            tree = params | {"blocks": params["blocks"] | {"mlp": mlp}}
            out = forward(tree, tokens_BT, cfg, reads=reads)
            logp_BTV = jax.nn.log_softmax(out.logits[:, :-1])
            return -jnp.take_along_axis(logp_BTV, tokens_BT[:, 1:, None], -1).mean(), out

        return jax.grad(loss, has_aux=True)(params["blocks"]["mlp"]["down"]["w"])

    grad_LFD, out = run(params)
    assert out.logits.dtype == jnp.float32
    assert np.abs(variant.torch["logits"]).max() < 10
    np.testing.assert_allclose(out.logits, variant.torch["logits"], rtol=0, atol=LOGITS)

    assert {f"sites/{site}" for site in names} == {k for k in variant.torch if "/" in k}
    assert {site: x.shape[-1] for site, x in out.reads.items()} == names
    off = {k: families.scaled_error(x, variant.torch[f"sites/{k}"]) for k, x in out.reads.items()}
    assert {site: error for site, error in off.items() if not error <= SITES} == {}

    off = families.scaled_error(grad_LFD[families.GRAD_LAYER], variant.torch["grad"])
    assert off <= GRAD


def test_cached_steps_are_the_full_forward_pass(variant):
    """Six tokens at once and then one by one: as all at once, or, where frequencies depend on the
    length, as torch's own cached steps.
    """
    params, cfg, _ = variant.model
    tokens_BT = variant.torch["tokens"]
    T = tokens_BT.shape[1]
    step = families.jit(lambda tokens_BT, cache: forward(params, tokens_BT, cfg, cache=cache))
    out = step(tokens_BT[:, :6], init_cache(cfg, 1, T + 2))
    logits = [out.logits]
    for t in range(6, T):
        out = step(tokens_BT[:, t : t + 1], out.cache)
        logits.append(out.logits)
    want = variant.torch["steps" if variant.name in families.LENGTH_DEPENDENT else "logits"]
    np.testing.assert_allclose(np.concatenate(logits, 1), want, rtol=0, atol=LOGITS)


def test_padding_changes_nothing(variant):
    """Rows padded left, right and on both sides, and one cut to 8 tokens, are as if alone."""
    params, cfg, _ = variant.model
    (text,), (want,) = variant.torch["tokens"], variant.torch["logits"]
    T, pad, cut = len(text), 4, 8
    begins, lengths = (pad, 0, 2, 1), (T, T, T, cut)
    # padding is a token like any other, and not always the same
    tokens_BT = np.random.RandomState(1).randint(0, cfg.vocab, (4, T + pad)).astype(np.int32)
    pos_BT = np.full(tokens_BT.shape, -1, np.int32)
    for row, (a, n) in enumerate(zip(begins, lengths, strict=True)):
        tokens_BT[row, a : a + n], pos_BT[row, a : a + n] = text[:n], np.arange(n)
    got = families.jit(lambda: forward(params, tokens_BT, cfg, pos_BT=jnp.asarray(pos_BT)).logits)()
    assert np.isfinite(got).all()
    for row, (a, n) in enumerate(zip(begins, lengths, strict=True)):
        alone = want if n == T else variant.torch.get("short", want[None])[0]
        np.testing.assert_allclose(got[row, a : a + n], alone[:n], rtol=0, atol=LOGITS)


def test_greedy_generation_is_torchs(variant):
    """From left-padded prompts of several lengths."""
    params, cfg, _ = variant.model
    want = variant.torch["generated"]
    run = families.jit(partial(decode, cfg=cfg, steps=want.shape[1]))
    out = run(params, variant.torch["prompts"], variant.torch["prompts_pos"])
    np.testing.assert_array_equal(out.tokens_BN, want)
    np.testing.assert_array_equal(out.length_B, want.shape[1])


def test_files_round_trip(variant, tmp_path):
    """Saved tensors are the file's own, names, shapes and bits; bfloat16 stays bfloat16."""
    save(variant.model, tmp_path / "f32")
    tensors, metadata = read_header(tmp_path / "f32" / "model.safetensors")
    assert {n: t.shape for n, t in tensors.items()} == families.shapes(variant.name)
    assert metadata == {"format": "pt"}  # transformers asks for it
    for name, want in families.weights(variant.name).items():
        np.testing.assert_array_equal(tensors[name].read(), want, err_msg=name)
    again = load(tmp_path / "f32")
    assert again.cfg == variant.model.cfg
    same_bits(again.params, variant.model.params)

    half = load(variant.folder, dtype="bfloat16")
    assert half.cfg == variant.model.cfg.replace(dtype="bfloat16")
    save(half, tmp_path / "bf16")
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["dtype"] == "bfloat16"
    again = load(tmp_path / "bf16")
    assert again.cfg == half.cfg
    same_bits(again.params, half.params)
    same_bits(half.params, jax.tree.map(lambda x: x.astype("bfloat16"), variant.model.params))
