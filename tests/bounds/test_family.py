"""Families of models, and the files that choose a member."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxedit.bounds import family as families
from jaxedit.bounds.family import Choices, FamilyConfig, decode, encode, family, hypothesis
from jaxedit.bounds.subspace import SubspaceConfig
from jaxedit.models.shapes import SHAPES

MODEL = SHAPES["tiny-gpt2"].replace(vocab=257, layers=2)
CFG = FamilyConfig(MODEL, subspace=SubspaceConfig(dim=50))
CHOICES = Choices(dims=(25, 50, 100), ranks=(1, 4), levels=(3, 5, 7), models=3, model=1)


def one(seed=0, d=50, levels=5):
    random = np.random.RandomState(seed)
    return hypothesis(random.standard_normal(d), np.linspace(-2, 2, levels), 0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_file_decodes_to_the_hypothesis(seed):
    made = one(seed)
    data = encode(made, CFG, CHOICES, 5)
    found = decode(data, CFG, CHOICES, 50, 5)
    np.testing.assert_array_equal(found.w, made.w)
    assert found.alpha == 0.05
    assert 50 * 1.5 < 8 * len(data) < 50 * np.log2(5) + 5 * 16 + 60


def test_choices_are_paid_for():
    made = one()
    long = dataclasses.replace(CHOICES, dims=tuple(range(1, 2**16)))
    extra = len(encode(made, CFG, long, 5)) - len(encode(made, CFG, CHOICES, 5))
    assert extra in (1, 2)  # sixteen bits in the place of log2(3)


def test_a_file_of_other_choices_is_refused():
    data = encode(one(), CFG, CHOICES, 5)
    with pytest.raises(ValueError, match="the file says 50, the config 25"):
        decode(data, CFG, CHOICES, 25, 5)
    with pytest.raises(ValueError, match="the file says 1, the config 2"):
        decode(data, CFG, dataclasses.replace(CHOICES, model=2), 50, 5)
    with pytest.raises(ValueError, match=r"levels=9 is not declared in choices"):
        encode(one(levels=9), CFG, CHOICES, 9)


def test_damage_is_noticed():
    data = encode(one(), CFG, CHOICES, 5)
    missed = 0
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1
        try:
            found = decode(bytes(broken), CFG, CHOICES, 50, 5)
        except (ValueError, IndexError):
            continue
        missed += (found.w == one().w).all() and found.alpha == 0.05
    assert not missed  # other bytes are another hypothesis, or none
    with pytest.raises(ValueError, match="damaged"):
        decode(data + b"\0", CFG, CHOICES, 50, 5)


def test_the_start_is_the_base_and_a_tied_head_is_not_the_embedding():
    found = family(CFG)
    params, deltas = found.at(jnp.zeros(50))
    assert set(deltas) == {"attn/q", "attn/v", "head"}
    assert all(not d.b.any() for d in deltas.values())
    w = jnp.asarray(np.random.RandomState(0).standard_normal(50), jnp.float32)
    params, deltas = found.at(w)
    assert deltas["head"].a.shape == (32, 4)
    assert deltas["head"].b.shape == (4, 257)
    assert params is found.base.params  # nothing of the tied table moves


def test_all_weights_move_without_lora():
    cfg = dataclasses.replace(CFG, lora=None)
    found = family(cfg)
    params, deltas = found.at(jnp.ones(50))
    assert deltas is None
    assert found.space.size == sum(x.size for x in families.jax.tree.leaves(found.base.params))
    assert (params["embed"]["w"] != found.base.params["embed"]["w"]).all()


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="give model"):
        family(FamilyConfig())
    with pytest.raises(ValueError, match="257 tokens for a model of 101"):
        family(FamilyConfig(SHAPES["tiny-gpt2"]))
    with pytest.raises(ValueError, match="subspace of 99999999 dimensions"):
        family(dataclasses.replace(CFG, subspace=SubspaceConfig(dim=99999999)))
    with pytest.raises(ValueError, match="between 0 and 1"):
        Choices(alphas=(1.0,))


def test_numbers_that_are_none_are_refused():
    for w, levels in (([np.nan, 1.0], [0.0, 1.0]), ([0.0, 1.0], [0.0, np.nan])):
        with pytest.raises(ValueError, match="not finite"):
            hypothesis(np.array(w), np.array(levels), 0.1)
