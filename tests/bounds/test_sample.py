"""Which documents a bound speaks about, and what is refused."""

import numpy as np
import pytest

from jaxedit.bounds.sample import SampleConfig, load, sample
from jaxedit.data import bytewise
from jaxedit.data.documents import Source
from jaxedit.data.tokens import from_strings

TOKENIZER = bytewise.tokenizer()
TEXTS = ["abc", "de", "a longer text", "x"]


def made(**settings):
    cfg = SampleConfig(Source(("memory",)), **settings)
    return sample(cfg, from_strings(TEXTS, TOKENIZER), TOKENIZER)


def words(s, document):
    return TOKENIZER.decode(s[document])


def test_draws_are_independent_and_the_same_again():
    s = made(draws=4000)
    assert len(s) == 4000
    shares = np.bincount(s.documents_m, minlength=4) / 4000
    assert np.abs(shares - 0.25).max() < 0.03
    np.testing.assert_array_equal(s.documents_m, made(draws=4000).documents_m)
    assert (made(draws=4000, seed=1).documents_m != s.documents_m).any()
    assert [words(s, i) for i in range(4)] == TEXTS
    fresh, again = s.fresh(4000, 0), s.subsample(4000, 0)
    assert (fresh != again).any()
    assert np.abs(np.bincount(fresh, minlength=4) / 4000 - 0.25).max() < 0.03


def test_a_training_batch_holds_documents_of_the_sample():
    s = made(draws=3, seed=5)
    rows = s.windows(64, 8, 0, 0)
    seen = set(s.documents_m.tolist())
    starts = {words(s, i)[:8] for i in seen}
    for tokens, pos in zip(rows.tokens_BT, rows.pos_BT, strict=True):
        real = tokens[pos >= 0]
        text = TOKENIZER.decode([t for t in real.tolist() if t != s.end])
        assert any(text in words(s, i) for i in seen)
        if real[0] == s.end:
            assert any(text.startswith(start) or start.startswith(text) for start in starts)
    assert (s.windows(64, 8, 1, 0).tokens_BT != rows.tokens_BT).any()


def test_shuffled_documents_have_the_same_tokens():
    s, plain = made(draws=5, shuffled=4), made(draws=5)
    assert sorted(s[2].tolist()) == sorted(plain[2].tolist())
    assert s[2].tolist() != plain[2].tolist()
    for at in range(0, 13, 4):  # within stretches of four
        assert sorted(s[2][at : at + 4].tolist()) == sorted(plain[2][at : at + 4].tolist())
    assert s[2].tolist() == made(draws=5, shuffled=4)[2].tolist()


def test_the_digest_names_the_sample():
    assert made(draws=5).digest() == made(draws=5).digest()
    assert len({made(draws=n, seed=k, shuffled=j).digest() for n in (5, 6) for k in (0, 1)
                for j in (0, 4)}) == 8  # fmt: skip


def test_what_is_not_independent_is_refused(tmp_path):
    with pytest.raises(ValueError, match="passages of one document are not independent"):
        SampleConfig(Source(("x",), cut=10))
    with pytest.raises(ValueError, match="set independent=true"):
        SampleConfig(Source(("x",)))
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a", "book": 1}\n{"text": "b", "book": 1}\n')
    source = Source((str(file),), group="book")
    with pytest.raises(ValueError, match="share their 'book'"):
        load(SampleConfig(source, independent=True, cache=str(tmp_path)), TOKENIZER)
    assert len(load(SampleConfig(source, draws=7, cache=str(tmp_path)), TOKENIZER)) == 7
    s = made(independent=True)
    assert len(s) == 4
    with pytest.raises(ValueError, match="true distribution is not known"):
        s.fresh(3, 0)
