"""Requests aligned on the token that an edit changes."""

import jax
import numpy as np
import pytest
from test_requests import REQUESTS, TOKENIZERS, Coarse, byte_level, metaspace, normal

from jaxedit import forward, init
from jaxedit.data.aligned import aligned, few, short, wide
from jaxedit.data.cases import EditRequest
from jaxedit.data.requests import edit_batches, join
from jaxedit.models.shapes import SHAPES

GROUPS = (("{}",), ("In France, they say. {}", "Q: {}\nA:"))  # the last: a slot in the middle
CONTEXTS = [context for group in GROUPS for context in group]
# one whose target is joined alike in all of them
PLAIN = [r for r in REQUESTS if "\n" not in r.prompt]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def gpt2():
    return byte_level()


def real(batch, n, r):
    """The unpadded tokens of a row, after checking that padding is where it should be."""
    pos = batch.pos_NRS[n, r]
    (there,) = np.nonzero(pos >= 0)
    assert there.tolist() == list(range(there[0], there[-1] + 1))
    assert pos[there].tolist() == list(range(len(there)))
    assert not batch.tokens_NRS[n, r][pos < 0].any()
    return batch.tokens_NRS[n, r][there].tolist()


def columns(batch, n):
    """Of every context, the columns (padding included) whose next tokens are the target."""
    T = batch.tokens_NRS.shape[2] - batch.prefix
    C, U = batch.contexts, batch.target_NU.shape[1]
    at = batch.at_NQ[n, : C * U].reshape(C, U)
    assert (at // T == np.arange(C)[:, None]).all()
    return batch.prefix + at % T


def one_batch(tokenizer, requests, **how):
    """Where the batch has each request, and the batch."""
    ((index, batch),) = aligned(tokenizer, requests, **how)
    return {i: n for n, i in enumerate(index.tolist())}, batch


def test_rows_are_texts_and_the_target_follows_its_columns(tokenizer):
    """In every context, of every tokenizer: with BOS and without, with a space put before."""
    found = aligned(tokenizer, PLAIN, groups=GROUPS, size=4)
    assert not found.skipped
    seen = []
    for index, batch in found:
        for n, i in enumerate(index.tolist()):
            request = PLAIN[i]
            seen.append(i)
            target = batch.target_NU[n][batch.mask_NU[n] > 0].tolist()
            for r, context in enumerate(CONTEXTS):
                prompt = context.replace("{}", request.text)
                ids = tokenizer(prompt + join(prompt, request.target))["input_ids"]
                row = real(batch, n, r)
                assert row == ids[:-1]
                assert ids[-len(target) :] == target
                at = columns(batch, n)[r][: len(target)]
                assert (np.diff(at) == 1).all()
                assert batch.tokens_NRS[n, r][at[1:]].tolist() == target[:-1]
                assert batch.pos_NRS[n, r][at[-1]] == len(row) - 1  # the last one
            about = tokenizer(f"{request.subject} is a")["input_ids"]
            row = real(batch, n, len(CONTEXTS))
            assert row == about[: len(row)]
            said = normal(tokenizer.decode(row).removeprefix("<s>"))
            assert said.strip().startswith(normal(request.subject).strip())
            T = batch.tokens_NRS.shape[2] - batch.prefix
            assert batch.at_NQ[n, -1] == len(CONTEXTS) * T  # the edited token, the first of a tail
    assert sorted(seen) == list(range(len(PLAIN)))


def test_the_edited_token_is_the_subjects_last(tokenizer):
    """The text up to it holds all of the subject, at the slot's place; that before it does not."""
    for index, batch in aligned(tokenizer, PLAIN, groups=GROUPS, size=4):
        P = batch.prefix
        for n, i in enumerate(index.tolist()):
            request = PLAIN[i]
            for r, context in enumerate(CONTEXTS):
                assert batch.pos_NRS[n, r, P] >= 0
                before = context[: context.index("{}")]
                before += request.prompt[: request.prompt.index("{}")]
                upto = normal(before + request.subject.rstrip()).strip()

                def said(stop, n=n, r=r, batch=batch):
                    row = batch.tokens_NRS[n, r, :stop][batch.pos_NRS[n, r, :stop] >= 0]
                    return normal(tokenizer.decode(row).removeprefix("<s>")).strip()

                assert said(P + 1).startswith(upto)
                assert not said(P).startswith(upto)


def test_the_other_tokens_that_may_be_edited(tokenizer):
    """As the batches of data.requests have them."""
    ((order, rows),) = edit_batches(tokenizer, PLAIN)
    first, last, prompt = rows.subject_first_B, rows.subject_B, rows.prompt_B
    wanted = {
        "subject_last": last,
        "subject_first": first,
        "subject_first_after_last": np.minimum(last + 1, prompt),
        "last": prompt,
    }
    for token, column in wanted.items():
        for index, batch in aligned(tokenizer, PLAIN, token=token, size=16):
            for n, i in enumerate(index.tolist()):
                b = order.tolist().index(i)
                assert batch.pos_NRS[n, 0, batch.prefix] == column[b], (token, PLAIN[i])


def token_at(tokenizer, request, **how):
    """The edited token of the bare prompt, and where the row has it."""
    ((_, batch),) = aligned(tokenizer, [request], **how)
    return (
        tokenizer.decode(batch.tokens_NRS[0, 0, batch.prefix : batch.prefix + 1]),
        int(batch.pos_NRS[0, 0, batch.prefix]),
    )


@pytest.mark.parametrize("bos", [False, True])
def test_where_subjects_lie(bos):
    """After a BOS everything is one token later."""
    tokenizer = byte_level(bos)
    where = lambda *request, **how: token_at(tokenizer, EditRequest(*request), **how)
    assert where("The capital of {} is", "France", "Paris") == (" France", 3 + bos)
    assert where("The capital of {}", "France", "is Paris") == (" France", 3 + bos)  # at the end
    # twice: the slot says which
    first = where("France, {}, France is", "France", "Paris")
    assert first[0] == " France"
    assert where("{}, France is", "France", "Paris")[1] < first[1]
    assert where("France and {} is", "France", "Paris")[1] > first[1]
    # at the start, and of one token
    assert where("{} is", "The capital", "Paris") == (" capital", 1 + bos)
    assert where("{} is", "The", "Paris") == ("The", bos)
    ((_, batch),) = aligned(tokenizer, [EditRequest("{} is", "The", "Paris")])
    assert batch.prefix == (8 if bos else 0)
    # several tokens share one character: the last of them
    word, at = where("The capital of {}'s neighbour is", "北京", "Paris")
    ids = tokenizer("The capital of 北京")["input_ids"]
    assert at == len(ids) - 1
    assert word == tokenizer.decode(ids[-1:])
    assert len(ids) >= 3 + 6
    # what follows the subject
    after = {"token": "subject_first_after_last"}
    assert where("The capital of {} is", "France", "Paris", **after) == (" is", 4 + bos)
    assert where("The capital of {}", "France", "is Paris", **after) == (" France", 3 + bos)


def test_a_slot_in_the_middle_of_a_context(gpt2):
    """What follows the prompt there stands before the target."""
    ((_, batch),) = aligned(
        gpt2, [EditRequest("The capital of {} is", "France", "Paris")], groups=GROUPS
    )
    row = real(batch, 0, 2)
    assert gpt2.decode(row) == "Q: The capital of France is\nA:" + gpt2.decode(
        batch.target_NU[0][:-1]
    )
    assert gpt2.decode(batch.tokens_NRS[0, 2, batch.prefix : batch.prefix + 1]) == " France"
    assert gpt2.decode(batch.tokens_NRS[0, 2, columns(batch, 0)[2][:1]]) == ":"


@pytest.mark.parametrize(
    ("prompt", "target", "before", "tokens"),
    [
        ("The river of {} is", "long and Paris", " is", " long and Paris"),
        ("{} plays in France", ". Then", "ce", ". Then"),  # no space before a sentence's end
        ("{} plays in France", "'s river", "ce", "'s river"),
        ("The capital of {} is ", "Paris", " is", " Paris"),  # the prompt's space goes with it
        ("The capital of {} is ", "The", " ", "The"),  # not where nothing merges
    ],
)
def test_where_targets_begin(gpt2, prompt, target, before, tokens):
    """The last token of the prompt is that before the target's first, whatever merges."""
    ((_, batch),) = aligned(gpt2, [EditRequest(prompt, "The capital", target)])
    assert gpt2.decode(batch.target_NU[0][batch.mask_NU[0] > 0]) == tokens
    at = columns(batch, 0)[0][0]
    assert gpt2.decode(batch.tokens_NRS[0, 0, at : at + 1]).endswith(before)


def test_at_points_where_a_plain_forward_says_the_target(tokenizer):
    """Logits of the padded rows at `at_NQ` are those of each text alone, at its own columns."""
    cfg = SHAPES["tiny-llama"].replace(vocab=512, layers=2)
    params = init(jax.random.key(0), cfg)
    some = [r for r in PLAIN if len(tokenizer(r.text + r.target)["input_ids"]) < 24][:6]
    ((index, batch),) = aligned(tokenizer, some, groups=GROUPS, size=8)
    N, R, S = batch.tokens_NRS.shape
    flat = lambda x: x.reshape(N * R, S)
    out = forward(params, flat(batch.tokens_NRS), cfg, pos_BT=flat(batch.pos_NRS)).logits
    tails = np.asarray(out).reshape(N, R, S, -1)[:, :, batch.prefix :].reshape(N, -1, cfg.vocab)
    got = np.take_along_axis(tails, batch.at_NQ[..., None], 1)
    C, U = batch.contexts, batch.target_NU.shape[1]
    T, texts, wanted = 64, np.zeros((N * C, 64), np.int32), []
    for n in range(N):
        request = some[index[min(n, len(index) - 1)]]
        for c, context in enumerate(CONTEXTS):
            prompt = context.replace("{}", request.text)
            ids = tokenizer(prompt + join(prompt, request.target))["input_ids"]
            assert len(ids) <= T
            texts[n * C + c, : len(ids)] = ids
            u = int(batch.mask_NU[n].sum())
            wanted.append(range(len(ids) - u - 1, len(ids) - 1))
    plain = np.asarray(forward(params, texts, cfg).logits)
    for b, at in enumerate(wanted):
        n, c = divmod(b, C)
        np.testing.assert_allclose(
            got[n, c * U : c * U + len(at)], plain[b, list(at)], atol=2e-5, rtol=0
        )


# Batches


def test_batches_have_few_shapes_and_every_request_once(gpt2):
    r = np.random.default_rng(0)
    words = ["The", "capital", "of", "France", "is", "Paris"]
    some = lambda low, high: " ".join(r.choice(words, r.integers(low, high)))
    requests = [
        EditRequest(f"{some(1, 20)} {{}} {some(1, 12)}", "France", some(1, 5)) for _ in range(53)
    ]
    found = aligned(gpt2, requests, groups=GROUPS, size=8)
    made = list(found)
    assert len(made) == len(found) == 7
    assert sorted(i for index, _ in made for i in index) == list(range(53))
    tails = [b.tokens_NRS.shape[2] - b.prefix for _, b in made]
    assert tails == sorted(tails)  # requests of like length are together
    assert [len(b.valid_N) for _, b in made] == [8] * 7
    for index, batch in made:
        N = len(index)
        assert batch.valid_N.tolist() == [True] * N + [False] * (8 - N)
        assert batch.prefix % 8 == 0
        assert (batch.pos_NRS[:, :, batch.prefix] >= 0).all()
        assert batch.at_NQ.shape == (8, 3 * batch.target_NU.shape[1] + 1)
        tail = batch.tokens_NRS.shape[2] - batch.prefix
        assert ((batch.at_NQ >= 0) & (batch.at_NQ < 4 * tail)).all()
        for name in ("tokens_NRS", "pos_NRS", "target_NU", "at_NQ"):
            assert getattr(batch, name).dtype == np.int32
            for n in range(N, 8):  # what only fills the batch repeats the last
                assert (getattr(batch, name)[n] == getattr(batch, name)[N - 1]).all()


def test_the_last_batch_grows_by_doubling_in_multiples(gpt2):
    def shape(count, **how):
        requests = [EditRequest("The {} is", "capital", "Paris")] * count
        return [len(b.valid_N) for _, b in aligned(gpt2, requests, **how)]

    assert shape(1) == [1]
    assert shape(3) == [4]
    assert shape(16) == [16]
    assert shape(17) == [16, 1]
    assert shape(0) == []
    assert shape(5, multiple=3, size=12) == [6]
    assert shape(19, multiple=3, size=9) == [9, 9, 3]
    assert shape(7, multiple=3, size=9) == [9]
    with pytest.raises(ValueError, match="batches of 10 requests: needs a positive multiple of 4"):
        shape(1, size=10, multiple=4)


def test_buckets():
    assert [wide(n) for n in (0, 1, 8, 9, 17)] == [0, 8, 8, 16, 24]
    assert [short(n) for n in (1, 2, 3, 16, 17, 24, 25)] == [2, 2, 4, 16, 24, 24, 32]
    assert [few(n) for n in range(1, 18)] == [
        *(1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16, 24)
    ]


def test_one_request_of_a_batch(gpt2):
    place, batch = one_batch(gpt2, PLAIN[:5], groups=GROUPS)
    one = batch.one(place[2])
    assert one.prefix == batch.prefix
    assert one.contexts == 3
    assert one.has_about
    assert one.valid_N.tolist() == [True]
    for name in ("tokens_NRS", "pos_NRS", "target_NU", "mask_NU", "at_NQ"):
        assert (getattr(one, name) == getattr(batch, name)[place[2]][None]).all()
    assert (one.weight_C == batch.weight_C).all()


def test_groups_weigh_the_same_and_the_texts_of_a_group_too(gpt2):
    groups = (("{}",), ("a {}", "b {}", "c {}", "d {}"))
    _, batch = one_batch(gpt2, PLAIN[:1], groups=groups)
    np.testing.assert_allclose(batch.weight_C, [0.5, *[0.125] * 4])
    _, batch = one_batch(gpt2, PLAIN[:1], groups=(sum(groups, ()),))
    np.testing.assert_allclose(batch.weight_C, [0.2] * 5)
    _, batch = one_batch(gpt2, PLAIN[:1], about=None)
    assert not batch.has_about
    assert batch.at_NQ.shape[1] == batch.target_NU.shape[1]


# What cannot be used

MERGED = EditRequest("{}", "France", "'s")  # with Coarse: one token holds subject and target


def test_a_request_that_cannot_be_used_is_an_error_of_one_line(gpt2):
    with pytest.raises(ValueError, match=r"request 0: one token .*; skip=True leaves") as e:
        aligned(Coarse(1), [MERGED])
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match=r"\(and 1 more\)"):
        aligned(Coarse(1), [MERGED, MERGED])
    uneven = EditRequest("The capital of {} is", "France", "Paris")
    groups = (("{}", "{} ("),)
    with pytest.raises(ValueError, match="request 0: its target becomes other tokens in other"):
        aligned(gpt2, [uneven], groups=groups)
    found = aligned(gpt2, [PLAIN[0], uneven], groups=groups, skip=True)
    assert [s.row for s in found.skipped] == ["0", "1"]
    assert list(found) == []


