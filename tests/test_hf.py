"""Hugging Face folders: errors that name the thing, other spellings, meshes, what save refuses."""

import json
import os
import re
import shutil

import families
import jax
import numpy as np
import pytest

from jaxedit.hf.families import FAMILIES
from jaxedit.hf.load import load
from jaxedit.hf.save import save
from jaxedit.models.config import Model, Rope
from jaxedit.models.shapes import SHAPES
from jaxedit.models.specs import flatten, init
from jaxedit.models.transformer import forward
from jaxedit.sharding import make_mesh
from jaxedit.tensorfile import Tensor, entries, write


@pytest.fixture
def folder(tmp_path):
    return families.write_model("llama", tmp_path / "model")


def edit_config(folder, **fields):
    """Sets fields of config.json; None removes one."""
    raw = json.loads((folder / "config.json").read_text()) | fields
    raw = {k: v for k, v in raw.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(raw))


def write_tensors(folder, arrays):
    write(folder / "model.safetensors", entries(arrays), {"format": "pt"})


def fails(name, kind, *parts):
    """Loading raises one line that holds all the parts."""
    with pytest.raises(kind) as error:
        load(name)
    text = str(error.value)
    assert "\n" not in text
    assert all(part in text for part in parts), f"{text!r} lacks one of {parts}"


# --- what cannot be loaded ---


def test_a_folder_that_is_not_there(tmp_path):
    fails(tmp_path / "nothing", FileNotFoundError, "nothing", "no such folder")
    fails("./nothing", FileNotFoundError, "./nothing", "no such folder")


def test_a_file_instead_of_a_folder(folder):
    file = folder / "model.safetensors"
    fails(file, ValueError, str(file), "is a file", "folder that holds config.json")


def test_a_hub_name_without_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("some-organisation/some-model", "some-model", "no good name"):
        fails(name, FileNotFoundError, name, "neither a folder here nor a model that the hub")


def test_no_config(folder):
    (folder / "config.json").unlink()
    fails(folder, FileNotFoundError, str(folder), "no config.json")


@pytest.mark.parametrize("text", ['{"model_type": "llama",', "[1, 2]", ""])
def test_a_config_that_is_not_json(folder, text):
    (folder / "config.json").write_text(text)
    fails(folder, ValueError, str(folder / "config.json"), "not valid JSON")


def test_an_unsupported_architecture(folder):
    edit_config(folder, model_type="mamba")
    fails(folder, ValueError, "config.json", "'mamba' is not supported", *FAMILIES)
    edit_config(folder, model_type=None)
    fails(folder, ValueError, "config.json", "model_type None is not supported")


def test_an_unsupported_option(folder):
    edit_config(folder, hidden_act="quick_gelu")
    fails(folder, ValueError, "'quick_gelu'", "silu")
    edit_config(folder, hidden_act="silu", rope_parameters={"rope_type": "ntk", "rope_theta": 1e4})
    fails(folder, ValueError, "rope type 'ntk'", "default, linear, dynamic, llama3, yarn, longrope")


def test_a_tied_gptj_whose_bias_would_be_lost(tmp_path):
    folder = families.write_model("gptj", tmp_path)
    edit_config(folder, tie_word_embeddings=True)
    fails(folder, ValueError, "gptj", "tie_word_embeddings=True is not supported")


def test_quantized_weights(folder):
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    fails(folder, ValueError, str(folder), "quantized", "gptq", "unquantized original")


def test_a_missing_tensor(folder):
    arrays = families.weights("llama")
    del arrays["model.layers.1.mlp.up_proj.weight"]
    write_tensors(folder, arrays)
    fails(folder, ValueError, str(folder), "model.layers.1.mlp.up_proj.weight is missing")


