"""Edits with a router: each row carries the memory that its prompt is about, or nothing at all."""

import dataclasses
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit import LowRank
from jaxedit.data.requests import mark
from jaxedit.data.world import cases, make
from jaxedit.edit.ledger import Ledger
from jaxedit.edit.record import Edit
from jaxedit.edit.router import Router, Scope, join
from jaxedit.evaluate import carry, likelihood
from jaxedit.evaluate.ask import Asker
from jaxedit.evaluate.observe import AskConfig, observe
from jaxedit.evaluate.protocol import joined
from jaxedit.evaluate.route import embed, route, settle
from jaxedit.evaluate.scores import score
from jaxedit.sharding import make_mesh

ROOM = 1 << 31
ABOUT = ("Bane Fipi was born in", "The capital of Vemo is", "As everyone knows, Nopu's job is")
OTHERS = ("Bane Fipi works as a", "Gugu Pena was born in")
MEMORIES = ((17, 230, 41), (5, 6), (9, 8, 7, 6))


@cache
def model():
    return jaxedit.load("world", dtype="float32")


def scope(distance="euclidean", pool="mean", encoder=""):
    """Of which only the same prompt is likely to be about a memory."""
    w = jax.random.normal(jax.random.key(0), (128, 32)) / 8
    low = LowRank(0.1 * jnp.ones((1, 128, 1)), 0.1 * jnp.ones((1, 1, 128)), jnp.array([1]))
    return Scope(w, jnp.float32(1e3), {"attn/q": low}, 2, pool, distance, encoder)


def tokens(prompts):
    return [tuple(ids) for ids in model().tokenizer(list(prompts))["input_ids"]]


def router(prompts=ABOUT, prefixes=MEMORIES, **how):
    sees = how.pop("scope", None) or scope()
    held = np.full((len(prompts), 4), -1, np.int32)
    for row, prefix in zip(held, prefixes, strict=True):
        row[: len(prefix)] = prefix
    return Router(sees, embed(model(), sees, tokens(prompts)), held, **how)


DELTAS = {
    "mlp/down": LowRank(
        0.3 * jax.random.normal(jax.random.key(1), (1, 512, 2)),
        0.3 * jax.random.normal(jax.random.key(2), (1, 2, 128)),
        jnp.array([2]),
    )
}


def edit(**how):
    return Edit(deltas=DELTAS, router=router(**how))


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_a_prompt_goes_to_its_memory_and_others_to_none(distance, pool):
    one = Edit(deltas=DELTAS, router=router(scope=scope(distance, pool)))
    found = route(model(), one, [*ABOUT, *OTHERS])
    assert found.tolist() == [0, 1, 2, -1, -1]
    e = embed(model(), one.router.scope, tokens([*ABOUT, *OTHERS]))
    np.testing.assert_array_equal(jax.jit(lambda r, e: r(e))(one.router, e), found)


def test_of_equal_memories_the_latest_is_taken_and_no_memory_is_about_nothing():
    twice = join([router(), router((ABOUT[1],), ((1, 2),))])
    assert route(model(), Edit(router=twice), ABOUT).tolist() == [0, 3, 2]
    assert twice.prefix(3) == (1, 2)
    assert twice.prefix(2) == MEMORIES[2]
    none = twice.take(slice(0))
    assert route(model(), Edit(router=none), ABOUT).tolist() == [-1, -1, -1]
    with pytest.raises(ValueError, match="different scope classifiers"):
        join([router(), router(scope=scope("cosine"))])


def test_an_encoder_by_name_reads_the_same_tokens_or_is_refused():
    for name in ("world", "world-llama"):
        named = Edit(deltas=DELTAS, router=router(scope=scope(encoder=name)))
        assert route(model(), named, [*ABOUT, *OTHERS]).tolist() == [0, 1, 2, -1, -1]
    foreign = str(Path(__file__).parents[1] / "golden/editing/gpt2-tiny")
    with pytest.raises(ValueError, match="it must read the tokens of the edited model"):
        router(scope=scope(encoder=foreign))


def test_rows_carry_their_memory_or_nothing_exactly():
    """Beside plain edits, forced and free."""
    plain = Edit(deltas=DELTAS, prefix=(3, 4))
    edits = [edit(), plain, Edit()]
    rows = [(0, p) for p in (*ABOUT, *OTHERS)] + [(1, ABOUT[0]), (2, ABOUT[0])]
    same = [*(Edit(MEMORIES[i], deltas=DELTAS) for i in range(3)), Edit(), Edit(), plain, Edit()]
    texts = [mark(p, "Lira", (-1, -1)) for _, p in rows]
    asker = Asker(model(), ROOM)
    found = asker.forced(texts, [e for e, _ in rows], edits)
    want = asker.forced(texts, range(len(rows)), same)
    for (_, prompt), x, y in zip(rows, found, want, strict=True):
        np.testing.assert_allclose(x.after.logp, y.after.logp, atol=2e-5)
        assert (prompt in OTHERS) <= (x.after == x.before and x.kl == 0)
    prompts = [p for _, p in rows]
    free = asker.continued(prompts, [e for e, _ in rows], edits, 6)
    assert free == asker.continued(prompts, range(len(rows)), same, 6)


