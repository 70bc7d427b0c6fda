"""Rows of a prompt and what is to follow it, with the columns that say each token of the answer.

B rows, T columns, U answer tokens. NumPy arrays as they are made, so that a jitted function puts
them where its mesh wants them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from jaxedit.base import Array
from jaxedit.data.aligned import Aligned
from jaxedit.data.requests import Row, pad

SHORTEST = 4  # columns of answers, then doubled


@struct.dataclass
class Answers:
    """Rows whose answers are looked at."""

    tokens_BT: Array
    pos_BT: Array  # -1 at padding
    at_BU: Array  # the column that says each token of the answer
    target_BU: Array
    mask_BU: Array  # False beyond a row's answer

    def __len__(self) -> int:
        return self.tokens_BT.shape[0]

    def take(self, rows: Any) -> "Answers":
        """Some of the rows."""
        return jax.tree.map(lambda x: x[rows], self)


def columns(answer: int) -> int:
    return max(SHORTEST, 1 << (answer - 1).bit_length())


def answers(rows: Sequence[Row], B: int) -> Answers:
    """Rows as arrays, the last one repeated up to B."""
    batch: Any = pad(rows, B, "right")
    U = columns(max(len(r.tokens) - r.prompt for r in rows))
    T = batch.tokens_BT.shape[1]
    filled = [rows[min(b, len(rows) - 1)] for b in range(B)]
    first_B = np.array([r.prompt for r in filled], np.int32)
    size_B = np.array([len(r.tokens) - r.prompt for r in filled])
    mask_BU = np.arange(U) < size_B[:, None]
    token_BU = np.minimum(first_B[:, None] + np.arange(U, dtype=np.int32), T - 1)
    target_BU = np.where(mask_BU, np.take_along_axis(batch.tokens_BT, token_BU, 1), 0)
    at_BU = np.maximum(token_BU - 1, 0)
    arrays: Any = (batch.tokens_BT, batch.pos_BT, at_BU, target_BU.astype(np.int32), mask_BU)
    return Answers(*arrays)


def of_requests(batch: Aligned) -> Answers:
    """The rows of requests in their first context, the last token of each target left out; a row
    that only fills the batch has no answer.
    """
    U = batch.target_NU.shape[1]
    T = batch.tokens_NRS.shape[-1] - batch.prefix
    at_NU = batch.at_NQ[:, :U].clip(0, T - 1) + batch.prefix
    mask_NU = (batch.mask_NU > 0) & batch.valid_N[:, None]
    rows: Any = (batch.tokens_NRS[:, 0], batch.pos_NRS[:, 0], at_NU, batch.target_NU, mask_NU)
    return Answers(*rows)
