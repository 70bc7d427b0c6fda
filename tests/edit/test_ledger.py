"""jaxedit.edit.ledger: edits are added, undone, compared and merged; the base stays, and so does
what is on disk, whoever is killed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit import delta
from jaxedit.base import Dense, LowRank, Write
from jaxedit.checksum import checksum
from jaxedit.data.cases import EditRequest
from jaxedit.edit import log
from jaxedit.edit.conflicts import BLOCK, Contradiction, find_alike
from jaxedit.edit.ledger import Ledger
from jaxedit.edit.record import Edit, origin
from jaxedit.hf import peft
from jaxedit.models.config import Model
from jaxedit.models.shapes import SHAPES
from jaxedit.models.transformer import forward

CFG = SHAPES["tiny-gpt2"]
TOKENS = jnp.arange(12).reshape(2, 6)


def make_model(seed=0, dtype="float32"):
    params = jaxedit.init(jax.random.key(seed), CFG)
    return Model(jax.tree.map(lambda x: x.astype(dtype), params), CFG)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def ledger(model, tmp_path):
    return Ledger.create(tmp_path / "ledger", model)


def draw(seed, *shape, scale=0.1, dtype="float32"):
    x = scale * np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(x.astype(np.float32)).astype(dtype)


def rank_one(seed, layer=None, **provenance):
    layers = jnp.array([seed % CFG.layers if layer is None else layer], jnp.int32)
    a, b = draw(seed, 1, CFG.mlp, 1), draw(seed + 10**6, 1, 1, CFG.embed)
    return Edit(deltas={"mlp/down": LowRank(a, b, layers)}, provenance=provenance)


def along(vector, layer=1, path="mlp/down", **provenance):
    """An edit whose input directions are the given ones."""
    a = jnp.asarray(np.atleast_2d(np.asarray(vector, np.float32)).T[None])
    b = draw(1, 1, a.shape[-1], CFG.embed)
    return Edit(deltas={path: LowRank(a, b, jnp.array([layer]))}, provenance=provenance)


def asks(subject, target, prompt="The capital of {} is"):
    return {"prompt": prompt, "subject": subject, "target": target, "ground_truth": []}


def writes():
    return {"mlp_out": Write(jnp.ones((1, 1, 1), bool), draw(0, 1, 1, 1, 32), jnp.array([2]))}


def same_bits(x, y):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    for p, q in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        assert (p.dtype, p.shape) == (q.dtype, q.shape)
        assert np.asarray(p).tobytes() == np.asarray(q).tobytes()


def products(deltas):
    """path -> [L, I, O]: what deltas add to the weights, in whatever form; plain NumPy."""
    out = {}
    for path, v in deltas.items():
        for d in v if isinstance(v, tuple) else (v,):
            arrays = [np.asarray(x, np.float32) for x in jax.tree.leaves(d.replace(layers=None))]
            w = arrays[0] if isinstance(d, Dense) else arrays[0] @ arrays[1]
            if "/" not in path:
                out[path] = out.get(path, 0) + w
                continue
            every = out.setdefault(path, np.zeros((CFG.layers, *w.shape[1:]), np.float32))
            for j, layer in enumerate(range(len(w)) if d.layers is None else d.layers.tolist()):
                every[layer] += w[j]
    return out


def ids(ledger, active=True):
    return [e.id for e in ledger.edits(active)]


def files(ledger):
    return sorted(os.listdir(ledger.folder / "edits"))


# --- adding, undoing, merging ---


def test_an_edit_comes_back_as_it_was_added(ledger, model):
    about = origin(model, method="rome", request=EditRequest("{} is in", "Rome", "Peru"))
    edit = Edit(deltas=rank_one(3).deltas, provenance=about)
    assert ledger.add(edit) == "0001"
    assert ledger.add(rank_one(4)) == "0002"
    again = Ledger.open(ledger.folder)
    assert ids(again) == ["0001", "0002"]
    same_bits(again.load("0001").deltas, edit.deltas)
    assert again.load(1).provenance == json.loads(json.dumps(about))
    first, second = again.edits()
    assert first.method == "rome"
    assert first.requests == ({"subject": "Rome", "prompt": "{} is in", "target": "Peru"},)
    assert (second.method, second.requests, second.beyond) == ("", (), ())
    ((path, layer, norm),) = first.changes
    assert (path, layer) == ("mlp/down", 3)
    want = np.linalg.norm(products(edit.deltas)["mlp/down"])
    assert norm == pytest.approx(want, rel=1e-5)
    assert first.norm == norm
    base = json.loads((ledger.folder / "base.json").read_text())
    assert base["checksum"] == checksum(model.params)
    assert jaxedit.ModelConfig.from_dict(base["config"]) == CFG


def test_a_thousand_edits_undone_in_any_order_leave_no_trace(tmp_path, monkeypatch):
    """In bfloat16, where subtracting what was merged would not give the base back."""
    low = make_model(dtype="bfloat16")
    base = checksum(low.params)
    read, note = [], log.Log._note
    monkeypatch.setattr(log.Log, "_note", lambda self, text: (read.append(1), note(self, text)))
    ledger = Ledger.create(tmp_path / "all", low)
    edits = {ledger.add(e): e for e in (rank_one(i) for i in range(1000))}
    assert len(read) == 1000  # every line once: adding to a long ledger costs what the first did
    monkeypatch.undo()
    assert list(edits) == ids(ledger)
    assert checksum(ledger.merge(low).params) != base

    order = list(edits)
    random.Random(0).shuffle(order)
    for id in order[:200]:
        ledger.undo(id)
    ledger.undo(*order[200:600])
    never = Ledger.create(tmp_path / "never", low)
    for id in sorted(order[600:]):
        never.add(edits[id])
    merged = ledger.merge(low)
    same_bits(merged.params, never.merge(low).params)
    assert checksum(merged.params) != base
    ledger.undo(*order[600:])
    assert ids(ledger) == []
    assert checksum(ledger.merge(low).params) == base
    assert checksum(low.params) == base
    assert ids(Ledger.open(ledger.folder), None) == sorted(order)
    assert ids(Ledger.open(ledger.folder)) == []


def test_redo_puts_an_edit_back_in_its_place(ledger, model):
    for i in range(5):
        ledger.add(rank_one(i, layer=0))
    before = ledger.merge(model).params
    ledger.undo("2", 4)
    assert ids(ledger) == ["0001", "0003", "0005"]
    assert ids(ledger, False) == ["0002", "0004"]
    ledger.redo("0004")
    ledger.redo("0002")
    assert ids(ledger) == ids(ledger, None)
    same_bits(ledger.merge(model).params, before)
    ledger.undo_all()
    assert ids(ledger) == []
    assert ids(Ledger.open(ledger.folder)) == []
    with pytest.raises(ValueError, match="0003 was undone already"):
        ledger.undo(3)
    ledger.redo(3)
    with pytest.raises(ValueError, match="0003 was not undone"):
        ledger.redo(3)
    ledger.undo_all()
    ledger.undo_all()
    for name in ("7", "0000", "rome", "../base", ""):
        with pytest.raises(ValueError, match="has no edit"):
            ledger.undo(name)
    assert ids(ledger) == []


def test_an_undo_of_several_is_done_or_not(ledger):
    for i in range(3):
        ledger.add(rank_one(i))
    with pytest.raises(ValueError, match="no edit 9: it has 0001 to 0003"):
        ledger.undo(1, 9)
    assert ids(ledger) == ["0001", "0002", "0003"]


def test_undoing_says_which_edits_stood_on_it(ledger):
    ledger.add(rank_one(0))
    ledger.add(rank_one(1, after=["0001"]))
    ledger.add(rank_one(2, after=2))
    ledger.add(rank_one(3, after=1))
    ledger.add(rank_one(4, after=[]))
    assert ledger.undo("0001") == ["0002", "0003"]
    assert ledger.undo("0002") == ["0003"]
    assert ledger.undo("0005") == []
    assert ledger.undo("0003", "0004") == []
    assert ledger.redo("0004") == ["0003"]
    assert ledger.redo("0003") == ["0001", "0002"]
    with pytest.raises(ValueError, match="after='all'"):
        ledger.add(rank_one(5, after="all"))


def mixed():
    """Edits of every form: factors of several ranks and dtypes, all layers, full changes, both."""
    L, D, F = CFG.layers, CFG.embed, CFG.mlp
    down = lambda i, layers, R, **kw: LowRank(
        draw(i, len(layers), F, R, **kw), draw(i + 50, len(layers), R, D, **kw), jnp.array(layers)
    )
    return [
        {"mlp/down": down(0, [1], 1)},
        {"mlp/down": down(1, [2, 1], 3, dtype="bfloat16"), "attn/o": Dense(draw(2, L, D, D))},
        {"mlp/down": (down(3, [1], 1), Dense(draw(4, 1, F, D), jnp.array([3])))},
        {"mlp/down": LowRank(draw(5, L, F, 2), draw(6, L, 2, D))},
        {"embed": LowRank(draw(7, CFG.vocab, 1), draw(8, 1, D))},
        {"embed": LowRank(draw(9, CFG.vocab, 2), draw(10, 2, D)), "mlp/down": down(11, [0], 1)},
        {"mlp/down": Dense(draw(12, 2, F, D), jnp.array([0, 3]))},
        {"attn/q": (Dense(draw(13, L, D, D)),)},
    ]


def test_composed_in_one_go_is_the_sum_of_all(ledger, model):
    want = {}
    for deltas in mixed():
        ledger.add(Edit(deltas=deltas))
        for path, w in products(deltas).items():
            want[path] = want.get(path, 0) + w
    together = ledger.compose()
    got = products(together)
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_allclose(got[path], want[path], atol=2e-6)
    live = forward(model.params, TOKENS, CFG, deltas=together).logits
    merged = forward(ledger.merge(model).params, TOKENS, CFG).logits
    np.testing.assert_allclose(merged, live, atol=1e-4)
    plain = forward(model.params, TOKENS, CFG).logits
    assert np.abs(live - plain).max() > 0.1


def test_a_longer_ledger_is_seldom_another_program(ledger):
    shapes = set()
    for i in range(16):
        ledger.add(rank_one(i, layer=2))
        shapes.add(ledger.compose()["mlp/down"].a.shape)
    assert shapes == {(1, CFG.mlp, R) for R in (1, 2, 4, 8, 16)}


def test_full_changes_of_one_matrix_stay_full(ledger):
    for i in (1, 2, 3):
        w = draw(i, 1, CFG.mlp, CFG.embed)
        ledger.add(Edit(deltas={"mlp/down": Dense(w, jnp.array([2]))}))
    composed = ledger.compose()["mlp/down"]
    assert isinstance(composed, Dense)
    want = sum(np.asarray(draw(i, 1, CFG.mlp, CFG.embed)) for i in (1, 2, 3))
    np.testing.assert_allclose(composed.w, want, atol=1e-6)
    assert composed.layers.tolist() == [2]


# --- what is refused ---


def test_an_edit_of_another_base_is_refused(ledger, model):
    other = make_model(seed=1)
    edit = Edit(deltas=rank_one(0).deltas, provenance=origin(other, method="rome"))
    with pytest.raises(ValueError, match="holds edits of one base") as error:
        ledger.add(edit)
    for name in (checksum(model.params)[:12], checksum(other.params)[:12]):
        assert name in str(error.value)
    with pytest.raises(ValueError, match="holds edits of one base"):
        ledger.conflicts(edit)
    ledger.add(rank_one(0))
    with pytest.raises(ValueError, match="force=True"):
        ledger.merge(other)
    merged = ledger.merge(other, force=True)
    same_bits(merged.params, rank_one(0).merge(other).params)


def test_the_weights_are_looked_at_once_per_ledger(model, tmp_path, monkeypatch):
    edits = [Edit(deltas=rank_one(i).deltas, provenance=origin(model, method="m")) for i in (0, 1)]
    ledger = Ledger.create(tmp_path / "ledger", model)
    for where in ("record", "ledger"):
        monkeypatch.setattr(f"jaxedit.edit.{where}.checksum", lambda _: pytest.fail("again"))
    for edit in edits:
        ledger.add(edit)
    assert ledger.conflicts(edits[0])
    assert ids(Ledger.open(ledger.folder)) == ["0001", "0002"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Edit(deltas={"mlp/donw": LowRank(draw(0, 64, 1), draw(0, 1, 32))}), "mlp/donw"),
        (Edit(deltas={"mlp/down": LowRank(draw(0, 4, 48, 1), draw(0, 4, 1, 32))}), "is .64, 32"),
        (rank_one(0, layer=4), "layer 4"),
        (Edit(prefix=(101,)), "prefix token 101"),
        (Edit(writes={"mlp_otu": writes()["mlp_out"]}), "did you mean 'mlp_out'"),
        (
            Edit(deltas=delta.stack([rank_one(0).deltas, rank_one(1).deltas])),
            "one change per row",
        ),
        (along([np.nan] * 64), "not finite"),
        (along([np.inf, *[0.0] * 63]), "not finite"),
        (rank_one(0, when=object()), "JSON"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(ledger, edit, words):
    with pytest.raises(ValueError, match=words):
        ledger.add(edit)
    assert ids(ledger) == []
    assert ledger.add(rank_one(0)) == "0001"
    assert files(ledger) == ["0001.safetensors"]


@pytest.mark.parametrize(
    ("edit", "what"),
    [(Edit(writes=writes()), "writes"), (Edit(prefix=(3, 4)), "prefix tokens")],
)
def test_what_weights_cannot_hold_is_kept_and_not_merged(ledger, model, tmp_path, edit, what):
    ledger.add(rank_one(0))
    ledger.add(edit)
    assert [e.beyond for e in ledger.edits()] == [(), (what,)]
    again = ledger.load(2)
    assert again.prefix == edit.prefix
    same_bits(again.writes, edit.writes)
    for call in (
        ledger.compose,
        lambda: ledger.merge(model),
        lambda: ledger.export_peft(tmp_path / "peft"),
        lambda: ledger.export_hf(model, tmp_path / "hf"),
    ):
        with pytest.raises(ValueError, match=f"edit 0002 has {what}, which cannot be merged"):
            call()
    assert not (tmp_path / "peft").exists()
    assert not (tmp_path / "hf").exists()
    ledger.undo(2)
    same_bits(ledger.merge(model).params, rank_one(0).merge(model).params)


def test_create_and_open_refuse_what_is_no_place_for_them(ledger, model, tmp_path):
    for folder in (ledger.folder, tmp_path):
        with pytest.raises(FileExistsError, match="exists"):
            Ledger.create(folder, model)
    with pytest.raises(FileNotFoundError, match=r"no base\.json, so this is not a ledger"):
        Ledger.open(tmp_path)
    (tmp_path / "empty").mkdir()
    Ledger.create(tmp_path / "empty", model).add(rank_one(0))
    Ledger.create(tmp_path / "deep" / "er", model)
    assert sorted(os.listdir(tmp_path)) == ["deep", "empty", "ledger"]
    base = ledger.folder / "base.json"
    whole = json.loads(base.read_text())
    base.write_text(json.dumps(whole | {"version": 99}))
    with pytest.raises(ValueError, match="format 99"):
        Ledger.open(ledger.folder)
    for text in ("", "[]", "{}", base.read_text()[:100], '{"jaxedit": "edit", "version": 1}'):
        base.write_text(text)
        with pytest.raises(ValueError, match="damaged, or not of a ledger"):
            Ledger.open(ledger.folder)


# --- conflicts and differences ---


def test_contradictions_are_found_whatever_the_case_and_white_space(ledger):
    ledger.add(rank_one(0, layer=0, request=asks("France", "Rome")))
    ledger.add(rank_one(1, layer=1, request=asks("Spain", "Rome")))
    ledger.add(rank_one(2, layer=2))  # says nothing of what it is for
    other = EditRequest("the  Capital of {} is", "FRANCE ", "Lyon")
    told = "the  Capital of FRANCE is"
    assert ledger.conflicts(other) == [Contradiction("0001", None, told, ("Rome", "Lyon"))]
    # the same sentence with another subject marked, the same target, another prompt
    same = EditRequest("The {} of France is", "capital", "Lyon")
    assert [c.one for c in ledger.conflicts(same)] == ["0001"]
    assert ledger.conflicts(EditRequest("The capital of {} is", "France", " rome")) == []
    assert ledger.conflicts(EditRequest("The anthem of {} is", "France", "Lyon")) == []
    edit = rank_one(5, layer=3, request=asks("France", "Lyon"))
    (found,) = ledger.conflicts(edit)
    assert (found.one, found.other, found.targets) == ("0001", None, ("Rome", "Lyon"))
    assert ledger.conflicts() == []
    ledger.add(edit)
    (found,) = ledger.conflicts()
    assert (found.one, found.other) == ("0001", "0004")
    ledger.undo(1)
    assert ledger.conflicts() == []
    assert [c.one for c in ledger.conflicts(other)] == []  # who stands says Lyon too


def test_an_edit_of_many_requests_is_compared_by_each(ledger):
    batch = [asks("France", "Rome"), asks("Spain", "Oslo"), asks("Spain", "Bern")]
    ledger.add(rank_one(0, layer=0, requests=batch))
    assert [r["subject"] for r in ledger.entry(1).requests] == ["France", "Spain", "Spain"]
    (inside,) = ledger.conflicts()
    assert (inside.one, inside.other, inside.targets) == ("0001", "0001", ("Oslo", "Bern"))
    found = ledger.conflicts(rank_one(1, layer=1, requests=[asks("Spain", "Bern")]))
    assert [c.targets for c in found] == [("Oslo", "Bern")]


def test_overlapping_directions_are_found_with_their_cosine(ledger):
    e = np.eye(CFG.mlp)
    near = 0.95 * e[0] + np.sqrt(1 - 0.95**2) * e[1]
    ledger.add(along(3 * e[0]))
    ledger.add(along(-7 * near))
    ledger.add(along(e[0], layer=2))
    ledger.add(along(np.stack([e[5], e[6], 0 * e[0]])))  # padded with a zero
    ledger.add(Edit(deltas={"mlp/down": Dense(draw(0, 1, 64, 32), jnp.array([1]))}))
    ledger.add(Edit(writes=writes()))
    (found,) = ledger.conflicts()
    assert found[:4] == ("0001", "0002", "mlp/down", 1)
    assert found.cosine == pytest.approx(0.95, abs=1e-6)
    assert ledger.conflicts(threshold=0.96) == []
    low = ledger.conflicts(threshold=0.2)
    assert [c[:2] for c in low] == [("0001", "0002")]

    # |cosine| 0.8 and 0.6 with the two columns of 0004, of which the larger is told
    asked = ledger.conflicts(along(0.8 * e[5] - 0.6 * e[6]), threshold=0.5)
    (found,) = asked
    assert found[:4] == ("0004", None, "mlp/down", 1)
    assert found.cosine == pytest.approx(0.8, abs=1e-6)
    found = ledger.conflicts(along(e[0]))
    assert [(c.one, round(c.cosine, 3)) for c in found] == [("0001", 1.0), ("0002", 0.95)]
    ledger.undo(1)
    assert ledger.conflicts() == []
    for bad in (0, 1, -1, 2):
        with pytest.raises(ValueError, match="between 0 and 1"):
            ledger.conflicts(along(e[0]), threshold=bad)


def test_alike_rows_are_those_of_all_cosines():
    """Against the plain definition, with more rows than one block of them."""
    rng = np.random.default_rng(0)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    x = [unit(rng.standard_normal((r, 6))) for r in rng.integers(1, 5, 300)]
    y = [unit(rng.standard_normal((r, 6))) for r in rng.integers(1, 5, 40)]
    assert sum(map(len, x)) > BLOCK
    found = dict(find_alike(x, y, 0.9))
    want = {(i, j): np.abs(p @ q.T).max() for i, p in enumerate(x) for j, q in enumerate(y)}
    want = {pair: c for pair, c in want.items() if c > 0.9}
    assert 100 < len(want) < len(x) * len(y)
    assert found.keys() == want.keys()
    np.testing.assert_allclose([found[p] for p in want], list(want.values()), atol=1e-6)


def test_ledgers_differ_by_content_not_by_id(ledger, model, tmp_path):
    other = Ledger.create(tmp_path / "other", model)
    for i in (0, 1, 2, 2):
        ledger.add(rank_one(i, method="m"))
    for i in (2, 0, 7):
        other.add(rank_one(i, method="m"))
    assert ledger.diff(other) == (["0002", "0004"], ["0003"])
    assert other.diff(ledger) == (["0003"], ["0002", "0004"])
    assert ledger.diff(ledger) == ([], [])
    before = ids(ledger)
    ledger.undo(2)
    ledger.add(ledger.load(1))
    assert ledger.diff(before) == (["0005"], ["0002"])
    assert ledger.diff(other) == (["0004", "0005"], ["0003"])


# --- export ---


def test_exports_hold_what_stands(ledger, model, tmp_path):
    for i in range(6):
        ledger.add(rank_one(i))
    ledger.undo(2, 5)
    ledger.export_peft(tmp_path / "peft", "some/base")
    got = products(peft.read(tmp_path / "peft", CFG))
    want = products(ledger.compose())
    assert got.keys() == want.keys() == {"mlp/down"}
    np.testing.assert_allclose(got["mlp/down"], want["mlp/down"], atol=1e-7)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    ledger.export_hf(model, tmp_path / "hf")
    same_bits(jaxedit.load(tmp_path / "hf").params, ledger.merge(model).params)
    ledger.undo_all()
    with pytest.raises(ValueError, match="change nothing"):
        ledger.export_peft(tmp_path / "none")


# --- the disk ---


def test_a_torn_last_line_never_was(ledger):
    for i in range(3):
        ledger.add(rank_one(i, request=asks(f"Åland {i}", "Rome")))
    ledger.undo(1)
    lines = ledger.folder / "ledger.jsonl"
    whole = lines.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {ends[1], ends[1] + 1, ends[2] - 1, ends[2], ends[2] + 5, ends[3] - 1, 1, ends[0] + 9}
    for cut in sorted(cuts):
        lines.write_bytes(whole[:cut])
        again = Ledger.open(ledger.folder)
        added = sum(end <= cut for end in ends[:3])
        assert len(again.edits(None)) == added
        assert again.add(rank_one(9)) == f"{added + 1:04}"  # in the place of what was not added
        text = lines.read_bytes()
        assert text.startswith(whole[: max([0, *(e for e in ends if e <= cut)])])
        assert all(json.loads(line) for line in text.splitlines())
        same_bits(Ledger.open(ledger.folder).load(added + 1).deltas, rank_one(9).deltas)


def test_two_ledgers_of_one_folder_see_one_another(ledger, model):
    other = Ledger.open(ledger.folder)
    assert ledger.add(rank_one(0)) == "0001"
    assert other.add(rank_one(1)) == "0002"
    assert ledger.add(rank_one(2)) == "0003"
    assert ids(other) == ids(ledger) == ["0001", "0002", "0003"]
    other.undo(1)
    assert ids(ledger) == ["0002", "0003"]
    with pytest.raises(ValueError, match="undone already"):
        ledger.undo(1)
    same_bits(ledger.merge(model).params, other.merge(model).params)


def test_a_damaged_log_is_not_guessed_at(ledger):
    for i in range(3):
        ledger.add(rank_one(i))
    lines = ledger.folder / "ledger.jsonl"
    whole = lines.read_bytes()
    first, second, third, _ = whole.split(b"\n")
    for text in (
        [first, second[:-9], third],
        [first, b"", third],
        [first, b"[]", third],
        [first, second, third, second],
        [first, third.replace(b'"changes"', b'"chances"')],
        [first, b'{"op": "undo", "id": "0002"}'],
        [first, b'{"op": "squash", "id": "0001"}'],
    ):
        lines.write_bytes(b"\n".join([*text, b""]))
        with pytest.raises(ValueError, match=r"ledger\.jsonl: the line at byte \d+ is damaged"):
            Ledger.open(ledger.folder)
    lines.write_bytes(first + b"\n")
    with pytest.raises(ValueError, match="shorter than it was"):
        ledger.edits()


def test_damaged_and_missing_edits_are_named(ledger, model):
    for i in range(4):
        ledger.add(rank_one(i))
    ledger.undo(3)
    assert ledger.find_damage() == {}
    folder = ledger.folder / "edits"
    (folder / "0001.safetensors").unlink()
    raw = bytearray((folder / "0003.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "0003.safetensors").write_bytes(raw)
    rank_one(8).save(folder / "0004.safetensors")  # whole, but not what was added
    damage = ledger.find_damage()
    assert list(damage) == ["0001", "0003", "0004"]
    assert "missing" in damage["0001"]
    assert all("not what was added" in damage[id] for id in ("0003", "0004"))
    with pytest.raises(FileNotFoundError, match=r"edit 0001: .*0001\.safetensors is missing"):
        ledger.merge(model)
    ledger.undo(1)
    with pytest.raises(ValueError, match="edit 0004"):
        ledger.merge(model)
    ledger.undo(4)
    same_bits(ledger.merge(model).params, rank_one(1).merge(model).params)


def test_an_add_that_fails_on_the_way_leaves_the_ledger_whole(ledger, monkeypatch):
    ledger.add(rank_one(0))

    def full(*_):
        raise OSError("disk full")

    for where in ("jaxedit.edit.log.sync", "jaxedit.tensorfile.os.replace"):
        with monkeypatch.context() as broken:
            broken.setattr(where, full)
            with pytest.raises(OSError, match="disk full"):
                ledger.add(rank_one(1))
        assert ids(ledger) == ids(Ledger.open(ledger.folder)) == ["0001"]
    (ledger.folder / "edits" / ".0002.safetensors.1.part").touch()  # of one that was killed
    again = Ledger.open(ledger.folder)
    assert again.add(rank_one(2)) == "0002"
    same_bits(ledger.load(2).deltas, rank_one(2).deltas)
    assert files(ledger) == ["0001.safetensors", "0002.safetensors"]
    assert ledger.find_damage() == {}


WRITER = """
import os, sys
import numpy as np, jax.numpy as jnp
from jaxedit.base import LowRank
from jaxedit.edit.ledger import Ledger
from jaxedit.edit.record import Edit
ledger, name = Ledger.open(sys.argv[1]), sys.argv[2]
a, b = jnp.ones((1, 64, 1)), jnp.ones((1, 1, 32))
n = 0
while True:
    edit = Edit(deltas={"mlp/down": LowRank(a * n, b, jnp.array([1]))}, provenance={"by": name, "n": n})
    id = ledger.add(edit)
    os.write(1, f"{id} {n}\\n".encode())
    if n % 3 == 2:
        ledger.undo(id)
    n += 1
