"""Metrics of tokens, probabilities and texts, against numbers worked out by hand."""

import math
import tracemalloc

import numpy as np
import pytest

from jaxedit.evaluate import metrics, texts
from jaxedit.evaluate.metrics import Interval, bootstrap
from jaxedit.evaluate.texts import TfIdf, generation_match, ngram_entropy, words


def test_tokens_that_are_the_first_choice():
    assert metrics.token_accuracy([5, 6, 9, 8], [5, 6, 7, 8]) == 0.75
    assert not metrics.exact_match([5, 6, 9, 8], [5, 6, 7, 8])
    assert metrics.exact_match((5, 6), [5, 6])
    assert metrics.token_accuracy([5, 6], [5, 6]) == 1.0
    with pytest.raises(ValueError, match="1 tokens said for a target of 2"):
        metrics.token_accuracy([1], [1, 2])
    with pytest.raises(ValueError, match="at least 1"):
        metrics.exact_match([], [])


def test_agreement_is_by_place_and_what_is_missing_does_not_agree():
    assert metrics.agreement([29, 234, 334], [29, 234, 333]) == pytest.approx(2 / 3)
    assert metrics.agreement("abcd", "ab") == 0.5
    assert metrics.agreement("ab", "abcd") == 1.0  # what was said is still said
    assert metrics.agreement("abc", "bca") == 0.0  # the same, but elsewhere
    assert (metrics.agreement("", ""), metrics.agreement("", "a")) == (1.0, 0.0)


def test_the_probability_of_an_answer_is_a_geometric_mean():
    logp = [math.log(0.5), math.log(0.125)]
    assert metrics.probability(logp) == pytest.approx(0.25)
    other = [math.log(0.2)]
    assert metrics.probability_success(logp, other)
    assert not metrics.probability_success(other, logp)
    assert metrics.probability_magnitude(logp, other) == pytest.approx(0.05)
    assert not metrics.probability_success(other, other)  # as likely is not more likely
    # so small that exp gives 0 for both: which is the larger is still known
    assert metrics.probability_success([-800.0], [-900.0])
    with pytest.raises(ValueError, match="without tokens"):
        metrics.probability([])


