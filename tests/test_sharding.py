"""The same numbers on every mesh of eight devices, each of which holds its share and no more."""

import math
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import scaled_error, write_model
from jax.sharding import PartitionSpec as P

import jaxedit
from jaxedit.base import LowRank, Write
from jaxedit.models import specs
from jaxedit.models.config import ModelConfig
from jaxedit.models.generate import decode
from jaxedit.models.shapes import SHAPES
from jaxedit.models.transformer import forward, run_blocks
from jaxedit.sharding import make_mesh, partition
from jaxedit.tensorfile import Tensor

LLAMA = SHAPES["tiny-llama"].replace(layers=3, mlp=64, vocab=128, max_len=32)
GPT2 = SHAPES["tiny-gpt2"].replace(layers=3, max_len=32)  # a vocabulary divided by nothing
MODELS = {"llama": LLAMA, "gpt2": GPT2}
MESHES = [(1, 1, 1), (4, 1, 1), (2, 2, 2), (1, 1, 4), (1, 8, 1), (1, 4, 1)]
B, T, STEPS = 8, 10, 4
SITES = ("embed", "attn_k", "mlp_key", "resid_post")
# Most of the time goes into compiling, and so little is computed that it need not be fast.
QUICK = {"xla_backend_optimization_level": 0}

rng = np.random.RandomState(0)
TOKENS = rng.randint(0, 101, (B, T)).astype(np.int32)
POS = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
DELTAS = {
    "mlp/down": LowRank(0.3 * normal(3, B, 64, 2), 0.3 * normal(3, B, 2, 32)),
    "attn/q": LowRank(0.3 * normal(1, 32, 2), 0.3 * normal(1, 2, 32), np.array([1], np.int32)),
}
LAST = np.array([2], np.int32)
WRITES = {
    "mlp_out": Write(normal(1, B, T) > 0, normal(1, B, 1, 32), LAST),
    "resid_pre": Write(np.ones((1, 1, 1), bool), normal(1, B, 1, 32), LAST - 1, add=True),
}


def weights(cfg: ModelConfig) -> dict:
    """Weights that make logits of size 1 to 10, on the host."""
    one = lambda s: 0.2 * normal(*s.shape) + float(s.init == "ones")
    return specs.nest({path: one(spec) for path, spec in specs.specs(cfg).items()})


def place(params: dict, cfg: ModelConfig, mesh: jax.sharding.Mesh) -> dict:
    return jax.device_put(params, specs.nest(specs.shardings(cfg, mesh)))


def loss(params: dict, tokens: jax.Array, cfg: ModelConfig, sites=()) -> tuple:
    out = forward(params, tokens, cfg, reads=dict.fromkeys(sites))
    logp = jax.nn.log_softmax(out.logits[:, :-1])
    return -jnp.take_along_axis(logp, tokens[:, 1:, None], -1).mean(), out


@partial(jax.jit, static_argnames="cfg", compiler_options=QUICK)
def everything(params: dict, tokens: jax.Array, cfg: ModelConfig) -> dict:
    """What a method asks of a model, in a program of the user's, who does not mention a mesh."""
    grad, plain = jax.grad(loss, has_aux=True)(params, tokens, cfg, SITES)
    edited = forward(params, tokens, cfg, deltas=DELTAS, writes=WRITES).logits
    return {"logits": plain.logits, "reads": plain.reads, "grad": grad, "edited": edited}


@cache
def reference(model: str) -> tuple[dict, ModelConfig, dict]:
    """A model's weights, and what it computes on one device."""
    cfg = MODELS[model]
    params = weights(cfg)
    want = jax.tree.map(np.asarray, everything(params, TOKENS, cfg))
    assert np.abs(want["logits"]).max() > 0.5
    assert np.abs(want["edited"] - want["logits"]).max() > 0.1
    want["decoded"] = np.asarray(decode(params, TOKENS, POS, cfg, steps=STEPS).tokens_BN)
    return params, cfg, want


def same(got, want, tolerance: float = 1e-5) -> None:
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert scaled_error(x, y) <= tolerance, jax.tree_util.keystr(path)


def shard(x: jax.Array) -> tuple[int, ...]:
    return x.sharding.shard_shape(x.shape)


