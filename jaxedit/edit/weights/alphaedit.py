"""AlphaEdit (Fang et al., 2025): MEMIT whose changes leave the null space of preserved keys only.

P projects onto the directions in which C has next to nothing, so that keys of other text are not
read by the change at all; M holds the keys of the edits made before (eq. 13):

    W + P (P (M + K Kᵀ) P + l2 · I)⁻¹ P K · R / (layers left)

(The authors solve a system that is not symmetric; its solution lies in P's range, where it is this
one, which is positive definite.) M grows with every edit: it is the state of a sequence.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxedit.base import Array, LowRank, Params
from jaxedit.edit import values
from jaxedit.edit.editor import Batches, Editor, EditResult, Protocol, RowsConfig
from jaxedit.edit.solve import Factored, Solved, factor, spread
from jaxedit.edit.stats import Stats, need
from jaxedit.edit.values import ValueConfig
from jaxedit.edit.weights.memit import ROWS, VALUES, at_token, check_layers, distribute, usable
from jaxedit.models.config import Model, ModelConfig

matmul = partial(jnp.matmul, precision="highest")


@dataclasses.dataclass(frozen=True)
class AlphaEditConfig:
    layers: tuple[int, ...]  # whose mlp/down are edited, in order
    threshold: float = 0.02  # of C's eigenvalues: below, a direction is free [nullspace_threshold]
    l2: float = 10.0  # [L2]
    values: ValueConfig = VALUES
    rows: RowsConfig = ROWS
    # EasyEdit never empties M: edits that are to be independent see the keys of those before them,
    # in the order of a run's requests
    protocol: Protocol = "paper"

    def __post_init__(self) -> None:
        check_layers(self.layers)


@struct.dataclass
class AlphaState:
    free_nFF: Array  # P
    memory_nFF: Array  # M
    cfg: ModelConfig = struct.field(pytree_node=False)


def alphaedit(cfg: AlphaEditConfig) -> Editor:
    """All requests together, or each by itself; a sequence keeps its keys in the state."""

    def init(key: Array, model: Model, stats: Stats | None) -> AlphaState:
        stats = need(stats, cfg.layers)
        free = [stats.null_space(i, cfg.threshold) for i in cfg.layers]
        for layer, (_, count) in zip(cfg.layers, free, strict=True):
            if count in (0, model.cfg.mlp):
                raise ValueError(
                    f"threshold {cfg.threshold}: {count} of {model.cfg.mlp} directions of layer "
                    f"{layer} are below; the eigenvalues there are {spectrum(stats.moment(layer))}"
                )
        free_nFF = jnp.stack([p for p, _ in free])
        return AlphaState(free_nFF, jnp.zeros_like(free_nFF), model.cfg)

    def run(state: AlphaState, params: Params, batches: Batches, apart: bool) -> EditResult:
        last = cfg.layers[-1]
        found = values.search(params, batches, state.cfg, last, ("resid_post",), cfg.values)

        def directions(i: int, keys_FN: Array) -> Solved:
            free_FF, kept = restrict(state.free_nFF[i], state.memory_nFF[i], cfg.l2)
            return spread(kept, matmul(free_FF, keys_FN), 1.0, apart=apart)

        return distribute(
            params, batches, state.cfg, cfg.layers, found, directions, site="resid_post",
            power=1.0, apart=apart,
        )  # fmt: skip

    def edit(state: AlphaState, params: Params, batches: Batches) -> tuple[EditResult, AlphaState]:
        result = run(state, params, batches, apart=False)
        change = result.deltas["mlp/down"]
        assert isinstance(change, LowRank)
        good_N1 = usable(result.info["failed"], batches)[:, None]
        memory_nFF = state.memory_nFF
        for i, layer in enumerate(cfg.layers):  # the keys as the edited model has them
            keys_NF, _ = at_token(
                params, batches, state.cfg, change, layer, cfg.layers[-1], "resid_post"
            )
            keys_NF = jnp.where(good_N1, keys_NF, 0)
            memory_nFF = memory_nFF.at[i].add(matmul(keys_NF.T, keys_NF))
        return result, dataclasses.replace(state, memory_nFF=memory_nFF)

    def each(state: AlphaState, params: Params, batches: Batches) -> EditResult:
        if cfg.protocol == "paper":
            return run(state, params, batches, apart=True)
        results = []
        for batch in batches:
            for n in range(len(batch.valid_N)):
                result, state = edit(state, params, (batch.one(n),))
                results.append(result)
        return together(results)

    easy = cfg.protocol == "easyedit"
    return Editor(init, edit, each, cfg.rows, cfg.layers, remembers=easy)


@jax.jit
def restrict(free_FF: Array, memory_FF: Array, l2: float) -> tuple[Array, Factored]:
    """P, and P M P + l2 · I ready to be solved with."""
    kept_FF = matmul(matmul(free_FF, memory_FF), free_FF)
    return free_FF, factor(kept_FF + l2 * jnp.eye(len(kept_FF)))


def together(results: list[EditResult]) -> EditResult:
    """Shared changes of several edits as one per row."""
    ds = [r.deltas["mlp/down"] for r in results]
    a, b = (jnp.stack([getattr(d, name) for d in ds], 1) for name in ("a", "b"))
    info = {k: jnp.concatenate([r.info[k] for r in results]) for k in results[0].info}
    return EditResult({"mlp/down": LowRank(a, b, ds[0].layers)}, info)


def spectrum(moment_FF: Array) -> str:
    """The range of the eigenvalues, and their median."""
    values_F = np.linalg.eigvalsh(np.asarray(moment_FF, np.float64))
    least, middle, most = np.quantile(values_F, (0, 0.5, 1))
    return f"{least:.2g} to {most:.2g}, half of them below {middle:.2g}"
