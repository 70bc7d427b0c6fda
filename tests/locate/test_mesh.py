"""What locating finds on a mesh of eight devices is what one device finds; tracing, the census and
the comparison of finders have such a test in their own files.
"""

import jax
import numpy as np
import pytest
from small_models import rows

import jaxedit
from jaxedit.locate import attribution, knowledge_neurons, memories, passes, specific
from jaxedit.models import specs
from jaxedit.models.shapes import SHAPES

CFG = SHAPES["tiny-llama"].replace(layers=2)
ROWS = rows([[5, 17, 42, 8, 61], [9, 3, 7], [4, 6, 30, 2], [11, 8, 25]])
MORE = (ROWS[0] + 20, ROWS[1])  # of equal texts (or tokens) rounding would say which is first
PLACES = [(layer, f) for layer in range(2) for f in range(4)]
FINDERS = {
    "knowledge neurons": lambda p, *b: knowledge_neurons.attribute(p, *b, None, CFG, steps=3),
    "activations": lambda p, *b: knowledge_neurons.activations(p, *b, None, CFG),
    "importance": lambda p, *b: attribution.importance(p, *b, None, CFG, exact=20),
    "attention neurons": lambda p, *b: attribution.attention_neurons(p, *b, None, CFG, 20),
    "parts": lambda p, *b: attribution.parts(p, *b, None, CFG),
    "query neurons": lambda p, *b: attribution.query_neurons(p, *b, None, CFG, 5),
    "updates": lambda p, *b: memories.updates(p, *b, CFG, top=3),
    "values": lambda p, *_: memories.values(p, CFG, PLACES, top=3),
    "counts": lambda p, *b: specific.count(p, CFG, [b, MORE]),
}


@pytest.fixture(scope="module")
def both():
    """The weights on one device, and on a mesh."""
    params = jax.tree.map(lambda x: 3 * x, jaxedit.init(jax.random.key(0), CFG))
    mesh = jaxedit.make_mesh(data=2, fsdp=2, tensor=2)
    return params, jax.device_put(params, specs.nest(specs.shardings(CFG, mesh)))


@pytest.mark.parametrize("name", FINDERS)
def test_a_mesh_finds_the_same(both, name):
    here, there = (jax.tree.map(np.asarray, FINDERS[name](params, *ROWS)) for params in both)
    sizes = [np.abs(x).max() for x in jax.tree.leaves(here) if x.dtype == np.float32]
    assert min(sizes, default=1) > 1e-2  # else a tolerance of 1e-5 says little
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, atol=1e-5), here, there)


def test_a_pass_goes_on_on_a_mesh(both, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "EVERY", 1)
    params, spread = both
    file, told = tmp_path / "triggers.safetensors", []

    def stops():
        yield ROWS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memories.triggers(params, CFG, stops(), top=3, file=file)
    found = memories.triggers(
        spread, CFG, [ROWS, MORE], top=3, file=file, progress=lambda n, _: told.append(n)
    )
    assert told == [2]
    want = memories.triggers(params, CFG, [ROWS, MORE], top=3)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, atol=1e-5), want, found)