def test_harmonic_mean():
    assert metrics.harmonic_mean([1, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert metrics.harmonic_mean([0.8] * 3) == pytest.approx(0.8)
    assert metrics.harmonic_mean([1, 1, 0]) == 0
    with pytest.raises(ValueError, match="none below 0"):
        metrics.harmonic_mean([1, -1])


def test_perplexity_of_even_choices_is_their_number():
    assert metrics.perplexity([math.log(7)] * 5) == pytest.approx(7)
    assert metrics.perplexity([0.0, 2 * math.log(3)]) == pytest.approx(3)


def test_expression_is_preference_times_what_is_left_of_the_topic():
    # All tokens count alike: the mean of the wanted ones is (-1 - 2 - 3) / 3 = -2.
    wanted, against = [[-1.0], [-2.0, -3.0]], [[-4.0, -2.0]]
    preferred = 1 / (1 + math.exp(-1))  # -2 against -3
    assert metrics.expression(wanted, against, [[-5.0], [-2.5]]) == pytest.approx(preferred)
    # wanted replies that were more likely before the edit, -1 now -2, cost exp(-1)
    half = metrics.expression(wanted, against, [[-1.0, -1.0], [-1.0]])
    assert half == pytest.approx(preferred * math.exp(-1))
    assert metrics.expression([[0.0]], [[-2000.0]], [[0.0]]) == 1.0  # no overflow, either way
    assert metrics.expression([[-2000.0]], [[0.0]], [[-2000.0]]) == 0.0


def test_drift_is_a_divergence():
    before = np.log([[0.5, 0.5], [0.25, 0.75]])
    after = np.log([[0.25, 0.75], [0.25, 0.75]])
    by_hand = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert metrics.drift(before, after) == pytest.approx(by_hand)
    assert metrics.drift(before, before) == 0
    with np.errstate(divide="ignore"):
        sure = np.log([[1.0, 0.0]])
    assert metrics.drift(sure, before[:1]) == pytest.approx(math.log(2))


SAYS = [
    ("She lives in paris now", [["Paris"]], True),
    ("She lives in Parisian quarters", [["Paris"]], False),
    ("Anna", [["Ann"]], False),
    ("the U.S. of A.", [["United States", "U.S."]], True),
    ("born in 1902", [["19"]], False),
    ("it was 19.5 degrees, not 19,000", [["19"]], False),
    ("1,902 people", [["902"]], False),
    ("it was 19.", [["19"]], True),
    ("-C++-", [["C++"]], True),
    ("l\u2019été à PARIS", [["L'ÉTÉ"]], True),
    ("New\n  York", [["New York"]], True),
    ("他是法国人", [["法国"]], True),
    ("Straße", [["STRASSE"]], True),
    ("", [["a"]], False),
    ("anything", [], False),
]


@pytest.mark.parametrize(("text", "answers", "said"), SAYS)
def test_an_answer_is_said_if_a_name_stands_in_the_text_as_words(text, answers, said):
    assert generation_match(text, answers) is said


def test_any_answer_counts_or_all_of_them_by_any_name():
    answers = [["Ket", "Keti"], ["Ido"]]
    assert generation_match("She speaks Keti.", answers)
    assert not generation_match("She speaks Keti.", answers, every=True)
    assert generation_match("She speaks Ido and keti.", answers, every=True)
    assert not generation_match("", [], every=True)


def test_refusals_are_found_anywhere_and_in_any_case():
    assert texts.contains("Well, i DON'T know. Ask", "I don't know.")
    assert not texts.contains("I know.", "I don't know.")


def test_words_are_those_of_the_treebank():
    assert words('He said: "I don\'t know (really)."') == [
        "He", "said", ":", "``", "I", "do", "n't", "know", "(", "really", ")", ".", "''",
    ]  # fmt: skip
    assert words("Mr. Lo paid $7,800.50 in the U.S. in 3:30, didn't he?") == [
        "Mr.", "Lo", "paid", "$", "7,800.50", "in", "the", "U.S.", "in", "3:30", ",", "did", "n't",
        "he", "?",
    ]  # fmt: skip
    assert words("It's John's dogs' -- 1900\u20131983... I cannot go. The end.") == [
        "It", "'s", "John", "'s", "dogs", "'", "--", "1900", "\u2013", "1983", "...", "I", "can",
        "not", "go", ".", "The", "end", ".",
    ]  # fmt: skip
    assert words("") == words(" \n") == []


def test_entropy_of_ngrams():
    # a b a b a: bigrams ab 2, ba 2 (1 bit); trigrams aba 2, bab 1
    thirds = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy("a b a b a") == pytest.approx((2 / 3 * 1 + 4 / 3 * thirds) / 2)
    # eight different words: seven bigrams, six trigrams
    varied = (2 / 3 * math.log2(7) + 4 / 3 * math.log2(6)) / 2
    assert ngram_entropy("b c d e f g h i") == pytest.approx(varied)
    assert ngram_entropy("no no no no no no") == 0
    assert ngram_entropy("") == ngram_entropy("one") == 0


def test_tfidf_as_scikit_learn_defines_it():
    fitted = TfIdf.fit(["The cat sat", "the Dog", "a cat"])
    # in lower case, of two letters or more; idf = ln((1 + 3) / (1 + df)) + 1
    assert set(fitted.idf) == {"the", "cat", "sat", "dog"}
    assert fitted.idf["cat"] == pytest.approx(math.log(4 / 3) + 1)
    assert fitted.idf["dog"] == pytest.approx(math.log(2) + 1)
    vector = fitted.vector("cat cat dog bird")
    assert math.fsum(w * w for w in vector.values()) == pytest.approx(1)
    assert vector["cat"] / vector["dog"] == pytest.approx(2 * fitted.idf["cat"] / fitted.idf["dog"])
    assert "bird" not in vector
    assert fitted.similarity("Cat sat", "sat, cat!") == pytest.approx(1)
    assert fitted.similarity("cat", "dog") == 0
    assert fitted.similarity("cat", "unknown words") == 0
    a, b = fitted.idf["cat"], fitted.idf["dog"]
    assert fitted.similarity("cat dog", "cat") == pytest.approx(a / math.hypot(a, b))


def test_tfidf_from_published_frequencies():
    read = TfIdf.of({"dog": 1, "cat": 0}, np.array([1.5, 2.0]))
    assert read.idf == {"dog": 2.0, "cat": 1.5}
    with pytest.raises(ValueError, match="1 terms, but 2"):
        TfIdf.of({"dog": 1}, [1.5, 2.0])
    with pytest.raises(ValueError, match="no terms in 1 texts"):
        TfIdf.fit(["a"])


def test_reference_score_compares_all_texts_with_all_references():
    fitted = TfIdf.fit(["red fox", "blue sea"])
    score = texts.reference_score(["red", "sea"], texts.References(fitted, ("red fox", "sea")))
    assert score == pytest.approx(2 / math.sqrt(6))  # all terms weigh the same


def test_an_interval_of_equal_values_or_of_one_is_the_value():
    assert bootstrap(np.full(30, 0.1)) == Interval(0.1, 0.1, 0.1, 30)
    assert bootstrap([0.3]) == Interval(0.3, 0.3, 0.3, 1)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_an_interval_is_the_same_every_time_and_holds_the_mean():
    values = np.random.default_rng(1).random(200)
    found = bootstrap(values)
    assert found == bootstrap(values)
    assert found != bootstrap(values, seed=1)
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / math.sqrt(200)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    # fewer cases say less
    assert np.ptp(bootstrap(values[:20])[1:3]) > 2 * np.ptp(found[1:3])


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        _, low, high, _ = bootstrap((rng.random(60) < 0.7).astype(float), resamples=400)
        held += low <= 0.7 <= high
    assert 0.90 < held / 400 < 0.98


def test_columns_are_resampled_together():
    x = np.random.default_rng(0).random(100)
    both = np.stack([x, 1 - x], 1)
    assert np.ptp(bootstrap(x)[1:3]) > 0.1
    opposed = bootstrap(both, lambda means: means.sum(1))
    assert opposed.high - opposed.low < 1e-12  # what one gains the other loses, case by case
    with pytest.raises(ValueError, match="several columns"):
        bootstrap(both)


def test_cases_without_a_value_do_not_count_in_its_mean():
    some = np.array([[1, np.nan], [0, 0.5], [np.nan, 0.7]])
    assert metrics.column_means(some)[0] == pytest.approx([0.5, 0.6])
    twice = metrics.column_means(some, np.array([[2.0, 1.0, 0.0], [2.0, 0.0, 0.0]]))
    assert twice[0] == pytest.approx([2 / 3, 0.5])
    assert np.isnan(twice[1, 1])
    summed = bootstrap(some, lambda means: means.sum(1))
    assert (summed.mean, summed.n) == (pytest.approx(1.1), 2)
    assert metrics.interval(0.5, np.array([0.4, np.nan, 0.4]), 2) == Interval(0.5, 0.4, 0.4, 2)


def test_memory_of_the_bootstrap_is_bounded():
    values = np.random.default_rng(0).random(100_000)
    tracemalloc.start()
    bootstrap(values, resamples=60)  # 144 MB if drawn at once
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 72e6
    assert metrics.resampled_means(values[:, None], 23, 0).shape == (23, 1)  # in several goes
