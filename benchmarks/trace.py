"""Causal tracing of a prompt: all states in a few programs, beside one state at a time.

    python benchmarks/trace.py cpu              GPT-2-small's shape, 12 tokens, 10 samples of noise;
                                                3 minutes
    python benchmarks/trace.py gpu [SHAPE]      seconds per prompt at GPT-2-XL's shape, bfloat16

One state at a time is the authors' way in the same JAX, jitted: the noisy rows in one batch, whole
rows, all layers, logits at every position. Its time is that of some states, times how many there
are.
"""

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu import gigabytes
from measure import alternate, report, seconds

import jaxedit
from jaxedit.base import Array, Params, Write
from jaxedit.locate.trace import gaussian, trace
from jaxedit.models.config import ModelConfig
from jaxedit.models.shapes import SHAPES

TOKENS, SAMPLES, SUBJECT = 12, 10, slice(0, 4)


@partial(jax.jit, static_argnames="cfg")
def state(
    params: Params, tokens: Array, noise: Array, clean: Array, mask: Array, cfg: ModelConfig
) -> Array:
    """One state restored, as it is usually written."""
    rows = jnp.broadcast_to(tokens, (len(noise), len(tokens)))
    writes = {
        "embed": Write(jnp.ones(rows.shape, bool), noise, add=True),
        "resid_post": Write(mask, clean),
    }
    logits = jaxedit.forward(params, rows, cfg, writes=writes).logits
    return jax.nn.softmax(logits[:, -1])


def setting(cfg: ModelConfig, dtype: str) -> tuple[Any, ...]:
    params = jaxedit.init(jax.random.key(0), cfg, dtype)
    tokens = np.random.RandomState(0).randint(0, cfg.vocab, TOKENS)
    subject = np.zeros(TOKENS, bool)
    subject[SUBJECT] = True
    return params, tokens, gaussian(1, SAMPLES, subject, cfg, 0.1)


def cpu() -> None:
    cfg = SHAPES["gpt2-small"].replace(eos_ids=())
    params, tokens, noise = setting(cfg, "float32")
    ours = lambda: trace(params, tokens, noise, cfg).scores_TL
    clean = jaxedit.forward(params, jnp.asarray(tokens)[None], cfg, reads={"resid_post": None})
    some = [(token, layer) for token in (0, 5, 11) for layer in (0, 6, 11)]
    given = (params, jnp.asarray(tokens), jnp.asarray(noise, jnp.float32))

    def one(token: int, layer: int) -> Array:
        mask = np.zeros((cfg.layers, 1, TOKENS), bool)
        mask[layer, :, token] = True
        return state(*given, clean.reads["resid_post"], jnp.asarray(mask), cfg)

    scores, answer = ours(), int(clean.logits[0, -1].argmax())
    gap = max(abs(float(one(*at)[:, answer].mean()) - scores[at]) for at in some)
    runs = {"ours": ours, "each": lambda: [one(*at) for at in some]}
    took = alternate(runs, repeats=3)
    each = took["each"] / len(some) * TOKENS * cfg.layers
    report(
        f"a prompt of {TOKENS} tokens traced, {cfg.layers} layers, {SAMPLES} samples of noise",
        seconds=took["ours"], one_at_a_time=each, over_ours=each / took["ours"],
        largest_difference=gap,
    )  # fmt: skip


def scores(params: Params, tokens: Any, noise: Any, cfg: ModelConfig, kind: Any) -> np.ndarray:
    return trace(params, tokens, noise, cfg, kind=kind).scores_TL


def gpu(shape: str = "gpt2-xl") -> None:
    cfg = SHAPES[shape].replace(dtype="bfloat16", eos_ids=())
    params, tokens, noise = setting(cfg, "bfloat16")
    for kind in ("hidden", "mlp", "attn"):
        took = seconds(partial(scores, params, tokens, noise, cfg, kind), repeats=3)
        report(f"a prompt of {TOKENS} tokens traced, {shape}, {kind}", seconds=took,
               known_1000_minutes=1208 * took / 60, peak_gb=gigabytes())  # fmt: skip


if __name__ == "__main__":
    where, *shapes = sys.argv[1:] or ["cpu"]
    gpu(*shapes) if where == "gpu" else cpu()
