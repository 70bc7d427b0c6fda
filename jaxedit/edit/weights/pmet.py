"""PMET (Li et al., 2024): MEMIT whose values are the MLP's own output.

What attention adds and what the MLP adds are searched together, so that the MLP need not carry what
attention can; attention's part is then thrown away. The share of a layer is what is missing over
the square root of the layers left.
"""

import dataclasses

import jax.numpy as jnp

from jaxedit.edit.editor import Editor, RowsConfig
from jaxedit.edit.values import ValueConfig
from jaxedit.edit.weights.memit import ROWS, check_layers, family

VALUES = ValueConfig(steps=30, lr=0.2, clamp=0.75, kl=1.0, stop_kl=0.01)


@dataclasses.dataclass(frozen=True)
class PmetConfig:
    layers: tuple[int, ...]  # whose mlp/down are edited, in order
    weight: float = 6000.0  # of C against the new keys [mom2_update_weight]
    values: ValueConfig = VALUES
    rows: RowsConfig = ROWS
    ridge: float = 0.0  # times the mean of C's diagonal, is added to it

    def __post_init__(self) -> None:
        check_layers(self.layers)


def pmet(cfg: PmetConfig) -> Editor:
    """All requests together, or each by itself."""
    return family(
        cfg.layers, cfg.values, cfg.rows, cfg.ridge, sites=("mlp_down", "attn_o"), power=0.5,
        weight=lambda _: jnp.float32(cfg.weight),
    )  # fmt: skip
