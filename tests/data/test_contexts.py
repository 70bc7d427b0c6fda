"""Contexts that a model writes itself."""

from pathlib import Path

import numpy as np
import pytest
from test_requests import TOKENIZERS, byte_level, metaspace

import jaxedit
from jaxedit.data import contexts as module
from jaxedit.data.aligned import aligned
from jaxedit.data.cases import EditRequest
from jaxedit.data.contexts import MEMIT, ROME, STARTS, ContextConfig, contexts
from jaxedit.models.generate import Generated

GOLDEN = Path(__file__).parents[1] / "golden/editing/gpt2-tiny"
FIVE = ContextConfig(lengths=((5, 5),))


@pytest.fixture(scope="module")
def model():
    return jaxedit.load(GOLDEN, dtype="float32")


def test_the_same_seed_gives_the_same_texts(model):
    first = contexts(FIVE, model)
    assert contexts(FIVE, model) == first
    assert contexts(ContextConfig(lengths=((5, 5),), seed=1), model) != first
    (group,) = first
    assert group[0] == "{}"
    assert len(group) == 6
    for text, start in zip(group[1:], STARTS, strict=True):
        assert text.startswith(start)
        assert text.endswith(". {}")
        assert text.count("{}") == 1
        written = text.removesuffix(". {}")
        assert " ".join(written.split()) == written
        count = lambda text: len(model.tokenizer(text)["input_ids"])
        assert count(start) < count(written) <= count(start) + 4
    aligned(model.tokenizer, [EditRequest("{} is", "Elka", "here")], groups=first)


def test_a_longer_sample_begins_with_a_shorter_ones_texts(model):
    five, ten = (contexts(ContextConfig(lengths=((5, n),)), model)[0][1:] for n in (5, 10))
    assert ten[:5] == five
    assert len(set(ten)) > 5
    for i, text in enumerate(ten):
        assert text.startswith(STARTS[i % 5])


def writes(monkeypatch, model, text, stop=None):
    """A model that continues every text by this one."""

    def decode(params, tokens_BT, pos_BT, cfg, *, steps, **_):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = ids[: steps if stop is None else stop]
        rows = np.zeros((len(tokens_BT), steps), np.int32)
        rows[:, : len(ids)] = ids
        return Generated(rows, np.full(len(rows), len(ids)))

    monkeypatch.setattr(module, "decode", decode)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_written_is_joined_as_the_tokenizer_does(monkeypatch, model, name):
    """Without the BOS that some tokenizers put before a text, and with the space that others leave
    out before what they decode.
    """
    some = model._replace(tokenizer=TOKENIZERS[name]())
    writes(monkeypatch, some, " capital of France")
    (group,) = contexts(ContextConfig(lengths=((20, 5),)), some)
    # ("You" has a letter that two of these tokenizers know as a byte, which they call special)
    assert group[:5] == ("{}", *(f"{start} capital of France. {{}}" for start in STARTS[:4]))


@pytest.mark.parametrize("make", [lambda: byte_level(bos=True), lambda: metaspace("prepend")])
def test_special_tokens_are_no_text(monkeypatch, model, make):
    """A text that ends at once, and one in which the model writes a BOS."""
    some = model._replace(tokenizer=make())
    writes(monkeypatch, some, " capital", stop=0)
    (group,) = contexts(FIVE, some)
    assert group[1] == "The. {}"
    monkeypatch.setattr(
        module,
        "decode",
        lambda *_, steps, **__: Generated(
            np.full((5, steps), some.tokenizer.bos_token_id), np.full(5, steps)
        ),
    )
    (group,) = contexts(FIVE, some)
    assert group[1] == "The. {}"


def test_braces_and_line_ends_are_spaces(monkeypatch, model):
    some = model._replace(tokenizer=byte_level())
    writes(monkeypatch, some, " {a} of {}\n\n and } {\t")
    (group,) = contexts(ContextConfig(lengths=((40, 5),)), some)
    assert group[1] == "The a of and. {}"


def test_groups_and_what_is_given(model, monkeypatch):
    writes(monkeypatch, model, " one")
    count = lambda cfg: [len(group) for group in contexts(cfg, model)]
    assert count(ROME) == [21]
    assert count(MEMIT) == [1, 5]
    assert contexts(ContextConfig(), model) == (("{}",),)
    given = (("{}", "Well. {}"), ("Q: {}",))
    assert contexts(ContextConfig(given=given), model) == given
    # every length its own seed: else the longer texts would begin like the shorter ones
    seeds = []
    decode = module.decode

    def noted(*args, key, **how):
        seeds.append(key)
        return decode(*args, **how)

    monkeypatch.setattr(module, "decode", noted)
    contexts(ROME, model)
    assert len(seeds) == 2
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("lengths", [((1, 5),), ((5, 4),), ((5, 0),), ((5, -5),), ((5, 5), (0, 5))])
def test_lengths_that_cannot_be(lengths):
    with pytest.raises(ValueError, match="at least 2 tokens, and a multiple of 5 samples"):
        ContextConfig(lengths=lengths)


def test_a_model_without_a_tokenizer(model):
    with pytest.raises(ValueError, match="no tokenizer, and contexts are text"):
        contexts(FIVE, model._replace(tokenizer=None))
    assert contexts(ContextConfig(), model._replace(tokenizer=None)) == (("{}",),)
