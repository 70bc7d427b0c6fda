"""Methods by name, and the settings that a model gets."""

import dataclasses
import itertools

import pytest

import jaxedit.edit
from jaxedit.edit.editor import Editor
from jaxedit.edit.methods import (
    BIASED,
    EDITORS,
    PROTOCOLS,
    configure,
    find,
    name_of,
    override,
    protocol_of,
)
from jaxedit.edit.presets import MODELS, named
from jaxedit.edit.values import ValueConfig
from jaxedit.edit.weights.alphaedit import AlphaEditConfig
from jaxedit.edit.weights.rome import RomeConfig
from jaxedit.hf.families import FAMILIES
from jaxedit.models.shapes import SHAPES

ROMES = ("rome", "r-rome")
XL = SHAPES["gpt2-xl"]
TINY = SHAPES["tiny-gpt2"]


def shape(name):
    """The architecture of a model that settings are published for."""
    known = MODELS[name]
    base = SHAPES["gpt-j-6b" if known.family == "gptj" else "llama-2-7b"]
    base = SHAPES["gpt2-xl"] if known.family == "gpt2" else base
    vocab = {"vocab": known.vocab} if known.vocab else {}
    return base.replace(family=known.family, layers=known.layers, embed=known.embed, **vocab)


def layers_of(cfg):
    return getattr(cfg, "layers", None) or ((cfg.layer,) if hasattr(cfg, "layer") else ())


@pytest.mark.parametrize("name", MODELS)
def test_every_method_has_settings_for_every_model(name):
    model = shape(name)
    assert model.family in FAMILIES
    assert named(model) == name
    for method, protocol in itertools.product(EDITORS, PROTOCOLS):
        cfg = configure(method, model, protocol=protocol)
        assert configure(method, model, preset=name, protocol=protocol) == cfg
        assert all(0 <= layer < model.layers for layer in layers_of(cfg))
        assert name_of(cfg) == method
        editor = find(method).make(cfg)
        assert isinstance(editor, Editor)
        assert set(editor.stats) <= set(layers_of(cfg))
        if method in ROMES:
            assert cfg.covariance == (protocol == "paper")
            assert bool(editor.stats) == cfg.covariance
        assert protocol_of(cfg) == protocol


@pytest.mark.parametrize("layers", [1, 2, 3, 6, 12, 30, 100])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "gemma2"])
def test_a_model_that_nobody_published_settings_for(family, layers):
    base = TINY if family == "gpt2" else SHAPES["tiny-llama"]
    model = base.replace(family=family, layers=layers)
    assert named(model) == "any"
    for method, protocol in itertools.product(EDITORS, PROTOCOLS):
        cfg = configure(method, model, protocol=protocol)
        assert cfg == configure(method, model, protocol=protocol, preset="any")
        assert all(0 <= layer < layers for layer in layers_of(cfg))
        find(method).make(cfg)
        if method in ROMES:
            assert cfg.covariance == (protocol == "paper")


def test_easyedit_trains_the_bias_where_there_is_one():
    for name, method in itertools.product(MODELS, ("ft-l", "ft-m", "ft-c")):
        for model, protocol in itertools.product((None, shape(name)), PROTOCOLS):
            try:
                cfg = configure(method, model, preset=name, protocol=protocol)
            except ValueError:  # nobody has published settings for it
                assert model is None
                continue
            biased = MODELS[name].family in BIASED if model is None else model.mlp_bias
            assert cfg.bias == (biased and protocol == "easyedit")
    assert all(cfg.mlp_bias for cfg in SHAPES.values() if cfg.family in BIASED)
    assert configure("ft-m", XL, protocol="easyedit").bias
    assert not configure("ft-m", XL, protocol="easyedit", bias=False).bias


def test_models_are_recognised_by_shape():
    assert named(XL) == "gpt2-xl"
    assert named(XL.replace(vocab=50304)) == "gpt2-xl"  # a padded vocabulary
    assert named(SHAPES["llama-2-7b"]) == "llama-2-7b"
    assert named(SHAPES["llama-2-7b"].replace(vocab=128256)) == "llama-3-8b"
    assert named(SHAPES["llama-2-7b"].replace(vocab=99999)) == "any"
    assert named(SHAPES["llama-2-7b"].replace(family="mistral")) == "mistral-7b"
    assert named(XL.replace(layers=47)) == "any"
    assert named(SHAPES["gpt2-small"]) == "any"


def test_settings_are_the_published_ones():
    rome = configure("rome", XL)
    assert rome == RomeConfig(layer=17, values=ValueConfig(steps=20, lr=0.5, weight_decay=0.5))
    assert rome.values.clamp == 4
    assert rome.values.kl == 0.0625
    memit = configure("memit", shape("gpt-j-6b"))
    assert memit.layers == (3, 4, 5, 6, 7, 8)
    assert (memit.weight, memit.values.steps, memit.values.clamp) == (15000, 25, 0.75)
    llama = shape("llama-3-8b")
    assert configure("alphaedit", llama).l2 == 10
    assert configure("alphaedit", llama, protocol="easyedit").l2 == 1
    assert configure("alphaedit", llama).values.lr == 0.1
    assert configure("emmet", XL).weight == 1000
    assert configure("emmet", XL, protocol="easyedit").weight == 10000
    assert configure("memit", llama).values.clamp == 0.75
    assert configure("memit", llama, protocol="easyedit").values.clamp == 4
    assert configure("rome", llama).layer == 5
    assert configure("r-rome", XL) == dataclasses.replace(rome, key="mean")