"""  # noqa: E501


def test_writers_that_are_killed_leave_a_whole_ledger(ledger, tmp_path):
    """Three processes append at once; SIGKILL takes one after the other, wherever it is."""
    writers = {}
    for name in "abc":
        with open(tmp_path / name, "wb") as out:
            argv = [sys.executable, "-c", WRITER, str(ledger.folder), name]
            writers[name] = subprocess.Popen(argv, stdout=out)
    try:
        deadline = time.monotonic() + 120
        wait_for = lambda done: [time.sleep(0.003) for _ in iter(done, True)]

        def grown(name, more, had):
            assert time.monotonic() < deadline
            assert writers[name].poll() is None
            return (tmp_path / name).read_bytes().count(b"\n") >= had + more

        for name in "abc":
            wait_for(lambda name=name: grown(name, 20, 0))
        for i, name in enumerate("abc"):
            for left in "abc"[i:]:  # the lock of the dead is free
                had = (tmp_path / left).read_bytes().count(b"\n")
                wait_for(lambda left=left, had=had: grown(left, 5, had))
            time.sleep(random.Random().random() / 50)
            writers[name].send_signal(signal.SIGKILL)
            assert writers[name].wait() == -signal.SIGKILL
    finally:
        for writer in writers.values():
            writer.kill()
            writer.wait()

    found = Ledger.open(ledger.folder)
    entries = found.edits(None)
    assert [e.id for e in entries] == [f"{i + 1:04}" for i in range(len(entries))]
    assert found.find_damage() == {}
    by = {name: {} for name in "abc"}
    for e in entries:
        about = found.load(e.id).provenance
        assert about["n"] == len(by[about["by"]])  # every writer's edits, in its order
        by[about["by"]][e.id] = e
    for name in "abc":
        told = [line.split() for line in (tmp_path / name).read_text().splitlines()]
        assert len(told) >= 25
        mine = list(by[name].values())
        assert [e.id for e in mine[: len(told)]] == [id for id, _ in told]
        assert len(mine) - len(told) in (0, 1)  # killed before it could tell
        assert all(e.active == (n % 3 != 2) for n, e in enumerate(mine[:-1]))
    assert found.add(rank_one(0)) == f"{len(entries) + 1:04}"
    assert files(found) == [f"{i + 1:04}.safetensors" for i in range(len(entries) + 1)]
    assert len((found.folder / "ledger.jsonl").read_text().splitlines()) >= len(entries)