def test_a_tensor_too_many(folder):
    arrays = families.weights("llama")
    arrays["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    write_tensors(folder, arrays)
    fails(folder, ValueError, "model.layers.0.self_attn.q_proj.bias", "llama", "does not have")


def test_a_layer_too_many(folder):
    edit_config(folder, num_hidden_layers=2)
    fails(folder, ValueError, "model.layers.2.input_layernorm.weight", "(and 8 more)")


def test_a_tensor_of_another_shape(folder):
    arrays = families.weights("llama")
    arrays["model.layers.2.mlp.down_proj.weight"] = np.zeros((48, 32), np.float32)
    write_tensors(folder, arrays)
    name = "model.layers.2.mlp.down_proj.weight"
    fails(folder, ValueError, name, "[48, 32]", "config.json asks for [32, 48]")


def test_weights_that_are_integers(folder):
    arrays = families.weights("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    write_tensors(folder, arrays | {name: arrays[name].astype(np.int8)})
    fails(folder, ValueError, name, "I8")


def test_a_truncated_file(folder):
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 10)
    fails(folder, ValueError, str(file), "truncated", "fetch it again")


def test_a_missing_shard(folder):
    save(load(folder), folder.with_name("sharded"), max_shard=20_000)
    folder = folder.with_name("sharded")
    shards = sorted(p.name for p in folder.glob("*.safetensors"))
    assert len(shards) > 2
    (folder / shards[1]).unlink()
    fails(folder, FileNotFoundError, str(folder), "model.safetensors.index.json", shards[1])


def test_a_damaged_index(folder):
    index = folder / "model.safetensors.index.json"
    for text in ('{"weight_map": ', "{}", "[]"):
        index.write_text(text)
        fails(folder, ValueError, str(index))


def test_pickled_weights_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    fails(folder, ValueError, "pytorch_model.bin", "pickle", "Convert", "save_pretrained")


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    fails(folder, FileNotFoundError, str(folder), "no .safetensors file")


# --- spellings of other files ---


def same(x, y):
    x, y = flatten(x), flatten(y)
    assert x.keys() == y.keys()
    for path in x:
        assert x[path].dtype == y[path].dtype, path
        np.testing.assert_array_equal(np.asarray(x[path]), np.asarray(y[path]), err_msg=path)


def respell(tmp_path, variant, arrays, **config):
    """The variant as it is, and the same with a file of other names and config fields."""
    plain = load(families.write_model(variant, tmp_path / "plain"))
    folder = families.write_model(variant, tmp_path / "respelt")
    write_tensors(folder, arrays)
    edit_config(folder, **config)
    return plain, load(folder)


def test_gpt2_as_on_the_hub(tmp_path):
    """Without the prefix, and with masks that were once saved as weights."""
    arrays = families.weights("gpt2")
    arrays = {name.removeprefix("transformer."): x for name, x in arrays.items()}
    assert "h.0.attn.c_attn.weight" in arrays
    for i in range(3):
        arrays[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.float32))
        arrays[f"h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    # GPT-2's own config.json says nothing of today's fields
    plain, hub = respell(tmp_path, "gpt2", arrays, tie_word_embeddings=None, n_inner=None)
    assert hub.cfg == plain.cfg
    same(hub.params, plain.params)


def test_a_tied_head_that_is_stored_all_the_same(tmp_path):
    arrays = families.weights("gpt2")
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"]
    plain, stored = respell(tmp_path, "gpt2", arrays)
    assert "head" not in stored.params
    same(stored.params, plain.params)


def test_neox_with_either_name_of_the_head_and_old_buffers(tmp_path):
    arrays = families.weights("neox")
    old = {("embed_out.weight" if n == "lm_head.weight" else n): x for n, x in arrays.items()}
    new = {("lm_head.weight" if n == "embed_out.weight" else n): x for n, x in arrays.items()}
    for i in range(3):
        at = f"gpt_neox.layers.{i}.attention"
        old[f"{at}.bias"] = np.tril(np.ones((1, 1, 64, 64), np.bool_))
        old[f"{at}.masked_bias"] = np.array(-1e9, np.float32)
        old[f"{at}.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    assert "embed_out.weight" in old
    assert "lm_head.weight" in new
    for i, arrays in enumerate((old, new)):
        plain, other = respell(tmp_path / str(i), "neox", arrays)
        assert other.cfg == plain.cfg
        same(other.params, plain.params)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_half_of_gemma3(tmp_path, prefix):
    arrays = {n.replace("model.", prefix, 1): x for n, x in families.weights("gemma3").items()}
    arrays["vision_tower.vision_model.embeddings.patch.weight"] = np.zeros((4, 4), np.float32)
    arrays["model.vision_tower.vision_model.encoder.bias"] = np.zeros(4, np.float32)
    arrays["multi_modal_projector.mm_soft_emb_norm.weight"] = np.zeros(4, np.float32)
    plain = load(families.write_model("gemma3", tmp_path / "plain"))
    folder = families.write_model("gemma3", tmp_path / "both")
    write_tensors(folder, arrays)
    text = json.loads((folder / "config.json").read_text())
    both = {"model_type": "gemma3", "text_config": text, "vision_config": {}, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(both))
    both = load(folder)
    assert both.cfg == plain.cfg  # so it is saved as a model of text
    same(both.params, plain.params)


@pytest.mark.parametrize(
    ("variant", "legacy"),
    [
        ("llama", {"rope_theta": 10000.0}),
        ("llama_linear", {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4}}),
        (
            "llama_dynamic",
            {"rope_theta": 10000.0, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
        ),
        (
            "llama_llama3",
            {
                "rope_theta": 10000.0,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
            },
        ),
        ("neox", {"rotary_emb_base": 10000, "rotary_pct": 0.5}),
        ("gemma3", {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}),
    ],
)
def test_configs_of_older_transformers(tmp_path, variant, legacy):
    plain = load(families.write_model(variant, tmp_path / "new"))
    folder = families.write_model(variant, tmp_path / "old")
    edit_config(folder, rope_parameters=None, layer_types=None, dtype=None, **legacy)
    assert load(folder).cfg == plain.cfg


def test_the_theta_of_an_old_config_counts(folder):
    edit_config(folder, rope_parameters=None, rope_theta=500000.0)
    assert load(folder).cfg.ropes[0].theta == 500000.0


def test_the_ends_of_text_that_generation_config_names(folder):
    assert load(folder).cfg.eos_ids == (2,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    model = load(folder)
    assert model.cfg.eos_ids == (2, 7)
    save(model, folder.with_name("saved"))
    assert load(folder.with_name("saved")).cfg == model.cfg


@pytest.mark.parametrize(
    ("stored", "dtype", "weights", "compute"),
    [
        ("float32", None, "float32", "float32"),
        ("float32", "bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", None, "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "float32", "float32"),
        ("float16", None, "float16", "float32"),
        ("float64", None, "float32", "float32"),
    ],
)
def test_dtypes(folder, stored, dtype, weights, compute):
    """Weights stay as stored unless another dtype is asked for; half floats compute in float32."""
    write_tensors(folder, {k: x.astype(stored) for k, x in families.weights("llama").items()})
    model = load(folder, dtype=dtype)
    assert {x.dtype.name for x in jax.tree.leaves(model.params)} == {weights}
    assert model.cfg.dtype == compute
    want = families.weights("llama")["model.embed_tokens.weight"].astype(stored).astype(weights)
    np.testing.assert_array_equal(np.asarray(model.params["embed"]["w"]), want)


# --- meshes ---

FUSED = ("gpt2", "neox", "phi3", "glm", "llama_bias_tied")
MESHES = {
    "fsdp=2,tensor=2": {"fsdp": 2, "tensor": 2},
    "tensor=4": {"tensor": 4},
    "data=2,fsdp=2,tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
}
# what one device holds of a weight: [layers, in, out]; embed over fsdp, heads and mlp over tensor
SHARES = {
    ("gpt2", "fsdp=2,tensor=2"): {
        "attn/q/w": (3, 16, 16),
        "attn/k/b": (3, 16),
        "attn/o/w": (3, 16, 16),
        "mlp/up/w": (3, 16, 64),
        "mlp/down/w": (3, 64, 16),
        "norm1/w": (3, 32),
    },
    ("gpt2", "tensor=4"): {"attn/v/w": (3, 32, 8), "mlp/down/w": (3, 32, 32)},
    ("neox", "fsdp=2,tensor=2"): {"attn/q/w": (3, 16, 16), "attn/v/b": (3, 16)},
    ("neox", "tensor=4"): {"attn/k/w": (3, 32, 8), "attn/k/b": (3, 8)},
    # two heads of keys are not cut into four
    ("phi3", "tensor=4"): {"attn/q/w": (3, 32, 8), "attn/k/w": (3, 32, 16), "attn/o/w": (3, 8, 32)},
    ("phi3", "data=2,fsdp=2,tensor=2"): {"attn/k/w": (3, 16, 8), "mlp/gate/w": (3, 16, 24)},
    ("glm", "fsdp=2,tensor=2"): {"mlp/gate/w": (3, 16, 24), "mlp/up/w": (3, 16, 24)},
    ("glm", "tensor=4"): {"mlp/up/w": (3, 32, 12), "mlp/down/w": (3, 12, 32)},
}


@pytest.mark.parametrize("variant", FUSED)
def test_every_device_of_a_mesh_holds_its_share(tmp_path, variant):
    folder = families.write_model(variant, tmp_path)
    whole = flatten(load(folder).params)
    for name, sizes in MESHES.items():
        model = load(folder, mesh=make_mesh(**sizes))
        assert model.mesh.size == np.prod(list(sizes.values()))
        params = flatten(model.params)
        assert params.keys() == whole.keys()
        for path, x in params.items():
            want = np.asarray(whole[path])
            np.testing.assert_array_equal(np.asarray(x), want, err_msg=f"{path} on {name}")
            for shard in x.addressable_shards:
                np.testing.assert_array_equal(np.asarray(shard.data), want[shard.index])
        for path, shape in SHARES.get((variant, name), {}).items():
            held = {s.data.shape for s in params[f"blocks/{path}"].addressable_shards}
            assert held == {shape}, f"{path} on {name}"


def test_a_process_reads_every_number_once_whatever_the_mesh(tmp_path, monkeypatch):
    folder, asked, read = families.write_model("llama", tmp_path), [], Tensor.read

    def recorded(tensor, *index):
        asked.append(out := read(tensor, *index))
        return out

    monkeypatch.setattr(Tensor, "read", recorded)
    numbers = sum(int(np.prod(s)) for s in families.shapes("llama").values())
    for sizes in ((1, 1, 1), (1, 4, 1), (2, 2, 2)):
        asked.clear()
        load(folder, mesh=make_mesh(*sizes))
        assert sum(x.size for x in asked) == numbers


def test_what_lies_on_a_mesh_is_saved_as_what_does_not(tmp_path):
    for variant in ("gpt2", "neox", "phi3"):
        folder = families.write_model(variant, tmp_path / variant)
        save(load(folder, mesh=make_mesh(data=2, fsdp=2, tensor=2)), tmp_path / f"{variant}-mesh")
        save(load(folder), tmp_path / f"{variant}-one")
        for file in ("model.safetensors", "config.json"):
            one, mesh = (tmp_path / f"{variant}-{x}" / file for x in ("one", "mesh"))
            assert mesh.read_bytes() == one.read_bytes(), f"{variant} {file}"


# --- saving ---


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def random_model(shape, **changes):
    cfg = SHAPES[shape].replace(**changes)
    return Model(init(jax.random.key(0), cfg), cfg)


GEMMA2 = {"family": "gemma2", "norm": "rms1p", "post_norm": True, "embed_scale": 32**0.5}


@pytest.mark.parametrize(
    ("shape", "changes", "words"),
    [
        ("tiny-llama", {"windows": (2,) * 4}, ["llama", "windows=(2, 2, 2, 2)", "read as ()"]),
        ("tiny-llama", {"logit_softcap": 1.0}, ["llama", "logit_softcap=1.0", "read as 0.0"]),
        ("tiny-llama", {"qkv_bias": True}, ["out_bias=False (it would be read as True)"]),
        ("tiny-llama", {"out_bias": True}, ["out_bias=True (it would be read as False)"]),
        ("tiny-llama", {"qk_norm": "head"}, ["qk_norm='head' (it would be read as '')"]),
        ("tiny-llama", {"post_norm": True}, ["post_norm=True"]),
        ("tiny-llama", {"learned_pos": True}, ["learned_pos=True"]),
        ("tiny-llama", {"ropes": (Rope(), Rope(1e6)), "rope_kind": (0, 1, 0, 1)}, ["rope_kind"]),
        ("tiny-gpt2", {"attn_scale": 0.5, "rotary_dim": 8}, ["attn_scale=0.5", "rotary_dim=8"]),
        ("tiny-gpt2", {"norm": "rms", "mlp_bias": False}, ["norm='rms'", "mlp_bias=False"]),
        ("tiny-gpt2", {"gated": True}, ["gated=True (it would be read as False)"]),
        ("tiny-gpt2", {"kv_heads": 2}, ["kv_heads=2 (it would be read as 4)"]),
        ("tiny-gpt2", {"head_dim": 16}, ["head_dim=16 (it would be read as 8)"]),
        ("tiny-llama", {"family": "mistral", "windows": (2, 2, 2, 0)}, ["windows=(2, 2, 2, 0)"]),
        ("tiny-llama", {"family": "gpt3"}, ["family='gpt3': one of gpt2", "llama"]),
    ],
)
def test_save_refuses_what_its_family_cannot_say(tmp_path, shape, changes, words):
    with pytest.raises(ValueError, match="family") as error:
        save(random_model(shape, **changes), tmp_path / "model")
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words), text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ("tiny-llama", {"dtype": "bfloat16", "attention": "einsum"}),
        ("tiny-llama", {"attn_scale": 8**-0.5, "windows": (0,) * 4, "rope_kind": (0,) * 4}),
        ("tiny-llama", {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "rotary_dim": 4}),
        ("tiny-gpt2", {"ropes": (Rope(1e6),), "head_bias": True, "eos_ids": (2, 3)}),
        ("tiny-llama", GEMMA2),
        (
            "tiny-llama",
            GEMMA2 | {"attn_scale": 24**-0.5, "windows": (5, 0) * 2, "attn_softcap": 9.0},
        ),
    ],
)
def test_other_spellings_of_the_same_model_are_saved(tmp_path, shape, changes):
    model = random_model(shape, **changes)
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    same(again.params, model.params)
    logits = lambda m: forward(m.params, np.arange(9)[None], m.cfg.replace(dtype="float32")).logits
    np.testing.assert_allclose(logits(again), logits(model), atol=1e-6)


def test_save_refuses_a_folder_that_is_not_empty(folder):
    model, before = load(folder), (folder / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match=re.escape(f"{folder} is not empty")):
        save(model, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    save(model, folder.with_name("empty"))  # it makes the folder, or takes an empty one
    (folder.with_name("made")).mkdir()
    save(model, folder.with_name("made"))
    assert files(folder.with_name("made")) == ["config.json", "model.safetensors"]


def test_save_overwrites_a_model_when_told(folder):
    old = load(folder)
    sharded = folder.with_name("sharded")
    save(old, sharded, max_shard=20_000)
    new = old._replace(params=jax.tree.map(lambda x: x + 1, old.params))
    save(new, sharded, overwrite=True)
    assert files(sharded) == ["config.json", "model.safetensors"]  # no shard of the old one
    same(load(sharded).params, new.params)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model", "sharded"]


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["holiday.jpg"], "holiday.jpg"),
        (["config.json", "model.safetensors", "train.py", "zoo.jpg"], "train.py"),
        (["config.json", "README.md", ".git/config"], ".git"),
        (["config.json", "model.bin", "old.model/log.txt"], "old.model"),
        (["package.json", "notes.md"], "notes.md and no config.json"),
    ],
)
def test_save_never_overwrites_something_else(folder, names, first):
    other = folder.with_name("project")
    for name in names:
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text("mine")
    with pytest.raises(FileExistsError, match=re.escape(f"{other} holds {first}")):
        save(load(folder), other, overwrite=True)
    assert files(other) == sorted(names)
    assert {(other / name).read_text() for name in names} == {"mine"}


