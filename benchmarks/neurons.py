"""Knowledge neurons of a prompt: all layers in one program, beside one layer at a time.

    python benchmarks/neurons.py cpu            GPT-2-small's shape, 12 tokens, 20 points; 2 minutes
    python benchmarks/neurons.py gpu [SHAPE]    seconds per prompt at GPT-2-XL's shape, bfloat16

One layer at a time is the usual way in the same JAX, jitted once for all layers: the scaled copies
of the prompt are a batch, all of whose columns and layers are run.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from gpu import gigabytes
from measure import alternate, report, seconds

import jaxedit
from jaxedit.base import Array, Params, Write
from jaxedit.locate.knowledge_neurons import attribute
from jaxedit.models.config import ModelConfig
from jaxedit.models.shapes import SHAPES

TOKENS, STEPS = 12, 20


@partial(jax.jit, static_argnames="cfg")
def layer_scores(params: Params, tokens: Array, layer: Array, cfg: ModelConfig) -> Array:
    """One layer, as it is usually written."""
    plain = jaxedit.forward(params, tokens[None], cfg, reads={"mlp_key": None})
    act, answer = plain.reads["mlp_key"][layer, 0, -1], plain.logits[0, -1].argmax()
    alpha = (jnp.arange(STEPS, dtype=jnp.float32) + 0.5) / STEPS
    rows = jnp.broadcast_to(tokens, (STEPS, TOKENS))
    last = jnp.broadcast_to(jnp.arange(TOKENS) == TOKENS - 1, (1, STEPS, TOKENS))

    def likely(x: Array) -> Array:
        write = Write(last, x[None, :, None], layer[None])
        logits = jaxedit.forward(params, rows, cfg, writes={"mlp_key": write}).logits
        return jax.nn.softmax(logits[:, -1])[:, answer].sum()

    return act * jax.grad(likely)(alpha[:, None] * act).mean(0)


def setting(shape: str, dtype: str) -> tuple[Params, Array, ModelConfig]:
    cfg = SHAPES[shape].replace(dtype=dtype, eos_ids=())
    tokens = jnp.asarray(np.random.RandomState(0).randint(0, cfg.vocab, TOKENS), jnp.int32)
    return jaxedit.init(jax.random.key(0), cfg, dtype), tokens, cfg


def ours(params: Params, tokens: Array, cfg: ModelConfig) -> Array:
    pos = jnp.arange(TOKENS, dtype=jnp.int32)
    return attribute(params, tokens[None], pos[None], None, cfg, steps=STEPS)[0][0]


def cpu() -> None:
    params, tokens, cfg = setting("gpt2-small", "float32")
    some = (0, 4, 8, 11)
    one = lambda layer: layer_scores(params, tokens, jnp.int32(layer), cfg)
    scores = ours(params, tokens, cfg)
    gap = max(float(jnp.abs(one(i) - scores[i]).max()) for i in some) / float(scores.max())
    runs = {"ours": lambda: ours(params, tokens, cfg), "each": lambda: [one(i) for i in some]}
    took = alternate(runs, repeats=3)
    each = took["each"] / len(some) * cfg.layers
    report(
        f"knowledge neurons of a prompt of {TOKENS} tokens, {cfg.layers} layers, {STEPS} points",
        seconds=took["ours"], one_layer_at_a_time=each, over_ours=each / took["ours"],
        largest_difference=gap,
    )  # fmt: skip


def gpu(shape: str = "gpt2-xl") -> None:
    params, tokens, cfg = setting(shape, "bfloat16")
    took = seconds(lambda: ours(params, tokens, cfg), repeats=3)
    report(f"knowledge neurons of a prompt of {TOKENS} tokens, {shape}, {STEPS} points",
           seconds=took, peak_gb=gigabytes())  # fmt: skip


if __name__ == "__main__":
    where, *shapes = sys.argv[1:] or ["cpu"]
    gpu(*shapes) if where == "gpu" else cpu()
