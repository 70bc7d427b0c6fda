"""EMMET (Gupta et al., 2024): MEMIT's values in one layer, with the keys mapped exactly.

    W + C⁻¹ K (Kᵀ C⁻¹ K + weight · epsilon · I)⁻¹ · R

With epsilon 0 it is ROME for several facts. With any other it is MEMIT whose weight is weight ·
epsilon, and that is what the authors' settings are; for a single request they drop epsilon.
"""

import dataclasses

import jax.numpy as jnp

from jaxedit.base import Array
from jaxedit.edit.editor import Editor, Protocol, RowsConfig
from jaxedit.edit.values import ValueConfig
from jaxedit.edit.weights.memit import ROWS, VALUES, family


@dataclasses.dataclass(frozen=True)
class EmmetConfig:
    layer: int
    weight: float = 1.0  # [mom2_update_weight]
    epsilon: float = 0.1  # [emmet_lambda]
    values: ValueConfig = VALUES
    rows: RowsConfig = ROWS
    ridge: float = 0.0  # times the mean of C's diagonal, is added to it
    protocol: Protocol = "paper"  # EasyEdit keeps epsilon for one request


def emmet(cfg: EmmetConfig) -> Editor:
    """All requests together, or each by itself."""

    def weight(count: Array) -> Array:
        loose = jnp.float32(cfg.weight * cfg.epsilon)
        return jnp.where(count > 1, loose, 0) if cfg.protocol == "paper" else loose

    return family(
        (cfg.layer,), cfg.values, cfg.rows, cfg.ridge, sites=("resid_post",), power=1.0,
        weight=weight,
    )  # fmt: skip
