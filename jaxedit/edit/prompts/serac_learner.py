"""The two models of SERAC, and how they are trained: edit.prompts.serac says what for.

    scope:    -log s(key, wording) - log(1 - s(key, kept)) - Σ log(1 - s(key, wording of another))
    counter:  -log p_c(target | memory; wording) + KL(p ‖ p_c) after the target

(the last is ours: without it nothing says where an answer ends), or (supervised=false) together, by
MEND's objective for log((1 - s) p + s p_c), s of the own memory.

Shapes as in data.answers and edit.router; N lessons, Q = 3 rows of each, S tokens of a separator.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxedit.base import Array, Dense, LowRank, Params
from jaxedit.data.answers import Answers
from jaxedit.data.lessons import PARTS
from jaxedit.edit import descent, inner
from jaxedit.edit.editor import RowsConfig
from jaxedit.edit.inner import Places
from jaxedit.edit.learner import PAPER, Deltas, Learned, Learner, Metrics, ObjectiveConfig, Tree
from jaxedit.edit.prompts.encoder import encoder_of, shape_of
from jaxedit.edit.prompts.memory import answered, behind, memories
from jaxedit.edit.router import Distance, Pool, Scope
from jaxedit.edit.weights.lora import LoraEditConfig, first_factors, to_deltas
from jaxedit.models.config import Model, ModelConfig
from jaxedit.models.sites import matrices

SHARP = 0.99  # of a probability that is to be small: bounds the slope where it is one
ITSELF = 4  # every so many lessons the counterfactual model is asked the request itself


@dataclasses.dataclass(frozen=True)
class ScopeConfig:
    """The classifier. In brackets the authors' names."""

    encoder: str = ""  # a model's folder, with the same tokens; "": the edited model [cls_name]
    blocks: int = 0  # of the encoder that run; 0: all
    pool: Pool = "mean"
    width: int = 256  # of what prompts are projected to
    distance: Distance = "euclidean"  # squared; or 1 - cosine [cos, square]
    # What of the encoder is trained beside the projection: nothing, low-rank changes, or all of its
    # blocks' matrices.
    tune: str = "low_rank"
    rank: int = 8

    def __post_init__(self) -> None:
        if self.tune not in TUNES:
            raise ValueError(f"tune {self.tune!r}: one of {', '.join(TUNES)}")
        if min(self.width, self.rank) < 1 or self.blocks < 0:
            raise ValueError(f"{self}: width and rank are positive, blocks not negative")


TUNES = ("nothing", "low_rank", "all")
ENCODER = ScopeConfig()


@dataclasses.dataclass(frozen=True)
class SeracConfig:
    layers: tuple[int, ...]  # of the counterfactual model's changes
    targets: tuple[str, ...] = ("attn/q", "attn/v")
    rank: int = 8
    alpha: float = 16.0  # the change is alpha / rank times the product of its factors
    separator: str = "\n"  # between a memory and a prompt
    scope: ScopeConfig = ENCODER
    threshold: float = 0.5  # from what probability on a memory is about a prompt
    # Answers are mixed in proportion to that probability, where they are looked at; free answers
    # are always of one model.
    soft: bool = False
    ends: float = 1.0  # weight of the term that keeps what follows an answer; 0: the paper
    supervised: bool = True  # classifier and counterfactual model are trained apart [supervised]
    objective: ObjectiveConfig = PAPER  # where not
    rows: RowsConfig = descent.ROWS
    trained: str = ""  # the folder that training has made

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: between 0 and 1")

    @property
    def places(self) -> Places:
        return Places(self.layers, self.targets)

    @property
    def factors(self) -> LoraEditConfig:
        return LoraEditConfig(self.rank, self.alpha, self.targets, self.layers)


@struct.dataclass
class Given:
    """What is asked beside what is trained."""

    params: Params
    encoder: Params | None  # None: the same
    separator_S: Array
    encoder_cfg: ModelConfig = struct.field(pytree_node=False)
    bos: int | None = struct.field(pytree_node=False)  # the token that begins every text

    def embed(self, scope: Scope, tokens_BT: Array, pos_BT: Array) -> Array:
        params = self.params if self.encoder is None else self.encoder
        return scope(params, tokens_BT, pos_BT, self.encoder_cfg)


