"""The value search against plain forward passes; batches, meshes and dtypes."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import jit, write_model

import jaxedit
from jaxedit.base import Write
from jaxedit.data.aligned import Tokens, align
from jaxedit.edit import corner, values
from jaxedit.edit.values import ValueConfig, search
from jaxedit.models import specs
from jaxedit.models.shapes import SHAPES
from jaxedit.models.transformer import forward
from jaxedit.sharding import make_mesh

GROUPS = (("{}",), ("{}",))  # two contexts; their tokens are random
CFG = SHAPES["tiny-llama"].replace(layers=3, vocab=101)
LAYER, RARE = 1, 77  # a token that only one request has
OPT = ValueConfig(steps=6, lr=3.0, clamp=4.0)
SITES = {"rome": ("mlp_down",), "memit": ("resid_post",), "pmet": ("attn_o", "mlp_down")}


@cache
def params():
    """Weights that make logits of size 1 to 10."""
    r = np.random.default_rng(0)
    one = lambda s: (0.25 * r.standard_normal(s.shape) + (s.init == "ones")).astype(np.float32)
    return jax.tree.map(jnp.asarray, specs.nest({k: one(s) for k, s in specs.specs(CFG).items()}))


def request(place, before, after, target, prefix=5, seed=None):
    """A request of random tokens, its edited one after so many; a context of `prefix` more."""
    r = np.random.default_rng(place if seed is None else seed)
    draw = lambda n: tuple(r.integers(2, RARE, n).tolist())
    prompt, goal = draw(before + 1 + after), draw(target)
    rows = (prompt + goal[:-1], draw(prefix) + prompt + goal[:-1], prompt[: before + 1])
    return Tokens(place, rows, (before, before + prefix, before), goal)


# three tokens in a target, one, two …; eight requests of one tail length
SHAPE = [(3, 2, 3), (1, 4, 1), (5, 3, 2), (2, 2, 3), (4, 1, 3), (0, 3, 2), (6, 4, 1), (2, 3, 1)]
LONG = [request(i, *shape) for i, shape in enumerate(SHAPE)]


@cache
def batch():
    return align(LONG, 8, GROUPS)


@cache
def found():
    """What all tests of one device compare with."""
    return search(params(), (batch(),), CFG, LAYER, SITES["rome"], OPT)


def off(x, want):
    """The largest distance between rows, over the size of a row."""
    x, want = np.asarray(x, np.float64), np.asarray(want, np.float64)
    return (np.linalg.norm(x - want, axis=-1) / np.linalg.norm(want, axis=-1)).max()


def flat(x):
    return jnp.asarray(x).reshape(-1, x.shape[-1])


@partial(jit, static_argnames=("cfg", "layer", "sites"))
def plain(params, tokens, pos, token, delta, cfg, layer, sites):
    """Logits of whole rows with delta [B, D] added at a column, and without; what stands there."""
    mask = (jnp.arange(tokens.shape[1]) == token)[None, None]
    at = {s: Write(mask, d[None, :, None], jnp.array([layer]), add=True) for s, d in delta.items()}
    base = forward(params, tokens, cfg, pos_BT=pos, reads=dict.fromkeys(sites))
    now = forward(params, tokens, cfg, pos_BT=pos, writes=at)
    return now.logits, base.logits, {s: base.reads[s][layer] for s in sites}


def losses(params, some, batch, cfg, layer, delta, opt):
    """The loss of every request, written out over the unpadded tokens; [N] float64."""
    N, R, _ = batch.tokens_NRS.shape
    rows = {s: jnp.repeat(d, R, 0) for s, d in delta.items()}
    args = (flat(batch.tokens_NRS), flat(batch.pos_NRS), jnp.int32(batch.prefix))
    now, base, reads = plain(params, *args, rows, cfg, layer, tuple(delta))
    log = lambda x: np.asarray(jax.nn.log_softmax(x), np.float64).reshape(N, R, *x.shape[1:])
    now, base = log(now), log(base)
    out, P = [], batch.prefix
    for n, one in enumerate(some):
        said = []
        for r in range(R - 1):
            last = P - one.at[r] + len(one.rows[r]) - 1
            first = last - len(one.target) + 1
            said.append(np.mean([now[n, r, first + i, t] for i, t in enumerate(one.target)]))
        p, q = now[n, R - 1, P], base[n, R - 1, P]
        loss = -np.mean(said) + opt.kl * (np.exp(p) * (p - q)).sum()
        for s, d in delta.items():
            h0 = np.asarray(reads[s], np.float64).reshape(N, R, -1, d.shape[-1])[n, 0, P]
            loss += opt.weight_decay * np.linalg.norm(np.asarray(d[n], np.float64)) / (h0 @ h0)
        out.append(loss)
    return np.array(out)


def test_the_loss_is_that_of_a_plain_forward_with_the_vector_added():
    v = found()
    assert not any(v.failed_N + 1)
    assert v.steps_N.tolist() == [6] * 8
    want = losses(params(), LONG, batch(), CFG, LAYER, v.delta, OPT)
    np.testing.assert_allclose(v.loss_N, want, rtol=1e-5)
    before = losses(params(), LONG, batch(), CFG, LAYER, {"mlp_down": 0 * v.delta["mlp_down"]}, OPT)
    assert (want < before - 0.1).all()  # the search has found something
    sizes = np.linalg.norm(v.delta["mlp_down"], axis=-1)
    limits = OPT.clamp * np.linalg.norm(v.h0["mlp_down"], axis=-1)
    assert (sizes <= limits * 1.0001).all()
    assert (sizes > limits * 0.999).any()
    np.testing.assert_array_equal(v.found["mlp_down"], v.h0["mlp_down"] + v.delta["mlp_down"])
    assert v.trace["loss"].shape == (8, 6)
    np.testing.assert_array_equal(v.trace["loss"][:, -1], v.loss_N)


@pytest.mark.parametrize("layer", [0, 2])
def test_the_first_and_the_last_layer(layer):
    """In the first one, with nothing before the token: there is no prefix at all."""
    some, groups = LONG, GROUPS
    if layer == 0:
        some = [request(i, 0, 3, 1 + i % 3, prefix=0) for i in range(8)]
    rows = align(some, 8, groups)
    assert (rows.prefix == 0) == (layer == 0)
    v = search(params(), (rows,), CFG, layer, SITES["rome"], OPT)
    want = losses(params(), some, rows, CFG, layer, v.delta, OPT)
    np.testing.assert_allclose(v.loss_N, want, rtol=1e-5)
    assert (np.linalg.norm(v.delta["mlp_down"], axis=-1) > 0.01).all()


def test_one_step_is_no_update():
    once = ValueConfig(steps=1)
    v = search(params(), (batch(),), CFG, LAYER, SITES["rome"], once)
    assert not any(np.any(d) for d in v.delta.values())
    assert v.steps_N.tolist() == [1] * 8
    assert (v.failed_N == -1).all()
    want = losses(params(), LONG, batch(), CFG, LAYER, v.delta, once)
    np.testing.assert_allclose(v.loss_N, want, rtol=1e-5)
    np.testing.assert_allclose(v.h0["mlp_down"], found().h0["mlp_down"], atol=1e-5)
    np.testing.assert_allclose(v.out_NCD[:, 0], v.h0["mlp_down"])


def test_alone_a_request_is_as_beside_longer_ones():
    """Other paddings, in all three directions."""
    one = align(LONG[1:2], 1, GROUPS)
    assert one.tokens_NRS.shape[2] < batch().tokens_NRS.shape[2]
    assert one.target_NU.shape[1] < batch().target_NU.shape[1]
    alone = search(params(), (one,), CFG, LAYER, SITES["rome"], OPT)
    assert off(alone.delta["mlp_down"][0], found().delta["mlp_down"][1]) < 1e-5
    assert off(alone.keys_NCF[0], found().keys_NCF[1]) < 1e-5
    assert off(alone.out_NCD[0], found().out_NCD[1]) < 1e-5
    np.testing.assert_allclose(alone.loss_N[0], found().loss_N[1], rtol=1e-5)


def test_several_batches_are_one_after_the_other():
    half = align(LONG[1:2], 1, GROUPS)
    v = search(params(), (half, half), CFG, LAYER, SITES["rome"], OPT)
    assert v.delta["mlp_down"].shape == (2, CFG.embed)
    np.testing.assert_array_equal(v.delta["mlp_down"][0], v.delta["mlp_down"][1])


def test_other_requests_of_the_same_shape_are_no_other_program():
    found()
    before = values._search._cache_size()
    others = [request(i, *shape, seed=i + 50) for i, shape in enumerate(SHAPE)]
    bumped = jax.tree.map(lambda x: 1.01 * x, params())
    v = search(bumped, (align(others, 8, GROUPS),), CFG, LAYER, SITES["rome"], OPT)
    assert values._search._cache_size() == before
    assert off(v.delta["mlp_down"], found().delta["mlp_down"]) > 0.1


def test_memory_grows_with_the_layers_and_not_with_their_square():
    def temporary(layers):
        cfg = CFG.replace(layers=layers)
        shapes = jax.eval_shape(lambda: specs.init(jax.random.key(0), cfg))
        lowered = values._search.lower(
            shapes, batch(), cfg, 0, SITES["rome"], OPT, extra=None, trace=False
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    above = lambda layers: layers - 1  # that the search goes back through
    grows = (temporary(17) - temporary(9)) / (temporary(9) - temporary(5))
    assert grows < 1.5 * (above(17) - above(9)) / (above(9) - above(5))


def test_a_search_that_is_not_finite_fails_alone():
    """One request has a token that makes everything NaN: the others do not notice."""
    some = list(LONG)
    odd = lambda row: (RARE, *row[1:])
    some[2] = some[2]._replace(rows=tuple(map(odd, some[2].rows)))
    broken = params() | {"embed": {"w": params()["embed"]["w"].at[RARE].set(jnp.nan)}}
    v = search(broken, (align(some, 8, GROUPS),), CFG, LAYER, SITES["rome"], OPT)
    assert v.failed_N.tolist() == [-1, -1, 0, -1, -1, -1, -1, -1]
    rest = np.arange(8) != 2
    for got, want in ((v.delta["mlp_down"], found().delta["mlp_down"]), (v.loss_N, found().loss_N)):
        np.testing.assert_array_equal(got[rest], want[rest])
    assert v.steps_N[2] == 1


@pytest.mark.parametrize(("lr", "clamp"), [(1e38, 1e38), (1e38, 4.0), (3e18, 1e38), (1e19, 4.0)])
def test_a_vector_whose_length_overflows_fails(lr, clamp):
    """It is not put back onto the ball as zero."""
    opt = ValueConfig(steps=6, lr=lr, clamp=clamp)
    v = search(params(), (batch(),), CFG, LAYER, SITES["rome"], opt)
    assert (v.failed_N >= 0).all()
    assert (v.steps_N < 6).all()


def test_bfloat16_finds_much_the_same_in_float32():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    v = search(half, (batch(),), CFG.replace(dtype="bfloat16"), LAYER, SITES["rome"], OPT)
    for x in (*v.delta.values(), *v.h0.values(), v.keys_NCF, v.out_NCD, v.loss_N):
        assert x.dtype == jnp.float32
    assert 1e-4 < off(v.delta["mlp_down"], found().delta["mlp_down"]) < 0.2
    np.testing.assert_allclose(v.loss_N, found().loss_N, rtol=0.05)


@pytest.mark.parametrize("sizes", [(4, 1, 1), (2, 1, 2), (2, 2, 2)], ids=str)
def test_on_a_mesh(sizes):
    placed = jax.device_put(params(), specs.nest(specs.shardings(CFG, make_mesh(*sizes))))
    v = search(placed, (batch(),), CFG, LAYER, SITES["rome"], OPT)
    assert off(v.delta["mlp_down"], found().delta["mlp_down"]) < 1e-5
    assert off(v.keys_NCF, found().keys_NCF) < 1e-5
    np.testing.assert_allclose(v.loss_N, found().loss_N, rtol=1e-5)
    assert v.steps_N.tolist() == found().steps_N.tolist()


def test_what_cannot_be_searched():
    for layer in (-1, 3):
        with pytest.raises(ValueError, match=rf"layer {layer}: the model has layers 0 to 2"):
            search(params(), (batch(),), CFG, layer, SITES["rome"], OPT)
    with pytest.raises(ValueError, match="'mlp_out': of mlp_down, resid_post, attn_o"):
        search(params(), (batch(),), CFG, 1, ("mlp_out",), OPT)
    for wrong in ({"steps": 0}, {"lr": 0.0}, {"clamp": -1.0}):
        with pytest.raises(ValueError, match="steps, lr and clamp are positive"):
            ValueConfig(**wrong)


# Every architecture: the corner that is searched is the whole


VARIANTS = ("gptj", "gemma2", "gemma3", "olmo2")  # GPT-2 and Llama are above


@partial(jit, static_argnames=("cfg", "layer"))
def corners(params, batch, cfg, layer, delta):
    """Logits that the loss reads, for the sites of every method; and what a method reads."""
    frozen = corner.freeze(params, batch, cfg, layer)
    of = lambda sites: {s: delta[s] for s in sites}
    run = lambda sites: corner.corner(params, batch, cfg, layer, frozen, of(sites))
    return {name: run(sites) for name, sites in SITES.items()}, frozen.seen


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_corner_of_every_architecture(variant, tmp_path):
    """Logits with a vector in them are those of all layers and all columns."""
    model = jaxedit.load(write_model(variant, tmp_path))
    cfg, layer, some = model.cfg.replace(attention="einsum"), 1, LONG[:3]
    rows = align(some, 3, GROUPS)
    (N, R, S), P, D = rows.tokens_NRS.shape, rows.prefix, cfg.embed
    r = np.random.default_rng(1)
    delta = {
        s: jnp.asarray(r.standard_normal((N, D)), jnp.float32)
        for s in ("mlp_down", "resid_post", "attn_o")
    }
    got, seen = corners(model.params, rows, cfg, layer, delta)
    # three copies of the rows, each with the vectors of one method
    copies = lambda x: jnp.tile(flat(x), (3, 1))
    mine = {
        s: jnp.concatenate([jnp.repeat(d, R, 0) * float(s in sites) for sites in SITES.values()])
        for s, d in delta.items()
    }
    args = (copies(rows.tokens_NRS), copies(rows.pos_NRS), jnp.int32(P), mine)
    now, _, reads = plain(model.params, *args, cfg, layer, ("mlp_down", "mlp_key", "resid_post"))
    tails = np.asarray(now).reshape(3, N, R, S, -1)[:, :, :, P:].reshape(3, N, R * (S - P), -1)
    real = np.tile(rows.mask_NU, (1, 2)) > 0  # beyond a target's tokens nothing is asked for
    real = np.concatenate([real, np.ones((N, 1), bool)], 1)
    for i, name in enumerate(SITES):
        want = np.take_along_axis(tails[i], rows.at_NQ[..., None], 1)[real]
        assert np.abs(want).max() > 1
        np.testing.assert_allclose(got[name][real], want, atol=5e-5 * np.abs(want).max(), rtol=0)
    for site, x in reads.items():
        want = np.asarray(x).reshape(3, N, R, S, -1)[0, :, :, P]
        np.testing.assert_allclose(seen[site], want, atol=1e-4)