def test_where_one_source_has_no_settings_the_others_are_taken():
    """And EasyEdit leaves out the covariance there too."""
    medium = shape("gpt2-medium")
    assert configure("rome", medium).layer == configure("rome", medium, protocol="easyedit").layer
    assert not configure("rome", medium, protocol="easyedit").covariance
    mistral = shape("mistral-7b")
    assert configure("rome", mistral).layer == 5
    assert configure("rome", mistral).covariance


def test_a_preset_of_another_model():
    assert configure("rome", XL, preset="gpt-j-6b").layer == 5
    assert configure("rome", None, preset="gpt2-xl").layer == 17
    with pytest.raises(ValueError, match="layer 17: the model has layers 0 to 3"):
        configure("rome", TINY, preset="gpt2-xl")
    with pytest.raises(ValueError, match=r"preset 'gpt2': one of gpt2-medium, .*, any"):
        configure("rome", XL, preset="gpt2")
    with pytest.raises(ValueError, match=r"no settings of pmet for gpt2-xl; for .*gpt-j-6b"):
        configure("pmet", None, preset="gpt2-xl")
    with pytest.raises(ValueError, match="no settings of rome for any"):
        configure("rome", None)


def test_overrides_reach_every_depth():
    cfg = configure(
        "memit", XL, layers=[3, 4], **{"values.lr": 1, "rows.contexts.seed": 7, "rows.about": None}
    )
    assert cfg.layers == (3, 4)
    assert cfg.values.lr == 1.0
    assert isinstance(cfg.values.lr, float)
    assert cfg.values.steps == 20  # the rest stays
    assert cfg.rows.contexts.seed == 7
    assert cfg.rows.contexts.lengths == ((10, 5),)
    assert cfg.rows.about is None
    hash(cfg)  # static under jit


def test_a_whole_part_is_not_mixed_with_published_settings():
    mine = ValueConfig(steps=3, lr=0.01, weight_decay=0.0, clamp=1.0)
    assert configure("rome", XL, values=mine).values == mine
    cfg = configure("rome", XL)
    assert override(cfg, {"values": mine}, XL).values == mine


@pytest.mark.parametrize(
    ("method", "how", "why"),
    [
        ("rme", {}, "method 'rme': one of rome, .*; did you mean 'rome'?"),
        ("ROME", {}, "did you mean 'rome'?"),
        ("xyz", {}, "method 'xyz': one of rome, "),
        ("rome", {"protocol": "papers"}, "protocol 'papers': one of paper, easyedit"),
        ("rome", {"steps": 3}, "rome has no setting 'steps'; did you mean values.steps?"),
        ("rome", {"layers": (3,)}, "rome has no setting 'layers'; did you mean layer?"),
        ("memit", {"values.lrr": 3.0}, "memit has no setting 'values.lrr'; did you mean values.lr"),
        ("r-rome", {"nonsense": 3}, "r-rome has no setting 'nonsense'; one of layer, values"),
        ("rome", {"layer": 48}, "layer 48: the model has layers 0 to 47"),
        ("rome", {"layer": -1}, "layer -1: the model has layers 0 to 47"),
        ("memit", {"layers": (46, 47, 48)}, "layer 48: the model has layers 0 to 47"),
        ("memit", {"layers": (5, 4)}, "at least one, each once, in rising order"),
        ("memit", {"layers": ()}, "at least one, each once, in rising order"),
        ("rome", {"layer": "5"}, "rome: expected int, got '5'"),
        ("rome", {"layer": 5.5}, "rome: expected int, got 5.5"),
        ("rome", {"values.steps": 0}, "steps, lr and clamp are positive"),
        ("rome", {"rows.token": "first"}, "rome: 'first': one of 'subject_last'"),
    ],
)
def test_what_cannot_be_set_is_told_in_one_line(method, how, why):
    with pytest.raises(ValueError, match=why) as e:
        configure(method, XL, **how)
    assert "\n" not in str(e.value)


def test_every_method_and_its_config_are_imported_from_one_place():
    for method in EDITORS.values():
        for it in (method.make, method.config):
            assert getattr(jaxedit.edit, it.__name__) is it
            assert it.__name__ in jaxedit.edit.__all__


def test_the_name_of_a_config():
    assert name_of(RomeConfig(layer=1)) == "rome"
    assert name_of(RomeConfig(layer=1, key="mean")) == "r-rome"
    assert name_of(AlphaEditConfig(layers=(1,))) == "alphaedit"
    with pytest.raises(ValueError, match="ValueConfig is no config of a method: rome"):
        name_of(ValueConfig())
    with pytest.raises(ValueError, match="layer 4: the model has layers 0 to 3"):
        override(RomeConfig(layer=4), {}, TINY)
