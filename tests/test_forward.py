"""Reads, writes and deltas on two tiny random models that differ in all that architectures do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit import LowRank, Write, forward, init
from jaxedit.models.cache import init_cache
from jaxedit.models.shapes import SHAPES
from jaxedit.models.sites import matrices, sites
from jaxedit.models.specs import flatten
from jaxedit.models.transformer import _forward, run_blocks
from jaxedit.models.vocabulary import embed, unembed
from jaxedit.train.loss import next_token

B, T = 3, 9
TOKENS = jnp.asarray(np.random.RandomState(0).randint(0, 96, (B, T)))


@pytest.fixture(scope="module", params=["tiny-gpt2", "tiny-llama"])
def model(request):
    """Weights large enough that every path through the model matters."""
    cfg = SHAPES[request.param]
    params = init(jax.random.key(0), cfg)
    noise = lambda i, x: x + 0.3 * jax.random.normal(jax.random.key(i), x.shape)
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten([noise(i, x) for i, x in enumerate(leaves)]), cfg


def close(a, b, tolerance=1e-5):
    scale = max(1.0, float(jnp.abs(b).max()))
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=tolerance * scale, rtol=0)


def test_sites_are_related_as_the_architecture_says(model):
    params, cfg = model
    reads = forward(params, TOKENS, cfg, reads=dict.fromkeys(sites(cfg))).reads
    for name, width in sites(cfg).items():
        assert reads[name].shape == ((B, T, width) if name == "embed" else (4, B, T, width))
    close(reads["resid_pre"][0], reads["embed"])
    close(reads["resid_pre"][1:], reads["resid_post"][:-1])
    close(reads["resid_mid"], reads["resid_pre"] + reads["attn_out"])
    close(reads["resid_post"], reads["resid_mid"] + reads["mlp_out"])
    down = params["blocks"]["mlp"]["down"]
    bias = down["b"][:, None, None] if "b" in down else 0
    close(reads["mlp_down"], jnp.einsum("lbtf,lfd->lbtd", reads["mlp_key"], down["w"]) + bias)
    at = jnp.array([[1, 8], [2, 3], [0, 8]])
    some = forward(params, TOKENS, cfg, reads={"mlp_key": at}).reads["mlp_key"]
    close(some, jnp.take_along_axis(reads["mlp_key"], at[None, :, :, None], 2), 0)


def test_writing_what_was_read_changes_nothing_and_writing_else_does(model):
    params, cfg = model
    clean = forward(params, TOKENS, cfg, reads=dict.fromkeys(sites(cfg)))
    noise = {k: jax.random.normal(jax.random.key(7), x.shape) for k, x in clean.reads.items()}

    def write(chosen, values):
        """All sites in one program; the masks say which of them are written."""
        mask = lambda name: jnp.full((1, 1) if name == "embed" else (4, 1, 1), name in chosen)
        writes = {name: Write(mask(name), values[name]) for name in sites(cfg)}
        return forward(params, TOKENS, cfg, writes=writes).logits

    close(write(sites(cfg), clean.reads), clean.logits)
    for name in sites(cfg):
        assert jnp.abs(write([name], noise) - clean.logits).max() > 1e-2, name


def test_a_causal_trace_is_one_batch(model):
    """Rows are cells (layer, position): corrupt the embedding, restore one clean state."""
    params, cfg = model
    one = TOKENS[:1]
    clean = forward(params, one, cfg, reads={"resid_post": None}).reads["resid_post"]
    subject = (jnp.arange(T) >= 1) & (jnp.arange(T) < 4)
    noise = jax.random.normal(jax.random.key(5), (1, T, cfg.embed))
    corrupt = Write(subject[None], noise, add=True)
    cells = [(layer, t) for layer in range(4) for t in range(T)]
    mask = np.zeros((1, len(cells), T), bool)
    mask[0, np.arange(len(cells)), [t for _, t in cells]] = True
    layers = jnp.array([[layer for layer, _ in cells]])
    values = jnp.stack([clean[layer, 0] for layer, _ in cells])[None]
    rows = jnp.repeat(one, len(cells), 0)
    restore = Write(jnp.asarray(mask), values, layers)
    grid = forward(params, rows, cfg, writes={"embed": corrupt, "resid_post": restore}).logits
    for i in (0, 10, 22, len(cells) - 1):
        layer, t = cells[i]
        only = Write(jnp.arange(T)[None, None] == t, clean[layer][None], jnp.array([layer]))
        alone = forward(params, one, cfg, writes={"embed": corrupt, "resid_post": only}).logits
        close(grid[i], alone[0])
    # restoring the last position of the last layer restores the prediction
    close(grid[-1, -1], forward(params, one, cfg).logits[0, -1])


def test_writes_at_one_site_are_applied_in_order(model):
    params, cfg = model
    mask = jnp.ones((1, 1, 1), bool)
    one, two = Write(mask, jnp.ones((1, 1, 1, cfg.embed)), jnp.array([2])), None
    two = one.replace(value=2 * one.value, add=True)
    reads = {"mlp_out": None}
    seen = forward(params, TOKENS, cfg, reads=reads, writes={"mlp_out": (one, two)}).reads[
        "mlp_out"
    ]
    close(seen[2], jnp.full_like(seen[2], 3.0))
    seen = forward(params, TOKENS, cfg, reads=reads, writes={"mlp_out": (two, one)}).reads[
        "mlp_out"
    ]
    close(seen[2], jnp.ones_like(seen[2]))


def test_every_row_carries_its_own_edit(model):
    """Row r edits layer layers[r]; it equals a model whose weight was changed there."""
    params, cfg = model
    layers = [0, 2, 3]
    paths = {path: size for path, size in matrices(cfg).items() if "/" in path}
    factor = lambda i, *shape: 0.5 * jax.random.normal(jax.random.key(i), shape)
    edits = {
        path: LowRank(factor(1, 1, B, I, 1), factor(2, 1, B, 1, O), jnp.array([layers]))
        for path, (I, O) in paths.items()
    }
    base = forward(params, TOKENS, cfg).logits
    for path in paths:
        off = {p: e if p == path else e.replace(b=0 * e.b) for p, e in edits.items()}
        rows = forward(params, TOKENS, cfg, deltas=off).logits
        assert jnp.abs(rows - base).max() > 1e-2, path
        kind, name = path.split("/")
        for r, layer in enumerate(layers):
            changed = jax.tree.map(lambda x: x, params)
            update = edits[path].a[0, r] @ edits[path].b[0, r]
            w = params["blocks"][kind][name]["w"].at[layer].add(update)
            changed["blocks"][kind][name] = {**params["blocks"][kind][name], "w": w}
            close(rows[r], forward(changed, TOKENS[r : r + 1], cfg).logits[0])


def test_edits_of_the_vocabulary(model):
    """A change of the embedding table; where the head is tied, of the head too."""
    params, cfg = model
    V, D = cfg.vocab, cfg.embed
    a, b = (
        jax.random.normal(jax.random.key(1), (V, 2)),
        jax.random.normal(jax.random.key(2), (2, D)),
    )
    changed = {**params, "embed": {"w": params["embed"]["w"] + a @ b}}
    close(
        forward(params, TOKENS, cfg, deltas={"embed": LowRank(a, b)}).logits,
        forward(changed, TOKENS, cfg).logits,
    )
    if not cfg.tied:
        head = LowRank(b.T, a.T)
        changed = {**params, "head": {"w": params["head"]["w"] + b.T @ a.T}}
        close(
            forward(params, TOKENS, cfg, deltas={"head": head}).logits,
            forward(changed, TOKENS, cfg).logits,
        )


def test_gradients_of_a_zero_write_are_gradients_of_the_weights(model):
    """MEND's factors: dL/dW = keys^T @ (gradient of a zero added to the output); no [in, out]
    array.
    """
    params, cfg = model

    def loss(params, zero):
        write = Write(jnp.ones((4, 1, 1), bool), zero, add=True)
        out = forward(params, TOKENS, cfg, reads={"mlp_key": None}, writes={"mlp_down": write})
        return jax.nn.logsumexp(out.logits[:, -1]).sum(), out.reads["mlp_key"]

    zero = jnp.zeros((4, B, T, cfg.embed))
    (_, keys), (grads, factor) = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, zero)
    from_factors = jnp.einsum("lbtf,lbtd->lfd", keys, factor)
    close(from_factors, grads["blocks"]["mlp"]["down"]["w"])


def test_remat_partial_runs_vmap_and_jit_agree(model):
    params, cfg = model
    full = forward(params, TOKENS, cfg, reads={"resid_pre": None})
    pos = jnp.broadcast_to(jnp.arange(T), (B, T))
    x, _, _ = run_blocks(params, full.reads["resid_pre"][2], cfg, pos_BT=pos, start=2)
    close(unembed(params, x, cfg), full.logits)
    x = embed(params, TOKENS, cfg, pos_BT=pos)
    x, _, _ = run_blocks(params, x, cfg, pos_BT=pos, stop=2)
    close(x, full.reads["resid_pre"][2])

    def loss(params, remat):
        logits = forward(params, TOKENS, cfg, remat=remat).logits
        return -jax.nn.log_softmax(logits)[:, :-1, 3].mean()

    plain, recomputed = jax.grad(loss)(params, False), jax.grad(loss)(params, True)
    jax.tree.map(close, recomputed, plain)

    a = jax.random.normal(jax.random.key(3), (5, 4, cfg.mlp, 2))
    b = 0.1 * jax.random.normal(jax.random.key(4), (5, 4, 2, cfg.embed))
    run = lambda a, b: forward(params, TOKENS, cfg, deltas={"mlp/down": LowRank(a, b)}).logits
    rows = {
        "mlp/down": LowRank(a[0, :, None] * jnp.arange(1.0, B + 1)[:, None, None], b[0, :, None])
    }
    every, few = (
        run_blocks(params, embed(params, TOKENS, cfg, pos_BT=pos), cfg, pos_BT=pos, deltas=rows,
                   remat=True, at_BQ=at)[0]
        for at in (None, jnp.array([[8, 2], [0, 0], [5, 6]]))
    )  # fmt: skip
    close(few, jnp.take_along_axis(every, jnp.array([[8, 2], [0, 0], [5, 6]])[..., None], 1))
    many = jax.jit(jax.vmap(run))(a, b)
    for i in (0, 4):
        close(many[i], run(a[i], b[i]))
    at = jnp.array([[8, 2], [0, 0], [5, 6]])
    some = forward(params, TOKENS, cfg, logits_at=at).logits
    close(some, jnp.take_along_axis(full.logits, at[..., None], 1))


def test_another_layer_position_edit_or_mask_does_not_compile_again(model):
    params, cfg = model

    def run(layer, position, scale):
        write = Write(
            jnp.arange(T)[None, None] == position,
            scale * jnp.ones((1, B, 1, cfg.embed)),
            jnp.array([layer]),
        )
        delta = LowRank(
            scale * jnp.ones((1, cfg.mlp, 1)), jnp.ones((1, 1, cfg.embed)), jnp.array([layer])
        )
        reads = {"mlp_key": jnp.full((B, 1), position)}
        return forward(
            params, TOKENS, cfg, reads=reads, writes={"mlp_out": write}, deltas={"mlp/down": delta}
        )

    first = run(0, 1, 0.1)
    compiled = _forward._cache_size()
    assert jnp.abs(run(3, 5, 0.7).logits - first.logits).max() > 1e-3
    assert _forward._cache_size() == compiled


def test_a_prefilled_cache_goes_on_where_it_stopped(model):
    params, cfg = model
    full = forward(params, TOKENS, cfg).logits
    out = forward(params, TOKENS[:, :4], cfg, cache=init_cache(cfg, B, 12))
    rest = forward(params, TOKENS[:, 4:], cfg, cache=out.cache)
    close(jnp.concatenate([out.logits, rest.logits], 1), full)
    # rows of different lengths, padded on the left
    pos = jnp.array([[0, 1, 2, 3], [-1, 0, 1, 2], [-1, -1, -1, 0]])
    out = forward(params, TOKENS[:, :4], cfg, pos_BT=pos, cache=init_cache(cfg, B, 12))
    rest = forward(params, TOKENS[:, 4:], cfg, cache=out.cache)
    for row, first in enumerate((0, 1, 3)):
        close(
            rest.logits[row],
            forward(params, TOKENS[row : row + 1, first:], cfg).logits[0, 4 - first :],
        )


def test_bfloat16_is_close_and_logits_are_float32(model):
    params, cfg = model
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    delta = LowRank(jnp.ones((1, cfg.mlp, 1)), jnp.ones((1, 1, cfg.embed)), jnp.array([1]))
    mask, value = jnp.ones((1, 1, 1), bool), jnp.ones((1, 1, 1, cfg.embed))
    changes = {
        "deltas": {"mlp/down": delta.replace(b=0.1 * delta.b)},
        "writes": {"mlp_out": Write(mask, value, jnp.array([2]), add=True)},
    }
    exact = forward(params, TOKENS, cfg, **changes).logits
    out = forward(
        half, TOKENS, cfg.replace(dtype="bfloat16"), reads={"resid_post": None}, **changes
    )
    assert out.logits.dtype == jnp.float32
    assert out.reads["resid_post"].dtype == jnp.bfloat16
    assert jnp.abs(out.logits - exact).max() < 0.1 * jnp.abs(exact).max()


def test_mistakes_are_named(model):
    params, cfg = model
    with pytest.raises(ValueError, match=r"read 'mlp_keys'.*did you mean 'mlp_key'"):
        forward(params, TOKENS, cfg, reads={"mlp_keys": None})
    with pytest.raises(ValueError, match=r"delta 'mlp_down'.*did you mean 'mlp/down'"):
        forward(params, TOKENS, cfg, deltas={"mlp_down": LowRank(jnp.ones(1), jnp.ones(1))})
    with pytest.raises(ValueError, match="float32"):
        forward(params, jnp.ones((2, 3)), cfg)
    with pytest.raises(ValueError, match=r"pos_BT has shape \[3, 4\]"):
        forward(params, TOKENS, cfg, pos_BT=jnp.zeros((3, 4), jnp.int32))
    with pytest.raises(ValueError, match="layers \\[3, 9\\)"):
        run_blocks(
            params, jnp.ones((1, 2, 32)), cfg, pos_BT=jnp.zeros((1, 2), jnp.int32), start=3, stop=9
        )
    one = jnp.zeros((1, 1), jnp.int32)
    for how in ({"reads": {"mlp_key": None}}, {"start": 2, "stop": 2}):
        with pytest.raises(ValueError, match="at_BQ: of a run of stacked layers, at least one"):
            run_blocks(params, jnp.ones((1, 1, 32)), cfg, pos_BT=one, at_BQ=one, **how)
    if cfg.learned_pos:
        with pytest.raises(ValueError, match="learned positions for 64"):
            forward(params, jnp.zeros((1, 65), jnp.int32), cfg)
    else:
        with pytest.raises(ValueError, match="delta 'embeds'"):
            forward(params, TOKENS, cfg, deltas={"embeds": None})
    out = forward(params, TOKENS, cfg, cache=init_cache(cfg, B, 12))
    with pytest.raises(ValueError, match="20 tokens do not fit"):
        forward(params, jnp.zeros((B, 20), jnp.int32), cfg, cache=out.cache)


def test_init_depends_on_the_key_and_the_path_alone():
    cfg = SHAPES["tiny-llama"]
    one, deeper = init(jax.random.key(0), cfg), init(jax.random.key(0), cfg.replace(mlp=64))
    np.testing.assert_array_equal(
        one["blocks"]["attn"]["q"]["w"], deeper["blocks"]["attn"]["q"]["w"]
    )
    other = init(jax.random.key(1), cfg)
    same = [
        np.array_equal(a, b)
        for a, b in zip(flatten(one).values(), flatten(other).values(), strict=True)
    ]
    assert sum(same) == 3  # the norms start at one


def products(jaxpr, found):
    """The dtypes of both factors of every product, in inner programs too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            found.append(tuple(v.aval.dtype.name for v in eqn.invars))
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                products(getattr(inner, "jaxpr", inner), found)
    return found


@pytest.mark.parametrize("shape", ["tiny-gpt2", "tiny-llama"])
def test_products_of_a_training_step_are_in_the_compute_dtype(shape):
    """Those over the vocabulary too, whose cotangent is float32; and the gradient is the same."""
    cfg = SHAPES[shape].replace(dtype="bfloat16", attention="einsum")
    params = init(jax.random.key(0), cfg)
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, cfg.vocab)
    loss = lambda params, cfg: next_token(params, tokens, cfg)[0]
    found = products(jax.make_jaxpr(jax.grad(partial(loss, cfg=cfg)))(params).jaxpr, [])
    head = 3  # the product, and the two of its gradient
    assert len(found) > 10 + head
    assert [d for d in found if "float32" in d] == []
    low, high = (jax.grad(loss)(params, c) for c in (cfg, cfg.replace(dtype="float32")))
    for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True):
        size = float(jnp.abs(b).max())
        assert float(jnp.abs(a - b).max()) < 0.05 * size + 1e-3