def collected(program: str) -> set[tuple[int, ...]]:
    """The shapes of what a device has received after each all-gather and all-reduce."""
    found = re.findall(r"= (.*?) all-(?:gather|reduce)(?:-start)?\(", program)
    return {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", str(found))}


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_a_mesh_computes_what_one_device_does(model, sizes):
    params, cfg, want = reference(model)
    data, fsdp, tensor = sizes
    placed = place(params, cfg, make_mesh(*sizes))
    program = everything.lower(placed, TOKENS, cfg).compile()
    got = program(placed, TOKENS)
    same(got, {k: want[k] for k in got})

    rows, vocab = B // (data * fsdp), cfg.vocab // math.gcd(cfg.vocab, tensor)
    assert shard(got["logits"]) == shard(got["edited"]) == (rows, T, vocab)
    assert shard(got["reads"]["resid_post"]) == (cfg.layers, rows, T, cfg.embed)
    assert shard(got["reads"]["embed"]) == (rows, T, cfg.embed)
    for g, p in zip(jax.tree.leaves(got["grad"]), jax.tree.leaves(placed), strict=True):
        assert shard(g) == shard(p)  # a gradient lies where its weight does
    for shape in collected(program.as_text()):
        # weights come together layer by layer, activations and the batch never do
        assert shape != (cfg.vocab, cfg.embed) or vocab == cfg.vocab
        assert len(shape) < 3 or shape[0] != cfg.layers or tensor > cfg.kv_heads
        assert len(shape) < 3 or shape[0] != B or rows == B


@pytest.mark.parametrize(("model", "sizes"), [("llama", (2, 2, 2)), ("gpt2", (1, 1, 4))])
def test_a_caller_who_never_mentions_the_mesh(model, sizes):
    """Host tokens, and no jit, set_mesh or sharding in sight: the weights say where to compute."""
    params, cfg, want = reference(model)
    placed = place(params, cfg, make_mesh(*sizes))
    out = forward(placed, TOKENS, cfg)
    same(out.logits, want["logits"])
    assert shard(out.logits)[0] == B // math.prod(sizes[:2])
    decoded = decode(placed, TOKENS, POS, cfg, steps=STEPS).tokens_BN
    np.testing.assert_array_equal(decoded, want["decoded"])
    assert decoded.sharding.is_fully_replicated  # any process can read all of them


def test_inside_transformations_of_the_caller():
    params, cfg, want = reference("llama")
    mesh = make_mesh(2, 2, 2)
    placed = place(params, cfg, mesh)
    grad, _ = jax.grad(loss, has_aux=True)(placed, TOKENS, cfg)
    same(grad, want["grad"])
    assert jax.tree.map(shard, grad) == jax.tree.map(shard, placed)
    each = jax.jit(jax.vmap(lambda t: forward(placed, t, cfg).logits), compiler_options=QUICK)
    same(each(TOKENS.reshape(2, 4, T)).reshape(B, T, -1), want["logits"])
    with jax.set_mesh(mesh):
        step = jax.jit(lambda p, t: forward(p, t, cfg).logits, compiler_options=QUICK)
        logits = step(placed, jnp.asarray(TOKENS))
    same(logits, want["logits"])
    assert shard(logits)[0] == B // 4


@pytest.mark.parametrize(("model", "rows"), [("llama", 3), ("gpt2", 1)])
def test_a_batch_that_does_not_divide_the_mesh(model, rows):
    params, cfg, want = reference(model)
    placed = place(params, cfg, make_mesh(4, 1, 1))
    tokens, pos = TOKENS[:rows], POS[:rows]
    same(forward(placed, tokens, cfg).logits, want["logits"][:rows])
    decoded = decode(placed, tokens, pos, cfg, steps=STEPS).tokens_BN
    np.testing.assert_array_equal(decoded, want["decoded"][:rows])


def test_some_layers_on_a_mesh():
    params, cfg, want = reference("llama")
    placed = place(params, cfg, make_mesh(2, 2, 2))
    run = jax.jit(partial(run_blocks, cfg=cfg, pos_BT=POS, start=1), compiler_options=QUICK)
    with jax.set_mesh(make_mesh(2, 2, 2)):
        x_BTD, _, _ = run(placed, want["reads"]["resid_post"][0])
    same(x_BTD, want["reads"]["resid_post"][-1])
    assert shard(x_BTD)[0] == B // 4


def test_bfloat16_on_a_mesh():
    params, cfg, want = reference("llama")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    placed = place(half, cfg, make_mesh(2, 2, 2))
    grad, out = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2, compiler_options=QUICK)(
        placed, TOKENS, cfg.replace(dtype="bfloat16")
    )
    assert out.logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(grad)} == {jnp.bfloat16.dtype}
    same(out.logits, want["logits"], 0.06)  # 0.029; one device: 0.023
    assert jax.tree.map(shard, grad) == jax.tree.map(shard, placed)


