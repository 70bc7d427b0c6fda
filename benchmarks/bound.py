"""What the parts of a bound cost.

    python benchmarks/bound.py project          P w and its gradient at GPT-2-small's sizes, beside
                                                the bytes that have to move; 3 minutes on a CPU
    python benchmarks/bound.py coverage         how often bounds are below a risk that is known
    python benchmarks/bound.py read             documents scored, beside a plain forward pass
    python benchmarks/bound.py step             training steps of SubLoRA and of a subspace of all
                                                weights, and the share of P w and its gradient
    python benchmarks/bound.py read step gpt2-small    at GPT-2-small's shape, bfloat16

Floor: what P w must move (Q1, Q2, the order, and the result, written and read again by the gather)
at the rate of a copy measured in the same run. MFU of a step: 4 FLOPs per weight of a matrix and
token of SubLoRA (weights are frozen: no gradient of them), 6 of all weights, over a matrix
product's rate.
"""

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu import flops, gigabytes, matmul_rate
from measure import alternate, report, seconds

from jaxedit.bounds import fit, project, risk
from jaxedit.bounds.bound import certify
from jaxedit.bounds.claims import THEOREMS
from jaxedit.bounds.family import LORA, Family, FamilyConfig, family
from jaxedit.bounds.risk import ReadConfig
from jaxedit.bounds.sample import Sample, SampleConfig
from jaxedit.bounds.subspace import SubspaceConfig
from jaxedit.data.documents import Source
from jaxedit.data.tokens import Tokens
from jaxedit.models.shapes import SHAPES
from jaxedit.models.transformer import forward
from jaxedit.train.language import LoraConfig

SIZES = {"LoRA of rank 4": 351_744, "all weights": 124_439_808}
NUMBERS = 50_000
# name -> shape, what differs, tokens of a window, of a batch, documents that are read
SHAPE: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "small": ("tiny-gpt2", {"layers": 4, "embed": 256, "heads": 4, "kv_heads": 4, "head_dim": 64,
                            "mlp": 1024, "vocab": 5000, "max_len": 256}, 128, 8192, 500),
    "gpt2-small": ("gpt2-small", {"vocab": 50304, "dtype": "bfloat16"}, 1024, 32_768, 10_000),
}  # fmt: skip


@jax.jit
def there(p: project.Projection, w: Any) -> Any:
    return p(w)


@jax.jit
def back(p: project.Projection, w: Any, g: Any) -> Any:
    return jax.vjp(p, w)[1](g)[0]


def projections() -> None:
    x = jnp.zeros(64_000_000, jnp.float32)
    double = jax.jit(lambda x: x + 1)
    rate = 2 * x.nbytes / seconds(lambda: double(x))
    for name, D in SIZES.items():
        p = project.make("kron", D, NUMBERS, 0)
        w, g = jnp.ones(NUMBERS), jnp.ones(D)
        moved = sum(a.nbytes for a in (p.arrays.left, p.arrays.right, p.arrays.take)) + 12 * D
        runs: dict[str, Any] = {"forward": partial(there, p, w), "back": partial(back, p, w, g)}
        times = alternate(runs)
        report(
            f"P w, {NUMBERS} numbers into {D}, {name}",
            **{f"{k}_ms": 1e3 * t for k, t in times.items()},
            floor_ms=1e3 * moved / rate, copy_gb_per_s=rate / 1e9,
            forward_over_floor=times["forward"] * rate / moved,
            product_gflop=4e-9 * D * NUMBERS**0.5,
        )  # fmt: skip


def made(name: str, lora: LoraConfig | None = LORA) -> tuple[Family, Sample]:
    """Random weights and random documents, a window long each."""
    shape, changes, length, _, documents = SHAPE[name]
    model = SHAPES[shape].replace(**changes)
    dtype: Any = changes.get("dtype", "float32")
    cfg = FamilyConfig(model, lora=lora, subspace=SubspaceConfig(dim=10_000), dtype=dtype)
    found = family(cfg)
    flat = np.random.RandomState(0).randint(0, model.vocab, documents * (length + 1))
    starts = np.arange(documents + 1) * (length + 1)
    tokens = Tokens(flat.astype(np.uint16), starts, np.zeros(documents, np.uint64))
    every = np.arange(documents)
    how = SampleConfig(Source(("memory",)), independent=True)
    return found, Sample(tokens, every, every[:0], 0, model.vocab, how)


