"""Second moments: against the authors' code, and however they come to be."""

import dataclasses
import json
import pickle
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_edits import GOLDEN, model, off

from jaxedit import tensorfile
from jaxedit.data.documents import Source
from jaxedit.edit import solve
from jaxedit.edit.moments import parts
from jaxedit.edit.stats import Stats, StatsConfig, collect, identity, load, of_tokens
from jaxedit.models import specs
from jaxedit.models.transformer import forward
from jaxedit.sharding import make_mesh

LAYERS = (0, 2)
TEXTS = json.loads((GOLDEN / "cov_texts.json").read_text())
# Twenty texts of 9 to 16 tokens, so that all programs are of one shape: parts of 8, 8 and 4 rows.
SHORT = [t for t in TEXTS[:120] if 8 < len(model().tokenizer(t)["input_ids"]) <= 16][:20]


def write_texts(file, texts):
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return Source((str(write_texts(tmp_path_factory.mktemp("text") / "a.jsonl", SHORT)),))


def config(text, folder, **more):
    return StatsConfig(text, batch=128, save_every=1, folder=str(folder), **more)


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """The moments of a pass that nothing happened to."""
    return collect(model(), config(text, tmp_path_factory.mktemp("whole")), LAYERS)


def same_bits(found, wanted, layers=LAYERS):
    for layer in layers:
        np.testing.assert_array_equal(found.moment(layer), wanted.moment(layer))
    assert found.count == wanted.count


def relative(found, wanted, layers=LAYERS):
    return max(off(found.moment(layer), wanted.moment(layer)) for layer in layers)


# The numbers


def test_the_moments_are_those_of_the_authors_code():
    """Rows of all lengths beside one another, all layers in one pass; 4e-7."""
    arrays = np.load(GOLDEN / "cov/gpt2-tiny_cov.npz")
    rows = np.split(arrays["token_ids_flat"], np.cumsum(arrays["seq_lengths"])[:-1])
    found = of_tokens(model(), [row.tolist() for row in rows], (2, 0, 1))  # in any order
    assert found.count == arrays["count_layer0"] == sum(map(len, rows))
    for layer in range(3):
        moment = found.moment(layer)
        assert moment.dtype == jnp.float32
        assert off(moment, arrays[f"C_layer{layer}_float32"]) < 1e-5
        np.testing.assert_allclose(moment, moment.T, atol=1e-6)


def test_the_moments_are_sums_over_tokens(whole, text):
    """E[k kᵀ], in float64, of what a plain forward reads, row by row without padding."""
    sums, count = dict.fromkeys(LAYERS, 0.0), 0
    for document in SHORT:
        ids = model().tokenizer(document)["input_ids"]
        tokens, pos = np.zeros((1, 16), np.int32), np.full((1, 16), -1, np.int32)
        tokens[0, : len(ids)], pos[0, : len(ids)] = ids, np.arange(len(ids))
        keys = forward(model().params, tokens, model().cfg, pos_BT=pos, reads={"mlp_key": None})
        for layer in LAYERS:
            k = np.asarray(keys.reads["mlp_key"][layer, 0, : len(ids)], np.float64)
            sums[layer] += k.T @ k
        count += len(ids)
    assert whole.count == count
    for layer in LAYERS:
        assert off(whole.moment(layer), sums[layer] / count) < 1e-6


def test_one_pass_for_all_layers_is_a_pass_for_each(whole, text, tmp_path):
    for layer in LAYERS:
        alone = collect(model(), config(text, tmp_path / str(layer)), (layer,))
        assert list(alone.moments) == [layer]
        assert relative(alone, whole, (layer,)) < 1e-6


def test_in_bfloat16_the_sums_are_float32(whole, text, tmp_path):
    half = model()._replace(cfg=model().cfg.replace(dtype="bfloat16"))
    found = collect(half, config(text, tmp_path), LAYERS)
    assert found.moment(2).dtype == jnp.float32
    assert 1e-5 < relative(found, whole) < 0.02
    assert found.folder.name != whole.folder.name


