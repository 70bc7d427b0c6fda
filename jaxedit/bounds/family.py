"""A family of models, fixed before any data is seen, of which a few numbers choose one.

    theta = theta0 + P w        theta: factors of low rank, or all weights

What a seed makes (weights, theta0, P) costs nothing. What else a decoder has to know (how many
coordinates, which rank, …) is chosen from lists that are declared, and is coded with the numbers.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.base import Array, LowRank, Params
from jaxedit.bounds import code, subspace
from jaxedit.bounds.quantize import check, nearest
from jaxedit.bounds.subspace import Subspace, SubspaceConfig
from jaxedit.hf.load import load
from jaxedit.models import specs
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.sites import check_names, matrices
from jaxedit.settings import Dtype
from jaxedit.train.language import LoraConfig, tokenizer_of

LORA = LoraConfig(rank=4, alpha=32.0, targets=("attn/q", "attn/v", "head"))


@dataclasses.dataclass(frozen=True)
class FamilyConfig:
    """The four ways of Lotfi et al.: SubLoRA (lora and a projection), LoRA (lora, identity), a
    subspace of all weights (no lora, a projection), and all weights (neither).
    """

    model: ModelConfig | None = None  # random weights, from the seed
    start: str = ""  # or: a model that has not seen the bounded data (fine-tuning)
    tokenizer: str = "bytes"
    lora: LoraConfig | None = LORA  # None: all weights move
    subspace: SubspaceConfig = dataclasses.field(default_factory=SubspaceConfig)
    dtype: Dtype = "float32"  # of the computation
    seed: int = 137

    def __post_init__(self) -> None:
        if self.model is not None and self.start:
            raise ValueError("give model (an architecture) or start (a folder): one of them")


@dataclasses.dataclass(frozen=True)
class Choices:
    """What may be chosen after looking at the data, each from a list that was declared before. A
    longer list costs the logarithm of its length.
    """

    dims: tuple[int, ...] = ()  # empty: the one that the family has
    ranks: tuple[int, ...] = ()
    levels: tuple[int, ...] = ()
    models: int = 1  # how many architectures are compared, of which this is number `model`
    model: int = 0
    alphas: tuple[float, ...] = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5)

    def __post_init__(self) -> None:
        if not self.alphas or not all(0 < a < 1 for a in self.alphas):
            raise ValueError(f"alphas={self.alphas}: at least one, and all between 0 and 1")
        if not 0 <= self.model < self.models:
            raise ValueError(f"model {self.model} of {self.models}")


class Family(NamedTuple):
    cfg: FamilyConfig
    base: Model
    theta0: Any  # a tree of what moves
    space: Subspace

    @property
    def fixed(self) -> tuple[Any, ...]:
        """The arrays that programs take."""
        return self.base.params, self.theta0, self.space

    def at(self, w_d: Array) -> tuple[Params, Any]:
        """The weights and deltas of one member."""
        return model_of(self.cfg, self.base.params, moved(self.space, self.theta0, w_d))


def family(cfg: FamilyConfig) -> Family:
    tokenizer = tokenizer_of(cfg.tokenizer) if cfg.tokenizer else None
    if cfg.start:
        base = load(cfg.start, None, "float32")
        base = base._replace(tokenizer=tokenizer or base.tokenizer)
    elif cfg.model is not None:
        base = Model(specs.init(jax.random.key(cfg.seed), cfg.model), cfg.model, tokenizer)
    else:
        raise ValueError("give model (an architecture) or start (a folder)")
    if base.tokenizer is None or len(base.tokenizer) > base.cfg.vocab:
        have = "no tokenizer" if base.tokenizer is None else f"{len(base.tokenizer)} tokens"
        raise ValueError(f"{have} for a model of {base.cfg.vocab}: set family.tokenizer")
    base = base._replace(cfg=base.cfg.replace(dtype=cfg.dtype))
    theta0 = base.params if cfg.lora is None else first(cfg.lora, base.cfg, cfg.seed)
    return Family(cfg, base, theta0, subspace.subspace(theta0, cfg.subspace))


def first(cfg: LoraConfig, model: ModelConfig, seed: int) -> dict[str, LowRank]:
    """As published: a uniform up to one over the root of the inputs, b zero. A tied head has
    factors of its own, which the embedding does not see.
    """
    sizes = matrices(model)
    check_names("target", dict.fromkeys(cfg.targets), sizes, model)
    out = {}
    for i, name in enumerate(cfg.targets):
        rows, columns = sizes[name]
        lead = () if name in ("embed", "head") else (model.layers,)
        key = jax.random.fold_in(jax.random.key(seed), i)
        a = jax.random.uniform(key, (*lead, rows, cfg.rank), minval=-1, maxval=1) * rows**-0.5
        out[name] = LowRank(a, jnp.zeros((*lead, cfg.rank, columns)))
    return out


def moved(space: Subspace, theta0: Any, w_d: Array) -> Any:
    return subspace.move(space, theta0, w_d)


def model_of(cfg: FamilyConfig, params: Params, theta: Any) -> tuple[Params, Any]:
    if cfg.lora is None:
        return theta, None
    by = cfg.lora.alpha / cfg.lora.rank
    return params, {name: dataclasses.replace(d, b=d.b * by) for name, d in theta.items()}


class Hypothesis(NamedTuple):
    """One member of a family, as few numbers: w = levels[symbols], and alpha, which smooths it."""

    symbols: np.ndarray  # [d]
    levels: np.ndarray  # float16, ascending, each used
    alpha: float

    @property
    def w(self) -> np.ndarray:
        return self.levels.astype(np.float32)[self.symbols]


def lists(cfg: FamilyConfig, choices: Choices, dim: int, levels: int) -> list[tuple[Any, tuple]]:
    """What was chosen, and from what."""
    rank = cfg.lora.rank if cfg.lora else 0
    chosen = [
        ("subspace.dim", dim, choices.dims or (dim,)),
        ("lora.rank", rank, choices.ranks or (rank,)),
        ("levels", levels, choices.levels or (levels,)),
        ("model", choices.model, tuple(range(choices.models))),
    ]
    for name, one, among in chosen:
        if one not in among:
            raise ValueError(f"{name}={one} is not declared in choices: {among}")
    return [(one, among) for _, one, among in chosen]


def encode(one: Hypothesis, cfg: FamilyConfig, choices: Choices, levels: int) -> bytes:
    """The file of a hypothesis. No file is the beginning of another, whatever was chosen."""
    out = code.Encoder()
    listed = [*lists(cfg, choices, len(one.symbols), levels), (one.alpha, choices.alphas)]
    for chosen, among in listed:
        out.put(among.index(chosen), 1, len(among))
    out.put(len(one.levels) - 1, 1, levels)
    code.put_levels(out, one.levels)
    counts = np.bincount(one.symbols, minlength=len(one.levels)).tolist()
    code.put_counts(out, counts)
    code.put_symbols(out, one.symbols, counts)
    return out.finish()


def decode(data: bytes, cfg: FamilyConfig, choices: Choices, dim: int, levels: int) -> Hypothesis:
    """What was encoded, by the same family and choices; refuses bytes that say something else."""
    file = code.Decoder(data)
    for chosen, among in lists(cfg, choices, dim, levels):
        if (found := among[file.get(len(among))]) != chosen:
            raise ValueError(f"the file says {found}, the config {chosen}")
    alpha = choices.alphas[file.get(len(choices.alphas))]
    used = file.get(levels) + 1
    values = code.get_levels(file, used)
    counts = code.get_counts(file, dim, used)
    one = Hypothesis(code.get_symbols(file, counts), values, alpha)
    if encode(one, cfg, choices, levels) != data:
        raise ValueError("the file is damaged: what it decodes to has other bytes")
    return one


def hypothesis(w_d: np.ndarray, levels: np.ndarray, alpha: float) -> Hypothesis:
    """Every number by its nearest float16 level."""
    check(np.concatenate([w_d, levels]), 2)
    values = np.unique(levels.astype(np.float16))
    symbols = nearest(w_d, values.astype(np.float64))
    kept, symbols = np.unique(symbols, return_inverse=True)
    return Hypothesis(symbols.reshape(-1), values[kept], alpha)
