"""Forward, training step and decode at GPT-2-small and Llama-2-7B shapes on one accelerator, bf16.

    python benchmarks/gpu.py                  random weights; one H200 (141 GB), about 8 minutes
    python benchmarks/gpu.py gpt2-small       one shape

MFU is the model's FLOPs over what a large bf16 matrix product reaches on the same device in the
same run: 2 per weight of a matrix and token forward, 6 for a training step, plus attention. The 7B
training step is AdamW with bfloat16 moments over all weights. The fused attention is timed against
our einsum in the same run.
"""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
from measure import alternate, peak_bytes, report, seconds

import jaxedit
from jaxedit.base import Array, Params
from jaxedit.models.config import ModelConfig
from jaxedit.models.generate import decode
from jaxedit.models.shapes import SHAPES
from jaxedit.models.specs import count
from jaxedit.train.loss import next_token

RUNS = {  # shape -> (rows, time) of a forward and of a training step, rows of a decode
    "gpt2-small": ((32, 1024), (32, 1024), 256),
    "llama-2-7b": ((8, 2048), (4, 2048), 64),
}
REMAT = ("llama-2-7b",)  # whose activations do not fit beside weights and moments


def matmul_rate(size: int = 8192) -> float:
    """FLOP/s of a square bf16 product: the yardstick."""
    a, b = (jax.random.normal(jax.random.key(i), (size, size)).astype(jnp.bfloat16) for i in (0, 1))
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / seconds(lambda: product(a, b), repeats=10, warmups=3)


def flops(cfg: ModelConfig, rows: int, time: int) -> float:
    """Of a forward: every matrix once per token, and attention's two products, causal."""
    table = 0 if cfg.tied else cfg.vocab * cfg.embed
    table += cfg.max_len * cfg.embed if cfg.learned_pos else 0
    weights = count(cfg) - table
    attention = 2 * cfg.layers * cfg.heads * cfg.head_dim * time
    return rows * time * (2 * weights + attention)


def use(shape: str, peak: float) -> None:
    (rows, time), _, decode_rows = RUNS[shape]
    cfg = SHAPES[shape].replace(dtype="bfloat16", eos_ids=())
    params = jaxedit.init(jax.random.key(0), cfg, "bfloat16")

    tokens = jax.random.randint(jax.random.key(1), (rows, time), 0, cfg.vocab)
    at = jnp.full((rows, 1), time - 1)
    kernels = {k: cfg.replace(attention=k) for k in ("auto", "einsum")}
    run = lambda c: jaxedit.forward(params, tokens, c, logits_at=at).logits
    times = alternate({k: functools.partial(run, c) for k, c in kernels.items()})
    body = flops(cfg, rows, time) - rows * (time - 1) * 2 * cfg.vocab * cfg.embed
    report(
        f"forward {rows} x {time}, {shape}",
        seconds=times["auto"],
        tokens_per_second=rows * time / times["auto"],
        mfu=body / times["auto"] / peak,
        einsum_over_fused=times["einsum"] / times["auto"],
        peak_gb=gigabytes(),
    )

    prompts = jax.random.randint(jax.random.key(2), (decode_rows, 128), 0, cfg.vocab)
    pos = jnp.broadcast_to(jnp.arange(128), prompts.shape)
    steps = 128
    took = seconds(lambda: decode(params, prompts, pos, cfg, steps=steps).tokens_BN, repeats=3)
    report(
        f"decode {decode_rows} rows x {steps} tokens after 128, {shape}",
        seconds=took,
        tokens_per_second=decode_rows * steps / took,
        weights_read_gb_per_second=2e-9 * count(cfg) * steps / took,
        peak_gb=gigabytes(),
    )


def train(shape: str, peak: float) -> None:
    _, (rows, time), _ = RUNS[shape]
    vocab = -(-SHAPES[shape].vocab // 64) * 64  # as one trains it: 50,304 for GPT-2
    cfg = SHAPES[shape].replace(dtype="bfloat16", eos_ids=(), vocab=vocab)
    params = jaxedit.init(jax.random.key(0), cfg, "bfloat16")
    tokens = jax.random.randint(jax.random.key(3), (rows, time + 1), 0, cfg.vocab)
    optimizer = optax.adamw(1e-4, mu_dtype=jnp.bfloat16)
    big = shape in REMAT

    def loss(params: Params) -> Array:
        total, count = next_token(params, tokens, cfg, remat=big, unroll=not big)
        return total / count

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: Any) -> tuple[Params, Any, Array]:
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)

    def once() -> Array:
        nonlocal params, state
        params, state, value = step(params, state)
        return value

    took = seconds(once, repeats=5, warmups=2)
    report(
        f"training step {rows} x {time}, {shape}",
        seconds=took,
        tokens_per_second=rows * time / took,
        mfu=3 * flops(cfg, rows, time) / took / peak,
        peak_gb=gigabytes(),
    )


def gigabytes() -> float | None:
    most = peak_bytes()
    return None if most is None else most / 1e9


def main() -> None:
    chosen = sys.argv[1:] or list(RUNS)
    peak = matmul_rate()
    report("bf16 product of 8192 x 8192", tflops=peak / 1e12)
    for shape in chosen:
        use(shape, peak)
        train(shape, peak)  # needs all the memory that there is: one set of weights


if __name__ == "__main__":
    main()