@pytest.mark.parametrize("sizes", [(4, 1, 1), (2, 1, 2)], ids=str)
def test_on_a_mesh(whole, text, tmp_path, sizes):
    mesh = make_mesh(*sizes)
    placed = specs.nest(specs.shardings(model().cfg, mesh))
    spread = model()._replace(params=jax.device_put(model().params, placed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = collect(spread, config(text, tmp_path), LAYERS)
    assert relative(found, whole) < 1e-5
    assert found.count == whole.count
    assert found.folder.name == whole.folder.name  # the same model on another mesh


# What is kept


class Stop(Exception):
    pass


def stopping(after, seen=None):
    """A progress that raises when `after` parts are done."""

    def progress(done, total):
        if seen is not None:
            seen.append((done, total))
        if done == after:
            raise Stop

    return progress


def test_stopped_and_resumed_it_ends_with_the_same_bits(whole, text, tmp_path):
    cfg = config(text, tmp_path)
    for after in (1, 2):
        with pytest.raises(Stop):
            collect(model(), cfg, LAYERS, progress=stopping(after))
    seen = []
    found = collect(model(), cfg, LAYERS, progress=lambda *p: seen.append(p))
    assert seen == [(3, 3)]
    same_bits(found, whole)
    assert not list(found.folder.glob("*part*"))


KILLED = """
import os, signal, sys
sys.path[:0] = ["tests", "tests/edit"]
import conftest
from golden_edits import model
from jaxedit.data.documents import Source
from jaxedit.edit.stats import StatsConfig, collect

def progress(done, total):
    print(done, flush=True)
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

cfg = StatsConfig(Source((sys.argv[1],)), batch=128, save_every=1, folder=sys.argv[2])
collect(model(), cfg, (0, 2), progress=progress)
"""


def test_killed_and_resumed_it_ends_with_the_same_bits(whole, text, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, text.paths[0], str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == ["1", "2"]
    seen = []
    found = collect(model(), config(text, tmp_path), LAYERS, progress=lambda *p: seen.append(p))
    assert seen == [(3, 3)]
    same_bits(found, whole)


@pytest.mark.parametrize("how", ["damaged", "cut off", "not ours", "of other layers"])
def test_a_part_file_that_cannot_be_used_begins_anew(whole, text, tmp_path, how):
    cfg = config(text, tmp_path)
    with pytest.raises(Stop):
        collect(model(), cfg, LAYERS if how != "of other layers" else (2,), progress=stopping(2))
    (part,) = tmp_path.glob("*/part.safetensors")
    content = part.read_bytes()
    if how == "damaged":
        part.write_bytes(b"\xff" * 8 + content[8:])
    elif how == "cut off":
        part.write_bytes(content[:-1])
    elif how == "not ours":
        tensors, about = tensorfile.read_header(part)
        tensorfile.write(part, tensorfile.entries({"other": tensors["sums"].read()}), about)
    seen = []
    same_bits(collect(model(), cfg, LAYERS, progress=lambda *p: seen.append(p)), whole)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_part_of_batches_of_another_size_is_not_gone_on_from(whole, text, tmp_path):
    """Nine rows a batch are three parts too, but the first has one row more."""
    nine = dataclasses.replace(config(text, tmp_path), batch=9 * 16)
    with pytest.raises(Stop):
        collect(model(), config(text, tmp_path), LAYERS, progress=stopping(1))
    assert relative(collect(model(), nine, LAYERS), whole) < 1e-6


def test_what_is_there_is_not_computed_again(whole, text):
    cfg = config(text, whole.folder.parent)

    def never(done, total):
        raise AssertionError("computed again")

    same_bits(collect(model(), cfg, LAYERS, progress=never), whole)
    same_bits(collect(model(), cfg, (2,), progress=never), whole, (2,))
    same_bits(load(whole.folder, LAYERS), whole)
    assert collect(model(), cfg, LAYERS, progress=never).about == whole.about
    about = json.loads(json.dumps(whole.about))  # provenance
    assert about["count"] == str(whole.count)
    assert "left out" not in about


def test_a_layer_more_leaves_the_others_alone(whole, text, tmp_path):
    cfg = config(text, tmp_path)
    one = collect(model(), cfg, (2,))
    (file,) = one.folder.iterdir()
    before = file.stat().st_mtime_ns
    collect(model(), cfg, LAYERS)
    assert file.stat().st_mtime_ns == before
    assert len(list(one.folder.iterdir())) == 2


def test_other_text_model_or_length_is_another_folder(text, tmp_path):
    base = model()
    cfg = config(text, tmp_path)
    other = write_texts(tmp_path / "b.jsonl", SHORT[:-1])
    copy = write_texts(tmp_path / "c.jsonl", SHORT)
    bumped = jax.tree.map(lambda x: x, base.params)
    bumped["blocks"]["mlp"]["up"]["b"] = bumped["blocks"]["mlp"]["up"]["b"].at[0, 0].add(1e-3)
    begins = lambda text: {"input_ids": [1, *base.tokenizer(text)["input_ids"]]}
    hub = lambda **how: dataclasses.replace(cfg, text=Source(("hub:a",), **how))
    have = identity(base, cfg)
    assert identity(base, cfg) == have
    assert identity(base, dataclasses.replace(cfg, text=Source((str(copy),)))) == have
    # how many tokens a pass takes does not matter, nor where the result goes
    assert identity(base, dataclasses.replace(cfg, batch=7, save_every=9, folder="x")) == have
    names = [
        identity(base, cfg),
        identity(base, dataclasses.replace(cfg, text=Source((str(other),)))),
        identity(base, dataclasses.replace(cfg, length=12)),
        identity(base, dataclasses.replace(cfg, documents=12)),
        identity(base._replace(params=bumped), cfg),
        identity(base._replace(cfg=base.cfg.replace(dtype="bfloat16")), cfg),
        identity(base._replace(tokenizer=begins), cfg),
        identity(base, hub()),
        identity(base, hub(field="body")),
        identity(base, hub(group="url")),  # decides which documents are chosen
    ]
    assert len({json.dumps(name) for name in names}) == len(names)


# Text


def test_the_documents_chosen_do_not_depend_on_their_order(text, tmp_path):
    backwards = Source((str(write_texts(tmp_path / "b.jsonl", SHORT[::-1])),))
    found = [
        collect(model(), config(some, tmp_path / name, documents=12), LAYERS)
        for name, some in (("a", text), ("b", backwards))
    ]
    same_bits(*found)
    lengths = [len(model().tokenizer(t)["input_ids"]) for t in SHORT]
    assert found[0].count < sum(lengths)
    assert min(lengths) * 12 <= found[0].count <= max(lengths) * 12


def test_long_documents_are_cut(text, tmp_path):
    """To cfg.length tokens, and never beyond the positions that a model has learned."""
    long = Source((str(write_texts(tmp_path / "long.jsonl", [" ".join(SHORT)])),))
    assert len(model().tokenizer(" ".join(SHORT))["input_ids"]) > 150
    assert collect(model(), config(long, tmp_path, length=11), (2,)).count == 11
    assert collect(model(), config(long, tmp_path), (2,)).count == model().cfg.max_len == 128
    assert len(model().tokenizer(" ".join(SHORT))["input_ids"]) > 150  # left as it was


def test_what_cannot_be_read_is_counted(whole, tmp_path):
    file = write_texts(tmp_path / "a.jsonl", SHORT)
    file.write_text(file.read_text() + "not json\n" + json.dumps({"text": "  "}) + "\n")
    found = collect(model(), config(Source((str(file),)), tmp_path), LAYERS)
    same_bits(found, whole)
    assert found.about["left out"] == "2 documents"


def test_rows_go_into_parts_once_each_and_in_few_shapes():
    r = np.random.default_rng(0)
    rows = [r.integers(1, 9, n).tolist() for n in r.integers(1, 100, 200)]
    made = list(parts(rows, 512, 4))
    back = [
        t[p >= 0].tolist() for part in made for t, p in zip(*part, strict=True) if (p >= 0).any()
    ]
    assert sorted(back) == sorted(rows)
    for tokens, pos in made:
        assert tokens.shape == pos.shape
        assert tokens.shape[0] % 4 == 0
        assert tokens.size <= 512 or tokens.shape[0] == 4
        assert not tokens[pos < 0].any()
    assert len({part.tokens.shape for part in made}) <= 8
    assert len(list(parts([[1] * 1000], 512, 1))) == 1  # a long row is a part by itself
    assert not list(parts([], 512, 1))


@pytest.mark.parametrize(("wrong", "why"), [
    ({"layers": (4,)}, "layer 4: the model has layers 0 to 3"),
    ({"layers": (-1,)}, "layer -1: the model has layers 0 to 3"),
    ({"layers": ()}, "of no layers; name at least one"),
    ({"texts": ["", " "]}, "no documents; 2 could not be read"),
    ({"tokenizer": None}, "no tokenizer; use edit.stats.of_tokens"),
])  # fmt: skip
def test_what_cannot_be_collected_is_told(tmp_path, wrong, why):
    file = write_texts(tmp_path / "a.jsonl", wrong.get("texts", SHORT))
    some = model()._replace(tokenizer=wrong.get("tokenizer", model().tokenizer))
    with pytest.raises(ValueError, match=why):
        collect(some, config(Source((str(file),)), tmp_path), wrong.get("layers", (2,)))


def test_no_tokens_have_no_moments():
    for rows in ([], [[]]):
        with pytest.raises(ValueError, match="no tokens"):
            of_tokens(model(), rows, (2,))
    with pytest.raises(ValueError, match="length, batch and save_every are at least 1"):
        StatsConfig(length=0)


# Published files


def publish(file, moment, count, sums=None):
    """As the authors' `layer_stats` and `runningstats` save it."""
    np.savez(
        file,
        **{
            "mom2.mom2": np.asarray(moment) * count if sums is None else sums,
            "mom2.count": count,
            "mom2.constructor": "util.runningstats.SecondMoment()",
            "sample_size": 100_000,
        },
    )
    return file


NAMES = {
    17: "transformer.h.17.mlp.c_proj_float32_mom2_100000.npz",
    5: "model.layers.5.mlp.down_proj_float32_mom2_100000.npz",
    3: "transformer.h.3.mlp.fc_out_float32_mom2_100000.npz",
    15: "gpt_neox.layers.15.mlp.dense_4h_to_h_float32_mom2_100000.npz",
}


def test_published_files_are_read(whole, tmp_path):
    """They hold a sum, not a mean."""
    for layer, name in NAMES.items():
        publish(tmp_path / name, whole.moment(2) * layer, 1000)
    found = load(tmp_path, (5, 17, 3, 15))
    assert found.count == 1000
    for layer in NAMES:
        assert off(found.moment(layer), whole.moment(2) * layer) < 1e-6
        assert found.moment(layer).dtype == jnp.float32
    one = load(tmp_path / NAMES[17], (17,))
    assert off(one.moment(17), whole.moment(2) * 17) < 1e-6
    assert one.about["text"] == NAMES[17]
    with pytest.raises(ValueError, match="no second moment of layer 16"):
        load(tmp_path, (16, 17))
    with pytest.raises(ValueError, match="no second moment of layer 5"):
        load(tmp_path / NAMES[17], (5,))
    with pytest.raises(ValueError, match="nowhere: no such folder or file"):
        load(tmp_path / "nowhere", (5,))


def test_published_files_that_are_no_moments_are_refused(tmp_path):
    file = tmp_path / NAMES[5]
    pickled = np.array([Path("touched")], object)
    np.savez(file, **{"mom2.mom2": pickled, "mom2.count": 3})
    with pytest.raises(ValueError, match=r"down_proj.*allow_pickle=False"):
        load(tmp_path, (5,))
    file.write_bytes(pickle.dumps({"mom2.mom2": 1}))
    with pytest.raises(ValueError, match=r"down_proj.*not as ROME's authors save"):
        load(tmp_path, (5,))
    file.write_bytes(b"PK\3\4 not really")
    with pytest.raises(ValueError, match=r"down_proj.*not as ROME's authors save"):
        load(tmp_path, (5,))
    np.savez(file, mean=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"down_proj.*mom2.mom2"):
        load(tmp_path, (5,))


def test_which_file_of_a_layer_is_meant_must_be_plain(tmp_path):
    for name in (NAMES[17], "transformer.h.17.mlp.c_fc_float32_mom2_100000.npz", NAMES[5]):
        publish(tmp_path / name, np.eye(4), 10)
    with pytest.raises(ValueError, match=r"c_fc.* and .*c_proj.* are both of layer 17"):
        load(tmp_path, (17,))
    assert load(tmp_path, (5,)).count == 10


def test_layers_of_different_texts_do_not_go_together(tmp_path):
    publish(tmp_path / NAMES[17], np.eye(4), 10)
    publish(tmp_path / NAMES[5], np.eye(4), 11)
    with pytest.raises(ValueError, match=r"of different texts: \[10, 11\]"):
        load(tmp_path, (5, 17))


# Null spaces


def test_the_null_space_is_kept_beside_the_moments(whole, monkeypatch):
    values = np.linalg.eigvalsh(np.asarray(whole.moment(2), np.float64))
    threshold = float(values[100] + values[101]) / 2
    free, count = whole.null_space(2, threshold)
    assert count == 101
    free64 = np.asarray(free, np.float64)
    assert off(free64 @ free64, free64) < 1e-5
    monkeypatch.setattr(solve, "null_space", lambda *_: pytest.fail("computed again"))
    again = load(whole.folder, LAYERS)  # another process
    kept, same = again.null_space(2, threshold)
    assert same == count
    np.testing.assert_array_equal(kept, free)
    monkeypatch.undo()
    assert whole.null_space(2, threshold * 1.0000001)[1] == 101  # not the file of the other
    assert whole.null_space(0, threshold)[1] != 101
    assert len(list(whole.folder.glob("null.*"))) == 3
    in_memory = Stats(whole.moments, whole.count)
    np.testing.assert_allclose(in_memory.null_space(2, threshold)[0], free, atol=1e-6)


def test_the_null_space_is_not_that_of_files_which_lay_there_before(tmp_path):
    for moment, count in ((np.diag([1, 1, 0.001, 1]), 1), (np.diag([0.001, 1, 0.001, 1]), 2)):
        publish(tmp_path / NAMES[17], moment, 10)
        free, found = load(tmp_path, (17,)).null_space(17, 0.02)
        assert found == count
        np.testing.assert_allclose(free, np.diag(moment.diagonal() < 0.02), atol=1e-6)


def test_published_files_may_lie_where_nobody_can_write(tmp_path, monkeypatch):
    publish(tmp_path / NAMES[17], np.diag([1, 1, 0.001, 1]), 10)

    def refuse(file, *_):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(tensorfile, "write", refuse)
    assert load(tmp_path, (17,)).null_space(17, 0.02)[1] == 1
