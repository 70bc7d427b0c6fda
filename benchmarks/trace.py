"""Causal tracing of a prompt: all states in a few programs, beside one state at a time.

    python benchmarks/trace.py cpu              GPT-2-small's shape, 12 tokens, 10 samples of noise;
                                                3 minutes
    python benchmarks/trace.py gpu [SHAPE]      seconds per prompt at GPT-2-XL's shape, bfloat16
    python benchmarks/trace.py known FOLDER [SHAPE] [LIMIT]
                                                known_1000 on random weights, hidden states; FOLDER
                                                holds known_1000.json and GPT-2's encoder.json and
                                                vocab.bpe. LIMIT facts are drawn evenly

One state at a time is the authors' way in the same JAX, jitted: the noisy rows in one batch, whole
rows, all layers, logits at every position. Its time is that of some states, times how many there
are.
"""

import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu import gigabytes
from measure import alternate, report, seconds
from transformers import GPT2Tokenizer

import jaxedit
from jaxedit.base import Array, Params, Write
from jaxedit.locate.task import TraceTask, facts, level_of, one, tokens_of
from jaxedit.locate.trace import gaussian, trace
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.shapes import SHAPES
from jaxedit.progress import Meter

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
        run = partial(scores, params, tokens, noise, cfg, kind)
        first = seconds(run, repeats=1, warmups=0)
        took = seconds(run, repeats=3, warmups=0)
        report(f"a prompt of {TOKENS} tokens traced, {shape}, {kind}", seconds=took,
               with_compilation=first, peak_gb=gigabytes())  # fmt: skip


def known(folder: str, shape: str = "gpt2-xl", limit: str = "0") -> None:
    tokenizer = GPT2Tokenizer(vocab=f"{folder}/encoder.json", merges=f"{folder}/vocab.bpe")
    cfg = SHAPES[shape].replace(vocab=len(tokenizer), dtype="bfloat16", eos_ids=())
    model = Model(jaxedit.init(jax.random.key(0), cfg, "bfloat16"), cfg, tokenizer)
    task = TraceTask("random", f"known_1000:{folder}/known_1000.json", kinds=("hidden",))
    asked, _ = tokens_of(model, facts(task.facts)[0])
    level = level_of(task, model, asked)
    some = asked[:: max(len(asked) // (int(limit) or len(asked)), 1)]
    meter, took = Meter("tracing", "facts"), []
    for i, fact in enumerate(some):
        start = time.perf_counter()
        one(task, model, fact, level, answer=-1)
        took.append(time.perf_counter() - start)
        meter(i + 1, len(some))
    report(
        f"{len(some)} facts of known_1000 traced, {shape}, hidden, compilation and all",
        minutes=sum(took) / 60, median_seconds=float(np.median(took)),
        known_1000_minutes=len(asked) * float(np.median(took)) / 60, peak_gb=gigabytes(),
    )  # fmt: skip


if __name__ == "__main__":
    where, *rest = sys.argv[1:] or ["cpu"]
    runs: dict[str, Any] = {"cpu": cpu, "gpu": gpu, "known": known}
    if where not in runs:
        raise SystemExit(f"{where!r}: of {', '.join(runs)}")
    runs[where](*rest)
