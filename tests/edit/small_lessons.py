"""A few lessons of the world that ships, for editors that are trained."""

from functools import cache

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

import jaxedit
from jaxedit.data.lessons import LessonConfig, load
from jaxedit.edit import inner, learner

LAYERS = (1, 3)


@cache
def world():
    return jaxedit.load("world", dtype="float32")


@cache
def drawn():
    train, _, _ = load(LessonConfig(("world:small:0:60",), validation=2), world().tokenizer)
    return train


def lessons(count=4, step=0):
    """[N, 3, …]"""
    return drawn().batch(step, count)


def parts(some, start=LAYERS[0]):
    """Edits, other wordings and what is kept, each with its residual stream."""
    return learner.parts_of(world().params, some, world().cfg, start)


def loss_of(params, rows):
    """The mean loss of a row's answer, [B]."""
    x_BTD, _ = inner.above(params, inner.stem(params, rows, world().cfg, 0), rows, world().cfg, 0)
    return inner.mean(inner.nll(inner.told(params, x_BTD, rows, world().cfg), rows), rows)


def weights(params, paths, layers=LAYERS):
    """The matrices [n, I, O] of some layers, by path."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return {path: flat[f"blocks/{path}/w"][jnp.array(layers)] for path in paths}


def with_weights(params, mats, layers=LAYERS):
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, w in mats.items():
        leaf = f"blocks/{path}/w"
        flat[leaf] = flat[leaf].at[jnp.array(layers)].set(w)
    return traverse_util.unflatten_dict(flat, sep="/")


def full_gradient(params, rows, paths, layers=LAYERS):
    """Of the rows' summed loss, by whole matrices."""
    loss = lambda mats: loss_of(with_weights(params, mats, layers), rows).sum()
    return jax.grad(loss)(weights(params, paths, layers))


def stirred(now, size=0.2):
    """What was learned, at random: nothing of it is zero."""
    leaves, tree = jax.tree.flatten(now.trained)
    noise = lambda i, x: size * jax.random.normal(jax.random.key(i), x.shape)
    moved = [x + noise(i, x) for i, x in enumerate(leaves)]
    return learner.Learned(jax.tree.unflatten(tree, moved), now.running)


def trained(method, opt, steps, lr, count=8):
    """An editor after a few steps on the same lessons, and the metrics of every step."""
    now = learner.first(jax.random.key(0), method, opt, world().cfg)
    adam, found = optax.adam(lr), []
    memory, some = adam.init(now.trained), lessons(count)
    for _ in range(steps):
        grad, metrics, running = learner.gradient(
            now, world().params, some, method, opt, world().cfg
        )
        with jax.numpy_dtype_promotion("standard"):
            moves, memory = adam.update(grad, memory)
        now = learner.Learned(optax.apply_updates(now.trained, moves), running)
        found.append({k: float(v) for k, v in metrics.items()})
    return now, found