def read(name: str) -> None:
    found, sample = made(name)
    _, _, length, batch, documents = SHAPE[name]
    params, deltas = found.at(jnp.ones(found.space.dim) / 1000)
    cfg = ReadConfig(length, length, batch)
    rows = batch // length
    tokens = jnp.asarray(sample.tokens.flat.reshape(documents, -1)[:rows, :length].astype(np.int32))
    model = found.base.cfg
    inner = {name: d for name, d in deltas.items() if name != "head"}  # forward knows no second one

    def plain() -> Any:
        """The same tokens through the model, with the logits of the last one alone."""
        at = jnp.full((rows, 1), length - 1)
        out = None
        for _ in range(-(-documents // rows)):
            out = forward(params, tokens, model, deltas=inner, logits_at=at).logits
        return out

    def whole() -> Any:
        """With all logits: what any evaluation of all tokens has to compute."""
        out = None
        for _ in range(-(-documents // rows)):
            out = summed(params, tokens, inner, model)
        return out

    every = np.arange(documents)
    scored = lambda: risk.read(params, deltas, model, sample, every, cfg).logp
    times = alternate({"read": scored, "plain": plain, "all_logits": whole}, repeats=2)
    report(
        f"{documents} documents of {length} tokens read, {name}",
        **{f"{k}_s": t for k, t in times.items()},
        tokens_per_s=documents * length / times["read"],
        rate_over_plain=times["plain"] / times["read"],
        rate_over_all_logits=times["all_logits"] / times["read"],
        peak_gb=gigabytes(),
    )  # fmt: skip


@jax.jit
def _total(logits: Any) -> Any:
    return logits.sum()


def summed(params: Any, tokens: Any, deltas: Any, model: Any) -> Any:
    """The largest logits that fit, by rows."""
    out = []
    for at in range(0, len(tokens), 4):
        out.append(_total(forward(params, tokens[at : at + 4], model, deltas=deltas).logits))
    return out


def step(name: str) -> None:
    peak = matmul_rate() if jax.default_backend() != "cpu" else matmul_rate(2048)
    step_of(name, "SubLoRA", LORA, 2, peak)
    step_of(name, "a subspace of all weights", None, 3, peak)


def step_of(name: str, what: str, lora: LoraConfig | None, passes: int, peak: float) -> None:
    """passes: products with every matrix, forward and backward."""
    found, sample = made(name, lora)
    _, _, length, batch, _ = SHAPE[name]
    cfg = fit.FitConfig(batch=batch // length, length=length, steps=100, unroll=True)
    task = fit.task(found, sample, cfg)
    state, rows = task.init(), task.batch(0)

    def once() -> Any:
        nonlocal state
        state, metrics = task.update(state, rows)
        return metrics["loss"]

    took = seconds(once, repeats=5, warmups=2)
    model = found.base.cfg
    expand = jax.jit(lambda space, w: jax.vjp(space.parts[0], w)[1](space.parts[0](w)))
    alone = seconds(lambda: expand(found.space, state["trained"]["w"]))
    report(
        f"a training step of {what}, {batch} tokens, {name}",
        seconds=took, tokens_per_s=batch / took,
        mfu=passes * flops(model, batch // length, length) / took / peak,
        projection_share=alone / took, peak_gb=gigabytes(),
    )  # fmt: skip


def coverage(_shape: str, sets: int = 2000, m: int = 400, n: int = 150, delta: float = 0.1) -> None:
    """Of so many data sets: the best of 3 hypotheses in 20 versions, by its bound, whose true risk
    is known; losses are 0 or 1 ("errors"), nearly constant ("steady"), or seldom large ("rare").
    The last line has few documents and hundreds of versions that are equally good: there the choice
    is all that goes wrong.
    """
    risks, pulls = np.array([0.2, 0.27, 0.35]), np.linspace(0, 0.05, 20)
    for kind in ("errors", "steady", "rare"):
        random = np.random.RandomState(0)
        missed = dict.fromkeys(THEOREMS, 0)
        for _ in range(sets):
            u = random.random_sample((len(risks), m))
            if kind == "errors":
                x = (u < risks[:, None]).astype(float)
            elif kind == "steady":
                x = risks[:, None] + 0.05 * (u - 0.5)
            else:
                rest = (risks * 7 / 8 / (1 - risks / 8))[:, None]
                x = np.where(u < risks[:, None] / 8, 1.0, rest)
            x = x[:, random.randint(m, size=n)]
            some = [(risk, pull, row) for risk, row in zip(risks, x, strict=True) for pull in pulls]
            nats = float(np.log(len(some)))
            for theorem in THEOREMS:
                bounds = [certify(theorem, row * (1 - pull) + pull, low=0, high=1, nats=nats, m=m,
                                  delta=delta, candidates=len(some))
                          for _, pull, row in some]  # fmt: skip
                risk, pull, _ = some[int(np.argmin(bounds))]
                missed[theorem] += risk * (1 - pull) + pull > min(bounds)
        report(f"bounds below the true risk, {kind}, delta = {delta}", sets=sets,
               **{t: k / sets for t, k in missed.items()})  # fmt: skip
    random, several = np.random.RandomState(0), 400
    wrong = dict.fromkeys(THEOREMS, 0)
    for _ in range(sets):
        x = (random.random_sample((several, 20)) < 0.5).astype(float)
        best = x[x.mean(1).argmin()]
        for theorem in THEOREMS:
            wrong[theorem] += certify(theorem, best, low=0, high=1, nats=float(np.log(several)),
                                       m=10**9, delta=delta, candidates=several) < 0.5  # fmt: skip
    report(f"bounds below the true risk, the best of {several}, delta = {delta}", sets=sets,
           **{t: k / sets for t, k in wrong.items()})  # fmt: skip


def main() -> None:
    wanted = sys.argv[1:] or ["project"]
    shape = next((name for name in wanted if name in SHAPE), "small")
    runs: dict[str, Any] = {
        "project": lambda _: projections(), "coverage": coverage, "read": read, "step": step,
    }  # fmt: skip
    if unknown := [w for w in wanted if w not in {**runs, **SHAPE}]:
        raise SystemExit(f"{unknown[0]!r}: of {', '.join([*runs, *SHAPE])}")
    for name in wanted:
        if name in runs:
            runs[name](shape)


if __name__ == "__main__":
    main()
