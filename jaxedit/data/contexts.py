"""Contexts in which a request is asked while a value for it is searched: given, or sampled from the
model.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit.data.aligned import Groups
from jaxedit.data.cases import SLOT
from jaxedit.models.config import Model
from jaxedit.models.generate import Sampling, decode, encode

STARTS = ("The", "Therefore", "Because", "I", "You")  # how the authors' samples begin
TOP_K = 5


@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """ "{}" alone, then what the model writes after each start, ended with ". {}".

    ROME uses lengths (5, 10) and (10, 10) in one group, MEMIT (10, 5) in a group of its own: so
    that the bare prompt weighs half in the mean of keys.
    """

    given: Groups = ()  # these, instead of samples
    lengths: tuple[tuple[int, int], ...] = ()  # (tokens with the start, how many samples)
    grouped: bool = False  # the samples are a group of their own
    seed: int = 0

    def __post_init__(self) -> None:
        for length, count in self.lengths:
            if length < 2 or count < 1 or count % len(STARTS):
                raise ValueError(
                    f"contexts ({length}, {count}): at least 2 tokens, and a multiple of "
                    f"{len(STARTS)} samples"
                )


BARE = ContextConfig()
ROME = ContextConfig(lengths=((5, 10), (10, 10)))
MEMIT = ContextConfig(lengths=((10, 5),), grouped=True)


def contexts(cfg: ContextConfig, model: Model) -> Groups:
    """The groups of contexts that a config asks for; the same for the same model and seed."""
    if cfg.given:
        return cfg.given
    samples: list[str] = []
    for i, (length, count) in enumerate(cfg.lengths):
        samples += sample(model, length, count, seed=cfg.seed + i)
    if not samples:
        return (("{}",),)
    return (("{}",), tuple(samples)) if cfg.grouped else (("{}", *samples),)


def sample(model: Model, length: int, count: int, seed: int) -> list[str]:
    """`count` texts of about `length` tokens, an equal share after each start, as contexts."""
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer, and contexts are text")
    # in turn, whatever the count: a longer sample begins with a shorter one's texts
    starts = list(STARTS) * (count // len(STARTS))
    tokens_BT, pos_BT = encode(model.tokenizer, starts)
    out = decode(
        model.params, jnp.asarray(tokens_BT), jnp.asarray(pos_BT), model.cfg, steps=length - 1,
        sampling=Sampling(top_k=TOP_K), key=jax.random.key(seed), stop_ids=model.cfg.eos_ids,
    )  # fmt: skip
    new = zip(np.asarray(out.tokens_BN), np.asarray(out.length_B), strict=True)
    rows = zip(tokens_BT, pos_BT, new, strict=True)
    # with their starts: some tokenizers leave out the space before the first token of a text
    whole = [[*tokens[pos >= 0], *more[:n]] for tokens, pos, (more, n) in rows]
    texts = model.tokenizer.batch_decode(whole, skip_special_tokens=True)
    plain = (" ".join(text.replace("{", " ").replace("}", " ").split()) for text in texts)
    return [f"{text}. {SLOT}" for text in plain]
