"""Generation: greedy equals the full forward, rows are alone, sampling follows its distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit import LowRank, Write, forward, init
from jaxedit.models import generate as gen
from jaxedit.models.generate import Sampling, contenders, decode, sample
from jaxedit.models.shapes import SHAPES

STEPS = 6
PROMPTS = [[5, 9, 2, 7, 11], [3, 4], [8, 1, 6]]


@pytest.fixture(scope="module", params=["tiny-gpt2", "tiny-llama"])
def model(request):
    cfg = SHAPES[request.param]
    params = init(jax.random.key(0), cfg)
    leaves, tree = jax.tree.flatten(params)
    noise = lambda i, x: x + 0.3 * jax.random.normal(jax.random.key(i), x.shape)
    return tree.unflatten([noise(i, x) for i, x in enumerate(leaves)]), cfg


def pad(prompts, width=5):
    tokens, pos = np.zeros((len(prompts), width), np.int32), np.full((len(prompts), width), -1)
    for i, p in enumerate(prompts):
        tokens[i, width - len(p) :], pos[i, width - len(p) :] = p, np.arange(len(p))
    return jnp.asarray(tokens), jnp.asarray(pos)


def greedy(params, cfg, prompt, **changes):
    """One token at a time by the full forward, without a cache."""
    tokens = list(prompt)
    for _ in range(STEPS):
        row = jnp.zeros((1, 16), jnp.int32).at[0, : len(tokens)].set(jnp.array(tokens))
        logits = forward(params, row, cfg, **changes).logits
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_is_the_full_forward_token_by_token(model):
    params, cfg = model
    tokens, pos = pad(PROMPTS)
    out = decode(params, tokens, pos, cfg, steps=STEPS)
    expected = [greedy(params, cfg, p) for p in PROMPTS]
    assert out.tokens_BN.tolist() == expected
    assert out.length_B.tolist() == [STEPS] * 3
    assert len({tuple(e) for e in expected}) > 1
    # a row is what it is alone, and with more padding
    alone = decode(params, *pad(PROMPTS[1:2], 9), cfg, steps=STEPS)
    assert alone.tokens_BN.tolist() == expected[1:2]
    # every row carries its own edit, in the prompt and after it
    a = jax.random.normal(jax.random.key(1), (1, 3, cfg.mlp, 1))
    b = jax.random.normal(jax.random.key(2), (1, 3, 1, cfg.embed))
    layers = jnp.array([[1, 3, 0]])
    out = decode(params, tokens, pos, cfg, steps=STEPS, deltas={"mlp/down": LowRank(a, b, layers)})
    for r, prompt in enumerate(PROMPTS):
        mine = LowRank(a[:, r], b[:, r], layers[:, r])
        assert out.tokens_BN[r].tolist() == greedy(params, cfg, prompt, deltas={"mlp/down": mine})
    assert out.tokens_BN.tolist() != expected
    # a write on one column of mask holds at every position, also at those that are generated
    steer = Write(
        jnp.ones((1, 1, 1), bool), 3.0 * jnp.ones((1, 1, 1, cfg.embed)), jnp.array([2]), add=True
    )
    steer = steer.replace(value=steer.value * jnp.sin(jnp.arange(cfg.embed, dtype=jnp.float32)))
    out = decode(params, tokens, pos, cfg, steps=STEPS, writes={"resid_post": steer})
    steered = [greedy(params, cfg, p, writes={"resid_post": steer}) for p in PROMPTS]
    assert out.tokens_BN.tolist() == steered != expected


def test_stop_tokens_end_a_row_and_not_its_neighbours(model):
    params, cfg = model
    tokens, pos = pad(PROMPTS)
    free = decode(params, tokens, pos, cfg, steps=STEPS).tokens_BN.tolist()
    stop = free[0][2]
    out = decode(params, tokens, pos, cfg, steps=STEPS, stop_ids=[stop, 100])
    for row, length, before in zip(
        out.tokens_BN.tolist(), out.length_B.tolist(), free, strict=True
    ):
        expected = before.index(stop) if stop in before else STEPS
        assert length == expected
        assert row == before[:length] + [0] * (STEPS - length)
    first = decode(params, tokens, pos, cfg, steps=STEPS, stop_ids=[free[1][0]])
    assert first.length_B[1] == 0


def test_sampling_follows_temperature_top_k_and_top_p():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    draw = jax.jit(
        lambda key, s, most: sample(key, jnp.broadcast_to(logits, (20000, 4)), s, most),
        static_argnames="most",
    )

    def share(**settings):
        s = Sampling(**settings)
        some = np.bincount(draw(jax.random.key(0), s, contenders(s, 4)), minlength=4) / 20000
        every = np.bincount(draw(jax.random.key(1), s, 4), minlength=4) / 20000
        np.testing.assert_allclose(some, every, atol=0.02)  # the few that matter are enough
        return some

    np.testing.assert_allclose(share(), [0.5, 0.3, 0.15, 0.05], atol=0.02)
    np.testing.assert_allclose(share(top_k=2), [0.625, 0.375, 0, 0], atol=0.02)
    np.testing.assert_allclose(share(top_p=0.6), [0.625, 0.375, 0, 0], atol=0.02)
    np.testing.assert_allclose(share(top_p=0.01), [1, 0, 0, 0], atol=0)
    hot = np.array([0.5, 0.3, 0.15, 0.05]) ** 0.5
    np.testing.assert_allclose(share(temperature=2.0), hot / hot.sum(), atol=0.02)
    # top-p counts what top-k left: of 0.625 and 0.375, the first alone reaches 0.6
    np.testing.assert_allclose(share(top_k=2, top_p=0.6), [1, 0, 0, 0], atol=0)


def test_only_the_tokens_that_can_be_drawn_are_sorted():
    looked_at = lambda **settings: contenders(Sampling(**settings), 1000)
    assert looked_at() == looked_at(temperature=0.5) == looked_at(top_k=2000) == 0
    assert looked_at(top_k=5) == looked_at(top_k=8, top_p=0.5) == 8
    assert looked_at(top_k=1) == 1
    assert looked_at(top_p=0.9) == looked_at(top_p=0.9, top_k=2000) == 1000
    assert contenders(None, 1000) == 0
    assert contenders(Sampling(top_k=jnp.int32(5)), 1000) == 1000  # not known beforehand


def test_sampled_rows_depend_on_the_key_and_their_place_alone(model):
    params, cfg = model
    run = lambda prompts, seed: decode(
        params, *pad(prompts), cfg, steps=STEPS, sampling=Sampling(), key=jax.random.key(seed)
    ).tokens_BN.tolist()
    one = run(PROMPTS, 0)
    assert one == run(PROMPTS, 0) != run(PROMPTS, 1)
    assert run(PROMPTS[:2], 0) == one[:2]


def test_other_edits_and_settings_do_not_compile_again(model):
    params, cfg = model
    tokens, pos = pad(PROMPTS)

    def run(layer, size, temperature, stop):
        delta = LowRank(
            size * jnp.ones((1, cfg.mlp, 1)), jnp.ones((1, 1, cfg.embed)), jnp.array([layer])
        )
        decode(
            params,
            tokens,
            pos,
            cfg,
            steps=STEPS,
            sampling=Sampling(temperature),
            key=jax.random.key(layer),
            stop_ids=[stop],
            deltas={"mlp/down": delta},
        )

    run(0, 0.1, 1.0, 3)
    compiled = gen._decode._cache_size()
    run(3, 0.5, 0.3, 9)
    assert gen._decode._cache_size() == compiled


class Letters:
    """A tokenizer of single characters, enough for `generate`."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [1] * add_special_tokens + [ord(c) % 96 for c in text]}

    def decode(self, ids):
        return "".join(chr(96 + int(i) % 26) for i in ids)


