"""Requests as arrays: subject and target lie where their characters do, whatever the tokenizer."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast
from transformers.tokenization_python import PythonBackend

from jaxedit import forward, init
from jaxedit.data.cases import EditRequest
from jaxedit.data.requests import bucket, edit_batches, join, probe_batches
from jaxedit.models.shapes import SHAPES

CORPUS = [
    "The capital of France is Paris. Paris is the capital of France, and France's river is long.",
    "The mother tongue of Danielle Darrieux is French; she was born in Bordeaux.",
    "LeBron James plays basketball. What is the twin city of Wellington? It is Sheffield.",
]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def wrap(tokenizer, bos=False):
    if bos:
        ids = [("<s>", tokenizer.token_to_id("<s>"))]
        template = processors.TemplateProcessing(single="<s> $A", special_tokens=ids)
        byte_level = isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
        both = [processors.ByteLevel(trim_offsets=False), template] if byte_level else [template]
        tokenizer.post_processor = processors.Sequence(both)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def byte_level(bos=False, trim=False, add_prefix_space=False, normalizer=None):
    """As GPT-2 has it, or as Llama 3: with a BOS."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    pre = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer, bos)


def metaspace(kind):
    """As Llama 2 has it ("prepend": a ▁ before every text) or Gemma ("none")."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    if kind == "prepend":
        parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(parts)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(CORPUS, trainer)
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if kind == "prepend" else []
    tokenizer.decoder = decoders.Sequence(spaces + strip)
    return wrap(tokenizer, bos=True)


TOKENIZERS = {
    "gpt2": byte_level,
    "gpt2-trimmed": lambda: byte_level(trim=True),
    "gpt2-prefixed": lambda: byte_level(trim=True, add_prefix_space=True),
    "gpt2-prefixed-untrimmed": lambda: byte_level(add_prefix_space=True),
    "llama3": lambda: byte_level(bos=True),
    "qwen": lambda: byte_level(normalizer=normalizers.NFC()),
    "llama2": lambda: metaspace("prepend"),
    "gemma": lambda: metaspace("none"),
}
GPT2 = Path(os.environ.get("JAXEDIT_DATA", "/nowhere"), "tokenizers", "gpt2")


@pytest.fixture(scope="module", params=[*TOKENIZERS, "real gpt2"])
def tokenizer(request):
    if request.param in TOKENIZERS:
        return TOKENIZERS[request.param]()
    if not GPT2.exists():
        pytest.skip("set JAXEDIT_DATA")
    return GPT2Tokenizer(vocab=str(GPT2 / "encoder.json"), merges=str(GPT2 / "vocab.bpe"))


@pytest.fixture(scope="module")
def gpt2():
    return byte_level()


REQUESTS = [
    EditRequest("The capital of {} is", "France", "Paris"),
    EditRequest("{} is the capital of", "Paris", "France"),
    EditRequest("The mother tongue of {}", "Danielle Darrieux", "French"),
    EditRequest("{}", "LeBron James", "basketball"),
    EditRequest("France, {}, France is", "France", "Paris"),
    EditRequest("{}, France, France is", "France", "Paris"),
    EditRequest("The capital of {}'s neighbour is", "Österreich", "Zürich"),
    EditRequest("{} is", "Zürich", "北京"),
    EditRequest("The capital of {} is", "中国", "北京 and 上海"),
    EditRequest("A 🜁 sign of {} is", "🜁🜂", "🜃"),
    EditRequest("The capital of  {}  is ", "  New  York ", " Paris"),
    EditRequest("The café of {} is", "Cafe\N{COMBINING ACUTE ACCENT}", "Paris"),
    EditRequest("Q: What is the capital of {}?\nA:\n", "France", "Paris is"),
]


def text_of(request):
    return request.text + join(request.text, request.target)


@pytest.mark.parametrize("side", ["left", "right"])
def test_subject_and_target_lie_where_their_characters_do(tokenizer, side):
    batches = edit_batches(tokenizer, REQUESTS, side=side)
    assert not batches.skipped
    seen = 0
    for index, batch in batches:
        for b, i in enumerate(index):
            request, seen = REQUESTS[i], seen + 1
            real = batch.pos_BT[b] >= 0
            ids = batch.tokens_BT[b][real]
            assert ids.tolist() == tokenizer(text_of(request))["input_ids"]
            assert batch.pos_BT[b][real].tolist() == list(range(len(ids)))
            assert real[-1 if side == "left" else 0]
            said = lambda stop, at=batch.tokens_BT[b], real=real: normal(
                tokenizer.decode(at[:stop][real[:stop]]).removeprefix("<s>")
            )
            first_target = batch.prompt_B[b] + 1
            target = batch.tokens_BT[b, 1:][batch.target_BT[b, :-1]]
            assert batch.target_BT[b].argmax() == batch.prompt_B[b]
            assert not batch.target_BT[b, -1]
            assert normal(tokenizer.decode(target)).strip() == request.target.strip()
            assert said(first_target).strip() == normal(request.text).strip()
            # all of the subject is said after its last token, and not before it
            start = request.prompt.index("{}")
            begin = start + len(request.subject) - len(request.subject.lstrip())
            before, upto = request.text[:begin], request.text[:start] + request.subject.rstrip()
            first, last = batch.subject_first_B[b], batch.subject_B[b]
            assert said(last + 1).strip().startswith(normal(upto).strip())
            assert not said(last).strip().startswith(normal(upto).strip())
            # nothing of it is said before its first token, something after it
            assert whole(said(first)) == normal(before).strip()
            assert len(said(first + 1).strip()) > len(normal(before).strip())
    assert seen == len(REQUESTS)


def normal(text):
    return text.replace("e\N{COMBINING ACUTE ACCENT}", "é")


def whole(text):
    return text.rstrip("\N{REPLACEMENT CHARACTER}").strip()


def test_the_slot_says_which_of_two_equal_subjects(gpt2):
    requests = [EditRequest(p, "France", "Paris") for p in ("{} and France is", "France and {} is")]
    ((_, batch),) = edit_batches(gpt2, requests)
    assert batch.tokens_BT[0].tolist() == batch.tokens_BT[1].tolist()
    assert batch.subject_B[0] < batch.subject_first_B[1]


def test_line_ends_around_a_subject_are_not_the_subject(gpt2):
    ((_, batch),) = edit_batches(gpt2, [EditRequest("A:{} is", "\n\nFrance\n", "Paris")])
    first, last = batch.subject_first_B[0], batch.subject_B[0]
    assert gpt2.decode(batch.tokens_BT[0, first : last + 1]) == "France"


def test_a_space_put_before_the_text_is_not_the_subject():
    tokenizer = metaspace("prepend")
    ((_, batch),) = edit_batches(tokenizer, [EditRequest("{} is", "Zürich", "Paris")])
    tokens = tokenizer.convert_ids_to_tokens(batch.tokens_BT[0].tolist())
    assert tokens[:2] == ["<s>", "▁"]
    assert batch.subject_first_B[0] == 2


@pytest.mark.parametrize(
    ("prompt", "target", "end"),
    [
        ("The capital is", "Paris", " Paris"),
        ("The capital is", " Paris ", " Paris"),
        ("The capital is ", " Paris", "Paris"),
        ("Answer:\n", "Paris", "Paris"),
        ("Answer:", "\nParis", "\nParis"),
        ("He plays in France", "'s team", "'s team"),
        ("He plays in France", "'Paris'", " 'Paris'"),
        ("He knows", ".NET", " .NET"),
        ("It ended", ". Then", ". Then"),
        ("It is", "-5", " -5"),
        ("the 100 Best Western Actors", '", "The Wild', '", "The Wild'),
        ('He said "', "Paris", "Paris"),
        ('the "Best"', "Paris", " Paris"),
        ("Paris (", "France", "France"),
        ("法国的首都是", "巴黎", "巴黎"),
        ("The capital is", "巴黎", " 巴黎"),
        ("The capital is", "", ""),
    ],
)
def test_how_a_target_is_joined(prompt, target, end):
    assert join(prompt, target) == end


def test_a_token_over_the_boundary_belongs_to_the_target():
    tokenizer = byte_level()
    ((_, batch),) = probe_batches(tokenizer, [("The capital of France is ", "Paris", "France")])
    assert (
        tokenizer.decode(batch.tokens_BT[0, : batch.prompt_B[0] + 1]) == "The capital of France is"
    )
    request = EditRequest("{}", "France", "'s")
    with pytest.raises(ValueError, match="holds the subject's end and the target's beginning"):
        edit_batches(Coarse(1), [request])
    with pytest.raises(ValueError, match="no token before the target"):
        edit_batches(Coarse(0), [request])
    with pytest.raises(ValueError, match="the target of 'a 北' has no token"):
        probe_batches(Coarse(0, drop=2), [("a", "北")])


class Coarse:
    """A BOS or none, and one token for all of the text but the letters it drops."""

    is_fast = True

    def __init__(self, bos, drop=0):
        self.bos, self.drop = bos, drop

    def get_vocab(self):
        return {}

    def __call__(self, texts, **_):
        return {
            "input_ids": [[1] * self.bos + [7] for _ in texts],
            "offset_mapping": [[(0, 0)] * self.bos + [(0, len(t) - self.drop)] for t in texts],
            "special_tokens_mask": [[1] * self.bos + [0] for _ in texts],
        }


def test_what_the_tokenizer_adds_at_the_end_is_left_out():
    tokenizer = byte_level(bos=True)
    ids = [(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<s>", "</s>")]
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    tokenizer.backend_tokenizer.post_processor = template
    ((_, batch),) = probe_batches(tokenizer, [("The capital of France is", "Paris")])
    tokens = batch.tokens_BT[0][batch.pos_BT[0] >= 0]
    assert tokenizer.decode(tokens) == "<s>The capital of France is Paris"
    assert batch.target_BT[0].sum() == len(tokens) - batch.prompt_B[0] - 1


def test_probes_take_prompts_alone_and_subjects(gpt2):
    pairs = [
        "The capital of France is",
        ("Paris is the capital of", "France"),
        ("a France", "", "a"),
    ]
    ((index, batch),) = probe_batches(gpt2, pairs)
    rows = {int(i): b for b, i in enumerate(index)}
    assert not batch.target_BT[rows[0]].any()
    assert batch.prompt_B[rows[0]] == len(gpt2(pairs[0])["input_ids"]) - 1
    assert batch.target_BT[rows[1]].any()
    assert batch.subject_B[rows[0]] == batch.subject_first_B[rows[1]] == -1
    last = batch.subject_B[rows[2]]  # the last place that names it
    assert gpt2.decode(batch.tokens_BT[rows[2], : last + 1]).startswith("a Fra")
    with pytest.raises(ValueError, match=r"row 1: subject 'Rome' does not occur in .*\(and 1 more"):
        probe_batches(gpt2, [pairs[0], ("Paris", "", "Rome"), ("Paris", "", "Bonn")])


def test_batches_have_few_shapes_and_every_row_once(gpt2):
    rng = np.random.default_rng(0)
    words = ["The", "capital", "of", "France", "is", "Paris"]
    pairs = [(" ".join(rng.choice(words, rng.integers(1, 40))), "Paris") for _ in range(107)]
    batches = probe_batches(gpt2, pairs, size=16)
    made = list(batches)
    assert len(made) == len(batches) == 7
    assert sorted(i for index, _ in made for i in index) == list(range(107))
    assert {batch.tokens_BT.shape[0] for _, batch in made} == {16}
    lengths = {bucket(len(gpt2(p + " Paris")["input_ids"])) for p, _ in pairs}
    assert {batch.tokens_BT.shape[1] for _, batch in made} <= lengths
    widths = [batch.tokens_BT.shape[1] for _, batch in made]
    assert widths == sorted(widths)
    assert len(set(widths)) > 2
    last = made[-1][1]
    assert last.valid_B.tolist() == [True] * 11 + [False] * 5
    assert not last.target_BT[11:].any()
    assert (last.tokens_BT[11:] == last.tokens_BT[10]).all()
    assert (last.pos_BT[11:].max(1) >= 0).all()
    # the last batch grows by doubling, in multiples
    shape = lambda n, **how: [
        b.tokens_BT.shape[0] for _, b in probe_batches(gpt2, ["a"] * n, **how)
    ]
    assert shape(5) == [8]
    assert shape(1) == [1]
    assert shape(0) == []
    assert shape(5, multiple=3, size=12) == [6]
    assert shape(19, multiple=3, size=9) == [9, 9, 3]
    with pytest.raises(ValueError, match="10 rows: needs a positive multiple of 4"):
        shape(1, size=10, multiple=4)
    with pytest.raises(ValueError, match="padding side 'up'"):
        shape(1, side="up")


def test_buckets():
    assert [bucket(n) for n in (1, 8, 9, 32, 33, 49, 65, 97, 129, 193, 1025)] == [
        *(8, 8, 16, 32, 48, 64, 96, 128, 192, 256, 1536)
    ]


def test_a_long_row_is_an_error_or_left_out_with_its_reason(gpt2):
    requests = [REQUESTS[0], EditRequest("{}" + " and" * 30, "France", "Paris"), REQUESTS[1]]
    with pytest.raises(ValueError, match=r"row 1: \d+ tokens; at most 30; skip=True"):
        edit_batches(gpt2, requests, longest=30)
    batches = edit_batches(gpt2, requests, longest=30, skip=True)
    assert [(s.row, "at most 30" in s.reason) for s in batches.skipped] == [("1", True)]
    ((index, _),) = batches
    assert sorted(index) == [0, 2]


class Slow(PythonBackend):
    def get_vocab(self):
        return {}


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ValueError, match="Slow tells no character offsets; load a fast"):
        edit_batches(Slow(), REQUESTS)


def test_a_batch_goes_through_the_model_padded_on_either_side(gpt2):
    """The row that only fills the batch is finite too, and both sides give the same logits."""
    cfg = SHAPES["tiny-gpt2"]
    cfg = cfg.replace(vocab=max(cfg.vocab, len(gpt2)))
    params = init(jax.random.key(0), cfg)
    logits = {}
    for side in ("left", "right"):
        ((index, batch),) = edit_batches(gpt2, REQUESTS[:3], side=side)
        assert batch.tokens_BT.shape[0] == 4
        at = batch.prompt_B[:, None]
        out = forward(params, batch.tokens_BT, cfg, pos_BT=batch.pos_BT, logits_at=at).logits
        assert np.isfinite(out).all()
        logits[side] = np.asarray(out)[np.argsort(index), 0]
    np.testing.assert_allclose(logits["left"], logits["right"], atol=1e-5)
