"""The neurons that one answer comes from: what they say, and what the answer loses without them."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxedit.locate import attribution, knowledge_neurons, neurons, questions
from jaxedit.locate.lens import lens
from jaxedit.locate.memories import values
from jaxedit.locate.questions import Method, Question
from jaxedit.locate.trace import says as first_choice
from jaxedit.models.config import Model


def methods(steps: int = 20, exact: int = attribution.EXACT) -> Mapping[str, Method]:
    """What scores every neuron for an answer."""
    kn = lambda *given: knowledge_neurons.attribute(*given, steps=steps)[0]
    increase = lambda *given: attribution.importance(*given, exact=exact)
    return {"kn": kn, "increase": increase, "activation": knowledge_neurons.activations}


def neurons_of(
    model: Model, prompt: str, answer: str = "", finder: str = "kn", *, top: int = 10,
    steps: int = 20, says: int = 5,
) -> tuple[str, dict[str, float], list[dict[str, Any]]]:  # fmt: skip
    """The answer (by default the token that the model says next), its probability as it is, without
    all of the `top` neurons and with all of them doubled, and each neuron's score, the tokens that
    its value says, and the probability without it and with it doubled.
    """
    asked: list[Question] = [(prompt, answer or next_token(model, prompt))]
    scores_LF = questions.scores(model, asked, methods(steps)[finder], size=1)[0]
    best = neurons.listed(scores_LF, min(top, scores_LF.size))
    places = [(layer, unit) for layer, unit, _ in best]
    sets = neurons.sets([[place] for place in places] + [places], scores_LF.shape)
    p = lambda factor: questions.probabilities(
        model, asked * len(sets), sets, np.arange(len(sets)), factor
    )
    without, doubled = p(0.0), p(2.0)
    said, _ = values(model.params, model.cfg, places, top=says)
    rows = [
        {"layer": layer, "neuron": unit, "score": score, "without": float(w), "doubled": float(d),
         "says": [shown(model, t) for t in tokens]}
        for (layer, unit, score), w, d, tokens in zip(best, without, doubled, said, strict=False)
    ]  # fmt: skip
    plain = float(questions.probabilities(model, asked)[0])
    p_all = {"plain": plain, "without": float(without[-1]), "doubled": float(doubled[-1])}
    return answer or shown(model, asked[0][1]), p_all, rows


def lens_of(
    model: Model, prompt: str, answer: str = "", *, top: int = 3
) -> tuple[str, list[dict[str, Any]]]:
    """What the residual stream says after every layer: the tokens it says first, and the rank and
    probability of the answer's first token (by default the one that the model says).
    """
    if not 1 <= top <= model.cfg.vocab:
        raise ValueError(f"top {top}: from 1 to the model's {model.cfg.vocab:,} tokens")
    (row,), _ = questions.tokens(model, [(prompt, answer or next_token(model, prompt))])
    ids = jnp.asarray([row.tokens[: row.prompt]], jnp.int32)
    pos = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
    wanted = jnp.asarray([row.tokens[row.prompt]], jnp.int32)
    found = lens(model.params, ids, pos, wanted, model.cfg, top)
    rows = [
        {"layer": i, "says": [shown(model, t) for t in found.first[0, i]],
         "rank": int(found.rank[0, i]), "p": float(found.p[0, i])}
        for i in range(model.cfg.layers)
    ]  # fmt: skip
    return shown(model, wanted[0]), rows


def next_token(model: Model, prompt: str) -> int:
    """The model's first choice: a token, which may go on with the prompt's last word."""
    if not prompt.strip():
        raise ValueError(f"the prompt {prompt!r} is empty: give a text that the answer follows")
    row = questions.tokens(model, [(prompt, 0)])[0][0]
    return first_choice(model.params, np.array(row.tokens[: row.prompt]), model.cfg)


def shown(model: Model, token: Any) -> str:
    said = model.tokenizer.decode([int(token)])
    return said.strip() or repr(said)