def test_generate_takes_text_and_gives_text(model):
    params, cfg = model
    m = jaxedit.Model(params, cfg, Letters())
    texts = jaxedit.generate(m, ["hello", "a longer prompt"], max_new_tokens=5)
    assert texts[0] == jaxedit.generate(m, "hello", max_new_tokens=5)[0]
    assert [len(t) for t in texts] == [5, 5]
    cut = jaxedit.generate(m, "hello", max_new_tokens=5, stop=[texts[0][2:4]])[0]
    assert cut == texts[0][: texts[0].index(texts[0][2:4])]
    sampled = lambda seed: jaxedit.generate(
        m, "hello", max_new_tokens=5, temperature=1.5, seed=seed
    )
    assert sampled(1) == sampled(1) != sampled(2)
    assert jaxedit.generate(m, []) == []


def test_mistakes_are_named(model):
    params, cfg = model
    m = jaxedit.Model(params, cfg, Letters())
    with pytest.raises(ValueError, match="no tokenizer"):
        jaxedit.generate(m._replace(tokenizer=None), "x")
    with pytest.raises(ValueError, match="top_p=0"):
        jaxedit.generate(m, "x", top_p=0)
    with pytest.raises(ValueError, match="needs a key"):
        decode(params, *pad(PROMPTS), cfg, steps=2, sampling=Sampling())
    with pytest.raises(ValueError, match="0 steps"):
        decode(params, *pad(PROMPTS), cfg, steps=0)
    with pytest.raises(ValueError, match="write 'mlp'"):
        decode(params, *pad(PROMPTS), cfg, steps=2, writes={"mlp": None})
    if cfg.learned_pos:
        with pytest.raises(ValueError, match="need 76 positions, the model has 64"):
            jaxedit.generate(m, "hello world", max_new_tokens=64)