def test_a_save_that_fails_leaves_the_old_model(folder, monkeypatch):
    old = (folder / "model.safetensors").read_bytes()
    model = load(folder)
    broken = model._replace(params=model.params | {"embed": {"w": model.params["embed"]["w"][:5]}})
    with pytest.raises(ValueError, match=r"'embed/w' has shape \(5, 32\), the config says"):
        save(broken, folder, overwrite=True)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("jaxedit.tensorfile.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save(model, folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == old
    assert load(folder).cfg == model.cfg


def test_shards_hold_each_tensor_once(folder):
    model, out = load(folder), folder.with_name("sharded")
    save(model, out, max_shard=20_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == families.shapes("llama").keys()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(model.params))
    names = sorted(p.name for p in out.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == names
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert all((out / n).stat().st_size < 30_000 for n in names)
    same(load(out).params, model.params)
    shutil.rmtree(folder)  # nothing of it is needed


def test_a_tokenizer_travels_with_its_model(folder):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<unk>": 0, "Paris": 1, "Rome": 2}
    word_level = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    word_level.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    word_level.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"})
    )
    model = load(folder)
    assert model.tokenizer("Rome Paris Bonn")["input_ids"] == [2, 1, 0]
    save(model, folder.with_name("saved"))
    assert load(folder.with_name("saved")).tokenizer("Rome Paris")["input_ids"] == [2, 1]