def first(key: Array, opt: SeracConfig, cfg: ModelConfig) -> tuple[Tree, Tree]:
    """A random projection; changes that are zero."""
    scope, seen = opt.scope, shape_of(opt.scope.encoder, cfg)
    if scope.blocks > seen.layers:
        raise ValueError(f"scope.blocks={scope.blocks}: the encoder has {seen.layers}")
    D, H, n = seen.embed, scope.width, scope.blocks or seen.layers
    inside = {path: size for path, size in matrices(seen).items() if "/" in path}
    one, two, three = jax.random.split(key, 3)
    change: Tree = {}
    if scope.tune == "all":
        change = {path: {"w": jnp.zeros((n, *size))} for path, size in inside.items()}
    elif scope.tune == "low_rank":
        places = LoraEditConfig(scope.rank, targets=tuple(inside), layers=tuple(range(n)))
        change = first_factors(two, seen, places, 1)
    w_DH = jax.random.normal(one, (D, H)) / jnp.sqrt(float(D * H))
    trained = {"w": w_DH, "scale": jnp.log(4.0), "change": change}
    return {"scope": trained, "counter": first_factors(three, cfg, opt.factors, 1)}, {}


def scope_of(trained: Tree, opt: SeracConfig) -> Scope:
    """The classifier of what is trained."""
    t, how = trained["scope"], opt.scope
    deltas: dict[str, Any] = {}
    for path, x in t["change"].items():
        layers = jnp.arange(len(next(iter(x.values()))), dtype=jnp.int32)
        if "w" in x:
            deltas[path] = Dense(x["w"], layers)
        else:
            deltas[path] = LowRank(x["a"][:, 0], 2 * x["b"][:, 0], layers)
    return Scope(
        t["w"], jnp.exp(t["scale"]), deltas, how.blocks, how.pool, how.distance, how.encoder
    )


def counter_of(trained: Tree, opt: SeracConfig) -> dict[str, Any]:
    """The counterfactual model's changes."""
    return to_deltas(trained["counter"], opt.factors, False)


def given_of(opt: SeracConfig, model: Model) -> Given:
    """What stands in the place of the model's parameters."""
    encoder = encoder_of(opt.scope.encoder, model)
    ids = model.tokenizer(opt.separator, add_special_tokens=False)["input_ids"]
    other = None if encoder is model else encoder.params
    bos = getattr(model.tokenizer, "bos_token_id", None)
    return Given(model.params, other, jnp.array(ids, jnp.int32), encoder.cfg, bos)


def scopes(trained: Tree, given: Given, lessons: Answers, opt: SeracConfig) -> Array:
    """log s of every request, other wording and kept prompt about every request, [3, N, N]."""
    rows = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, x.shape[-1]), lessons)
    N, columns = len(rows) // PARTS, jnp.arange(rows.tokens_BT.shape[1])
    # without the answers
    asked_BT = jnp.where(columns <= rows.at_BU[:, :1], rows.pos_BT, -1)
    scope = scope_of(trained, opt)
    e_BH = given.embed(scope, rows.tokens_BT, asked_BT)
    return scope.log_probability(e_BH, e_BH[:N]).reshape(PARTS, N, N)


def answer(
    trained: Tree, given: Given, edit: Answers, rows: Answers, opt: SeracConfig, cfg: ModelConfig
) -> Array:
    """What the counterfactual model says in rows behind the memories of requests, [B, U, V]."""
    memory_BP = memories(edit.tokens_BT, edit.pos_BT, given.separator_S, given.bos)
    return answered(given.params, behind(memory_BP, rows, given.bos), cfg, counter_of(trained, opt))


def gradient(
    learned: Learned, given: Given, lessons: Answers, opt: SeracConfig, cfg: ModelConfig
) -> tuple[Tree, Metrics, Tree]:
    """Of both models' losses."""
    lessons = jax.tree.map(jnp.asarray, lessons)
    edit, said, _ = (jax.tree.map(lambda x, i=i: x[:, i], lessons) for i in range(PARTS))
    itself_N1 = jnp.arange(len(edit))[:, None] % ITSELF == 0
    new = jax.tree.map(lambda x, y: jnp.where(itself_N1, x, y), edit, said)
    last_B1 = new.at_BU[:, :1] + new.mask_BU.sum(1, keepdims=True)
    ends_B1V = answered(given.params, new.replace(at_BU=last_B1), cfg)
    more = new.replace(at_BU=jnp.concatenate([new.at_BU, last_B1], 1))

    def loss(trained: Tree) -> tuple[Array, Metrics]:
        log_QNN = scopes(trained, given, lessons, opt)
        if not opt.supervised:
            return mixed(trained, given, lessons, log_QNN, opt, cfg)
        after_BUV = answer(trained, given, edit, more, opt, cfg)
        found = {
            "scope_loss": scope_loss(log_QNN),
            "edit_loss": inner.mean_of_all(inner.nll(after_BUV[:, :-1], new), new),
            "ends_kl": inner.divergence(ends_B1V, after_BUV[:, -1:]).mean(),
        }
        loss = found["scope_loss"] + found["edit_loss"] + opt.ends * found["ends_kl"]
        return loss, found | {"loss": loss}

    grad, metrics = jax.grad(loss, has_aux=True)(learned.trained)
    return grad, metrics, learned.running


