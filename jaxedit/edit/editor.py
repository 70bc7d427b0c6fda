"""What every editing method is: three pure functions, and what they want to be given.

    editor = rome(RomeConfig(layer=5))
    state = editor.init(key, model, stats)                  covariances, null spaces, …
    result, state = editor.edit(state, params, batches)     all requests in one edit; a fold is
                                                            sequential editing
    result = editor.each(state, params, batches)            every request an edit of its own

`batches` is a tuple of `data.aligned.Aligned`: requests of different lengths are different shapes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from flax import struct

from jaxedit.base import Array, Delta, Params
from jaxedit.data.aligned import ABOUT, Aligned, Others, Token
from jaxedit.data.contexts import BARE, ContextConfig
from jaxedit.edit.router import Router
from jaxedit.models.config import Model, ModelConfig

Protocol = Literal["paper", "easyedit"]
State = Any
Batches = Sequence[Aligned]


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """The rows that a request becomes."""

    contexts: ContextConfig = BARE
    about: str | None = ABOUT  # asked of the subject, to keep what it is; None: no such row
    token: Token = "subject_last"  # where the edit is
    protocol: Protocol = "paper"  # whose settings the method has; it is told in provenance


@struct.dataclass
class EditResult:
    """Changes of weights, and what happened on the way, by request."""

    deltas: dict[str, Delta]  # of `edit`: shared; of `each`: one per request, [n, N, …]
    info: dict[str, Array]  # [N] each: "failed" is the step at which it failed, or -1
    writes: dict[str, Any] = struct.field(default_factory=dict)  # as deltas; mostly none
    router: Router | None = None  # a memory of each request; of `edit`: of all of them


@struct.dataclass
class Bare:
    """The state of an editor that keeps nothing but the architecture."""

    cfg: ModelConfig = struct.field(pytree_node=False)


class Editor(NamedTuple):
    init: Callable[[Array, Model, Any], State]  # key, model, Stats or None
    edit: Callable[[State, Params, Batches], tuple[EditResult, State]]
    each: Callable[[State, Params, Batches], EditResult]
    rows: RowsConfig = RowsConfig()
    stats: tuple[int, ...] = ()  # the layers whose second moments `init` wants
    together: int = 0  # how many requests `edit` takes at once, 0: any number
    learner: Any = None  # of editors that are trained: edit/learner.py
    remembers: bool = False  # in `each` too: the runner gives it one request after the other
    beside: Others | None = None  # further texts of a request that are wanted: `Aligned.beside`
