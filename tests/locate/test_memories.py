"""Triggers of keys, what values say, sub-updates, and the logit lens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import write_model
from small_models import planted, rows

import jaxedit
from jaxedit.locate import lens, memories, passes

TEXTS = np.random.RandomState(0).randint(8, 90, (24, 12)).astype(np.int32)
TRIGGER, ANSWER = 7, 33
for _text, _at in ((3, 5), (9, 0), (20, 11)):  # in three texts, at the end of one
    TEXTS[_text, _at] = TRIGGER
TEXTS[3, 6], TEXTS[9, 1] = ANSWER, ANSWER
POS = np.broadcast_to(np.arange(12, dtype=np.int32), TEXTS.shape).copy()
POS[5, 6:] = -1  # a short text
TEXTS[5, 6:] = TRIGGER  # what stands in the padding does not count


@pytest.fixture(scope="module")
def model():
    return planted(trigger=TRIGGER, answer=ANSWER)


def batches(size):
    return [(TEXTS[i : i + size], POS[i : i + size]) for i in range(0, len(TEXTS), size)]


def test_the_strongest_triggers_of_a_planted_key_are_where_its_token_is(model):
    (params, cfg), _, _, (layer, unit) = model
    found = memories.triggers(params, cfg, batches(8), top=3)
    assert set(np.asarray(found.text[layer, unit]).tolist()) == {3, 9, 20}
    at = dict(zip(*(np.asarray(x[layer, unit]).tolist() for x in (found.text, found.column)),
                  strict=True))  # fmt: skip
    assert at == {3: 5, 9: 0, 20: 11}
    after = dict(zip(*(np.asarray(x[layer, unit]).tolist() for x in (found.text, found.next)),
                     strict=True))  # fmt: skip
    assert after == {3: ANSWER, 9: ANSWER, 20: -1}


def test_triggers_are_the_maxima_whatever_the_batches(model):
    (params, cfg), *_ = model
    out = jaxedit.forward(params, jnp.asarray(TEXTS), cfg, pos_BT=jnp.asarray(POS),
                          reads={"mlp_key": None})  # fmt: skip
    act = np.where(POS[None, :, :, None] >= 0, np.asarray(out.reads["mlp_key"]), -np.inf).max(2)
    want = -np.sort(-act.transpose(0, 2, 1), -1)[..., :5]
    for size in (24, 5, 8):
        found = memories.triggers(params, cfg, batches(size), top=5)
        np.testing.assert_allclose(found.score, want, atol=1e-5)
    few = memories.triggers(params, cfg, batches(24)[:1], top=30)
    assert (np.asarray(few.text[..., 24:]) == -1).all()  # there are only 24 texts


def test_triggers_go_on_where_they_were_stopped(model, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "EVERY", 2)
    (params, cfg), *_ = model
    file, told = tmp_path / "triggers.safetensors", []

    def stops():
        yield from batches(8)[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memories.triggers(params, cfg, stops(), top=5, file=file)
    found = memories.triggers(
        params, cfg, batches(8), top=5, file=file, progress=lambda n, _: told.append(n)
    )
    assert told == [3]
    want = memories.triggers(params, cfg, batches(8), top=5)
    jax.tree.map(np.testing.assert_array_equal, found, want)
    with pytest.raises(ValueError, match="triggers with other settings; remove it, or name"):
        memories.triggers(params, cfg, batches(8), top=4, file=file)
    other = {**params, "embed": {"w": params["embed"]["w"] * 2}}
    with pytest.raises(ValueError, match="triggers of another model"):
        memories.triggers(other, cfg, batches(8), top=5, file=file)


def test_a_value_says_its_token_and_agrees_with_its_triggers(model):
    (params, cfg), _, _, (layer, unit) = model
    tokens, scores = memories.values(params, cfg, [(layer, unit), (0, 0)], top=4)
    assert tokens[0, 0] == ANSWER
    assert (np.diff(scores) <= 0).all()
    found = memories.triggers(params, cfg, batches(8), top=3)
    agrees = memories.agreement(params, cfg, found)
    assert agrees.rate_LF[layer, unit] == 1  # of the two that are followed by something
    rest = np.delete(agrees.rate_LF.ravel(), layer * cfg.mlp + unit)
    assert rest.mean() < 5 * max(agrees.chance, 1 / cfg.vocab)
    assert 0 < agrees.chance < 3 / cfg.vocab


@pytest.mark.parametrize("variant", ["gpt2", "gemma2"])
def test_subupdates_add_up_to_what_the_mlp_gives(variant, tmp_path):
    m = jaxedit.load(write_model(variant, tmp_path / variant), dtype="float32")
    tokens, pos = rows([[5, 17, 42, 8], [9, 3, 7]])
    out = jaxedit.forward(m.params, tokens, m.cfg, pos_BT=pos,
                          reads=dict.fromkeys(["mlp_key", "mlp_down"]))  # fmt: skip
    for layer in range(m.cfg.layers):
        parts = memories.subupdates(m.params, out.reads["mlp_key"][layer, :, -1], layer)
        bias = m.params["blocks"]["mlp"]["down"].get("b")
        want = out.reads["mlp_down"][layer, :, -1] - (0 if bias is None else bias[layer])
        np.testing.assert_allclose(parts.sum(1), want, atol=1e-5)
        found = memories.updates(m.params, tokens, pos, m.cfg, top=3)
        size = np.linalg.norm(parts, axis=-1)
        np.testing.assert_allclose(found.size[:, layer], size, rtol=1e-4, atol=1e-6)
        assert found.top[0, layer, 0] == size[0].argmax()


def test_where_an_answer_is_settled(model):
    """The planted neuron's MLP makes the answer the first choice, where it was another."""
    (params, cfg), prompt, answer, (layer, unit) = model
    found = memories.updates(params, *rows([prompt]), cfg, top=2)
    assert found.saturates[0].tolist() == [i == layer for i in range(cfg.layers)]
    assert found.before[0, layer] != answer == found.after[0, layer]
    assert found.eliminates[0, layer]
    assert found.top[0, layer, 0] == unit
    assert found.covered[0, layer] > 0.9
    rank, p, first = lens.lens(params, *rows([prompt]), jnp.array([answer]), cfg)
    assert ((first[0, :, 0] == answer) == (rank[0] == 1)).all()
    assert rank[0, layer - 1] > 1
    assert (rank[0, layer:] == 1).all()
    assert p[0, layer] > p[0, layer - 1]
    logits = jaxedit.forward(params, jnp.array([prompt]), cfg).logits[0, -1]
    assert p[0, -1] == pytest.approx(float(jax.nn.softmax(logits)[answer]), rel=1e-4)
    hits = lens.hits(rank, ks=(1, 10**6))
    assert hits[1].tolist() == [float(i >= layer) for i in range(cfg.layers)]
    assert hits[10**6].tolist() == [1.0] * cfg.layers
