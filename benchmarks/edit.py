"""Seconds per edit, on random weights and tokens.

    python benchmarks/edit.py cpu               GPT-2-small's shape: against the plain method, by
                                                batch size, second moments in one pass; 12 minutes
    python benchmarks/edit.py gpu               ROME, MEMIT, 1,024 MEMIT edits end to end at the
                                                shapes of Llama-2-7B and GPT-J-6B; one H200
    python benchmarks/edit.py gpu gpt2-small    another shape

The plain method is the authors' loop in the same JAX: one request at a time, whole rows, all
layers, logits at every position; "backward stops" runs the layers up to the edited one without a
gradient, as torch does. A request has 21 contexts of up to 10 tokens, a prompt of 12 whose subject
ends at token 4 to 6, a target of 2 tokens, and a row about the subject; no early stop, so that all
do the same work.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu import flops, gigabytes, matmul_rate
from measure import alternate, report, seconds

import jaxedit
from jaxedit.base import Array, Params, Write
from jaxedit.data.aligned import Aligned, Requests, Tokens
from jaxedit.edit import values
from jaxedit.edit.solve import factor
from jaxedit.edit.stats import StatsConfig, accumulate, parts
from jaxedit.edit.values import ValueConfig, adam, length
from jaxedit.edit.weights.memit import MemitConfig, MemitState, memit
from jaxedit.edit.weights.rome import RomeConfig, RomeState, rome
from jaxedit.models.config import ModelConfig
from jaxedit.models.shapes import SHAPES
from jaxedit.models.transformer import forward, run_blocks
from jaxedit.models.vocabulary import embed, unembed

ROME_ROWS = (("{}",) * 21,)  # how many contexts there are; their texts are random tokens
MEMIT_ROWS = (("{}",), ("{}",) * 5)
LAYERS = {"gpt2-small": (3, 4, 5), "llama-2-7b": (4, 5, 6, 7, 8), "gpt-j-6b": (3, 4, 5, 6, 7, 8)}


def work(count: int, groups: tuple, vocab: int, seed: int = 0) -> list[Tokens]:
    """Requests of random tokens, of the lengths that the docstring says."""
    r = np.random.RandomState(seed)
    contexts = sum(map(len, groups))
    prefixes = [[], *(r.randint(0, vocab, n).tolist() for n in r.randint(5, 11, contexts - 1))]
    made = []
    for place in range(count):
        prompt, at = r.randint(0, vocab, 12).tolist(), int(r.randint(4, 7))
        target = r.randint(0, vocab, 2).tolist()
        rows = [tuple(p + prompt + target[:-1]) for p in prefixes] + [
            tuple(prompt[at - 2 : at + 1])
        ]
        places = [len(p) + at for p in prefixes] + [2]
        made.append(Tokens(place, tuple(rows), tuple(places), tuple(target)))
    return made


def batches(found: Sequence[Tokens], groups: tuple, size: int) -> list[Aligned]:
    return [batch for _, batch in Requests(tuple(found), groups, size=size)]


@functools.partial(jax.jit, static_argnames=("cfg", "layer", "opt", "split"))
def plain(
    params: Params,
    tokens_RT: Array,
    pos_RT: Array,
    at_R: Array,
    target_U: Array,
    cfg: ModelConfig,
    layer: int,
    opt: ValueConfig,
    split: bool,
) -> Array:
    """The search for one request as it is usually written."""
    R, T = tokens_RT.shape
    here_RT = jnp.arange(T) == at_R[:, None]
    ends_R, U = (pos_RT >= 0).sum(1) - len(target_U), len(target_U)
    reads = {"mlp_down": at_R[:, None]}
    h0_D = forward(params, tokens_RT, cfg, pos_BT=pos_RT, reads=reads).reads["mlp_down"][
        layer, 0, 0
    ]
    start = None
    if split:
        x_RTD = embed(params, tokens_RT, cfg, pos_BT=pos_RT)
        start, _, _ = run_blocks(params, x_RTD, cfg, pos_BT=pos_RT, stop=layer + 1)

    def logits(delta_D: Array) -> Array:
        if start is None:
            mask = here_RT[None] & (jnp.arange(cfg.layers) == layer)[:, None, None]
            write = Write(mask, jnp.broadcast_to(delta_D, (cfg.layers, 1, 1, cfg.embed)), add=True)
            return forward(params, tokens_RT, cfg, pos_BT=pos_RT, writes={"mlp_down": write}).logits
        x_RTD = start + jnp.where(here_RT[..., None], delta_D, 0).astype(start.dtype)
        x_RTD, _, _ = run_blocks(params, x_RTD, cfg, pos_BT=pos_RT, start=layer + 1)
        return unembed(params, x_RTD, cfg)

    def loss(delta_D: Array, base_V: Array) -> tuple[Array, Array]:
        logp_RTV = jax.nn.log_softmax(logits(delta_D))
        now_V = logp_RTV[R - 1, at_R[R - 1]]
        columns = ends_R[: R - 1, None] + jnp.arange(U)
        said = logp_RTV[jnp.arange(R - 1)[:, None], columns, target_U]
        kl = (jnp.exp(now_V) * (now_V - base_V)).sum()
        decay = length(delta_D[None])[0] / jnp.square(h0_D).sum()
        return -said.mean() + opt.kl * kl + opt.weight_decay * decay, now_V

    zero = jnp.zeros(cfg.embed)
    base_V = jax.nn.log_softmax(logits(zero))[R - 1, at_R[R - 1]]

    def step(i: Array, state: tuple) -> tuple:
        delta_D, moments = state
        gradient = jax.grad(lambda d: loss(d, base_V)[0])(delta_D)
        delta_D, moments = adam(gradient, delta_D, moments, i + 1, opt.lr)
        limit = opt.clamp * jnp.linalg.norm(h0_D)
        return delta_D * jnp.minimum(1, limit / jnp.linalg.norm(delta_D)), moments

    return jax.lax.fori_loop(0, opt.steps - 1, step, (zero, (zero, zero)))[0]


def padded(one: Tokens) -> tuple[Any, ...]:
    """A request as the authors pad it."""
    T = max(map(len, one.rows))
    tokens, pos = np.zeros((len(one.rows), T), np.int32), np.full((len(one.rows), T), -1, np.int32)
    for i, row in enumerate(one.rows):
        tokens[i, : len(row)], pos[i, : len(row)] = row, np.arange(len(row))
    return jnp.asarray(tokens), jnp.asarray(pos), jnp.array(one.at), jnp.array(one.target)


def against_plain(params: Params, cfg: ModelConfig, layer: int, size: int = 8) -> None:
    opt = ValueConfig(stop_loss=-1.0)
    found = work(size, ROME_ROWS, cfg.vocab)
    one = padded(found[0])
    made = {n: batches(found[:n], ROME_ROWS, n) for n in (1, 2, size)}
    find = lambda n: values.search(params, made[n], cfg, layer, ("mlp_down",), opt)
    runs: dict[str, Any] = {
        "plain": lambda: plain(params, *one, cfg, layer, opt, False),
        "backward stops": lambda: plain(params, *one, cfg, layer, opt, True),
    }
    runs |= {f"ours {n} at once": functools.partial(find, n) for n in made}
    times = alternate(runs, repeats=1)
    per = dict(times) | {f"ours {n} at once": times[f"ours {n} at once"] / n for n in made}
    ours, same = find(1).delta["mlp_down"][0], runs["plain"]()
    low = values._search.lower(params, made[size][0], cfg, layer, ("mlp_down",), opt, None, False)
    memory = low.compile().memory_analysis()
    report(
        "ROME's value search: 21 contexts, 20 steps; seconds per edit",
        **{k.replace(" ", "_"): t for k, t in per.items()},
        plain_over_ours=per["plain"] / per[f"ours {size} at once"],
        stops_over_ours=per["backward stops"] / per[f"ours {size} at once"],
        temporary_mb=memory.temp_size_in_bytes / 1e6 if memory else None,
        difference=float(jnp.linalg.norm(ours - same) / jnp.linalg.norm(same)),
    )


def one_pass(params: Params, cfg: ModelConfig) -> None:
    r = np.random.RandomState(0)
    rows = [r.randint(0, cfg.vocab, 128).tolist() for _ in range(16)]
    (part, *_) = parts(rows, StatsConfig(batch=16 * 128).batch, 1)
    every = tuple(range(cfg.layers))
    zero = lambda n: jnp.zeros((n, cfg.mlp, cfg.mlp))
    whole = lambda: accumulate(zero(cfg.layers), params, *part, cfg, every)
    apart = lambda: [accumulate(zero(1), params, *part, cfg, (i,)) for i in every]

    times = alternate({"one": whole, "apart": apart}, repeats=3)
    tokens, pos = jnp.asarray(part.tokens), jnp.asarray(part.pos)
    forwards = seconds(lambda: forward(params, tokens, cfg, pos_BT=pos).logits, repeats=3)
    report(
        f"second moments of {cfg.layers} layers, {part.tokens.size} tokens",
        seconds=times["one"],
        a_pass_per_layer_over_one=times["apart"] / times["one"],
        whole_forward_per_layer_over_one=(times["apart"] + cfg.layers * forwards) / times["one"],
        half_the_layers=cfg.layers / 2,
    )


def on_gpu(shape: str, peak: float) -> None:
    cfg = SHAPES[shape].replace(dtype="bfloat16", eos_ids=())
    params = jaxedit.init(jax.random.key(0), cfg, "bfloat16")
    layers, opt = LAYERS[shape], ValueConfig(steps=25, stop_loss=-1.0)
    cov = covariance(cfg)
    editor = rome(RomeConfig(layers[1], values=opt))
    state: Any = RomeState(cov, cfg)
    for size in (32,):
        (batch,) = batches(work(size, ROME_ROWS, cfg.vocab), ROME_ROWS, size)
        took = seconds(functools.partial(editor.each, state, params, (batch,)), repeats=1)
        done = search_flops(cfg, batch, layers[1], opt.steps)
        report(
            f"ROME, {size} at once, {shape}", edits_per_second=size / took,
            share_of_matmul_rate=done / took / peak, peak_gb=gigabytes(),
        )  # fmt: skip
    editor = memit(MemitConfig(layers, values=dataclasses.replace(opt, clamp=0.75)))
    state = MemitState((cov,) * len(layers), cfg)
    for count, size in ((64, 64), (1024, 64)):
        some = tuple(batches(work(count, MEMIT_ROWS, cfg.vocab), MEMIT_ROWS, size))
        run = functools.partial(editor.edit, state, params, some)
        if count == size:  # compiles; the many compile their solve
            jax.block_until_ready(run())
        start = time.perf_counter()
        result, _ = jax.block_until_ready(run())
        took = time.perf_counter() - start
        done = sum(search_flops(cfg, b, layers[-1], opt.steps) for b in some)
        report(
            f"MEMIT, {count} edits together, {shape}", edits_per_second=count / took, seconds=took,
            share_of_matmul_rate=done / took / peak, peak_gb=gigabytes(),
            worst_solve=float(result.info["error"].max()),
        )  # fmt: skip


def covariance(cfg: ModelConfig) -> Any:
    """A second moment of condition about 1e3, ready to be solved with."""
    x = jax.random.normal(jax.random.key(1), (4 * cfg.mlp, cfg.mlp))
    scale = jnp.logspace(0, -1.5, cfg.mlp)
    return factor((x * scale).T @ (x * scale) / len(x))


def search_flops(cfg: ModelConfig, batch: Aligned, layer: int, steps: int) -> float:
    """What the search has to do: tails through the layers above, forward and twice back, and the
    logits that it reads; without padding of the prefixes.
    """
    N, R, S = batch.tokens_NRS.shape
    tail = S - batch.prefix
    above = cfg.replace(layers=cfg.layers - layer - 1, vocab=0, tied=True, max_len=0)
    logits = 2 * N * batch.at_NQ.shape[1] * cfg.vocab * cfg.embed
    # no gradient of weights: a backward pass costs what a forward pass does
    return steps * 2 * (flops(above, N * R, tail) + logits)


def main() -> None:
    where, *shapes = sys.argv[1:] or ["cpu"]
    if where == "cpu":
        cfg = SHAPES["gpt2-small"].replace(eos_ids=())
        params = jaxedit.init(jax.random.key(0), cfg)
        against_plain(params, cfg, 5)
        one_pass(params, cfg)
        return
    peak = matmul_rate()
    report("bf16 product of 8192 x 8192", tflops=peak / 1e12)
    for shape in shapes or ["llama-2-7b", "gpt-j-6b"]:
        on_gpu(shape, peak)


if __name__ == "__main__":
    main()
