"""Requests in, edits out: one each, all in one, or a sequence."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_edits import model, off, requests, stats

from jaxedit import merge
from jaxedit.data.cases import EditRequest, Probe
from jaxedit.data.contexts import ContextConfig
from jaxedit.edit.editor import RowsConfig
from jaxedit.edit.ledger import Ledger
from jaxedit.edit.methods import configure
from jaxedit.edit.record import Edit
from jaxedit.edit.runner import prepare, run, stream
from jaxedit.edit.stats import Stats
from jaxedit.edit.values import ValueConfig
from jaxedit.edit.weights.alphaedit import AlphaEditConfig
from jaxedit.edit.weights.emmet import EmmetConfig
from jaxedit.edit.weights.lora import LoraEditConfig
from jaxedit.edit.weights.memit import MemitConfig
from jaxedit.edit.weights.rome import RomeConfig
from jaxedit.evaluate.exact import exact
from jaxedit.models import specs
from jaxedit.sharding import make_mesh

GROUPS = (("{}",), ("Well. {}",))
VALUES = ValueConfig(steps=20, lr=0.5, weight_decay=1e-3, clamp=4.0)
ROME = RomeConfig(layer=0, values=VALUES, rows=RowsConfig(contexts=ContextConfig(given=GROUPS)))
BARE = {"values": VALUES, "rows": RowsConfig(contexts=ContextConfig())}
MEMIT = MemitConfig(layers=(0,), weight=5.0, **BARE)
EMMET = EmmetConfig(layer=0, epsilon=0.0, **BARE)  # equality: no answer for two equal keys

BORN, PROFESSION, PLAYS, TONGUE = requests(0, 4)
SPEAKS = EditRequest("{} speaks", "Ilse Okafor", "Polish")
# of all lengths, and not in the order of their lengths
MIXED = [TONGUE, PROFESSION, BORN, PLAYS]
# four and four of one shape
ALIKE = [
    EditRequest("{} plays the", "Elka Castro", "violin"),
    EditRequest("On stage {} performs with the", "Boris Devlin", "violin"),
    EditRequest("On stage {} performs with the", "Elka Moreau", "oboe"),
    PROFESSION,
]
MORE = [
    EditRequest("{} plays the", subject, "violin")
    for subject in ("Celia Hobart", "Ilse Okafor", "Greta Castro", "Nils Devlin")
]
LONG = EditRequest("{}" + " is" * 140, "Elka Hobart", "pilot")  # more than the model's 128


def says(some, requests, **how):
    return exact(some, [Probe(r.text, ((r.target,),), r.subject) for r in requests], **how).tolist()


def as_json(edit):
    """What an edit says of itself, as a file has it; refuses NaN."""
    return json.loads(json.dumps(edit.provenance, allow_nan=False))


def dense(edit):
    return np.asarray(edit.deltas["mlp/down"].dense())


def asked(edit):
    """The requests that an edit says it is of."""
    about = edit.provenance
    return [about["request"]] if "request" in about else about["requests"]


@cache
def romes():
    return run(model(), MIXED, ROME, stats=stats())


@cache
def memit():
    (edit,) = run(model(), ALIKE, MEMIT, False, stats=stats())
    return edit


# One edit for each request


def test_every_request_has_its_edit_in_its_place():
    edits = romes()
    assert [asked(e)[0]["subject"] for e in edits] == [r.subject for r in MIXED]
    assert says(model(), MIXED) == [False] * 4
    assert says(model(), MIXED, each=[e.deltas for e in edits]) == [True] * 4
    for e in edits:
        d = e.deltas["mlp/down"]
        assert (d.a.shape, d.b.shape) == ((1, 256, 1), (1, 1, 64))
        assert d.layers.tolist() == [0]
        assert "failed" not in e.provenance


def test_an_edit_in_a_file_and_in_the_weights(tmp_path):
    edit = romes()[2]
    edit.save(tmp_path / "edit.safetensors")
    back = Edit.load(tmp_path / "edit.safetensors")
    assert back.provenance == as_json(edit)
    np.testing.assert_array_equal(dense(back), dense(edit))
    merged = back.merge(model())  # checks that it is the model it was made on
    assert says(merged, MIXED) == [False, False, True, False]
    assert says(model(), MIXED) == [False] * 4


def test_independent_edits_are_as_one_at_a_time():
    """And a program may hold one request, or all."""
    alone = run(model(), [PROFESSION, PLAYS], ROME, stats=stats(), size=1)
    for edit, place in zip(alone, (1, 3), strict=True):
        assert off(dense(edit), dense(romes()[place])) < 1e-5
        one, together = (e.provenance["result"] for e in (edit, romes()[place]))
        assert one["steps"] == together["steps"]
        assert one["loss"] == pytest.approx(together["loss"], rel=1e-5)


def test_edits_come_as_they_are_made():
    seen = []
    made = stream(
        model(), [PLAYS, PROFESSION], ROME, stats=stats(), size=1,
        progress=lambda *p: seen.append(p),
    )  # fmt: skip
    (place,), edit = next(made)
    assert asked(edit)[0]["subject"] == [PLAYS, PROFESSION][place].subject
    assert not seen  # a program is counted when all of it has been handed over
    assert [p for p, _ in made] == [[1 - place]]
    assert seen == [(1, 2), (2, 2)]


SEVERAL = {
    "rome": ROME,
    "memit": MemitConfig(layers=(0, 1), weight=5.0, **BARE),
    "alphaedit": AlphaEditConfig(layers=(0, 1), threshold=0.5, l2=1.0, **BARE),
    "lora": LoraEditConfig(rank=2, steps=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(4, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("method", SEVERAL)
def test_on_a_mesh(method, sizes):
    """Three requests on four devices: one row of the batch is padding."""
    mesh = make_mesh(*sizes)
    placed = jax.device_put(model().params, specs.nest(specs.shardings(model().cfg, mesh)))
    here, there = (
        run(some, MIXED[:3], SEVERAL[method], stats=stats())
        for some in (model(), model()._replace(params=placed))
    )
    assert len(here) == len(there) == 3
    for edit, wanted in zip(there, here, strict=True):
        assert edit.deltas.keys() == wanted.deltas.keys()
        for name, changed in wanted.deltas.items():
            assert np.abs(changed.dense()).max() > 1e-4
            assert off(edit.deltas[name].dense(), changed.dense()) < 1e-4
        assert edit.provenance["base"] == wanted.provenance["base"]


# One edit for all, and sequences


def test_one_edit_of_all_requests():
    edit = memit()
    assert says(model(), ALIKE) == [False] * 4
    assert says(model(), ALIKE, deltas=edit.deltas) == [True] * 4
    assert says(edit.merge(model()), ALIKE) == [True] * 4
    assert [r["prompt"] for r in asked(edit)] == [r.prompt for r in ALIKE]
    assert edit.deltas["mlp/down"].a.shape == (1, 256, 4)
    assert edit.provenance["after"] == 0


@cache
def sequence():
    return run(model(), [*ALIKE, *MORE], MEMIT, False, batch=4, stats=stats())


def test_a_sequence_of_batches_each_on_the_model_that_the_ones_before_left():
    first, second = sequence()
    assert [r["subject"] for r in asked(first)] == [r.subject for r in ALIKE]
    assert [r["subject"] for r in asked(second)] == [r.subject for r in MORE]
    assert [e.provenance["after"] for e in (first, second)] == [0, 1]
    assert off(dense(first), dense(memit())) < 1e-5
    edited = model()._replace(params=merge.apply(model().params, first.deltas))
    (then,) = run(edited, MORE, MEMIT, False, stats=stats())
    assert off(dense(second), dense(then)) < 1e-5
    assert off(dense(second), dense(more())) > 1e-3  # which is not what the base gives
    # all of them are edits of the base, whatever they were made on top of
    assert first.provenance["base"] == second.provenance["base"] == more().provenance["base"]
    assert then.provenance["base"] != first.provenance["base"]


@cache
def more():
    (edit,) = run(model(), MORE, MEMIT, False, stats=stats())
    return edit


def test_a_sequence_of_single_edits():
    """ROME takes one request at a time."""
    progress = []
    edits = run(
        model(), [PLAYS, PROFESSION], ROME, False, stats=stats(),
        progress=lambda *p: progress.append(p),
    )  # fmt: skip
    assert [e.provenance["after"] for e in edits] == [0, 1]
    assert progress == [(1, 2), (2, 2)]
    assert off(dense(edits[0]), dense(romes()[3])) < 1e-5
    edited = model()._replace(params=merge.apply(model().params, edits[0].deltas))
    (then,) = run(edited, [PROFESSION], ROME, stats=stats())
    assert off(dense(edits[1]), dense(then)) < 1e-5


def test_a_ledger_takes_them_and_undoes_them(tmp_path):
    ledger = Ledger.create(tmp_path / "ledger", model())
    ids = [ledger.add(edit) for edit in sequence()]
    entries = ledger.edits()
    assert [e.method for e in entries] == ["memit", "memit"]
    assert [len(e.requests) for e in entries] == [4, 4]
    assert entries[1].is_after(entries[0])
    merged = ledger.merge(model())
    by_hand = merge.apply(merge.apply(model().params, sequence()[0].deltas), sequence()[1].deltas)
    down = lambda params: params["blocks"]["mlp"]["down"]["w"]
    np.testing.assert_allclose(down(merged.params), down(by_hand), atol=1e-6)
    assert ledger.undo(ids[0]) == [ids[1]]  # was made on top of it
    ledger.undo_all()
    jax.tree.map(np.testing.assert_array_equal, ledger.merge(model()).params, model().params)


# What goes wrong


@cache
def broken(position):
    """A model that is NaN for texts that reach this position."""
    params = dict(model().params)
    params["pos"] = {"w": params["pos"]["w"].at[position].set(jnp.nan)}
    return model()._replace(params=params)


def test_a_request_that_fails_in_a_batch_is_told_and_leaves_the_others():
    """In its place, though the program takes the shorter one first."""
    some = [PROFESSION, MORE[0], SPEAKS, MORE[1]]
    (edit,) = run(broken(6), some, MEMIT, False, stats=stats())
    about = edit.provenance
    assert [r["subject"] for r in asked(edit)] == [r.subject for r in some]
    assert about["result"]["failed"] == [0, -1, -1, -1]
    assert about["result"]["loss"][0] is None  # JSON has no NaN
    assert all(about["result"]["loss"][1:])
    assert about["failed"] == [f"{PROFESSION.text!r}: not finite at step 0 of the search"]
    assert edit.deltas["mlp/down"].a.shape == (1, 256, 3)
    assert np.isfinite(dense(edit)).all()
    assert says(model(), some[1:2], deltas=edit.deltas) == [True]


def test_a_request_that_fails_alone_has_an_empty_edit_that_says_why(tmp_path):
    some = [PROFESSION, PLAYS]
    for independent in (True, False):
        first, second = run(broken(10), some, ROME, independent, stats=stats(), size=1)
        assert first.deltas == {}
        assert first.provenance["failed"] == [
            f"{PROFESSION.text!r}: not finite at step 0 of the search"
        ]
        assert "failed" not in second.provenance
        # and what failed does not reach those after it
        assert off(dense(second), dense(romes()[3])) < 1e-5
    first.save(tmp_path / "empty.safetensors")
    assert Edit.load(tmp_path / "empty.safetensors").provenance == as_json(first)


def test_what_cannot_be_solved_is_no_edit():
    """Two equal keys, both to be mapped exactly: NaN, which must not reach the next edit."""
    twice = [MORE[0], dataclasses.replace(MORE[0], target="oboe"), *MORE[1:3]]
    first, second = run(model(), [*twice, *ALIKE], EMMET, False, batch=4, stats=stats())
    assert first.deltas == {}
    assert len(first.provenance["failed"]) == 4
    assert "its solve is off by" in first.provenance["failed"][0]
    assert "collect more text, or set a ridge" in first.provenance["failed"][0]
    (fresh,) = run(model(), ALIKE, EMMET, False, stats=stats())
    assert off(dense(second), dense(fresh)) < 1e-6
    as_json(first)


def test_a_request_that_cannot_be_used_is_an_error_or_left_out():
    """A prompt longer than the positions that the model has learned."""
    with pytest.raises(ValueError, match=r"request 1: \d+ tokens in a context; at most 128; skip"):
        run(model(), [PLAYS, LONG], ROME, stats=stats())
    left, right, last = run(model(), [LONG, PLAYS, PROFESSION], ROME, stats=stats(), skip=True)
    assert left.deltas == {}
    assert asked(left)[0]["prompt"] == LONG.prompt
    assert "tokens in a context; at most 128" in left.provenance["failed"][0]
    assert off(dense(right), dense(romes()[3])) < 1e-5
    assert off(dense(last), dense(romes()[1])) < 1e-5
    # in a sequence: the others of its batch are edited, and it is named
    found = list(stream(
        model(), [LONG, *ALIKE, LONG, LONG], MEMIT, False, batch=5, stats=stats(), skip=True
    ))  # fmt: skip
    assert [places for places, _ in found] == [[0, 1, 2, 3, 4], [5, 6]]
    some, none = (edit for _, edit in found)
    assert [r["subject"] for r in asked(some)] == [r.subject for r in ALIKE]
    assert len(some.provenance["failed"]) == 1
    assert off(dense(some), dense(memit())) < 1e-5
    assert none.deltas == {}
    assert len(none.provenance["failed"]) == 2
    assert none.provenance["after"] == 1


def test_no_requests_are_no_edits():
    for independent in (True, False):
        assert run(model(), [], ROME, independent, stats=stats()) == []
        assert run(model(), [], "memit", independent) == []
    edits = run(model(), [LONG], ROME, stats=stats(), skip=True)
    assert [e.deltas for e in edits] == [{}]


def other(layers, width):
    return Stats({i: jnp.eye(width) for i in layers}, 10)


@pytest.mark.parametrize(
    ("method", "how", "why"),
    [
        ("rome", {"independent": False, "batch": 2}, "batch=2: rome takes 1 request at a time;"),
        (ROME, {"independent": False, "batch": 2}, "batch=2: rome takes 1 request at a time;"),
        ("memit", {"batch": 2}, "batch=2: independent edits are of one request"),
        ("memit", {"independent": False, "batch": -1}, "batch=-1: a number of requests"),
        ("rome", {"size": -2}, "size=-2: a number of requests"),
        ("rmoe", {}, "method 'rmoe': one of rome, .*; did you mean 'rome'"),
        ("rome", {"layer": 4}, "layer 4: the model has layers 0 to 3"),
        (ROME, {"layer": 4}, "layer 4: the model has layers 0 to 3"),
        (ROME, {"lr": 0.1}, "rome has no setting 'lr'; did you mean values.lr"),
        (VALUES, {}, "ValueConfig is no config of a method"),
        (ROME, {"stats": "/nowhere"}, "/nowhere: no such folder or file"),
        (ROME, {"stats": Path("/nowhere")}, "/nowhere: no such folder or file"),
        (ROME, {"stats": other((1, 2), 256)}, "no second moment of layer 0; there are those of 1"),
        (ROME, {"stats": other((0,), 128)}, "layer 0 is of keys of 128 numbers, this model's have"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_one_line(method, how, why):
    with pytest.raises(ValueError, match=why) as e:
        run(model(), [PLAYS], method, **{"stats": stats()} | how)
    assert "\n" not in str(e.value)


# What an edit says of itself


def test_provenance_says_all_that_made_an_edit():
    about = romes()[0].provenance
    as_json(romes()[0])
    assert about["method"] == "rome"
    assert about["protocol"] == "paper"
    assert about["request"] == dataclasses.asdict(TONGUE)
    assert about["config"]["layer"] == 0
    assert about["config"]["values"]["steps"] == 20
    assert about["contexts"] == GROUPS  # the texts, not only how they came to be
    assert about["stats"]["tokens"] == stats().count
    assert about["seed"] == 0
    assert set(about["base"]) == {"checksum", "family"}
    assert set(about["versions"]) == {"jaxedit", "jax"}
    assert set(about["result"]) == {"loss", "steps", "failed", "error", "norm"}
    assert about["result"]["loss"] > 0
    assert 1 <= about["result"]["steps"] <= 20
    assert "after" not in about
    assert memit().provenance["method"] == "memit"
    assert [len(v) for v in memit().provenance["result"].values()] == [4] * 5


@pytest.mark.parametrize("method", ["rome", "alphaedit"])
def test_provenance_has_the_protocol_of_the_config(method):
    """Whatever is set in it, and unless another is asked for."""
    where = {"layer": 0} if method == "rome" else {"layers": (0,), "threshold": 1.0}
    easy = configure(method, model().cfg, protocol="easyedit", **where, rows=ROME.rows)
    for given, how, said in (
        (easy, {}, "easyedit"),
        (easy, {"values.steps": 3}, "easyedit"),
        (easy, {"rows": ROME.rows}, "easyedit"),
        (easy, {"protocol": "paper"}, "paper"),
        (configure(method, model().cfg, **where), {}, "paper"),
        (configure(method, model().cfg, **where), {"protocol": "easyedit"}, "easyedit"),
    ):
        about = prepare(model(), given, stats=stats(), **how).about
        assert about["protocol"] == about["config"]["rows"]["protocol"] == said
        assert about["config"].get("protocol", said) == said
    with pytest.raises(ValueError, match="protocol 'papers': one of paper, easyedit"):
        prepare(model(), easy, stats=stats(), protocol="papers")


def test_a_method_by_name_and_with_overrides():
    (named,) = run(model(), [PLAYS], "rome", stats=stats(), layer=0, values=VALUES, rows=ROME.rows)
    assert off(dense(named), dense(romes()[3])) < 1e-5
    (config,) = run(model(), [PLAYS], dataclasses.replace(ROME, layer=3), stats=stats(), layer=0)
    assert off(dense(config), dense(romes()[3])) < 1e-5
    assert config.provenance["config"]["layer"] == 0


@pytest.mark.slow
def test_a_job_of_two_processes_makes_the_edits_of_one(tmp_path):
    """Second moments, edits each and a sequence, on a mesh that no process has all of."""
    script = Path(__file__).with_name("edit_in_two.py")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from test_processes import run_both

    run_both(tmp_path, str(script), str(tmp_path / "two"))
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    alone = [sys.executable, str(script), str(tmp_path / "one"), "alone"]
    subprocess.run(alone, env=env, check=True)
    files = sorted(p.name for p in (tmp_path / "one").glob("*.safetensors"))
    assert files == ["each0.safetensors", "each1.safetensors", "two0.safetensors"]
    for file in files:
        one, two = (Edit.load(tmp_path / name / file) for name in ("one", "two"))
        assert off(dense(two), dense(one)) < 1e-4
        assert one.provenance["stats"]["tokens"] == two.provenance["stats"]["tokens"]
