"""Text for training: every token once an epoch, the same batches on any hosts, a cache that is
right or made anew.
"""

import dataclasses
import gzip
import itertools
import json
import os

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jaxedit import settings
from jaxedit.data import tokens as tokens_module
from jaxedit.data.documents import Source, read
from jaxedit.data.text import TextConfig, load, pack, shuffle

END = 1


def make_tokenizer(size=2000, bos=False):
    """Words w2 … are their numbers; <end> is 1."""
    vocab = {"<unk>": 0, "<end>": END} | {f"w{i}": i for i in range(2, size)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="w2 $A", special_tokens=[("w2", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")


@pytest.fixture
def tokenizer():
    return make_tokenizer()


def words(first, count):
    return " ".join(f"w{i}" for i in range(first, first + count))


def corpus(seed=0, count=60, longest=40):
    """Documents of which no two share a word, so that a token tells where it is from."""
    texts, at = [], 10
    for n in np.random.default_rng(seed).integers(1, longest, count):
        texts.append(words(at, int(n)))
        at += int(n)
    return texts


def make(texts, **how):
    part = how.pop("part", "train")
    cfg = TextConfig(**({"length": 15, "batch": 4} | how))
    return load(cfg, make_tokenizer(), texts, part=part)


def flat(texts, bos=()):
    return [i for t in texts for i in [*bos, *(int(w[1:]) for w in t.split()), END]]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts_of(*paths, **how):
    return [d.text for d in read(Source(tuple(paths), **how))]


# Windows and their order


def test_stream_has_every_token_exactly_once_an_epoch():
    texts = corpus()
    text = make(texts)
    whole = flat(texts)
    assert text.size == len(whole)
    got = text.read(range(len(text)))
    assert set(got) == {"tokens_BT"}
    assert got["tokens_BT"].dtype == np.int32
    assert got["tokens_BT"].reshape(-1).tolist() == whole[: len(text) * 16]
    assert len(whole) - len(text) * 16 < 16
    # an epoch of shuffled batches, however they lie on its end, has the same windows
    steps = -(-2 * len(text) // 4)
    rows = np.concatenate([text.batch(s)["tokens_BT"] for s in range(steps)])
    for epoch in (0, 1):
        mine = rows[epoch * len(text) : (epoch + 1) * len(text)].tolist()
        assert sorted(mine) == sorted(got["tokens_BT"].tolist())
        assert mine != got["tokens_BT"].tolist()
    assert rows[: len(text)].tolist() != rows[len(text) : 2 * len(text)].tolist()


@pytest.mark.parametrize("mode", ["stream", "documents"])
def test_hosts_together_have_the_whole_batch(mode):
    text = make(corpus(), mode=mode, batch=8)
    assert len(text) % 8, "some batch crosses the end of an epoch"
    for step in range(12):
        whole = text.batch(step)
        for hosts in (2, 4, 8):
            parts = [text.batch(step, p, hosts) for p in range(hosts)]
            for name, x in whole.items():
                np.testing.assert_array_equal(x, np.concatenate([p[name] for p in parts]))
    with pytest.raises(ValueError, match="process 0 of 3 and a batch of 8"):
        text.batch(0, 0, 3)
    with pytest.raises(ValueError, match="process 2 of 2"):
        text.batch(0, 2, 2)
    with pytest.raises(ValueError, match="step -1"):
        text.batch(-1)


def test_a_batch_depends_on_its_step_alone():
    texts = corpus()
    one, other = make(texts), make(texts)
    expected = [one.batch(s)["tokens_BT"].tolist() for s in range(30)]
    for s in (29, 3, 17, 3, 0):
        assert other.batch(s)["tokens_BT"].tolist() == expected[s]
    assert make(texts, seed=1).batch(3)["tokens_BT"].tolist() != expected[3]


def test_the_order_is_that_of_every_other_machine():
    """Saved runs resume on it: it must never change."""
    assert shuffle(np.arange(10), 10, 0, 0).tolist() == [3, 5, 7, 8, 2, 4, 6, 0, 9, 1]
    assert shuffle(np.arange(3), 10**12, 7, 1).tolist() == [
        *(409567279090, 390841755070, 113859882980)
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 1000])
def test_a_shuffle_is_a_permutation(n):
    orders = {tuple(shuffle(np.arange(n), n, 0, epoch).tolist()) for epoch in range(8)}
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert len(orders) > (n > 2)


def test_a_shuffle_is_even():
    """Each of 7 in each place equally often, and one after another too."""
    orders = np.array([shuffle(np.arange(7), 7, 3, epoch) for epoch in range(2000)])
    counts = np.array([np.bincount(column, minlength=7) for column in orders.T])
    assert abs(counts - 2000 / 7).max() < 80  # 5 standard deviations
    follow = np.bincount(orders[:, 0] * 7 + orders[:, 1], minlength=49).reshape(7, 7)
    assert abs(follow[~np.eye(7, dtype=bool)] - 2000 / 42).max() < 35


def test_documents_mode_never_splits_a_document_that_fits():
    texts = corpus()
    text = make(texts, mode="documents")
    got = text.read(range(len(text)))
    rows = [t[p >= 0].tolist() for t, p in zip(got["tokens_BT"], got["pos_BT"], strict=True)]
    assert [i for row in rows for i in row] == flat(texts)
    homes = {}
    for w, row in enumerate(rows):
        for token in row:
            if token != END:
                homes.setdefault(token, w)
    begins = {flat([t])[0] for t in texts}
    for t in texts:
        ids = flat([t])[:-1]
        places = [homes[i] for i in ids]
        assert len(ids) + 1 > 16 or places[0] == places[-1]
    # a window begins with a document, or goes on with one that is longer than a window
    longer = {i for t in texts if len(flat([t])) > 16 for i in flat([t])}
    assert all(row[0] in begins or row[0] in longer for row in rows)
    assert any(row[0] not in begins for row in rows)
    # a document is put off only because it does not fit
    for row, after in itertools.pairwise(rows):
        if after[0] in begins:
            n = next(len(flat([t])) for t in texts if flat([t])[0] == after[0])
            assert len(row) + n > 16
    assert got["pos_BT"][0, : len(rows[0])].tolist() == list(range(len(rows[0])))
    for target, pos, tokens in zip(got["target_BT"], got["pos_BT"], got["tokens_BT"], strict=True):
        assert target.sum() == (pos >= 0).sum() - 1
        assert not target[-1]
        assert (tokens[pos < 0] == 0).all()


def test_packing_by_hand():
    begins, stops = pack(np.array([3, 5, 2, 21, 1, 8]), 8)
    assert list(zip(begins.tolist(), stops.tolist(), strict=True)) == [
        *((0, 8), (8, 10), (10, 18), (18, 26), (26, 32), (32, 40))
    ]


def test_parts_are_disjoint_and_stay_as_text_is_added():
    texts = [words(10 + 10 * i, 9) for i in range(120)]
    held, kept = {}, {}
    for name, some in {"less": texts[:80], "all": texts, "twice": texts + texts}.items():
        for part, found in (("validation", held), ("train", kept)):
            text = make(some, part=part, held_out=0.25, mode="documents")
            ids = text.read(range(len(text)))["tokens_BT"].reshape(-1)
            found[name] = set(ids.tolist()) - {0, END}
        assert not held[name] & kept[name]
        assert held[name] | kept[name] == set(flat(some)) - {END}
    assert held["less"] <= held["all"] == held["twice"]
    assert 0.1 < len(held["all"]) / len(flat(texts)) < 0.4
    # what is streamed is the part's own documents, one after the other
    text = make(texts, part="validation", held_out=0.25)
    got = text.read(range(len(text)))["tokens_BT"].reshape(-1).tolist()
    mine = [t for t in texts if flat([t])[0] in held["all"]]
    assert got == flat(mine)[: len(got)]
    with pytest.raises(ValueError, match=r"no document of 120 is for validation at held_out=0\.0"):
        make(texts, part="validation")
    with pytest.raises(ValueError, match="part 'test'"):
        make(texts, part="test")


def test_a_group_is_held_out_together(tmp_path, tokenizer):
    rows = [{"book": i // 6, "text": words(10 + 10 * i, 9)} for i in range(120)]
    file = write(tmp_path / "a.jsonl", jsonl(rows))
    cfg = TextConfig(
        Source((file,), group="book"), 9, "documents", held_out=0.3, cache=str(tmp_path)
    )
    text = load(cfg, tokenizer, part="validation")
    assert 6 <= len(text.documents) < 120
    for book in np.unique(text.documents // 6):
        assert set(range(6 * book, 6 * book + 6)) <= set(text.documents.tolist())


def test_the_tokenizers_own_bos_and_one_end():
    texts = ["w10 w11", "w12 <end>"]
    text = load(TextConfig(length=6), make_tokenizer(bos=True), texts)
    assert text.read([0])["tokens_BT"].tolist() == [[2, 10, 11, END, 2, 12, END]]
    assert text.size == 7


def test_big_vocabularies_take_four_bytes():
    for size, dtype in ((2000, np.uint16), (1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)):
        text = load(TextConfig(length=1), make_tokenizer(size), [f"w{size - 1} w3"])
        assert text.tokens.flat.dtype == dtype
        assert text.tokens.flat.tolist() == [size - 1, 3, END]


# Where text comes from


def test_files_folders_globs_and_gzip(tmp_path):
    a = write(tmp_path / "x" / "a.jsonl", jsonl([{"text": "w2"}, {"text": "w3\nw4", "id": 1}]))
    b = write(tmp_path / "x" / "b.jsonl.gz", jsonl([{"text": "w5"}]))
    c = write(tmp_path / "x" / "deep" / "c.txt", "w6\n\n\nw7\nw8\n")
    d = write(tmp_path / "x" / "d.txt.gz", "w9\n")
    write(tmp_path / "x" / "README", "not text")
    folder = str(tmp_path / "x")
    assert texts_of(a) == ["w2", "w3\nw4"]
    assert texts_of(folder) == ["w2", "w3\nw4", "w5", "w9\n", "w6\n\n\nw7\nw8\n"]
    assert texts_of(str(tmp_path / "x" / "*.gz"), a) == ["w5", "w9\n", "w2", "w3\nw4"]
    assert texts_of(a, folder, b) == texts_of(folder)
    assert texts_of(str(tmp_path / "**" / "c.*")) == texts_of(c)
    assert texts_of(c, d, document="line") == ["w6", "w7", "w8", "w9"]
    assert texts_of(c, d, document="blank") == ["w6", "w7\nw8", "w9"]
    crlf = write(tmp_path / "crlf.txt", b"\xef\xbb\xbfw6\r\n\r\nw7\r\n")
    assert texts_of(crlf, document="blank") == ["w6", "w7"]
    wiki = write(
        tmp_path / "w.txt", " \n = One = \n \n w2 \n = = Part = = \n w3 \n = Two = \n w4\n"
    )
    assert texts_of(wiki, document="title") == [
        *(" = One = \n \n w2 \n = = Part = = \n w3 ", " = Two = \n w4")
    ]
    other = write(tmp_path / "o.jsonl", jsonl([{"body": "w2", "text": 3}]))
    assert texts_of(other, field="body") == ["w2"]


def test_progress_counts_the_bytes_of_all_files(tmp_path, tokenizer):
    for name in ("a.txt", "b.txt.gz"):
        write(tmp_path / name, words(10, 50))
    said = []
    source = Source((str(tmp_path),))
    total = sum(f.stat().st_size for f in tmp_path.iterdir())
    cfg = TextConfig(source, 15, cache=str(tmp_path / "cache"))
    load(cfg, tokenizer, progress=lambda done, total: said.append((done, total)))
    assert said == sorted(said)
    assert said[-1] == (total, total)
    assert {t for _, t in said} == {total}


def test_bad_lines_are_counted_and_told(tmp_path, tokenizer):
    good = {"text": words(10, 20)}
    lines = [
        jsonl([good]),
        "{oops\n",
        "[1]\n",
        "\n",
        jsonl([{"id": 1}, {"text": None}, {"text": ""}]),
    ]
    lines += ['{"text": "\\ud800"}\n', jsonl([good])]
    file = write(tmp_path / "a.jsonl", "".join(lines).encode() + b'{"text": "\xff"}\n')
    cfg = TextConfig(Source((file,)), 15, cache=str(tmp_path / "cache"))
    for _ in range(2):  # made, and from the cache
        with pytest.warns(UserWarning, match=r"7 rows skipped; .*a\.jsonl:2: not JSON"):
            text = load(cfg, tokenizer)
        assert text.size == 42
        reasons = {s.row.rpartition(":")[2]: s.reason for s in text.tokens.skipped}
        assert list(reasons) == ["2", "3", "5", "6", "7", "8", "10"]
        assert reasons["3"] == "not a JSON object but list"
        assert reasons["5"] == "no field 'text'"
        assert reasons["6"] == "None is not text"
        assert reasons["7"] == "empty text"
        assert "surrogate" in reasons["8"]
        assert "utf-8" in reasons["10"]


def test_a_hub_dataset(monkeypatch, tmp_path, tokenizer):
    rows = [{"text": words(10 + 5 * i, 4), "book": i} for i in range(30)]
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((*args, kwargs["split"]))
        if args[0] == "nobody/nothing":
            raise FileNotFoundError("no such dataset\nand a long story")
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    cfg = TextConfig(Source(("hub:me/text:raw:test",), group="book"), 9, cache=str(tmp_path))
    assert load(cfg, tokenizer).tokens.flat.tolist() == flat([r["text"] for r in rows])
    list(read(Source(("hub:me/text",))))
    list(read(Source(("hub:me/text:validation",))))
    assert asked[-2:] == [("me/text", None, "train"), ("me/text", None, "validation")]
    assert asked[0] == ("me/text", "raw", "test")
    with pytest.raises(ValueError, match=r"no field 'body'; there are text, book"):
        list(read(Source(("hub:me/text",), field="body")))
    with pytest.raises(ValueError, match=r"^hub:nobody/nothing: no such dataset$"):
        list(read(Source(("hub:nobody/nothing",))))
    with pytest.raises(ValueError, match="write hub:NAME"):
        list(read(Source(("hub:a:b:c:d",))))


@pytest.mark.parametrize(
    ("name", "content", "how", "message"),
    [
        (None, "", {}, r"no such file: '.*nowhere\*\.txt'"),
        ("folder/readme.md", "w2", {}, r"folder '.*' has no text: no \.jsonl"),
        (
            "a.jsonl",
            '{"body": "w2", "id": 3}\n',
            {},
            r"a\.jsonl:1: no field 'text'; there are body, id",
        ),
        ("a.jsonl", '{"text": "w2"}\n', {"group": "book"}, "no field 'book'; there are text"),
        ("a.jsonl", "\n", {}, "the text is empty: no documents$"),
        ("a.jsonl", "oops\n", {}, r"empty: no documents; 1 rows skipped, .*a\.jsonl:1: not JSON"),
        ("a.txt", " \n\n", {}, "the text is empty"),
        ("a.txt", b"w2\n\xff\xfe\n", {}, r"a\.txt:2: not UTF-8"),
        ("a.txt", "w2 w3", {}, r"the train text has 3 tokens, a window takes 16: lower the length"),
    ],
)
def test_errors_of_one_line(tmp_path, tokenizer, name, content, how, message):
    path = tmp_path / "nowhere*.txt" if name is None else tmp_path / name
    if name is not None:
        write(path, content)
    path = path.parent if path.suffix == ".md" else path
    cfg = TextConfig(Source((str(path),), **how), 15, cache=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=message) as error:
        load(cfg, tokenizer)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("cache/*.part")) + list(tmp_path.glob("cache/.*"))


def test_a_damaged_gzip_is_an_error(tmp_path):
    data = gzip.compress(words(10, 900).encode())
    for name, bad in (("cut", data[:-50]), ("none", b"plain")):
        file = tmp_path / f"{name}.txt.gz"
        file.write_bytes(bad)
        with pytest.raises(ValueError, match="a damaged gzip file"):
            texts_of(str(file))


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"paths 'a\.txt' is one string"):
        Source("a.txt")
    with pytest.raises(ValueError, match="document 'page': one of file, blank, line, title"):
        Source(("a.txt",), document="page")
    with pytest.raises(ValueError, match="mode 'flow': one of stream, documents"):
        TextConfig(mode="flow")
    with pytest.raises(ValueError, match="length 0"):
        TextConfig(length=0)
    with pytest.raises(ValueError, match=r"held_out 1\.0"):
        TextConfig(held_out=1.0)
    with pytest.raises(ValueError, match="one of them"):
        load(TextConfig(), None)
    with pytest.raises(ValueError, match="one of them"):
        load(TextConfig(Source(("a.txt",))), None, ["w2"])
    with pytest.raises(ValueError, match="texts is one string"):
        make("w2 w3")
    nothing = make_tokenizer()
    nothing.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        load(TextConfig(), nothing, ["w2"])


def test_the_config_can_be_set_from_a_command_line():
    cfg = settings.override(TextConfig(), ["source.paths=a.txt,b.txt", "source.document=line"])
    assert cfg.source == Source(("a.txt", "b.txt"), document="line")
    assert settings.override(cfg, ["source.paths=hub:me/text:test"]).source.paths == (
        "hub:me/text:test",
    )


# The cache


class Counting:
    """A tokenizer that says how often it was used."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.tokenizer(*args, **kwargs)


@pytest.fixture
def cached(tmp_path):
    """A config over one file with a cache, and what it gives."""
    file = write(tmp_path / "a.jsonl", jsonl([{"text": t} for t in corpus()]))
    return TextConfig(Source((file,)), 15, cache=str(tmp_path / "cache"))


def cache_file(cfg):
    (name,) = os.listdir(cfg.cache)
    return os.path.join(cfg.cache, name)


def test_a_cache_is_used_until_something_changes(cached, tmp_path):
    tokenizer = Counting(make_tokenizer())
    text = load(cached, tokenizer)
    assert tokenizer.calls == 1
    assert isinstance(text.tokens.flat, np.memmap)
    assert text.tokens.flat.tolist() == flat(corpus())
    again = load(cached, tokenizer)
    assert tokenizer.calls == 1
    np.testing.assert_array_equal(again.batch(3)["tokens_BT"], text.batch(3)["tokens_BT"])
    # what does not change the tokens: the place and age of the file, windows, padding of before
    file = tmp_path / "a.jsonl"
    moved = file.rename(tmp_path / "moved.jsonl")
    os.utime(moved, (1, 1))
    same = dataclasses.replace(cached, source=Source((str(moved),)), length=7, seed=3, held_out=0.1)
    tokenizer.backend_tokenizer.enable_padding()
    tokenizer.backend_tokenizer.enable_truncation(9)
    load(same, tokenizer)
    assert tokenizer.calls == 1
    # what does: another tokenizer, another text of the same size and age
    load(same, other := Counting(make_tokenizer(bos=True)))
    assert other.calls == 1
    moved.write_text(moved.read_text().replace("w10", "w09"))
    os.utime(moved, (1, 1))
    load(same, tokenizer)
    assert tokenizer.calls == 2
    assert len(os.listdir(cached.cache)) == 3


@pytest.mark.parametrize("damage", ["cut", "short", "empty", "token", "start", "header"])
def test_a_damaged_cache_is_made_again(cached, damage):
    tokenizer = Counting(make_tokenizer())
    load(cached, tokenizer)
    path = cache_file(cached)
    with open(path, "rb") as f:
        whole = f.read()
    header = 8 + int.from_bytes(whole[:8], "little")
    flip = lambda at: whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    bad = {
        "cut": whole[:-5],
        "short": whole[:50],
        "empty": b"",
        "token": flip(header + 101),
        "start": flip(len(whole) - 8 * 100),
        "header": flip(whole.index(b"crc") + 10),
    }[damage]
    with open(path, "wb") as f:
        f.write(bad)
    with pytest.warns(UserWarning, match=r"[\s\S]*the text is tokenised again"):
        text = load(cached, tokenizer)
    assert tokenizer.calls == 2
    assert text.tokens.flat.tolist() == flat(corpus())
    with open(path, "rb") as f:
        assert f.read() == whole
    load(cached, tokenizer)
    assert tokenizer.calls == 2


def test_hosts_may_race_for_the_cache(cached, monkeypatch):
    """Another host finishes while this one tokenises: both have the same file."""
    inner = tokens_module.write_cache

    def write_cache(file, tokens):
        inner(file, tokens)
        monkeypatch.setattr(tokens_module, "write_cache", inner)
        monkeypatch.setattr(tokens_module.socket, "gethostname", lambda: "other")
        load(cached, make_tokenizer())

    monkeypatch.setattr(tokens_module, "write_cache", write_cache)
    text = load(cached, make_tokenizer())
    assert text.tokens.flat.tolist() == flat(corpus())
    assert len(os.listdir(cached.cache)) == 1


def test_a_failure_leaves_nothing_behind(cached):
    class Failing(Counting):
        def __call__(self, *args, **kwargs):
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        load(cached, Failing(make_tokenizer()))
    assert os.listdir(cached.cache) == []


def test_many_documents_are_tokenised_in_pieces(monkeypatch):
    monkeypatch.setattr(tokens_module, "CHARACTERS", 100)
    tokenizer, texts = Counting(make_tokenizer()), corpus()
    text = load(TextConfig(length=15), tokenizer, iter(texts))
    assert tokenizer.calls > 10
    assert text.tokens.flat.tolist() == flat(texts)
