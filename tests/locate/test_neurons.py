"""Sets of neurons from scores, what switching them does, and questions asked of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit.base import Scale
from jaxedit.locate import neurons, questions
from jaxedit.locate.knowledge_neurons import activations, attribute
from jaxedit.models.shapes import SHAPES

CFG = SHAPES["tiny-llama"]
FACTS = [("Bane Fipi was born in", "Mife"), ("Bane Fipi works as a", "teacher")]


@pytest.fixture(scope="module")
def world():
    return jaxedit.load("world", dtype="float32")


def test_coarse_sets_are_those_above_a_share_of_the_largest_over_all_layers():
    scores = jnp.array([[[0.0, 10.0], [2.0, 2.1]], [[-1.0, -2.0], [-3.0, -4.0]]])
    assert neurons.above(scores, 0.2).tolist() == [
        [[False, True], [False, True]],
        [[False] * 2] * 2,
    ]
    with pytest.raises(ValueError, match=r"a share 1 of the largest score: from 0 to below 1"):
        neurons.above(scores, 1)


def test_the_highest_of_those_that_score_over_a_number():
    scores = np.array([[[0.0, 3.0], [1.0, 2.0]], [[0.0, -1.0], [0.5, 0.0]]], np.float32)
    assert neurons.highest(scores, 2)[1].tolist() == [[True, False], [True, False]]
    assert neurons.highest(scores, 2, over=0.0).tolist() == [
        [[False, True], [False, True]],
        [[False, False], [True, False]],  # one neuron: what scores nothing does not fill up
    ]
    with pytest.raises(ValueError, match="the 5 highest of 4 scores"):
        neurons.highest(scores, 5)


def test_what_is_shared_and_what_is_common():
    some = neurons.sets([[(0, 0), (0, 1)], [(0, 0), (1, 1)], [(0, 0), (1, 1)]], (2, 2))
    assert neurons.among(some, 0.6).tolist() == [[True, False], [False, True]]
    assert neurons.among(some, 0.1, least=3).tolist() == [[True, False], [False, False]]
    ten = np.zeros((10, 1, 1), bool)
    ten[:7] = True
    assert neurons.among(ten, 0.7).all()  # 0.7 * 10 is a little more than seven
    left = neurons.without_common(some, 0.7)
    assert not left[:, 0, 0].any()
    assert left[:, 1, 1].tolist() == [False, True, True]
    np.testing.assert_allclose(
        neurons.rarity(some), np.log([[3 / 4, 3 / 2], [3 / 1, 3 / 3]]), rtol=1e-6
    )


def test_refined_sets_and_the_share_that_was_moved_to_make_them_few():
    """Ten neurons in all four prompts, five in three of them: 15 at 0.7, 10 however it is moved."""
    mine = np.zeros((4, 1, 40), bool)
    mine[:, :, :10] = True
    mine[:3, :, 10:15] = True
    mine[0, :, 15:25] = True
    found = neurons.refine([mine, mine])
    assert (found.free, found.forced) == (15, 10)
    assert found.share == pytest.approx(1.0)
    assert found.consistent == pytest.approx(10 / 25)
    free = neurons.refine([mine, mine], between=(0, np.inf))
    assert (free.free, free.forced, free.share) == (15, 15, 0.7)
    assert free.sets_NLF[:, 0, :15].all()
    assert not free.sets_NLF[:, 0, 15:].any()
    with pytest.raises(ValueError, match="fact 1 has 2 prompts; to be in at least 3"):
        neurons.refine([mine, mine[:2]])


def test_random_neurons_are_as_many_in_the_same_layers_and_other_ones():
    random = np.random.RandomState(0)
    some = jnp.asarray(random.rand(5, 3, 40) < 0.1)
    other = neurons.random_like(jax.random.key(0), some)
    np.testing.assert_array_equal(other.sum(-1), some.sum(-1))
    assert not (other & some).any()
    assert (other != neurons.random_like(jax.random.key(1), some)).any()


def test_agreement_of_scores():
    assert neurons.alike(np.eye(4)) == pytest.approx(0)
    assert neurons.alike(np.outer([1, 2, 3], [1.0, 2.0, 5.0])) == pytest.approx(1)
    half = np.array([[1.0, 0.0], [np.cos(np.pi / 3), np.sin(np.pi / 3)]])
    assert neurons.alike(half) == pytest.approx(0.5)  # σ₁² = 1 + cos: of two vectors, the cosine


def test_the_best_are_listed_with_their_scores():
    scores = np.array([[0.0, 3.0], [2.0, 3.0]])
    assert neurons.listed(scores, 3) == [(0, 1, 3.0), (1, 1, 3.0), (1, 0, 2.0)]


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_neurons_are_multiplied_where_and_only_where_asked(factor):
    params = jaxedit.init(jax.random.key(0), CFG)
    tokens = jnp.asarray(np.random.RandomState(0).randint(0, CFG.vocab, (2, 6)))
    some = neurons.sets([[(0, 3), (1, 5)], []], (CFG.layers, CFG.mlp))
    at = jnp.arange(6)[None] == 4
    writes = neurons.times(some, factor, jnp.broadcast_to(at, (2, 6)))
    plain = jaxedit.forward(params, tokens, CFG, reads={"mlp_key": None})
    out = jaxedit.forward(params, tokens, CFG, reads={"mlp_key": None}, writes=writes)
    want = np.array(plain.reads["mlp_key"])
    want[0, 0, 4, 3] *= factor
    np.testing.assert_allclose(out.reads["mlp_key"][0], want[0], rtol=1e-5, atol=1e-7)
    assert out.reads["mlp_key"][1, 0, 4, 5] == pytest.approx(
        factor * float(_key(params, tokens, writes)), rel=1e-4
    )
    np.testing.assert_allclose(out.logits[1], plain.logits[1], rtol=1e-5, atol=1e-6)


def _key(params, tokens, writes):
    """The neuron (1, 5) with only the one of layer 0 multiplied."""
    (scale,) = writes.values()
    first = Scale(scale.mask, scale.factor.at[1].set(1))
    out = jaxedit.forward(params, tokens, CFG, reads={"mlp_key": None}, writes={"mlp_key": first})
    return out.reads["mlp_key"][1, 0, 4, 5]


def test_a_scale_of_some_layers_holds_in_generation(world):
    """Silencing every neuron of a layer is what zeroing its down projection does."""
    L, F = world.cfg.layers, world.cfg.mlp
    one = Scale(jnp.ones((1, 1, 1), bool), jnp.zeros((1, 1, 1, F)), jnp.array([0]))
    params = jax.tree.map(lambda x: x, world.params)
    params["blocks"]["mlp"]["down"]["w"] = params["blocks"]["mlp"]["down"]["w"].at[0].set(0)
    zeroed = jaxedit.Model(params, world.cfg, world.tokenizer)
    prompts = [prompt for prompt, _ in FACTS]
    every = np.zeros((1, L, F), bool)
    every[:, 0] = True
    told = jaxedit.generate(zeroed, prompts, max_new_tokens=4)
    assert jaxedit.generate(world, prompts, max_new_tokens=4, writes={"mlp_key": one}) == told
    both = jaxedit.generate(world, prompts, max_new_tokens=4, writes=neurons.times(every, 0.0))
    assert both == told
    assert told != jaxedit.generate(world, prompts, max_new_tokens=4)


def test_the_probability_of_an_answer_is_the_product_over_its_tokens(world):
    found = questions.probabilities(world, FACTS)
    for (prompt, answer), p in zip(FACTS, found, strict=True):
        ids = world.tokenizer(f"{prompt} {answer}")["input_ids"]
        n = len(world.tokenizer(prompt)["input_ids"])
        logits = jaxedit.forward(world.params, jnp.asarray([ids]), world.cfg).logits[0]
        each = [float(jax.nn.softmax(logits[t - 1])[ids[t]]) for t in range(n, len(ids))]
        assert p == pytest.approx(np.prod(each), rel=1e-4)
    assert min(found) > 0.8  # they are facts of the world
    nothing = np.zeros((2, world.cfg.layers, world.cfg.mlp), bool)
    np.testing.assert_allclose(questions.probabilities(world, FACTS, nothing), found, rtol=1e-5)
    one = np.ones((1, world.cfg.layers, world.cfg.mlp), bool)
    assert (questions.probabilities(world, FACTS, one) < found).all()


def test_scores_of_an_answer_are_the_mean_over_its_tokens_after_the_right_ones(world):
    found = questions.scores(world, FACTS, activations, size=3)
    for (prompt, answer), scores_LF in zip(FACTS, found, strict=True):
        ids = world.tokenizer(f"{prompt} {answer}")["input_ids"]
        n = len(world.tokenizer(prompt)["input_ids"])
        out = jaxedit.forward(world.params, jnp.asarray([ids]), world.cfg, reads={"mlp_key": None})
        want = out.reads["mlp_key"][:, 0, n - 1 : len(ids) - 1].mean(1)
        np.testing.assert_allclose(scores_LF, want, atol=1e-5)
    first = questions.scores(world, FACTS, activations, most=1)
    assert np.abs(first - found).max() > 1e-3
    with pytest.raises(ValueError, match="question 'Bane' has no answer"):
        questions.scores(world, [("Bane", "")], activations)


def test_scores_of_a_batch_are_those_of_each(world):
    """Whatever else is in the batch, and however it is padded."""
    method = lambda *given: attribute(*given, steps=3)[0]
    together = questions.scores(world, FACTS, method)
    for one, want in zip(FACTS, together, strict=True):
        np.testing.assert_allclose(
            questions.scores(world, [one], method, size=1)[0], want, atol=1e-6
        )


def test_another_fact_or_neuron_is_not_another_program(world):
    questions.probabilities(world, FACTS, np.zeros((2, world.cfg.layers, world.cfg.mlp), bool))
    before = questions.likely._cache_size()
    other = neurons.sets([[(0, 1)], [(2, 7)]], (world.cfg.layers, world.cfg.mlp))
    questions.probabilities(world, FACTS[::-1], other, factor=2.0)
    assert questions.likely._cache_size() == before