def scope_loss(log_QNN: Array) -> Array:
    """Binary cross-entropy by request: of its other wording, of what is kept beside it, and of all
    other requests and wordings together.
    """
    N = log_QNN.shape[1]
    no = lambda log: -jnp.log1p(-SHARP * jnp.exp(log))
    own = lambda x: jnp.diagonal(x).sum() / N
    edit, said, kept = log_QNN
    other = jnp.where(jnp.eye(N, dtype=bool), 0, no(edit) + no(said)).sum() / N
    return own(-said) + own(no(kept)) + other


def mixed(
    trained: Tree,
    given: Given,
    lessons: Answers,
    log_QNN: Array,
    opt: SeracConfig,
    cfg: ModelConfig,
) -> tuple[Array, Metrics]:
    """The objective of both models' answers, mixed."""
    goal, outer = opt.objective, 1 if opt.objective.outer == "said" else 0
    edit, new, kept = (jax.tree.map(lambda x, i=i: x[:, i], lessons) for i in (0, outer, -1))
    kept = inner.whole(kept) if goal.where == "text" else kept

    def mix(rows: Answers, log_NN: Array) -> tuple[Array, Array]:
        log_N11 = jnp.diagonal(log_NN)[:, None, None]
        old_BUV = answered(given.params, rows, cfg)
        new_BUV = answer(trained, given, edit, rows, opt, cfg)
        old = old_BUV + jnp.log1p(-SHARP * jnp.exp(log_N11))
        return old_BUV, jnp.logaddexp(old, new_BUV + log_N11)

    _, new_BUV = mix(new, log_QNN[outer])
    found = {
        "edit_loss": inner.mean_of_all(inner.nll(new_BUV, new), new),
        "local_kl": inner.mean_of_all(inner.divergence(*mix(kept, log_QNN[-1])), kept),
    }
    loss = goal.edit * found["edit_loss"] + goal.local * found["local_kl"]
    return loss, found | {"loss": loss}


def measure(
    learned: Learned, given: Given, lessons: Answers, opt: SeracConfig, cfg: ModelConfig
) -> Metrics:
    """A memory of all N requests: are requests and other wordings led to their own and answered
    rightly there; and is what is kept beside a request not led to it.
    """
    lessons, trained = jax.tree.map(jnp.asarray, lessons), learned.trained
    log_QNN = scopes(trained, given, lessons, opt)
    likely_QNN = log_QNN >= jnp.log(opt.threshold)
    N = log_QNN.shape[1]
    led_2N = (log_QNN[:2].argmax(-1) == jnp.arange(N)) & likely_QNN[:2].any(-1)
    edit, said, _ = (jax.tree.map(lambda x, i=i: x[:, i], lessons) for i in range(PARTS))
    right = lambda rows: inner.right(answer(trained, given, edit, rows, opt, cfg), rows)
    right_2N = jnp.stack([right(edit), right(said)])
    share = lambda x: x.mean(dtype=jnp.float32)
    found = {
        "reliability": share((led_2N & right_2N)[0]),
        "generalization": share((led_2N & right_2N)[1]),
        "locality": share(~jnp.diagonal(likely_QNN[2])),
        "led": share(led_2N), "right": share(right_2N), "scope_loss": scope_loss(log_QNN),
    }  # fmt: skip
    score = jnp.minimum(found["reliability"], found["generalization"])
    return found | {"score": jnp.minimum(score, found["locality"])}


def change(
    learned: Learned, params: Params, parts: Any, opt: SeracConfig, cfg: ModelConfig, **how: Any
) -> tuple[Deltas, Tree]:
    """Those of the counterfactual model, whatever is edited."""
    return counter_of(learned.trained, opt), learned.running


LEARNER = Learner(first, change, gradient, measure=measure, given=given_of)
