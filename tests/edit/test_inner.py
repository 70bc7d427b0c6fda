"""Factors of gradients: for every matrix of every kind of block, what jax.grad finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_edits import off

from jaxedit.base import Dense, LowRank
from jaxedit.data.answers import Answers
from jaxedit.edit import inner
from jaxedit.edit.inner import Places
from jaxedit.models import specs
from jaxedit.models.shapes import SHAPES
from jaxedit.models.sites import matrices

LLAMA = SHAPES["tiny-llama"].replace(layers=3)
KINDS = {
    "gpt2": SHAPES["tiny-gpt2"].replace(layers=3),
    "llama": LLAMA,
    "parallel": LLAMA.replace(parallel=True),
    "post_norm": LLAMA.replace(post_norm=True),
}


def rows_for(cfg, B=3, T=7, U=2):
    """Random rows; the last is shorter, the first has an answer of one token."""
    random = np.random.RandomState(0)
    tokens = random.randint(1, cfg.vocab, (B, T)).astype(np.int32)
    pos = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)).copy()
    pos[-1, -2:], tokens[-1, -2:] = -1, 0
    at = np.array([[T - 3, T - 2]] * B, np.int32)
    at[-1] -= 2
    target = np.take_along_axis(tokens, at + 1, 1)
    mask = np.ones((B, U), bool)
    mask[0, 1] = False
    return Answers(tokens, pos, at, target, mask)


def model(kind):
    cfg = KINDS[kind].replace(dtype="float32")
    return specs.init(jax.random.key(0), cfg), cfg


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("apart", [True, False])
def test_factors_are_the_gradient_of_every_matrix(kind, apart):
    params, cfg = model(kind)
    inside = {path: size for path, size in matrices(cfg).items() if "/" in path}
    places, rows = Places((1, 2), tuple(inside)), rows_for(cfg)
    x = inner.stem(params, rows, cfg, 1)
    found, loss = inner.factors(params, x, rows, cfg, places, apart=apart)

    def losses(deltas):
        last, _ = inner.above(params, x, rows, cfg, 1, deltas=deltas)
        loss_BU = inner.nll(inner.told(params, last, rows, cfg), rows)
        each = inner.mean(loss_BU, rows)
        return (each.sum() if apart else inner.mean_of_all(loss_BU, rows)), each

    B = len(rows) if apart else None
    zero = lambda I, O: jnp.zeros((2, B, I, O) if apart else (2, I, O))
    start = {path: Dense(zero(*size), places.numbers) for path, size in inside.items()}
    grads, each = jax.grad(losses, has_aux=True, allow_int=True)(start)
    np.testing.assert_allclose(loss, each, rtol=1e-5)
    for path in inside:
        shape = "nbti,nbto->nbio" if apart else "nbti,nbto->nio"
        whole = jnp.einsum(shape, *found[path], precision="highest")
        assert off(whole, grads[path].w) < 1e-5, path


def test_factors_under_a_change_are_those_of_the_changed_model():
    params, cfg = model("gpt2")
    places, rows = Places((1, 2)), rows_for(cfg)
    x = inner.stem(params, rows, cfg, 1)
    key = jax.random.key(1)
    a, b = (0.1 * jax.random.normal(key, s) for s in ((2, cfg.mlp, 2), (2, 2, cfg.embed)))
    change = {"mlp/down": LowRank(a, b, places.numbers)}
    found, _ = inner.factors(params, x, rows, cfg, places, apart=True, deltas=change)
    w = params["blocks"]["mlp"]["down"]["w"]
    blocks = {**params["blocks"]["mlp"], "down": {**params["blocks"]["mlp"]["down"],
                                                 "w": w.at[1:].add(a @ b)}}  # fmt: skip
    merged = {**params, "blocks": {**params["blocks"], "mlp": blocks}}
    wanted, _ = inner.factors(merged, x, rows, cfg, places, apart=True)
    for path in places.targets:
        for ours, theirs in zip(found[path], wanted[path], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_tokens_without_a_part_in_the_loss_have_no_gradient():
    params, cfg = model("llama")
    rows, places = rows_for(cfg), Places((2,), ("mlp/down",))
    found, _ = inner.factors(
        params, inner.stem(params, rows, cfg, 2), rows, cfg, places, apart=True
    )
    used = np.asarray(inner.used(found["mlp/down"]))[0]
    wanted = np.zeros_like(used)
    for b in range(len(rows)):
        wanted[b, rows.at_BU[b][rows.mask_BU[b]]] = True
    np.testing.assert_array_equal(used, wanted)  # in the last layer: those that say the answer


def test_places_that_a_model_has_not():
    cfg = KINDS["gpt2"]
    with pytest.raises(ValueError, match="layer 3: the model has layers 0 to 2"):
        Places((1, 3)).check(cfg)
    with pytest.raises(ValueError, match="target 'mlp/gate': gpt2 has attn/q"):
        Places((1,), ("mlp/gate",)).check(cfg)
    with pytest.raises(ValueError, match=r"layers \(2, 1\): each once, in order"):
        Places((2, 1))
