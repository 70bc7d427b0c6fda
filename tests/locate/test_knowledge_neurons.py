"""Attribution along the path from silence; the authors' scores are in tests/edit/test_kn.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import planted, rows

import jaxedit
from jaxedit.base import Write
from jaxedit.locate.knowledge_neurons import activations, attribute
from jaxedit.models.shapes import SHAPES

CFG = SHAPES["tiny-llama"].replace(layers=3)
TOKENS, POS = rows([[5, 17, 42, 8, 61], [9, 3, 7]])


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 3 * x, jaxedit.init(jax.random.key(0), CFG))


def likely(params, answer_B, writes):
    out = jaxedit.forward(params, TOKENS, CFG, pos_BT=POS, writes=writes)
    return jnp.take_along_axis(jax.nn.softmax(out.logits[:, -1]), answer_B[:, None], 1)[:, 0]


def test_scores_of_a_layer_add_up_to_what_its_neurons_do(params):
    found, answer_B = attribute(params, TOKENS, POS, None, CFG, steps=40)
    last = (jnp.arange(TOKENS.shape[1]) == TOKENS.shape[1] - 1)[None, None]
    for layer in range(CFG.layers):
        none = Write(last, jnp.zeros((1, 1, 1, CFG.mlp)), jnp.array([layer]))
        does_B = likely(params, answer_B, {}) - likely(params, answer_B, {"mlp_key": none})
        np.testing.assert_allclose(found[:, layer].sum(-1), does_B, atol=1e-4)


def test_the_middle_of_steps_errs_least(params):
    exact, answer_B = attribute(params, TOKENS, POS, None, CFG, steps=100)
    score = partial(attribute, params, TOKENS, POS, answer_B, CFG)
    gap = {
        points: float(jnp.abs(score(points=points, steps=10)[0] - exact).max())
        for points in ("midpoint", "left", "right", "linspace")
    }  # fmt: skip
    assert gap["midpoint"] < 0.2 * min(gap["left"], gap["right"], gap["linspace"])


def test_layers_may_be_one_program_or_several(params):
    whole, _ = attribute(params, TOKENS, POS, None, CFG, steps=4, groups=1)
    for groups in (2, 3):
        part, _ = attribute(params, TOKENS, POS, None, CFG, steps=4, groups=groups)
        np.testing.assert_allclose(part, whole, atol=1e-6)


def test_a_planted_neuron_is_the_highest():
    (params, cfg), tokens, answer, place = planted()
    found, said = attribute(params, *rows([tokens]), None, cfg)
    assert int(said[0]) == answer
    assert np.unravel_index(int(found[0].argmax()), found[0].shape) == place


def test_activations_are_those_of_the_last_column(params):
    out = jaxedit.forward(params, TOKENS, CFG, pos_BT=POS, reads={"mlp_key": None})
    want = out.reads["mlp_key"][:, :, -1].swapaxes(0, 1)
    np.testing.assert_allclose(activations(params, TOKENS, POS, None, CFG), want, atol=1e-6)


def test_mistakes_are_one_line(params):
    for how in ({"site": "mlp_out"}, {"points": "middle"}, {"steps": 0}):
        with pytest.raises(ValueError, match="midpoint, right, left, linspace"):
            attribute(params, TOKENS, POS, None, CFG, **how)
