"""Log-probabilities and ranks of documents, beside a plain forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit.bounds import risk
from jaxedit.bounds.risk import Read, ReadConfig
from jaxedit.bounds.sample import SampleConfig, sample
from jaxedit.data import bytewise
from jaxedit.data.documents import Source
from jaxedit.data.tokens import from_strings
from jaxedit.models.shapes import SHAPES

TOKENIZER = bytewise.tokenizer()
CFG = SHAPES["tiny-gpt2"].replace(vocab=260)
TEXTS = ["a", "hello there", "one two three four five six seven eight nine ten", "xyz" * 9]


@pytest.fixture(scope="module")
def text():
    cfg = SampleConfig(Source(("memory",)), independent=True)
    return sample(cfg, from_strings(TEXTS, TOKENIZER), TOKENIZER)


@pytest.fixture(scope="module")
def params():
    return jaxedit.init(jax.random.key(0), CFG)


def plainly(params, text, document):
    """Log-probabilities of all tokens, one document by itself, by the model's own forward pass."""
    tokens = np.concatenate([[text.end], text[document]])
    logits = jaxedit.forward(params, jnp.asarray(tokens[None, :-1]), CFG).logits[0]
    logp = jax.nn.log_softmax(logits)
    at = jnp.take_along_axis(logits, jnp.asarray(tokens[1:, None]), 1)
    rank = (logits > at).sum(-1) + 1
    return np.asarray(jnp.take_along_axis(logp, jnp.asarray(tokens[1:, None]), 1))[:, 0], rank


def test_every_token_is_scored_as_the_model_says(params, text):
    documents = np.array([2, 0, 1, 3, 2])  # one of them twice
    found = risk.read(
        params, None, CFG, text, documents, ReadConfig(window=60, stride=60, batch=99)
    )
    for place, document in enumerate(documents.tolist()):
        at = slice(found.starts[place], found.starts[place + 1])
        logp, rank = plainly(params, text, document)
        np.testing.assert_allclose(found.logp[at], logp, atol=2e-6)
        np.testing.assert_array_equal(found.rank[at], rank)


def test_windows_score_every_token_once_and_see_what_they_may(params, text):
    cfg = ReadConfig(window=16, stride=4)
    found = risk.read(params, None, CFG, text, np.array([2]), cfg)
    whole = np.concatenate([[text.end], text[2]])
    for place in range(len(whole) - 1):
        if place < 16:
            begin = 0
        else:  # the window that ends with the stretch of four that the token is in
            stop = min(16 + -(-(place - 15) // 4) * 4, len(whole) - 1)
            begin = stop - 16
        tokens = jnp.asarray(whole[None, begin : place + 1])
        logits = jaxedit.forward(params, tokens, CFG).logits[0, -1]
        want = jax.nn.log_softmax(logits)[int(whole[place + 1])]
        assert abs(float(want) - found.logp[place]) < 2e-6


def test_ties_count_against_the_token(text):
    zero = jax.tree.map(jnp.zeros_like, jaxedit.init(jax.random.key(0), CFG))
    found = risk.read(zero, None, CFG, text, np.array([1]))
    assert (found.rank == CFG.vocab).all()  # all are as likely: it may be the last
    np.testing.assert_allclose(found.logp, -np.log(CFG.vocab), rtol=1e-6)


def test_losses_are_means_of_documents():
    found = Read(np.log(np.float32([0.5, 0.25, 0.125])), np.int32([1, 2, 9]), np.array([0, 2, 3]))
    np.testing.assert_allclose(risk.losses(found, 1e-12, 10), [1.5, 3.0], rtol=1e-7)
    want = -np.log2(0.9 * 0.125 + 0.1 / 10)
    np.testing.assert_allclose(risk.losses(found, 0.1, 10)[1], want, rtol=1e-7)
    np.testing.assert_array_equal(risk.errors(found, 1), [0.5, 1.0])
    np.testing.assert_array_equal(risk.errors(found, 2), [0.0, 1.0])


def test_a_window_is_not_shorter_than_its_stride():
    with pytest.raises(ValueError, match="1 <= stride <= window"):
        ReadConfig(window=8, stride=9)
