"""Projections, and the subspaces that they span."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.base import LowRank
from jaxedit.bounds import subspace as subspaces
from jaxedit.bounds.family import FamilyConfig, model_of
from jaxedit.bounds.project import KINDS, Projection, laid_out, make
from jaxedit.bounds.subspace import SubspaceConfig, move, subspace
from jaxedit.models.shapes import SHAPES
from jaxedit.models.transformer import hidden
from jaxedit.models.vocabulary import unembed
from jaxedit.train.language import LoraConfig
from jaxedit.train.loss import next_token

FOLDER = Path(__file__).parents[1] / "golden/bounds"
GOLDEN = json.loads((FOLDER / "bounds.json").read_text())
TINY = json.loads((FOLDER / "bounds_tiny_sublora.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["projector_rdkronqr"])
def test_the_published_projector(case):
    D, d = case["D"], case["d"]
    extra = np.array(case["extra_block"], np.float64)
    rest, more = D - len(case["Q1"]) ** 2, d - len(case["Q1"][0]) ** 2
    q1, q2, order = (np.array(case[name]) for name in ("Q1", "Q2", "perm"))
    kron = laid_out(q1, q2, extra.reshape(rest, more), order)
    p = Projection(kron, d, D)
    out, pull = jax.vjp(p, jnp.array(case["w"]))
    np.testing.assert_allclose(out, case["Pw"], atol=1e-6)
    np.testing.assert_allclose(pull(jnp.array(case["g"]))[0], case["PTg"], atol=1e-6)


@pytest.mark.parametrize("kind", [*KINDS, "identity"])
@pytest.mark.parametrize(("D", "d"), [(30, 10), (36, 9), (106, 27), (128, 128)])
def test_the_transpose_is_the_transpose(kind, D, d):
    p = make(kind, D, d, 0)
    w, g = (jnp.asarray(np.random.RandomState(i).standard_normal(n), jnp.float32)
            for i, n in enumerate((p.d, D)))  # fmt: skip
    out, pull = jax.vjp(p, w)
    assert out.shape == (D,)
    np.testing.assert_allclose(out @ g, w @ pull(g)[0], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("D", "d"), [(30, 10), (100, 25), (361, 100), (105, 27)])
def test_every_parameter_moves_and_every_coordinate_counts(D, d):
    whole = np.stack([np.asarray(make("kron", D, d, 0)(e)) for e in jnp.eye(d)], 1)
    assert (np.abs(whole).max(1) > 0).all()
    assert np.linalg.matrix_rank(whole) == d
    if int(D**0.5) ** 2 == D:  # a grid without padding: columns are orthonormal
        np.testing.assert_allclose(whole.T @ whole, np.eye(d), atol=2e-6)


def test_the_published_one_has_dead_ends():
    """Where d is a square parameters never move; where D is one coordinates are without effect."""
    still = np.stack([np.asarray(make("square", 30, 9, 0)(e)) for e in jnp.eye(9)], 1)
    assert (np.abs(still).max(1) == 0).sum() == 5
    dead = np.stack([np.asarray(make("square", 36, 10, 0)(e)) for e in jnp.eye(10)], 1)
    assert (np.abs(dead).max(0) == 0).sum() == 1


@pytest.mark.parametrize("kind", ["dense", "sparse", "fastfood", "kron"])
def test_columns_have_length_one_on_average(kind):
    D, d = 4096, 64
    lengths = [float(jnp.square(make(kind, D, d, s)(e)).sum()) for s in range(3)
               for e in jnp.eye(d)[::8]]  # fmt: skip
    assert abs(np.mean(lengths) - 1) < 0.15


def test_a_seed_says_it_all():
    w = jnp.arange(10, dtype=jnp.float32)
    for kind in KINDS:
        one, again, other = (np.asarray(make(kind, 50, 10, s)(w)) for s in (3, 3, 4))
        np.testing.assert_array_equal(one, again)
        assert (one != other).any()
    # the numbers themselves: a file that was made elsewhere decodes to the same model
    found = np.round(np.asarray(make("kron", 50, 10, 3)(w), np.float64), 4)
    assert hashlib.sha256(np.int64(found * 10**4).tobytes()).hexdigest()[:8] == PINNED


PINNED = "524124aa"


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="subspace of 31 dimensions: from 1 to the 30"):
        make("kron", 30, 31, 0)
    with pytest.raises(ValueError, match="projection 'krone': one of identity, kron"):
        make("krone", 30, 3, 0)
    tree = {"attn": LowRank(jnp.ones((2, 4, 1)), jnp.zeros((2, 1, 4)))}
    with pytest.raises(ValueError, match="film moves norms and biases"):
        subspace(tree, SubspaceConfig(dim=3, film=True))
    with pytest.raises(ValueError, match="1 coordinates for 2 arrays"):
        subspace(tree, SubspaceConfig(dim=1, scope="each"))


def test_a_tree_moves_as_one_vector():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(4)}
    w = jnp.asarray(np.random.RandomState(0).standard_normal(5), jnp.float32)
    space = subspace(tree, SubspaceConfig(dim=5))
    moved = move(space, tree, w)
    flat = np.asarray(space.parts[0](w))
    np.testing.assert_allclose(moved["a"], tree["a"] + flat[:6].reshape(2, 3), rtol=1e-6)
    np.testing.assert_allclose(moved["b"], tree["b"] + flat[6:], rtol=1e-6)
    still = move(space, tree, jnp.zeros(5))
    jax.tree.map(np.testing.assert_array_equal, still, tree)


def test_each_array_has_its_share():
    tree = {"a": jnp.zeros(900), "b": jnp.zeros(90), "c": jnp.zeros(2)}
    space = subspace(tree, SubspaceConfig(dim=100, scope="each"))
    assert [p.d for p in space.parts] == [90, 9, 1]
    assert space.size == 992
    assert subspaces.shares([10, 1, 1], 12) == [10, 1, 1]
    w = jnp.zeros(100).at[99].set(1.0)
    moved = move(space, tree, w)
    assert not moved["a"].any()
    assert not moved["b"].any()
    assert moved["c"].any()


def test_film_moves_norms_and_biases_alone():
    from jaxedit.models import specs

    params = specs.init(jax.random.key(0), SHAPES["tiny-gpt2"])
    space = subspace(params, SubspaceConfig(dim=9, film=True))
    moved = move(space, params, jnp.ones(9))
    differs = jax.tree.map(lambda x, y: bool((x != y).any()), params, moved)
    changed = jax.tree.leaves_with_path(differs)
    for path, one in changed:
        assert one == subspaces.is_film(jax.tree_util.keystr(path))
    assert any(one for _, one in changed)


def test_the_authors_tiny_model():
    """Logits, loss and its slope by w, of a GPT with LoRA in a subspace."""
    start = {k: jnp.asarray(np.array(v, np.float32)) for k, v in TINY["initial_parameters"].items()}
    cfg = SHAPES["tiny-gpt2"].replace(
        layers=1, embed=8, heads=2, kv_heads=2, head_dim=4, mlp=32, vocab=24, max_len=8,
        act="gelu", tied=True, qkv_bias=False, out_bias=False, mlp_bias=False,
    )  # fmt: skip
    block = "transformer.h.0."
    stack = lambda name: start[block + name + ".weight"].T[None]
    norm = lambda name: {"w": start[name + ".weight"][None], "b": jnp.zeros((1, 8))}
    last = norm("transformer.ln_f")
    params = {
        "embed": {"w": start["transformer.wte.weight"]},
        "pos": {"w": start["transformer.wpe.weight"]},
        "norm": {k: v[0] for k, v in last.items()},
        "blocks": {
            "norm1": norm(block + "ln_1"), "norm2": norm(block + "ln_2"),
            "attn": {n: {"w": stack(f"attn.{m}_proj")} for n, m in ("qq", "kk", "vv", "oc")},
            "mlp": {"up": {"w": stack("mlp.c_fc")}, "down": {"w": stack("mlp.c_proj")}},
        },
    }  # fmt: skip
    order = TINY["subspace_order"]
    sizes = [start[name].shape for name in order]
    p = jnp.asarray(np.array(TINY["P_dense"], np.float32))
    family = FamilyConfig(cfg, lora=LoraConfig(rank=2, alpha=32.0))
    names = {"attn/q": 0, "attn/v": 2, "head": 4}

    def loss(w, logits=False):
        flat, at, moved = p @ w, 0, []
        for name, shape in zip(order, sizes, strict=True):
            n = shape[0] * shape[1]
            moved.append(start[name] + flat[at : at + n].reshape(shape))
            at += n
        lead = lambda x, name: x if name == "head" else x[None]
        theta = {k: LowRank(lead(moved[i].T, k), lead(moved[i + 1].T, k)) for k, i in names.items()}
        _, deltas = model_of(family, params, theta)
        x, y = np.array(TINY["x"]), np.array(TINY["y"])
        tokens = jnp.asarray(np.concatenate([x, y[:, -1:]], 1))
        if logits:
            h = hidden(params, tokens[:, :-1], cfg, deltas=deltas)
            return unembed(params, h, cfg, deltas=deltas)
        total, count = next_token(params, tokens, cfg, deltas=deltas)
        return total / count

    for case in TINY["runs"]:
        value, slope = jax.value_and_grad(loss)(jnp.array(case["w"], jnp.float32))
        np.testing.assert_allclose(value, case["loss_nats"], rtol=2e-6)
        want = np.array(case["logits"])  # 5e-5 at logits up to 10
        near = 5e-5 * max(1.0, np.abs(want).max() / 10)
        np.testing.assert_allclose(loss(jnp.array(case["w"]), logits=True), want, atol=near)
        scale = max(1.0, float(np.abs(case["grad_w"]).max()))
        np.testing.assert_allclose(slope, case["grad_w"], atol=1e-6 * scale)
