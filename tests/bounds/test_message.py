"""Edits as bytes: they come back, they say what they said, and what is short is short."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxedit
from jaxedit import delta
from jaxedit.base import Dense, LowRank
from jaxedit.bounds import bits, message
from jaxedit.bounds.claims import ClaimConfig
from jaxedit.bounds.risk import ReadConfig
from jaxedit.bounds.sample import SampleConfig
from jaxedit.data.cases import EditRequest
from jaxedit.data.documents import Source
from jaxedit.edit.runner import run as edit
from jaxedit.models.shapes import SHAPES
from jaxedit.models.sites import matrices
from jaxedit.report import bounds as report

CFG = SHAPES["tiny-llama"]
RANDOM = np.random.RandomState(0)
normal = lambda *shape: jnp.asarray(RANDOM.standard_normal(shape), jnp.float32)


def example():
    """Two layers of a matrix by low rank, one by a whole change, and the table of embeddings."""
    sizes = matrices(CFG)
    (I, O), (P, Q), (V, D) = sizes["mlp/down"], sizes["attn/q"], sizes["embed"]
    return {
        "mlp/down": LowRank(normal(2, I, 2), normal(2, 2, O), jnp.array([0, 1])),
        "attn/q": Dense(normal(1, P, Q), jnp.array([1])),
        "embed": LowRank(normal(V, 1), normal(1, D)),
    }


def matrix(deltas, path, layer=None):
    (one,) = delta.single({path: deltas[path]}).values()
    if layer is None:
        return np.asarray(one.dense())
    (all_layers,) = delta.scatter({path: one}, CFG.layers).values()
    return np.asarray(all_layers.dense())[layer]


PLACES = [("mlp/down", 0), ("mlp/down", 1), ("attn/q", 1), ("embed", None)]


def test_a_file_decodes_to_what_was_rounded():
    some = message.changes(example(), 2)
    assert {(c.path, c.layer) for c in some} == set(PLACES)
    one = message.rounded(some, 5)
    data = message.encode(one, CFG)
    back = message.decode(data, CFG)
    want = message.deltas_of(one.changes)
    for path, layer in PLACES:
        np.testing.assert_array_equal(matrix(back, path, layer), matrix(want, path, layer))
    levels = {len(np.unique(np.asarray(x))) for x in (back["attn/q"].a, back["attn/q"].b)}
    assert max(levels) <= 5
    assert one.bits / 8 < len(data) < one.bits / 8 + 12  # the header, and the end of the code


def test_more_levels_and_ranks_are_nearer_and_longer():
    whole = example()
    size = lambda rank, levels: message.rounded(message.changes(whole, rank), levels)
    off = lambda m: sum(
        np.square(matrix(message.deltas_of(m.changes), *p) - matrix(whole, *p)).sum()
        for p in PLACES
    )
    some = [size(1, 3), size(2, 3), size(2, 16), size(8, 64)]
    assert all(a.bits < b.bits for a, b in itertools.pairwise(some))
    assert all(off(a) > off(b) for a, b in itertools.pairwise(some))
    exact = message.rounded(message.changes({"embed": whole["embed"]}, 2), 3)
    assert len(exact.changes) == 1
    assert exact.changes[0].a_IR.shape[1] == 1  # a rank that does nothing is not written


def test_no_edit_is_one_byte_or_two():
    data = message.encode(message.rounded([], 2), CFG)
    assert len(data) <= 2
    assert message.decode(data, CFG) == {}


def test_damaged_files_are_refused():
    data = message.encode(message.rounded(message.changes(example(), 1), 3), CFG)
    with pytest.raises(ValueError, match="damaged"):
        message.decode(data + b"x", CFG)


def test_no_file_is_the_beginning_of_another():
    files = []
    for seed in range(40):
        random = np.random.RandomState(seed)
        a, b = (jnp.asarray(random.standard_normal(s), jnp.float32)
                for s in ((1, CFG.mlp, 1), (1, 1, CFG.embed)))  # fmt: skip
        one = {"mlp/down": LowRank(a, b, jnp.array([seed % CFG.layers]))}
        files.append(message.encode(message.rounded(message.changes(one, 1), 2 + seed % 3), CFG))
    files.append(message.encode(message.rounded([], 2), CFG))
    for i, one in enumerate(files):
        assert not any(other.startswith(one) for j, other in enumerate(files) if i != j)


CONFIG = bits.BitsConfig(
    "world", "world:small:0:2", ("rome", "kn"),
    SampleConfig(Source(("world:small:0:200",)), draws=5000),
    ClaimConfig("hoeffding", evaluated=60, fresh=0, read=ReadConfig(window=64, stride=64)),
    alphas=(1e-2,), ranks=(1, 2), levels=(3, 7), bounded=1, dtype="float32",
)  # fmt: skip


def test_the_shortest_file_that_still_edits():
    model = jaxedit.load("world", dtype="float32")
    request = EditRequest("{} was born in", "Bane Fipi", "Lira")
    (one,) = edit(model, [request], "rome")
    found = bits.describe(model, request, one.deltas, CONFIG)
    data = bytes.fromhex(found["file"])
    assert found["bytes"] == len(data) < found["raw"] / 10
    back = message.decode(data, model.cfg)
    text = jaxedit.generate(model, [request.text], max_new_tokens=2, deltas=back)[0]
    assert text.strip().startswith("Lira")
    assert bits.said(model, request, [back, delta.scale(back, 0.0)]).tolist() == [True, False]
    nothing = bits.describe(model, request, delta.scale(one.deltas, 1e-3), CONFIG)
    assert nothing["bytes"] == 0  # what does not say its target has no file


def test_a_study_goes_on_and_is_told(tmp_path):
    cfg = dataclasses.replace(CONFIG, workdir=str(tmp_path))
    found = bits.run(cfg)
    rome = found["methods"]["rome"]
    assert rome["described"] == 2
    assert rome["least"] <= rome["bytes"] <= rome["most"]
    assert rome["bound"] > rome["risk"]  # the bytes are paid for, besides what is lost
    assert found["before"]["risk"] < found["before"]["bound"]
    file = Path(tmp_path, bits.FILE)
    text = file.read_text()
    file.write_text("\n".join(text.splitlines()[:3]) + "\n{")
    assert bits.run(cfg) == found
    assert sorted(file.read_text().splitlines()) == sorted(text.splitlines())
    assert json.loads(Path(tmp_path, bits.SUMMARY).read_text()) == found
    told = report.edits(found)
    assert "rome  2 of 2" in told
    assert "documents, hoeffding" in told
    assert report.by_method(found, tmp_path)[0].exists()
    with pytest.raises(ValueError, match="did you mean 'rome'"):
        bits.run(dataclasses.replace(cfg, methods=("rom",)))
