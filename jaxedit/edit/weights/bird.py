"""BIRD (Ma et al., 2023): ROME with a loss that also asks for the fact from its other end.

A relation r leads from a subject s to an object o as in TransE: h(s) + h(r) = h(o), and its inverse
back: h(o) + h(r⁻¹) = h(s). The value search minimises, besides ROME's loss, α times

    sum over contexts of  |h(s) + h(r) - h(o)| + |h(o) + h(r⁻¹) - h(s)|
                    - β ( |h(s) + h(r) - h(t)| + |h(t) + h(r⁻¹) - h(s)| )

with the new object o and the true one t. h(x) is the mean of the last hidden states of x's tokens
where x stands alone in a context. Only h(s) feels the edit, at the subject's last token.

Where a request's relation is not among `phrases`, its prompt without the subject is the phrase, and
the terms of the inverse are left out; without a ground truth, so are those of β.

Shapes as in data.aligned; B = N C rows.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxedit.base import Array, Params
from jaxedit.data.aligned import Aligned, Beside
from jaxedit.data.cases import SLOT, EditRequest
from jaxedit.edit import corner
from jaxedit.edit.corner import Deltas
from jaxedit.edit.editor import Editor
from jaxedit.edit.values import length
from jaxedit.edit.weights.rome import RomeConfig, family
from jaxedit.models.config import ModelConfig
from jaxedit.models.layers import norm
from jaxedit.models.transformer import hidden
from jaxedit.sharding import constrain


@dataclasses.dataclass(frozen=True)
class BirdConfig(RomeConfig):
    """ROME's settings, and those of the term; α = 0 is ROME."""

    alpha: float = 5e-4  # of the term [aerfa]
    beta: float = 0.8  # of the distances to the true object, against those to the new one
    # (prompt with {}, what relates its subject to its object, what relates them backwards or "")
    phrases: tuple[tuple[str, str, str], ...] = ()

    def __post_init__(self) -> None:
        prompts = [prompt for prompt, _, _ in self.phrases]
        for prompt, relation, _ in self.phrases:
            if prompt.count(SLOT) != 1 or not relation.strip() or prompts.count(prompt) > 1:
                raise ValueError(
                    f"phrases of {prompt!r}: a prompt with one {SLOT}, listed once, and the words "
                    "of its relation"
                )
        if self.rows.token != "subject_last":
            raise ValueError(f"rows.token {self.rows.token!r}: BIRD edits at subject_last")


def bird(cfg: BirdConfig) -> Editor:
    """One request at a time, or each of many by itself."""
    if not cfg.alpha:
        return family(cfg)
    known = {prompt: (relation, inverse) for prompt, relation, inverse in cfg.phrases}

    def beside(request: EditRequest) -> tuple[str, ...]:
        """Subject, relation, inverse, new object, true object."""
        bare = " ".join(request.prompt.replace(SLOT, " ").split())
        relation, inverse = known.get(request.prompt, (bare, ""))
        true = request.ground_truth[0] if request.ground_truth else ""
        return (request.subject, relation, inverse, request.target.strip(), true)

    return family(cfg, Distances(cfg.alpha, cfg.beta), beside)


@dataclasses.dataclass(frozen=True)
class Distances:
    """The term, as the value search takes it."""

    alpha: float
    beta: float

    def __call__(
        self, params: Params, batch: Aligned, cfg: ModelConfig, layer: int
    ) -> Callable[[Deltas], Array]:
        """Runs what the edit cannot reach; then the term of each request, [N], given its delta."""
        if batch.beside is None:
            raise ValueError("BIRD wants more texts: aligned(..., beside=editor.beside)")
        texts = batch.beside
        h_NXCD, last_NCD = means(params, texts, cfg)
        subject = dataclasses.replace(  # the same requests in other rows: their subjects alone
            batch,
            tokens_NRS=texts.tokens_NXCS[:, 0],
            pos_NRS=texts.pos_NXCS[:, 0],
            prefix=texts.tokens_NXCS.shape[-1] - 1,
        )
        frozen = corner.freeze(params, subject, cfg, layer)
        first_M1 = jnp.zeros((len(frozen.said.x_MTD), 1), jnp.int32)
        has_NXC = jnp.asarray(texts.size_NXC) > 0
        size_NC1 = jnp.asarray(texts.size_NXC)[:, 0, :, None].astype(jnp.float32)

        def term(delta: Deltas) -> Array:
            x_NCD = corner.enter(params, frozen.seen, delta, cfg, layer)
            x_NCD = corner.above(params, frozen.said, x_NCD, first_M1, cfg, layer)
            now_NCD = norm(params["norm"], x_NCD, cfg).astype(jnp.float32)
            moved_NCD = (now_NCD - last_NCD) / size_NC1
            return self.alpha * distances(h_NXCD.at[:, 0].add(moved_NCD), has_NXC, self.beta)

        return term


def means(params: Params, texts: Beside, cfg: ModelConfig) -> tuple[Array, Array]:
    """The mean of every text's last hidden states [N, X, C, D], and that of the last token of the
    first text [N, C, D].
    """
    N, _, C, S = texts.tokens_NXCS.shape

    def one(text: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        tokens_BS, pos_BS = (constrain(x.reshape(N * C, S), "batch", None) for x in text[:2])
        size_B1 = text[2].reshape(N * C, 1)
        h_BSD = norm(params["norm"], hidden(params, tokens_BS, cfg, pos_BT=pos_BS), cfg)
        h_BSD = h_BSD.astype(jnp.float32)
        own_BS = jnp.arange(S) >= S - size_B1  # the context before it is not the text
        count_B1 = jnp.maximum(size_B1, 1).astype(jnp.float32)
        mean_BD = jnp.where(own_BS[..., None], h_BSD, 0).sum(1) / count_B1
        return mean_BD.reshape(N, C, -1), h_BSD[:, -1].reshape(N, C, -1)

    # text by text: all of them at once would be five times the rows of the search
    every = (texts.tokens_NXCS, texts.pos_NXCS, texts.size_NXC)
    by_text = tuple(jnp.asarray(x).swapaxes(0, 1) for x in every)
    h_XNCD, last_XNCD = jax.lax.map(one, by_text)
    return h_XNCD.swapaxes(0, 1), last_XNCD[0]


def distances(h_NXCD: Array, has_NXC: Array, beta: float) -> Array:
    """What α is multiplied with, [N]; terms of what there is not are left out."""
    s_NCD, r_NCD, back_NCD, new_NCD, true_NCD = h_NXCD.swapaxes(0, 1)
    has_r_NC, has_back_NC, _, has_true_NC = has_NXC[:, 1:].swapaxes(0, 1)

    def both(o_NCD: Array) -> Array:
        there_NC = jnp.where(has_r_NC, length(s_NCD + r_NCD - o_NCD), 0)
        return there_NC + jnp.where(has_back_NC, length(o_NCD + back_NCD - s_NCD), 0)

    return (both(new_NCD) - beta * jnp.where(has_true_NC, both(true_NCD), 0)).sum(-1)
