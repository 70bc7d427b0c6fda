"""Metrics of generated text: is an answer said, how varied is the text, how like other texts."""

import collections
import dataclasses
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Self

import numpy as np

# Letters of scripts that put no spaces between words: Thai to Tibetan, Khmer, Chinese, Japanese.
UNSPACED = "\u0e00-\u0fff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
LETTER = rf"[^\W{UNSPACED}]"
APOSTROPHES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


def generation_match(text: str, answers: Sequence[Sequence[str]], *, every: bool = False) -> bool:
    """Does the text say one of the answers (all of them: `every`), by any of its names?

    Case, typographic quotation marks and the kind and number of blanks do not matter. A name has to
    stand as words of its own: "Ann" is not in "Anna", nor "19" in "1902" or "19.5"; scripts that
    put no spaces between words have no such boundaries.
    """
    plain = normalise(text)
    said = [any(pattern(name).search(plain) for name in names) for names in answers]
    return bool(said) and (all if every else any)(said)


def normalise(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).translate(APOSTROPHES).casefold()
    return " ".join(folded.split())


@lru_cache(maxsize=1 << 14)
def pattern(name: str) -> re.Pattern[str]:
    plain = normalise(name)
    if not plain:
        raise ValueError("an empty name is in every text")
    before = after = ""
    if re.match(LETTER, plain):
        before = rf"(?<!{LETTER})" + (r"(?<!\d[.,])" if plain[0].isdigit() else "")
    if re.match(LETTER, plain[-1]):
        after = rf"(?!{LETTER})" + (r"(?![.,]\d)" if plain[-1].isdigit() else "")
    return re.compile(before + re.escape(plain) + after)


def contains(text: str, target: str) -> bool:
    """Is the target in the text, in any case and anywhere: Sanitation's success."""
    return target.casefold() in text.casefold()


# Signs that are words of their own wherever they stand; a colon or comma in a number is none.
SIGN = re.compile(
    "(\"|''|`+|[\u00ab\u00bb\u2018\u2019\u201c\u201d\u201e"
    r"\u2012-\u2015]|\.{2,}|--|[][(){}<>;@#$%&?!*]|[:,](?!\d))"
)
CLOSING = {*"\"')]}>\u00bb\u2019\u201d", "''"}
CLITIC = re.compile(r"(.*[^'])(n't|'(?:s|m|d|ll|re|ve)|')", re.IGNORECASE)
JOINED = {  # two words written as one, and where the first ends
    "cannot": 3, "d'ye": 2, "gimme": 3, "gonna": 3, "gotta": 3, "lemme": 3, "more'n": 4, "wanna": 3,
    "'tis": 2, "'twas": 2,
}  # fmt: skip
QUOTED = re.compile(r"'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", re.IGNORECASE)  # before its first word
ABBREVIATIONS = re.compile(
    r"[a-z]|a\.m|adm|aug|ave|bros|calif|co|col|conn|corp|d\.c|dec|dr|feb|ft|gen|inc|jan|jr|l\.a|lt|"
    r"ltd|maj|messrs|mr|mrs|ms|n\.y|nov|oct|p\.m|ph\.d|prof|rep|sen|sept|sr|st|u\.k|u\.n|u\.s|"
    r"u\.s\.a|u\.s\.s\.r|va|vs|vt|wash",
    re.IGNORECASE,
)
STARTERS = re.compile(
    "A|After|Although|An|And|As|At|But|During|For|From|He|Her|His|However|I|If|In|It|Its|On|She|"
    "Since|That|The|Their|There|These|They|This|To|We|When|While|With"
)  # words that seldom have a capital inside a sentence


def words(text: str) -> list[str]:
    """The words and signs of a text, as nltk's `word_tokenize` finds them in ordinary English.

    It differs where nltk's trained model of sentences knows more. Here a period stays with initials
    and a few common abbreviations, unless the text ends there or a word follows that mostly begins
    sentences; nltk knows more abbreviations, and of most words how often they begin one.
    """
    pieces = text.split()
    found: list[str] = []
    for i, piece in enumerate(pieces):
        parts = SIGN.split(piece)  # words at even places, signs at odd ones
        ends = len(parts) - 1  # after this place there are only signs that close
        while ends > 0 and not parts[ends] and parts[ends - 1] in CLOSING:
            ends -= 2
        following = pieces[i + 1] if i + 1 < len(pieces) else ""
        for at, part in enumerate(parts):
            if at % 2 and part == '"':
                before = "".join(parts[:at])[-1:]
                opens = not before or before in "([{<"
                found.append("``" if opens else "''")
            elif part:
                found += [part] if at % 2 else split_word(part, at == ends, following)
    return found