def test_random_weights_do_not_depend_on_the_mesh():
    mesh = make_mesh(2, 2, 2)
    got = specs.init(jax.random.key(3), LLAMA, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, got, specs.init(jax.random.key(3), LLAMA))
    where = specs.nest(specs.shardings(LLAMA, mesh))
    assert jax.tree.map(lambda x: x.sharding, got) == where


def held(params: dict) -> list[int]:
    """Bytes on each device."""
    pieces = [s for x in jax.tree.leaves(params) for s in x.addressable_shards]
    devices = sorted({s.device.id for s in pieces})
    return [sum(s.data.nbytes for s in pieces if s.device.id == d) for d in devices]


@pytest.mark.parametrize("variant", ["llama", "gpt2"])
def test_a_loaded_model_is_spread_over_the_devices(tmp_path, monkeypatch, variant):
    """Every device holds its part, and nothing is read twice for two devices that hold the same."""
    write_model(variant, tmp_path)
    read, taken = Tensor.read, []

    def counted(self, *index):
        taken.append(read(self, *index))
        return taken[-1]

    monkeypatch.setattr(Tensor, "read", counted)
    total = lambda arrays: sum(x.nbytes for x in arrays)
    want = jaxedit.load(tmp_path)
    whole = total(jax.tree.leaves(want.params))
    assert total(taken) == whole
    taken.clear()
    model = jaxedit.load(tmp_path, mesh=make_mesh(2, 4, 1))
    assert total(taken) == whole
    jax.tree.map(np.testing.assert_array_equal, model.params, want.params)
    vectors = total(x for x in jax.tree.leaves(model.params) if x.ndim == 1 or x.shape[1] == 1)
    vectors += total(x for k, x in specs.flatten(model.params["blocks"]).items() if x.ndim == 2)
    on = held(model.params)
    assert len(on) == 8
    assert min(on) == max(on) <= (whole - vectors) / 4 + vectors < 0.4 * whole


def test_heads_are_cut_whole_and_what_does_not_divide_is_not_cut():
    lies = lambda cfg, *sizes: {
        k: s.shard_shape(specs.specs(cfg)[k].shape)
        for k, s in specs.shardings(cfg, make_mesh(*sizes)).items()
    }
    on = lies(LLAMA, 1, 1, 4)
    assert on["blocks/attn/q/w"] == (3, 32, 8)  # one head of four
    assert on["blocks/attn/k/w"] == on["blocks/attn/v/w"] == (3, 32, 16)  # two for four devices
    assert on["blocks/attn/o/w"] == (3, 8, 32)
    assert on["blocks/mlp/down/w"] == (3, 16, 32)
    assert on["embed/w"] == (32, 32)
    assert lies(LLAMA, 1, 1, 2)["blocks/attn/k/w"] == (3, 32, 8)
    assert lies(LLAMA, 1, 1, 8)["blocks/attn/q/w"] == (3, 32, 32)  # eight divide neither four heads
    assert lies(LLAMA, 1, 1, 8)["blocks/mlp/up/w"] == (3, 32, 8)
    on = lies(GPT2, 1, 2, 4)
    assert on["embed/w"] == (101, 16)  # nor does anything divide 101 rows
    assert on["blocks/mlp/up/b"] == (3, 16)
    assert on["blocks/norm1/w"] == (3, 32)
    assert lies(LLAMA, 1, 5, 1) == {k: s.shape for k, s in specs.specs(LLAMA).items()}


def test_axes_share_a_dimension_as_far_as_it_goes():
    sizes = {"data": 2, "fsdp": 4, "tensor": 1}
    assert partition(("batch", None), (8, 5), sizes) == P(("data", "fsdp"), None)
    assert partition(("batch",), (4,), sizes) == P("data")
    assert partition(("batch",), (3,), sizes) == P(None)
    with pytest.raises(ValueError, match="unknown axis 'head'"):
        partition(("head",), (4,), sizes)


def test_make_mesh_fills_and_refuses():
    shape = lambda *sizes: tuple(make_mesh(*sizes).shape.values())
    assert shape(1, -1, 2) == (1, 4, 2)
    assert shape(-1) == (8, 1, 1)
    assert shape(2, 2, -1) == (2, 2, 2)
    assert shape(1, 2, 2) == (1, 2, 2)  # half of the devices
    assert make_mesh(1, -1, 1, jax.devices()[:3]).shape["fsdp"] == 3
    for sizes in [(-1, -1, 1), (0, 1, 1), (1, -2, 1)]:
        with pytest.raises(ValueError, match="at most one is -1"):
            make_mesh(*sizes)
    for sizes in [(4, 4, 1), (1, 9, 1), (3, -1, 1), (16, -1, 1)]:
        with pytest.raises(ValueError, match="there are 8"):
            make_mesh(*sizes)
