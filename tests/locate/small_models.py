"""Rows of tokens, and a model that knows one thing, in a place that is known."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxedit
from jaxedit.models.shapes import SHAPES


def rows(some, length=None):
    """Padded on the left."""
    S = length or max(map(len, some))
    tokens, pos = np.zeros((len(some), S), np.int32), np.full((len(some), S), -1, np.int32)
    for b, ids in enumerate(some):
        tokens[b, S - len(ids) :], pos[b, S - len(ids) :] = ids, np.arange(len(ids))
    return jnp.asarray(tokens), jnp.asarray(pos)


def planted(layer=1, neuron=11, trigger=7, answer=33):
    """(params, cfg), a prompt, its answer and (layer, neuron) that alone brings it about: the
    neuron fires at the trigger and adds the answer's embedding.
    """
    cfg = SHAPES["tiny-gpt2"].replace(layers=3, eos_ids=())
    random = np.random.RandomState(0)
    params = jax.tree.map(lambda x: 0.05 * x, jaxedit.init(jax.random.key(1), cfg))
    params["blocks"] |= {k: {**v, "w": jnp.ones_like(v["w"])}
                         for k, v in params["blocks"].items() if k.startswith("norm")}  # fmt: skip
    table = random.standard_normal((cfg.vocab, cfg.embed)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    params["embed"]["w"], params["pos"]["w"] = jnp.asarray(table), 0 * params["pos"]["w"]
    params["norm"] = {**params["norm"], "w": 10 + 0 * params["norm"]["w"]}
    mlp = params["blocks"]["mlp"]
    mlp["up"]["w"] = mlp["up"]["w"].at[layer, :, neuron].set(table[trigger])
    mlp["down"]["w"] = mlp["down"]["w"].at[layer, neuron].set(2 * table[answer])
    return (params, cfg), [3, 5, trigger], answer, (layer, neuron)