def split_word(word: str, final: bool, following: str) -> list[str]:
    """Without its period, if a sentence ends there, and without "n't", "'s" and their like."""
    tail: list[str] = []
    if final and len(word) > 1 and word[-1] == "." and ends_sentence(word[:-1], following):
        word, tail = word[:-1], ["."]
    head = ["'"] if QUOTED.match(word) and word.casefold() not in JOINED else []
    word = word[len(head) :]
    while match := CLITIC.fullmatch(word):
        word, tail = match[1], [match[2], *tail]
    cut = JOINED.get(word.casefold(), 0)
    return [*head, word[:cut], word[cut:], *tail] if cut else [*head, word, *tail]


def ends_sentence(word: str, following: str) -> bool:
    """Does the period after a word end the sentence, given the piece of text that follows."""
    if not following or STARTERS.fullmatch(following):
        return True
    if word.isdigit():
        return not following[0].islower()
    return not ABBREVIATIONS.fullmatch(word)


def ngram_entropy(text: str) -> float:
    """Fluency: how little a text repeats itself, in bits; repetition lowers it.

    ROME's and EasyEdit's: the entropies of the text's bigrams and trigrams, weighted 2/3 and 4/3,
    and the mean of the two. They print it times 100.
    """
    said = words(text)
    return (2 / 3 * entropy(said, 2) + 4 / 3 * entropy(said, 3)) / 2


def entropy(said: Sequence[str], n: int) -> float:
    """Of the frequencies of n-grams, in bits; 0 where there are none."""
    counts = collections.Counter(zip(*(said[i:] for i in range(n)), strict=False))
    p = np.array(list(counts.values()), np.float64)
    p /= max(p.sum(), 1)
    return float(-(p * np.log2(p)).sum()) + 0.0  # not -0.0


TERM = re.compile(r"\b\w\w+\b")


@dataclasses.dataclass(frozen=True)
class TfIdf:
    """Texts as vectors of their terms: counts times inverse document frequencies, of norm 1.

    What scikit-learn's TfidfVectorizer does by default: terms are runs of at least two letters or
    digits in lower case, idf = ln((1 + texts) / (1 + texts with the term)) + 1.
    """

    idf: Mapping[str, float]  # of every known term

    @classmethod
    def fit(cls, texts: Iterable[str]) -> Self:
        within: collections.Counter[str] = collections.Counter()
        count = 0
        for text in texts:
            within.update(set(terms(text)))
            count += 1
        if not within:
            raise ValueError(f"no terms in {count} texts to count documents in")
        return cls({t: math.log((1 + count) / (1 + df)) + 1 for t, df in sorted(within.items())})

    @classmethod
    def of(cls, vocabulary: Mapping[str, int], idf: Sequence[float] | np.ndarray) -> Self:
        """From ROME's published files: the place of every term, and the idf there."""
        if len(vocabulary) != len(idf):
            raise ValueError(f"{len(vocabulary)} terms, but {len(idf)} document frequencies")
        return cls({term: float(idf[place]) for term, place in vocabulary.items()})

    def vector(self, text: str) -> dict[str, float]:
        """Weight by known term; empty where the text has none."""
        counts = collections.Counter(t for t in terms(text) if t in self.idf)
        weights = {t: n * self.idf[t] for t, n in counts.items()}
        norm = math.sqrt(math.fsum(w * w for w in weights.values()))
        return {t: w / norm for t, w in weights.items()}

    def similarity(self, one: str, other: str) -> float:
        """Cosine of two texts; 0 where one of them has no known term."""
        a, b = self.vector(one), self.vector(other)
        return math.fsum(w * b[t] for t, w in a.items() if t in b)


def terms(text: str) -> list[str]:
    return TERM.findall(text.lower())


@dataclasses.dataclass(frozen=True)
class References:
    """Texts about the new object, as of Wikipedia, to compare what is generated with."""

    tfidf: TfIdf
    texts: tuple[str, ...]


def reference_score(generated: Sequence[str], references: References) -> float:
    """Consistency: TF-IDF cosine of all generated texts with all reference texts (ROME's RS)."""
    return references.tfidf.similarity(" ".join(generated), " ".join(references.texts))