def test_memories_of_a_router_share_what_they_carry():
    found = settle(model(), tokens([*ABOUT, *OTHERS]), [0] * 5, [edit()])
    assert [found.edits[e].prefix for e in found.edit_of] == [*MEMORIES, (), ()]
    kinds, which = carry.distinct(found.edits)
    assert len(kinds) == 2
    assert [which[e] for e in found.edit_of] == [which[0]] * 3 + [which[found.edit_of[-1]]] * 2


def test_a_soft_router_mixes_what_is_looked_at():
    soft = edit(scope=dataclasses.replace(scope(), scale=jnp.float32(0.05)), soft=True)
    texts = [mark(OTHERS[1], "Mife", (-1, -1))]
    (e,) = embed(model(), soft.router.scope, tokens(OTHERS[1:]))
    best, p = soft.router.likeliest(e[None])
    assert 0 < float(p[0]) < 1
    asker = Asker(model(), ROOM)
    (mixed,) = asker.forced(texts, [0], [soft])
    (alone,) = asker.forced(texts, [0], [soft.remembered(int(best[0]))])
    want = np.log((1 - p) * np.exp(alone.before.logp) + p * np.exp(alone.after.logp))
    np.testing.assert_allclose(mixed.after.logp, want, atol=1e-5)
    hard = dataclasses.replace(soft, router=soft.router.replace(threshold=0.999))
    free = asker.continued([OTHERS[1]], [0], [hard], 5)
    assert free == asker.continued([OTHERS[1]], [0], [Edit()], 5)


def test_a_mesh_routes_alike():
    spread = jaxedit.load("world", make_mesh(data=2, fsdp=2, tensor=2), "float32")
    texts = [mark(p, "Lira", (-1, -1)) for p in (*ABOUT, *OTHERS)]
    here, there = (Asker(m, ROOM).forced(texts, [0] * 5, [edit()]) for m in (model(), spread))
    for x, y in zip(here, there, strict=True):
        np.testing.assert_allclose(x.after.logp, y.after.logp, atol=2e-5)


def test_a_file_holds_the_router_and_weights_do_not(tmp_path):
    one = dataclasses.replace(edit(), provenance={"method": "by hand"})
    one.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")
    for x, y in zip(*map(jax.tree.leaves, (one.router, again.router)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert jax.tree.structure(one.router) == jax.tree.structure(again.router)
    assert route(model(), again, [*ABOUT, *OTHERS]).tolist() == [0, 1, 2, -1, -1]
    again.check(model())
    wrong = dataclasses.replace(again, router=again.router.replace(tokens_MP=np.full((3, 1), 9999)))
    with pytest.raises(ValueError, match="prefix token 9999"):
        wrong.check(model())
    with pytest.raises(ValueError, match="an edit with a router cannot be merged into weights"):
        again.merge(model())
    with pytest.raises(ValueError, match="an edit with a router is not a LoRA adapter"):
        again.to_peft(tmp_path / "adapter", model())
    ledger = Ledger.create(tmp_path / "ledger", model())
    ledger.add(again)
    with pytest.raises(ValueError, match="edit 0001 has a router, which cannot be merged"):
        ledger.compose()


def test_likelihoods_are_those_of_what_each_line_carries():
    lines = [likelihood.Line((*t, 325, 272), len(t)) for t in tokens([ABOUT[0], OTHERS[0]])]
    found = likelihood.likelihoods(model(), lines, edit())
    one = Edit(MEMORIES[0], deltas=DELTAS)
    (memory,) = likelihood.likelihoods(model(), lines[:1], one)
    (nothing,) = likelihood.likelihoods(model(), lines[1:])
    np.testing.assert_allclose(found[0].logp_U, memory.logp_U, atol=2e-5)
    np.testing.assert_allclose(found[1].logp_U, nothing.logp_U, atol=2e-5)
    assert likelihood.readable(model(), edit()) == model().cfg.max_len - 4


def test_cases_are_observed_under_own_edits_and_under_one_memory():
    some = tuple(cases(make("small"), 3))
    cfg = AskConfig(say=4, continued=0)
    own = [
        Edit(deltas=DELTAS, router=router((case.request.text,), (MEMORIES[0],))) for case in some
    ]
    asker = Asker(model(), ROOM)
    alone = observe(asker, some, own, None, cfg)
    together = observe(asker, some, [joined(own)], [0] * 3, cfg)
    for found in (alone, together):
        for seen in found:
            numbers = score(seen, "paper")
            assert numbers["locality/agreement"] == 1
            assert numbers["locality/unrelated/kl"] == 0
            for asked in seen.asked:
                same = asked.after.answers == asked.before.answers
                assert same == (asked.key != "edit"), asked.key
