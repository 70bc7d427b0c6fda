"""jaxedit.edit.record: an edit survives its file bit for bit and knows the model it is for."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxedit import delta, tensorfile
from jaxedit.base import Dense, LowRank, Write
from jaxedit.checksum import checksum
from jaxedit.edit import Edit
from jaxedit.edit.record import KINDS, origin, register
from jaxedit.models import specs
from jaxedit.models.config import Model
from jaxedit.models.shapes import SHAPES
from jaxedit.models.transformer import forward

CFG = (
    SHAPES["tiny-llama"]
    .replace(layers=3, embed=8, heads=2, kv_heads=1, head_dim=4, rotary_dim=4)
    .replace(mlp=12, vocab=19, max_len=16)
)
TOKENS = jnp.arange(6)[None]


def model(seed=0, cfg=CFG):
    return Model(specs.init(jax.random.key(seed), cfg), cfg)


def factors(*shape, dtype="float32"):
    return jax.random.normal(jax.random.key(sum(shape)), shape).astype(dtype)


def deltas():
    return {
        "mlp/down": LowRank(factors(1, 12, 2), factors(1, 2, 8), jnp.array([1])),
        "attn/o": (
            LowRank(factors(3, 8, 1, dtype="bfloat16"), factors(3, 1, 8, dtype="float16")),
            Dense(factors(1, 8, 8), jnp.array([2])),
        ),
        "head": LowRank(factors(8, 1), factors(1, 19)),
    }


def writes():
    mask = jnp.zeros((1, 1, 4), bool).at[0, 0, 2].set(True)
    return {
        "mlp_out": Write(mask, factors(1, 1, 4, 8), jnp.array([1])),
        "resid_post": (
            Write(mask, factors(1, 1, 1, 8, dtype="bfloat16"), jnp.array([0]), add=True),
        ),
    }


def full(m):
    about = origin(m, method="rome", config=CFG, request={"prompt": "{} is", "subject": "Père"})
    return Edit((3, 1, 4), writes(), deltas(), about)


def same_bits(x, y):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    for p, q in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        assert (p.dtype, p.shape) == (q.dtype, q.shape)
        assert np.asarray(p).tobytes() == np.asarray(q).tobytes()


def test_round_trip_is_exact(tmp_path):
    edit = full(model())
    edit.save(tmp_path / "a.safetensors")
    again = Edit.load(tmp_path / "a.safetensors")
    assert again.prefix == edit.prefix
    same_bits(dict(again.writes), dict(edit.writes))
    same_bits(dict(again.deltas), dict(edit.deltas))
    assert again.provenance == json.loads(json.dumps(edit.provenance))
    assert again.provenance["config"]["family"] == "llama"
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_empty_and_per_row_edits_round_trip(tmp_path):
    rows = delta.stack([{"mlp/down": deltas()["mlp/down"]}, {}])
    for edit in (Edit(), Edit(prefix=np.arange(3)), Edit(deltas=rows)):
        edit.save(tmp_path / "e")
        again = Edit.load(tmp_path / "e")
        assert again.prefix == edit.prefix
        same_bits(again.deltas, edit.deltas)


def test_the_file_is_plain_safetensors(tmp_path):
    from safetensors.numpy import load_file

    full(model()).save(tmp_path / "a")
    arrays = load_file(tmp_path / "a")
    assert arrays["deltas/mlp/down/0/a"].shape == (1, 12, 2)
    np.testing.assert_array_equal(arrays["prefix"], [3, 1, 4])


def test_merge_equals_live(tmp_path):
    m = model()
    edit = Edit(deltas=deltas(), provenance=origin(m, method="rome"))
    merged = edit.merge(m)
    live = forward(m.params, TOKENS, CFG, deltas=edit.deltas).logits
    np.testing.assert_allclose(forward(merged.params, TOKENS, CFG).logits, live, atol=1e-4)
    assert merged.cfg is m.cfg
    assert checksum(m.params) == edit.provenance["base"]["checksum"]


def test_another_base_is_refused_and_can_be_forced():
    m, other = model(), model(seed=1)
    edit = Edit(deltas=deltas(), provenance=origin(m, method="rome"))
    with pytest.raises(ValueError, match="force=True") as error:
        edit.merge(other)
    told = str(error.value)
    assert "\n" not in told
    for name in (checksum(m.params)[:12], checksum(other.params)[:12], "llama"):
        assert name in told
    edit.merge(other, force=True)
    Edit(deltas=deltas()).merge(other)  # without provenance only the shapes speak
    narrow = model(cfg=CFG.replace(mlp=16))
    with pytest.raises(ValueError, match="mlp/down"):
        edit.merge(narrow, force=True)
    for bad in (Edit(prefix=(19,)), Edit(writes={"mlp_key": writes()["mlp_out"]})):
        with pytest.raises(ValueError, match=r"token 19|values of 8"):
            bad.check(m, force=True)
    with pytest.raises(ValueError, match="mlp_outt"):
        Edit(writes={"mlp_outt": writes()["mlp_out"]}).check(m)


def test_only_deltas_are_merged_or_exported(tmp_path):
    for edit in (Edit(writes=writes()), Edit(prefix=(1,))):
        with pytest.raises(ValueError, match="cannot be merged"):
            edit.merge(model())
        with pytest.raises(ValueError, match="not a LoRA"):
            edit.to_peft(tmp_path, model())


def test_to_peft_takes_a_model_or_a_config(tmp_path):
    edit = Edit(deltas={"mlp/down": deltas()["mlp/down"]})
    edit.to_peft(tmp_path / "a", model())
    edit.to_peft(tmp_path / "b", CFG, "some/base")
    for name in "ab":
        assert (tmp_path / name / "adapter_model.safetensors").exists()
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"


@pytest.mark.parametrize("where", [0.02, 0.2, 0.5, 0.9, 0.999])
def test_a_flipped_byte_is_noticed(tmp_path, where):
    file = tmp_path / "a"
    full(model()).save(file)
    raw = bytearray(file.read_bytes())
    raw[int(where * len(raw))] ^= 0x11
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=r"damaged|not a|header|but not an edit|cut off|truncated"):
        Edit.load(file)


def test_foreign_and_cut_files_are_refused(tmp_path):
    file = tmp_path / "a"
    full(model()).save(file)
    raw = file.read_bytes()
    for content in (b"", b"hello", raw[:100], raw[:-10], b"\x02" + bytes(7) + b"]["):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"a: (not a safetensors|truncated)") as error:
            Edit.load(file)
        assert "\n" not in str(error.value)
    tensorfile.write(file, tensorfile.entries({"x": np.zeros(2)}))
    with pytest.raises(ValueError, match="not an edit"):
        Edit.load(file)
    tensorfile.write(file, [], {"jaxedit": "edit", "version": "99"})
    with pytest.raises(ValueError, match="format 99"):
        Edit.load(file)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a"
    Edit(prefix=(1,)).save(file)
    with pytest.raises(ValueError, match="JSON"):
        Edit(provenance={"x": object()}).save(file)
    monkeypatch.setattr(tensorfile.os, "fsync", lambda fd: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Edit(prefix=(2,)).save(file)
    assert Edit.load(file).prefix == (1,)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_other_kinds_are_data(tmp_path, monkeypatch):
    @struct.dataclass
    class Near:
        key: jax.Array
        layers: jax.Array | None = None
        radius: float = struct.field(pytree_node=False, default=1.0)

    edit = Edit(writes={"mlp_out": Near(factors(2, 8), radius=0.5)})
    with pytest.raises(ValueError, match="Near, which files do not know"):
        edit.save(tmp_path / "a")
    known = dict(KINDS)
    monkeypatch.setattr("jaxedit.edit.record.KINDS", known)
    register(Near)
    edit.save(tmp_path / "a")
    again = Edit.load(tmp_path / "a").writes["mlp_out"]
    assert (again.radius, again.layers) == (0.5, None)
    same_bits(again, edit.writes["mlp_out"])
    with pytest.raises(ValueError, match="two kinds"):
        register(dataclasses.make_dataclass("Near", []))
    del known["Near"]
    with pytest.raises(ValueError, match="is a Near"):
        Edit.load(tmp_path / "a")