def test_a_request_that_is_too_long_is_left_out_with_its_reason(gpt2):
    long = EditRequest("{}" + " and" * 30, "France", "Paris")
    requests = [PLAIN[0], long, PLAIN[1]]
    with pytest.raises(ValueError, match=r"request 1: \d+ tokens in a context; at most 30; skip"):
        aligned(gpt2, requests, longest=30)
    found = aligned(gpt2, requests, longest=30, skip=True)
    assert [(s.row, "at most 30" in s.reason) for s in found.skipped] == [("1", True)]
    ((index, _),) = found
    assert sorted(index) == [0, 2]  # the caller's numbers
    assert sum(len(i) for i, _ in aligned(gpt2, requests, longest=200)) == 3
    # it is the longest row that counts, with its context
    groups = (("{}", "France " * 30 + "{}"),)
    assert len(aligned(gpt2, PLAIN[:1], groups=groups, longest=30, skip=True).skipped) == 1


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"groups": ()}, "contexts .*: at least one"),
        ({"groups": (("{}",), ())}, "no empty group"),
        ({"groups": (("no slot",),)}, r"the context 'no slot' needs exactly one \{\}"),
        ({"groups": (("{} and {}",),)}, r"the context '\{\} and \{\}' needs exactly one"),
        ({"about": "it is a"}, "the context 'it is a' needs exactly one"),
        ({"token": "subject"}, "token 'subject': one of subject_last, subject_first"),
    ],
)
def test_what_is_asked_wrongly(gpt2, how, why):
    with pytest.raises(ValueError, match=why):
        aligned(gpt2, PLAIN[:1], **how)


def test_a_space_put_before_the_text_is_not_the_subjects_first_token():
    tokenizer = metaspace("prepend")
    request = EditRequest("{} is", "Zürich", "Paris")
    _, at = token_at(tokenizer, request, token="subject_first")
    assert at == 2  # after <s> and ▁
